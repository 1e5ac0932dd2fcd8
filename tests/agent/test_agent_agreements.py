import pytest

from agentwire.agent.validation import Agreements, covers_prompt
from agentwire.errors import NackCode
from agentwire.wire.messages import Accept, BridgeIdentity, Mode, ModelIdentity, Nack, TaskSpec

WIRE = "a->b"
MODEL = ModelIdentity("m", "0" * 64, 16, 4, 1.0, "float32", "cpu")
LABELS = TaskSpec(name="t", prompt="p", text_prompt="{text} p", labels=("a", "b"))
FREE = TaskSpec(name="t", prompt="p", text_prompt="{text} p", max_new_tokens=8)


def sender(*, prompts: tuple[str, ...] = ("any",), answer: bool | None) -> Agreements:
    bridge = BridgeIdentity("b", "0", "1", "2", 1, 8, 16, prompts, (0.5, 2.0))
    made = Agreements(MODEL, {WIRE: bridge, "a->c": None}, ())
    if answer is not None:
        code = NackCode.BRIDGE_MISMATCH
        made.handle_answer(Accept(WIRE, "0") if answer else Nack(code, "no", WIRE))
    return made


@pytest.mark.parametrize("answer", [None, True, False])
def test_a_bridge_is_used_once_the_receiver_accepts_it(answer: bool | None) -> None:
    agreements = sender(answer=answer)
    assert (WIRE in agreements.accepted) is (answer is True)
    expected = NackCode.BRIDGE_MISMATCH if answer is False else None
    assert agreements.obstacle(WIRE, LABELS, Mode.FORWARD) is expected


def test_a_wire_without_a_bridge_has_no_soft_tokens() -> None:
    agreements = sender(answer=True)
    assert "a->c" not in agreements.accepted
    assert agreements.obstacle("a->c", LABELS, Mode.FORWARD) is NackCode.NO_BRIDGE


def test_a_bridge_is_used_for_the_prompts_that_it_was_trained_for() -> None:
    agreements = sender(prompts=("other",), answer=True)
    assert agreements.obstacle(WIRE, LABELS, Mode.FORWARD) is NackCode.PROMPT_MISMATCH
    assert agreements.obstacle(WIRE, FREE, Mode.FORWARD) is NackCode.UNSUPPORTED
    assert agreements.obstacle(WIRE, LABELS, Mode.KEEP) is None  # checked when it is used


def test_an_answer_about_another_bridge_is_ignored() -> None:
    agreements = sender(answer=None)
    agreements.handle_answer(Accept(WIRE, "another"))
    agreements.handle_answer(Accept("a->c", "0"))
    assert not agreements.accepted


def test_prompts_of_a_bridge() -> None:
    other = TaskSpec(name="t", prompt="q", text_prompt="{text} q", labels=("a", "b"))
    assert covers_prompt((LABELS.prompt_hash,), LABELS)
    assert not covers_prompt((LABELS.prompt_hash,), other)
    assert covers_prompt(("any",), other)
    assert not covers_prompt(("any",), FREE) and covers_prompt(("free_text",), FREE)
