from itertools import product

import pytest

from agentwire.agent.fallback import (
    AfterNack,
    BridgeState,
    Decision,
    Hold,
    Policy,
    Refuse,
    UseSoft,
    UseText,
    after_nack,
    decide,
    knows_prompt,
)
from agentwire.errors import NackCode
from agentwire.wire.messages import BridgeIdentity, Channel, TaskSpec

# (state, prompt known, generates, payload ok) -> None: soft; a code: text or error by policy.
HOLD = "hold"
TABLE: dict[tuple[BridgeState, bool, bool, bool], NackCode | str | None] = {}
for _prompt, _generates, _payload in product((True, False), repeat=3):
    TABLE[BridgeState.NONE, _prompt, _generates, _payload] = NackCode.NO_BRIDGE
    TABLE[BridgeState.REFUSED, _prompt, _generates, _payload] = NackCode.BRIDGE_MISMATCH
for _state in (BridgeState.OFFERED, BridgeState.ACCEPTED):
    for _payload in (True, False):
        TABLE[_state, False, True, _payload] = NackCode.UNSUPPORTED
        TABLE[_state, False, False, _payload] = NackCode.PROMPT_MISMATCH
for _generates in (True, False):
    TABLE[BridgeState.OFFERED, True, _generates, True] = HOLD
    TABLE[BridgeState.OFFERED, True, _generates, False] = HOLD
    TABLE[BridgeState.ACCEPTED, True, _generates, True] = None
    TABLE[BridgeState.ACCEPTED, True, _generates, False] = NackCode.BAD_PAYLOAD


def _expected(entry: NackCode | str | None, policy: Policy) -> Decision:
    if entry is None:
        return UseSoft()
    if isinstance(entry, NackCode):
        return UseText(entry) if policy == "text" else Refuse(entry)
    return Hold()


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(product(BridgeState, *[(True, False)] * 3))


@pytest.mark.parametrize("policy", ["text", "error"])
@pytest.mark.parametrize("case", TABLE, ids=str)
def test_sender(case: tuple[BridgeState, bool, bool, bool], policy: Policy) -> None:
    state, prompt_known, generates, payload_ok = case
    decision = decide(
        state,
        prompt_known=prompt_known,
        generates=generates,
        policy=policy,
        payload_ok=payload_ok,
    )
    assert decision == _expected(TABLE[case], policy)


SOFT_AND_TEXT_POLICY: dict[NackCode, AfterNack] = {
    NackCode.VERSION: AfterNack.FAIL,
    NackCode.EXPIRED: AfterNack.FAIL,
    NackCode.MALFORMED: AfterNack.AS_TEXT,
    NackCode.TOO_LARGE: AfterNack.AS_TEXT,
    NackCode.CHECKSUM: AfterNack.AS_TEXT,
    NackCode.UNAUTHORIZED: AfterNack.FAIL,
    NackCode.STALE_EPOCH: AfterNack.LATER,
    NackCode.UNKNOWN_WIRE: AfterNack.FAIL,
    NackCode.UNKNOWN_TASK: AfterNack.FAIL,
    NackCode.BRIDGE_MISMATCH: AfterNack.AS_TEXT,
    NackCode.PROMPT_MISMATCH: AfterNack.AS_TEXT,
    NackCode.BAD_PAYLOAD: AfterNack.AS_TEXT,
    NackCode.NO_BRIDGE: AfterNack.AS_TEXT,
    NackCode.OVERLOADED: AfterNack.LATER,
    NackCode.DEADLINE: AfterNack.FAIL,
    NackCode.CANCELLED: AfterNack.FAIL,
    NackCode.AGENT_DOWN: AfterNack.FAIL,
    NackCode.DEAD_LETTER: AfterNack.FAIL,
    NackCode.MODEL_ERROR: AfterNack.AS_TEXT,
    NackCode.UNSUPPORTED: AfterNack.AS_TEXT,
    NackCode.CLOSING: AfterNack.LATER,
}


@pytest.mark.parametrize("code", list(NackCode))
@pytest.mark.parametrize("channel", list(Channel))
@pytest.mark.parametrize("policy", ["text", "error"])
def test_client(code: NackCode, channel: Channel, policy: Policy) -> None:
    expected = SOFT_AND_TEXT_POLICY[code]
    if expected is AfterNack.AS_TEXT and (channel is Channel.TEXT or policy == "error"):
        expected = AfterNack.FAIL
    assert after_nack(code, channel=channel, policy=policy) is expected


def test_a_bridge_knows_its_prompts() -> None:
    task = TaskSpec(name="t", prompt="p", text_prompt="{text} p", labels=("a", "b"))
    other = TaskSpec(name="t", prompt="q", text_prompt="{text} q", labels=("a", "b"))

    def bridge(*prompts: str) -> BridgeIdentity:
        return BridgeIdentity("b", "0", "1", "2", 1, 8, 16, prompts, (0.5, 2.0))

    assert knows_prompt(bridge(task.prompt_hash), task)
    assert not knows_prompt(bridge(task.prompt_hash), other)
    assert knows_prompt(bridge("any"), other)
