from __future__ import annotations

import pytest

from agentwire.errors import DataError
from agentwire.task.definitions import definitions, load_definition, parse_definition

GOOD = """
name: tiny
description: two classes
licence: CC0
labels: [worse, better]
label_words: [bad, good]
prompt: "\\nVerdict:"
text_prompt: "{text}\\nVerdict:"
relay: {template: "Summarize: {text}", max_new_tokens: 8}
"""


def test_the_shipped_tasks() -> None:
    shipped = definitions()
    assert {name: len(task.labels) for name, task in shipped.items() if task.labels} == {
        "ag_news": 4,
        "banking77": 77,
        "emotion": 6,
        "movie_snippets": 2,
        **{f"passkey_{digit}": 10 for digit in range(1, 6)},
        "sst2": 2,
        "subj": 2,
        "trec": 6,
    }
    answered = {name for name, task in shipped.items() if task.kind == "answer"}
    assert answered == {"boolq", "fairytaleqa", "hotpotqa", "qamr", "squad", "squad_full"}
    assert list(shipped) == sorted(shipped)


@pytest.mark.parametrize("name", list(definitions()))
def test_prompts_leave_the_space_to_the_label(name: str) -> None:
    task = load_definition(name)
    assert task.prompt.startswith("\n")
    assert not task.prompt[-1].isspace()
    assert len(task.prompt) < 32  # the receiver reads it for every row: a few tokens
    assert not task.text_prompt[-1].isspace()


def test_both_sentiment_sets_ask_the_same() -> None:
    sst2, snippets = load_definition("sst2").spec(), load_definition("movie_snippets").spec()
    assert sst2.prompt_hash == snippets.prompt_hash
    assert sst2.task_id != snippets.task_id


def test_spec_is_what_messages_carry() -> None:
    task = parse_definition(GOOD, "tiny.yaml")
    spec = task.spec()
    assert (spec.name, spec.prompt, spec.labels) == ("tiny", "\nVerdict:", ("bad", "good"))
    assert (spec.relay.template, spec.relay.max_new_tokens) == ("Summarize: {text}", 8)
    assert not spec.relay.verbatim
    assert task.spec(relay="verbatim").relay.verbatim
    assert spec.prompt_hash == task.spec(relay="verbatim").prompt_hash


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"Did you mean 'sst2'.*task: \{file: my_task.yaml"):
        load_definition("sst-2")
    with pytest.raises(DataError, match="Tasks: ag_news, banking77"):
        load_definition("zzz")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label_words: [bad, good]", "label_words: [bad]", "2 labels but 1 label_words"),
        ("label_words: [bad, good]", "label_words: [bad, bad]", "must be distinct"),
        ("label_words: [bad, good]", "label_words: [bad, ' good']", "without spaces"),
        ('text_prompt: "{text}', 'text_prompt: "text', r"text_prompt must hold \{text\}"),
        ("Summarize: {text}", "Summarize", r"tiny.yaml:9: relay: relay.template must hold"),
        (
            "licence: CC0",
            "license: CC0",
            "tiny.yaml:4: unknown key 'license'. Did you mean 'licence'",
        ),
        ("labels: [worse, better]", "labels: [worse", "tiny.yaml:6: not valid YAML"),
        ("name: tiny", "- tiny", "tiny.yaml"),
    ],
)
def test_a_bad_definition_is_named(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError, match=message) as caught:
        parse_definition(GOOD.replace(old, new), "tiny.yaml")
    assert "tiny.yaml" in caught.value.message
