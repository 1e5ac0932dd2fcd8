"""Request bodies, errors and limits of the gateway, without a socket or an agent."""

import json
from typing import Any

import pytest

from agentwire.chat.errors import ChatError
from agentwire.errors import AgentwireError, BusClosed, NackCode, RequestError, ScenarioError
from agentwire.gateway.bodies import ChatBody, CompletionBody, parse_body
from agentwire.gateway.errors import error_body, error_response, status_of
from agentwire.gateway.limits import BodyBuffer, ConcurrencyLimiter, GatewayLimits

HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"best_of": 2}, "best_of"),
        ({"top_k": 5}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"stop_token_ids": [2]}, "stop_token_ids"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 0}, "logprobs"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"temprature": 2}, "temprature"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 9}, "stop"),
        (
            {"stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
        ),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"agentwire": {"lables": ["a"]}}, "agentwire.lables"),
        ({"agentwire": {"fallback": "maybe"}}, "agentwire.fallback"),
    ],
    ids=str,
)
def test_unsupported_fields_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    body = json.dumps({"model": "m", "messages": HELLO, **fields}).encode()
    with pytest.raises(ChatError) as error:
        parse_body(ChatBody, body)
    assert status_of(error.value) == 400
    assert error_body(error.value)["error"]["type"] == "invalid_request_error"
    assert error.value.param == param
    assert error.value.message.startswith(f"{param}: ")


def test_fields_that_change_nothing_are_accepted() -> None:
    said = {"content": None, "refusal": None, "audio": None, "tool_calls": None, "annotations": []}
    body = {
        "model": "m",
        "messages": [*HELLO, {"role": "assistant", **said}, {**HELLO[0], "name": "ada"}],
        "user": "me",
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "presence_penalty": 0.0,
        "top_k": -1,
        "best_of": 1,
        "logprobs": False,
        "logit_bias": {},
        "stream_options": {"include_usage": True, "include_obfuscation": False},
    }
    nullable = ("temperature", "top_p", "n", "stop", "seed", "max_tokens", "stream", "audio")
    parse_body(ChatBody, json.dumps({**body, **dict.fromkeys(nullable)}).encode())


@pytest.mark.parametrize("fields", [{"logprobs": 0}, {"echo": True}, {"suffix": "x"}], ids=str)
def test_completions_refuse_unsupported_fields_too(fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "m", "prompt": "x", **fields}).encode()
    with pytest.raises(ChatError) as error:
        parse_body(CompletionBody, body)
    assert error.value.param == next(iter(fields))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"model": "m"}', b"[" * 100_000])
@pytest.mark.parametrize("kind", [ChatBody, CompletionBody])
def test_malformed_bodies_are_refused(body: bytes, kind: type[ChatBody]) -> None:
    with pytest.raises(ChatError) as error:
        parse_body(kind, body)
    assert status_of(error.value) == 400


def test_only_one_prompt_can_be_streamed() -> None:
    body = {"model": "m", "prompt": ["a", "b"]}
    prompts = parse_body(CompletionBody, json.dumps(body).encode()).conversations
    assert [messages[0].text for messages in prompts] == ["a", "b"]
    with pytest.raises(ChatError) as error:
        parse_body(CompletionBody, json.dumps({**body, "stream": True}).encode())
    assert error.value.param == "stream"


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
def test_every_error_has_a_status(error: AgentwireError, status: int) -> None:
    response = error_response(error)
    assert response.status_code == status
    assert json.loads(bytes(response.body))["error"]["message"] == str(error)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    if status == 429:
        assert response.headers["retry-after"] == "3"


def test_buffer_bounds_the_bodies_that_are_received() -> None:
    buffer = BodyBuffer(GatewayLimits())
    for _ in range(64):
        buffer.take(1024 * 1024)
    with pytest.raises(ChatError) as error:
        buffer.take(1)
    assert status_of(error.value) == 429
    buffer.take(-1024 * 1024)
    buffer.take(1)


def test_limiter_counts_requests_in_flight() -> None:
    limiter = ConcurrencyLimiter(GatewayLimits(requests=2, requests_per_key=1))
    with limiter.enter("ada"):
        with pytest.raises(ChatError) as error, limiter.enter("ada"):
            pass
        assert status_of(error.value) == 429
        with limiter.enter("bob"), pytest.raises(ChatError), limiter.enter("eve"):
            pass
    assert limiter.in_flight == 0
