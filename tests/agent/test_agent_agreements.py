from itertools import product

import pytest

from agentwire.agent.agreements import (
    AwaitReceiver,
    BridgeState,
    Decision,
    Policy,
    Refuse,
    UseSoft,
    UseText,
    decide,
    knows_prompt,
)
from agentwire.errors import NackCode
from agentwire.wire.messages import BridgeIdentity, TaskSpec


def expected(state: BridgeState, prompt_known: bool, generates: bool, policy: Policy) -> Decision:
    code: NackCode
    if state is BridgeState.NONE:
        code = NackCode.NO_BRIDGE
    elif state is BridgeState.REFUSED:
        code = NackCode.BRIDGE_MISMATCH
    elif not prompt_known:
        code = NackCode.UNSUPPORTED if generates else NackCode.PROMPT_MISMATCH
    else:
        return UseSoft() if state is BridgeState.ACCEPTED else AwaitReceiver()
    return UseText(code) if policy == "text" else Refuse(code)


@pytest.mark.parametrize("policy", ["text", "error"])
@pytest.mark.parametrize("state", list(BridgeState))
def test_the_decision_of_the_sender(state: BridgeState, policy: Policy) -> None:
    for prompt_known, generates in product((True, False), repeat=2):
        decision = decide(state, prompt_known=prompt_known, generates=generates, policy=policy)
        assert decision == expected(state, prompt_known, generates, policy)


def test_a_bridge_knows_its_prompts() -> None:
    task = TaskSpec(name="t", prompt="p", text_prompt="{text} p", labels=("a", "b"))
    other = TaskSpec(name="t", prompt="q", text_prompt="{text} q", labels=("a", "b"))

    def bridge(*prompts: str) -> BridgeIdentity:
        return BridgeIdentity("b", "0", "1", "2", 1, 8, 16, prompts, (0.5, 2.0))

    assert knows_prompt(bridge(task.prompt_hash), task)
    assert not knows_prompt(bridge(task.prompt_hash), other)
    assert knows_prompt(bridge("any"), other)
