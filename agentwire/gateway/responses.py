"""Responses as OpenAI's clients expect them, whole and in chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentwire.chat.answers import Answer


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Chat:
    """``/v1/chat/completions``.

    Args:
        id: of the response.
        model: as the client named it.
        created: Unix time.
    """

    def __init__(self, id: str, model: str, created: int) -> None:
        self._head = {"id": f"chatcmpl-{id}", "created": created, "model": model}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        (answer,) = answers
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [_choice({"message": message}, 0, answer.finish)],
            "usage": answer.usage,
            "agentwire": answer.facts,
        }

    def piece(self, text: str, *, first: bool) -> dict[str, Any]:
        delta = {"content": text, **({"role": "assistant"} if first else {})}
        return self._chunk([_choice({"delta": delta}, 0, None)])

    def last(self, answer: Answer) -> dict[str, Any]:
        end = self._chunk([_choice({"delta": {}}, 0, answer.finish)])
        return {**end, "agentwire": answer.facts}

    def usage(self, answer: Answer) -> dict[str, Any]:
        return {**self._chunk([]), "usage": answer.usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": choices}


class Completion:
    """``/v1/completions``; arguments as for ``Chat``."""

    def __init__(self, id: str, model: str, created: int) -> None:
        self._head = {
            "id": f"cmpl-{id}",
            "object": "text_completion",
            "created": created,
            "model": model,
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        usage = {name: sum(answer.usage[name] for answer in answers) for name in answers[0].usage}
        facts = [answer.facts for answer in answers]
        return {
            **self._head,
            "choices": [_choice({"text": a.text}, i, a.finish) for i, a in enumerate(answers)],
            "usage": usage,
            "agentwire": facts[0] if len(facts) == 1 else facts,
        }

    def piece(self, text: str, *, first: bool) -> dict[str, Any]:
        return {**self._head, "choices": [_choice({"text": text}, 0, None)]}

    def last(self, answer: Answer) -> dict[str, Any]:
        choices = [_choice({"text": ""}, 0, answer.finish)]
        return {**self._head, "choices": choices, "agentwire": answer.facts}

    def usage(self, answer: Answer) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": answer.usage}


def _choice(content: dict[str, Any], index: int, finish: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish}
