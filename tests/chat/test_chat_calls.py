"""Which call of the runtime answers a request. No agent is started."""

import sys
from pathlib import Path
from typing import Any

import pytest

from agentwire.chat.errors import ChatError
from agentwire.chat.requests import ChatRequest
from agentwire.chat.service import ChatCall, ChatService
from agentwire.runtime.runtime import Runtime

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from gateway_run import deployment


def call(model: str, **fields: Any) -> ChatCall:
    what = deployment()
    service = ChatService(Runtime(what), what, timeout_s=30, handle_ttl_s=30)
    messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "a film"}]
    request = ChatRequest.model_validate({"model": model, "messages": messages, **fields})
    return service.call(request, request.messages, "ada")


def test_a_prompt_without_labels_asks_for_free_text() -> None:
    fields = {"agentwire": {"prompt": "Why?"}, "max_tokens": 3, "stop": "x", "temperature": 0.5}
    made = call("llama->mistral", **fields)
    generate: Any = made.options["generate"]
    assert (generate.max_new_tokens, generate.stop, generate.temperature) == (3, ("x",), 0.5)
    assert made.options["prompt"] == "Why?" and made.unread == ("system",)
    assert call("llama->mistral").options.get("generate") is None  # the task has labels
    labels = call("llama->mistral", agentwire={"prompt": "Good?", "labels": ["yes", "no"]})
    assert labels.options["labels"] == ["yes", "no"] and labels.options["prompt"] == "Good?"
    assert str(call("writer", agentwire={"prompt": "Why?"}).text).endswith('a film\\nWhy?"}]')


@pytest.mark.parametrize("option", [{"bridge": "b"}, {"channel": "soft"}, {"keep": True}], ids=str)
def test_an_agent_refuses_the_options_of_wires(option: dict[str, Any]) -> None:
    with pytest.raises(ChatError) as error:
        call("writer", agentwire=option)
    assert error.value.param == f"agentwire.{next(iter(option))}"
