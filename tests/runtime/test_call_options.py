import pytest

from agentwire.bridge.card import CardReader
from agentwire.errors import ScenarioError
from agentwire.runtime.call_options import (
    CallOptions,
    GenerationOptions,
    check_deadline,
    make_task,
    parse_request_ids,
    with_question,
)
from agentwire.wire.messages import Decoding, RelaySpec, TaskSpec

DEFAULT = TaskSpec("task", "Answer:", "{text} Answer:", ("a", "b"), RelaySpec("Sum up: {text}"))


def test_a_call_defaults_to_the_scenarios_task() -> None:
    assert make_task(DEFAULT, {}) is DEFAULT
    assert make_task(DEFAULT, {"labels": ["c", "d"]}).prompt == "Answer:"
    assert make_task(DEFAULT, {"generate": 5}).labels == ()
    assert make_task(DEFAULT, {"generate": 5}).max_new_tokens == 5
    assert make_task(DEFAULT, {}, "verbatim").relay.verbatim
    assert make_task(DEFAULT, {}, "summary") == DEFAULT


def test_a_prompt_makes_a_new_task() -> None:
    task = make_task(DEFAULT, {"prompt": "Which {one}?", "labels": ["x", "y"]})
    assert (task.prompt, task.labels, task.max_new_tokens) == ("Which {one}?", ("x", "y"), 0)
    assert task.text_prompt == "{text}\nWhich {one}?" and task.relay.verbatim
    assert make_task(None, {"prompt": "Go on:"}).max_new_tokens > 0
    assert make_task(None, {"prompt": "Go on:", "generate": 7}).max_new_tokens == 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no task"),
        ({"labels": ["a", "b"]}, "no task"),
        ({"prompt": "p", "labels": ["a", "b"], "generate": 3}, "exclude"),
        ({"prompt": "p", "labels": ["a"]}, "two words"),
        ({"prompt": "p", "labels": "good"}, "two words"),
        ({"prompt": "p", "generate": 0}, "1 or more"),
        ({"prompt": "Read {text} and answer"}, "cannot contain"),
    ],
)
def test_bad_options(options: CallOptions, words: str) -> None:
    with pytest.raises(ScenarioError, match=words) as error:
        make_task(None, options)
    assert error.value.hint


def test_a_prompt_is_a_question_where_the_bridge_answers_any() -> None:
    reader = CardReader(layers=(0, 3), sizes=(4,), question="\nQ: {question}\nA:", stop=("\n",))
    options = with_question({"prompt": "Who is {text}?", "generate": 5}, reader)
    task = make_task(None, options)
    assert options["question"] == "Who is {text}?"
    assert (task.prompt, task.text_prompt) == (reader.question, "{text}" + reader.question)
    assert (task.max_new_tokens, task.decoding.stop) == (5, ("\n",))
    stop = GenerationOptions(5, stop=(".",))
    asked = with_question({"prompt": "Who?", "generate": stop}, reader)
    assert make_task(None, asked).decoding.stop == (".", "\n")
    labels = with_question({"prompt": "Good?", "labels": ["yes", "no"]}, reader)
    assert make_task(None, labels).prompt == reader.question
    for kept in ({"prompt": ""}, {}, {"prompt": "\n{question}", "question": "Who?"}):
        assert with_question(kept, reader) is kept  # type: ignore[arg-type]
    assert with_question({"prompt": "Who?"}, None) == {"prompt": "Who?"}


def test_deadlines() -> None:
    assert check_deadline(None, 3.0) == 3.0
    assert check_deadline(0.5, 3.0) == 0.5
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ScenarioError, match="deadline"):
            check_deadline(bad, 3.0)


def test_request_ids() -> None:
    assert parse_request_ids(None, 2) is None
    assert parse_request_ids(["00" * 16], 1) == [bytes(16)]
    for ids in (["xy" * 16], ["00" * 15], ["00" * 16] * 2, [""]):
        with pytest.raises(ScenarioError, match="request id"):
            parse_request_ids(ids, 1)


def test_generation_options_become_part_of_the_task() -> None:
    options = GenerationOptions(7, temperature=0.7, top_p=0.95, seed=3, stop=("\n",))
    task = make_task(None, {"prompt": "", "generate": options, "form": "chat"}, stream=True)
    assert (task.max_new_tokens, task.form, task.text_prompt) == (7, "chat", "{text}")
    assert task.decoding == Decoding(700, 950, 3, ("\n",), True)
    assert make_task(None, {"prompt": "p", "generate": 5}).decoding == Decoding()
    fresh = {
        make_task(None, {"prompt": "p", "generate": GenerationOptions(5, 1.0)}).decoding.seed
        for _ in range(8)
    }
    assert len(fresh) > 1  # a new seed for each call
