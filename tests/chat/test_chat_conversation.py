"""What the sender reads and what the receiver is asked, for a given conversation."""

import json
from typing import Any

import pytest

from agentwire.chat.conversation import DEFAULT_PROMPT, Conversation, parse_conversation
from agentwire.chat.errors import ChatError
from agentwire.chat.requests import ChatMessage, ChatRequest
from agentwire.spec.scenario import WireSpec


def conversation(*turns: tuple[str, Any]) -> Conversation:
    messages = [ChatMessage.model_validate({"role": r, "content": c}) for r, c in turns]
    return parse_conversation(messages)


def test_generation_options_follow_openais_fields() -> None:
    def generation(**fields: Any) -> Any:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "m", "messages": messages, **fields}
        return ChatRequest.model_validate(body).generation()

    options = generation(max_tokens=9, temperature=0.5, top_p=0.9, seed=-1, stop="\n")
    assert (options.max_new_tokens, options.temperature, options.top_p) == (9, 0.5, 0.9)
    assert (options.seed, options.stop) == (2**32 - 1, ("\n",))
    assert generation(max_tokens=9, max_completion_tokens=7).max_new_tokens == 7
    assert generation().temperature == 0.0
    assert generation(user="me", store=True, tools=[], n=1, response_format={"type": "text"})


def test_sender_reads_one_message_without_its_role() -> None:
    one = conversation(("system", "Judge."), ("user", "a warm film"))
    assert one.sender_text == "a warm film"
    several = conversation(("user", "hello"), ("assistant", "hi"), ("user", "bye"))
    assert several.sender_text == "User: hello\nAssistant: hi\nUser: bye"
    assert json.loads(several.chat_json())[1] == {"role": "assistant", "content": "hi"}


def test_prompt_follows_the_conversation() -> None:
    one = conversation(("system", "Judge."), ("user", "a warm film"))
    assert json.loads(one.chat_json("Good?"))[-1]["content"] == "a warm film\nGood?"
    two = conversation(("user", "hello"), ("assistant", "hi"))
    assert json.loads(two.chat_json("Good?"))[-1] == {"role": "user", "content": "Good?"}


def test_system_messages_are_the_receivers_prompt() -> None:
    both = conversation(("system", "Be brief."), ("user", "a film"))
    assert both.prompt(with_handle=False) == "Be brief."
    assert both.unread(with_handle=False) == ["system"]
    assert conversation(("user", "a film")).prompt(with_handle=False) == DEFAULT_PROMPT


def test_words_around_a_handle_are_the_prompt() -> None:
    found = conversation(("system", "Be brief."), ("user", "<|agentwire:abc_-9|> Is it good?"))
    assert found.tokens == ("abc_-9",)
    assert found.prompt(with_handle=True) == "Be brief.\nIs it good?"
    assert found.unread(with_handle=True) == ["system", "text"]
    repeated = conversation(("user", "<|agentwire:abc|>"), ("user", "<|agentwire:abc|>?"))
    assert repeated.tokens == ("abc",)
    several = conversation(("user", "<|agentwire:def|> <|agentwire:abc|> <|agentwire:def|>"))
    assert several.tokens == ("def", "abc")


@pytest.mark.parametrize(
    "changed", ["<\u200d|agentwire:abc|\u200d>", "&lt;|agentwire:abc|&gt;", "|agentwire:abc|"]
)
def test_handle_changed_by_a_framework_is_recognised(changed: str) -> None:
    original = conversation(("user", "<|agentwire:abc|> good?"))
    assert conversation(("user", f"{changed} good?")) == original


@pytest.mark.parametrize("damaged", ["<|agentwire:a b|>", "<|agentwire:abc", "<|agentwire:|>"])
def test_damaged_handle_is_refused(damaged: str) -> None:
    with pytest.raises(ChatError) as error:
        conversation(("user", damaged))
    assert error.value.code == "handle_not_found"


def test_each_sender_of_a_joint_wire_reads_one_text_part() -> None:
    def wires(reads: str) -> list[WireSpec]:
        shared = {"to": "c", "joint": ["a", "b"], "reads": reads}
        return [WireSpec.model_validate({"from": sender, **shared}) for sender in "ab"]

    parts: Any = [{"type": "text", "text": "the plot"}, {"type": "text", "text": "the acting"}]
    two = conversation(("system", "Judge."), ("user", parts))
    assert two.sender_texts(wires("share")) == ("the plot", "the acting")
    assert two.sender_text == "the plot\nthe acting"  # a single sender reads both
    one = conversation(("user", "a warm film"))
    assert one.sender_texts(wires("share")) == ("a warm", "film")
    assert one.sender_texts(wires("whole")) == ("a warm film", "a warm film")
    turns = conversation(("user", parts), ("assistant", "hm"))
    assert turns.sender_texts(wires("whole")) == (turns.sender_text, turns.sender_text)
    with pytest.raises(ChatError, match="3 text parts for 2 senders"):
        conversation(("user", [*parts, parts[0]])).sender_texts(wires("whole"))


def test_a_document_is_asked_the_last_question() -> None:
    question = ("user", "When?")
    system = conversation(("system", "A text."), question)
    assert system.asked(with_handle=False) == ("A text.", "When?", [])
    first = conversation(("user", "A text."), question)
    assert first.asked(with_handle=False) == ("A text.", "When?", [])
    earlier = conversation(("user", "A text."), ("user", "Who?"), ("assistant", "She."), question)
    assert earlier.asked(with_handle=False) == ("A text.", "When?", ["history"])
    earlier = conversation(("system", "A text."), ("user", "Who?"), ("assistant", "She."), question)
    assert earlier.asked(with_handle=False) == ("A text.", "When?", ["history"])
    handle = conversation(("system", "Be brief."), ("user", "<|agentwire:abc|>"), question)
    assert handle.asked(with_handle=True) == ("", "When?", ["system"])


@pytest.mark.parametrize(
    "turns", [[("user", "A text.")], [("system", "A text.")], [("assistant", "a"), ("user", "b")]]
)
def test_a_document_without_a_question_is_refused(turns: list[tuple[str, str]]) -> None:
    with pytest.raises(ChatError, match="a document and a question"):
        conversation(*turns).asked(with_handle=False)
