"""Fan-out: the runtime it makes, and how it handles failures."""

from typing import Any

import pytest

from agentwire.errors import NackCode, RequestError, ScenarioError
from agentwire.runtime.call_options import WireOptions
from agentwire.runtime.deployment import Deployment
from agentwire.runtime.pending import Outcome
from agentwire.runtime.reply import KeptPayload, Reply
from agentwire.runtime.topology import MAX_READS, Receivers, fan_out
from agentwire.spec.agent import AgentSpec, OutgoingBridge
from agentwire.spec.scenario import WireSpec
from agentwire.wire.messages import Channel

NAMES = ("judge", "critic", "other")


def deployment() -> Deployment:
    """A sender, two receivers of one bridge, and one of another."""
    folders = {"judge": "fake:j", "critic": "fake:j", "other": "fake:o"}
    wires = [WireSpec.model_validate({"from": "a", "to": name}) for name in NAMES]
    bridges = tuple(
        OutgoingBridge(wire=f"a->{name}", receiver=name, folder=folder)
        for name, folder in folders.items()
    )
    agents = {n: AgentSpec(name=n, backend="fake", model=n) for n in ("a", *NAMES)}
    agents["a"] = agents["a"].model_copy(update={"bridges": bridges})
    return Deployment.of_specs(agents, wires)


class FakeRuntime:
    """A runtime that records its runtime. Each call pops an error, or None, to raise."""

    def __init__(self, keeps: list[Any] | None = None, sends: dict[str, list[Any]] | None = None):
        self.keeps, self.sends = keeps or [], sends or {}
        self.kept: list[tuple[str, str, dict[str, Any]]] = []
        self.sent: list[tuple[str, KeptPayload, dict[str, Any]]] = []

    async def keep(self, sender: str, receiver: str, text: str, **options: Any) -> KeptPayload:
        self.kept.append((receiver, text, options))
        if self.keeps and (error := self.keeps.pop(0)) is not None:
            raise error
        return KeptPayload(sender, receiver, f"{len(self.kept):032x}", Channel.SOFT, "", 256, 1.0)

    async def send(self, sender: str, receiver: str, text: KeptPayload, **options: Any) -> Reply:
        self.sent.append((receiver, text, options))
        errors = self.sends.get(receiver, [])
        if errors and (error := errors.pop(0)) is not None:
            raise error
        label = options.get("prompt") or "none"
        return Reply("0" * 32, label, 0, {label: 0.0}, None, Channel.SOFT, "", {}, 1.0, 256)


async def ask(runtime: FakeRuntime, receivers: Receivers, **options: Any) -> dict[str, Outcome]:
    return await fan_out(runtime, deployment(), "a", receivers, "a text", WireOptions(**options))


def error(code: NackCode) -> RequestError:
    return RequestError(code, str(code))


def labels(outcomes: dict[str, Outcome]) -> dict[str, str | None]:
    return {n: o.label if isinstance(o, Reply) else o.code.value for n, o in outcomes.items()}


async def test_the_sender_reads_once_and_each_receiver_gets_its_options() -> None:
    runtime = FakeRuntime()
    own: dict[str, WireOptions] = {"judge": {"prompt": "Good?"}, "critic": {}}
    got = await ask(runtime, own, prompt="Well?", fallback="error", deadline=5.0)
    assert labels(got) == {"judge": "Good?", "critic": "Well?"} and list(got) == ["judge", "critic"]
    ((_, text, options),) = runtime.kept
    assert text == "a text" and options["fallback"] == "error" and options["deadline"] <= 5.0
    assert [(r, kept.receiver, kept.request_id) for r, kept, _ in runtime.sent] == [
        ("judge", "judge", f"{1:032x}"),
        ("critic", "critic", f"{1:032x}"),
    ]
    assert all(options["deadline"] <= 5.0 for _, _, options in runtime.sent)


async def test_an_error_concerns_one_receiver() -> None:
    runtime = FakeRuntime(sends={"critic": [error(NackCode.AGENT_DOWN)]})
    got = await ask(runtime, ["judge", "critic"], prompt="x")
    assert labels(got) == {"judge": "x", "critic": "agent_down"}


async def test_an_expired_payload_is_read_again_for_the_receivers_without_it() -> None:
    runtime = FakeRuntime(sends={"critic": [error(NackCode.EXPIRED)]})
    got = await ask(runtime, ["judge", "critic"], prompt="x")
    assert labels(got) == {"judge": "x", "critic": "x"}
    assert [r for r, _, _ in runtime.sent] == ["judge", "critic", "critic"] and len(
        runtime.kept
    ) == 2
    runtime = FakeRuntime(sends={"critic": [error(NackCode.EXPIRED)] * 9})
    got = await ask(runtime, ["judge", "critic"], prompt="x")
    assert labels(got) == {"judge": "x", "critic": "expired"} and len(runtime.kept) == MAX_READS


async def test_a_failed_sender_fails_all_receivers() -> None:
    got = await ask(FakeRuntime(keeps=[error(NackCode.AGENT_DOWN)]), ["judge", "critic"])
    assert labels(got) == {"judge": "agent_down", "critic": "agent_down"}


@pytest.mark.parametrize(
    ("receivers", "words"),
    [
        (["judge", "other"], "judge and other cannot read the same payload"),
        ([], "no receivers"),
        (["judge", "nobody"], "no agent 'nobody'"),
    ],
)
async def test_invalid_fan_outs(receivers: list[str], words: str) -> None:
    runtime = FakeRuntime()
    with pytest.raises(ScenarioError, match=words) as caught:
        await ask(runtime, receivers)
    assert caught.value.hint and not runtime.kept
