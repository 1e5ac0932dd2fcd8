"""What a request says, and what is asked of whom because of it: no socket, no agent."""

import json
from typing import Any

import pytest

from agentwire.chat.conversation import DEFAULT_PROMPT, conversation
from agentwire.chat.errors import HttpError, http_error
from agentwire.chat.requests import ChatRequest, CompletionRequest, Message
from agentwire.errors import AgentwireError, BusClosed, NackCode, RequestError, ScenarioError
from agentwire.gateway.limits import Gate, GatewayLimits, parse
from agentwire.spec.scenario import WireSpec

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": HELLO, **fields}
    request: ChatRequest = parse(ChatRequest, json.dumps(body).encode())
    return request


def said(*turns: tuple[str, Any]) -> Any:
    return conversation([Message.model_validate({"role": r, "content": c}) for r, c in turns])


def test_options_are_openais_words_for_ours() -> None:
    options = chat(max_tokens=9, temperature=0.5, top_p=0.9, seed=-1, stop="\n").options()
    assert (options.max_new_tokens, options.temperature, options.top_p) == (9, 0.5, 0.9)
    assert (options.seed, options.stop) == (2**32 - 1, ("\n",))
    assert chat(max_tokens=9, max_completion_tokens=7).options().max_new_tokens == 7
    assert chat().options().temperature == 0.0
    assert chat(user="me", store=True, tools=[], n=1, response_format={"type": "text"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"agentwire": {"lables": ["a"]}}, "agentwire.lables"),
        ({"agentwire": {"fallback": "maybe"}}, "agentwire.fallback"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_with_its_field(
    fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(HttpError) as error:
        chat(**fields)
    assert error.value.status == 400
    assert error.value.body()["error"]["type"] == "invalid_request_error"
    if param is not None:
        assert error.value.param == param
        assert error.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": "m"}', b"[" * 100_000])
def test_what_is_no_request(body: bytes) -> None:
    for kind in (ChatRequest, CompletionRequest):
        with pytest.raises(HttpError) as error:
            parse(kind, body)
        assert error.value.status == 400


def test_one_turn_is_read_alone_and_several_with_their_speakers() -> None:
    assert said(("system", "Judge."), ("user", "a warm film")).said == "a warm film"
    both = said(("user", "hello"), ("assistant", "hi"), ("user", "bye"))
    assert both.said == "User: hello\nAssistant: hi\nUser: bye"
    assert json.loads(both.as_chat)[1] == {"role": "assistant", "content": "hi"}


def test_instructions_are_the_receivers_prompt() -> None:
    both = said(("system", "Be brief."), ("user", "a film"))
    assert both.prompt(beside_handle=False) == "Be brief."
    assert both.unread(beside_handle=False) == ["system"]
    assert said(("user", "a film")).prompt(beside_handle=False) == DEFAULT_PROMPT


def test_a_handle_is_taken_out_and_the_words_around_it_are_the_prompt() -> None:
    found = said(("system", "Be brief."), ("user", "<|agentwire:abc_-9|> Is it good?"))
    assert found.token == "abc_-9"
    assert found.prompt(beside_handle=True) == "Be brief.\nIs it good?"
    assert found.unread(beside_handle=True) == ["system", "text"]
    assert said(("user", "<|agentwire:abc|>"), ("user", "<|agentwire:abc|>?")).token == "abc"
    for damaged in ("<\u200d|agentwire:abc|\u200d>", "&lt;|agentwire:abc|&gt;", "|agentwire:abc|"):
        assert said(("user", f"{damaged} good?")) == said(("user", "<|agentwire:abc|> good?"))
    for lost in ("<|agentwire:a b|>", "<|agentwire:abc", "<|agentwire:|>"):
        with pytest.raises(HttpError) as error:
            said(("user", lost))
        assert error.value.status == 404
    several = said(("user", "<|agentwire:def|> <|agentwire:abc|> <|agentwire:def|>"))
    assert several.tokens == ("def", "abc")
    with pytest.raises(HttpError, match="2 handles in one conversation"):
        _ = several.token


def test_of_senders_that_share_a_wire_each_gets_a_text_part() -> None:
    def wires(reads: str) -> list[WireSpec]:
        shared = {"to": "c", "joint": ["a", "b"], "reads": reads}
        return [WireSpec.model_validate({"from": sender, **shared}) for sender in "ab"]

    parts: Any = [{"type": "text", "text": "the plot"}, {"type": "text", "text": "the acting"}]
    two = said(("system", "Judge."), ("user", parts))
    assert two.for_each(wires("share")) == ("the plot", "the acting")
    assert two.said == "the plot\nthe acting"  # for one sender they are one text
    one = said(("user", "a warm film"))
    assert one.for_each(wires("share")) == ("a warm", "film")
    assert one.for_each(wires("whole")) == ("a warm film", "a warm film")
    turns = said(("user", parts), ("assistant", "hm"))
    assert turns.for_each(wires("whole")) == (turns.said, turns.said)
    with pytest.raises(HttpError, match="3 text parts for 2 senders"):
        said(("user", [*parts, parts[0]])).for_each(wires("whole"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RequestError(NackCode.OVERLOADED, "full", retry_after_s=2.2), 429),
        (RequestError(NackCode.DEADLINE, "late"), 504),
        (RequestError(NackCode.AGENT_DOWN, "down"), 503),
        (RequestError(NackCode.EXPIRED, "gone"), 404),
        (RequestError(NackCode.UNSUPPORTED, "no"), 400),
        (RequestError(NackCode.MODEL_ERROR, "boom"), 500),
        (ScenarioError("wrong", hint="Mend it."), 400),
        (BusClosed("closed"), 503),
        (AgentwireError("?"), 500),
    ],
)
def test_every_error_has_its_status(error: AgentwireError, status: int) -> None:
    found = http_error(error)
    assert found.status == status and found.message == str(error)
    assert ("retry-after" in found.headers) == (status in (429, 503))
    if status == 429:
        assert found.headers["retry-after"] == "3"


def test_the_gate_counts_out_what_it_counted_in() -> None:
    gate = Gate(GatewayLimits(requests=2, requests_of_one=1))
    with gate.enter("ada"):
        for owner, fits in (("ada", False), ("bob", True)):
            if fits:
                with gate.enter(owner), pytest.raises(HttpError), gate.enter("eve"):
                    pass
            else:
                with pytest.raises(HttpError) as error, gate.enter(owner):
                    pass
                assert error.value.status == 429
    assert gate.inside == 0
