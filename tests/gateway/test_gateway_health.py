"""What a gateway says of its agents: an agent with replicas works while one of them does."""

from agentwire.gateway.health import Health
from agentwire.runtime.reply import AgentInfo, ProgressEvent


def test_an_agent_works_while_one_of_its_replicas_does() -> None:
    health = Health(["a", "b.1", "b.2"])

    def then(process: str, stage: str) -> tuple[str, bool]:
        health(ProgressEvent(process, stage, 1.0))
        return health.report({})[:2]

    assert health.report({})[:2] == ("degraded", False)
    assert then("a", "ready") == ("degraded", False)
    assert then("b.1", "ready") == ("degraded", True)
    assert then("b.2", "ready") == ("ok", True)
    assert then("b.1", "lost") == ("degraded", True)
    assert then("b.2", "down") == ("degraded", False)
    states = {name: entry["state"] for name, entry in health.report({})[2].items()}
    assert states == {"a": "ready", "b.1": "restarting", "b.2": "down"}


def test_starts_are_counted_also_where_an_epoch_is_a_time() -> None:
    """An agent of another machine numbers its incarnations by the clock."""
    info = AgentInfo(0, "m", "cpu", "0" * 64, epoch=1_795_627_278_303, restarts=2)
    assert Health(["a"]).report({"a": info})[2]["a"]["starts"] == 3
