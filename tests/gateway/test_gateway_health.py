"""Health reports: an agent with replicas works while at least one replica does."""

from agentwire.gateway.health import Health
from agentwire.runtime.reply import AgentInfo, ProgressEvent


def test_agent_works_while_one_replica_does() -> None:
    health = Health(["a", "b.1", "b.2"])

    def after(process: str, stage: str) -> tuple[str, bool]:
        health(ProgressEvent(process, stage, 1.0))
        return health.report({})[:2]

    assert health.report({})[:2] == ("degraded", False)
    assert after("a", "ready") == ("degraded", False)
    assert after("b.1", "ready") == ("degraded", True)
    assert after("b.2", "ready") == ("ok", True)
    assert after("b.1", "lost") == ("degraded", True)
    assert after("b.2", "down") == ("degraded", False)
    states = {name: entry["state"] for name, entry in health.report({})[2].items()}
    assert states == {"a": "ready", "b.1": "restarting", "b.2": "down"}


def test_starts_are_counted_for_a_remote_agent() -> None:
    """The epochs of a remote agent are clock times, so they cannot be used as a count."""
    info = AgentInfo(0, "m", "cpu", "0" * 64, epoch=1_795_627_278_303, restarts=2)
    assert Health(["a"]).report({"a": info})[2]["a"]["starts"] == 3
