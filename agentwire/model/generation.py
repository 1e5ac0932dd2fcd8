"""Free text for callers: drawn or greedy, with stop strings, watched token by token.

The library's ``generate`` runs the decoder; what is ours hangs on two hooks of it. A processor of
logits leaves one token a row, drawn from that row's own generator, so that an answer depends on
its seed and not on the batch. A stopping rule reads what each row has got, hands on what is new
and ends rows that are done or that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentwire.model.backend import Watch
from agentwire.model.prompting import Tokenizer
from agentwire.wire.messages import Decoding

REPLACEMENT = "\ufffd"
"""What a tokenizer gives for bytes that are no whole character yet."""


class Draw:
    """Leaves the one token of each row that is drawn: greedy decoding then takes it.

    Args:
        rows: n.
        decoding: temperature above 0, top_p, seed.
    """

    def __init__(self, rows: int, decoding: Decoding, device: torch.device) -> None:
        self._temperature = decoding.temperature / 1000
        self._mass = decoding.top_p / 1000
        self._draws = [torch.Generator(device).manual_seed(decoding.seed) for _ in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1)
        if self._mass < 1:
            ordered, places = probabilities.sort(dim=-1, descending=True)
            # A token stays if those before it have less than the mass: the first always stays.
            ordered[ordered.cumsum(dim=-1) - ordered >= self._mass] = 0.0
            probabilities = torch.zeros_like(probabilities).scatter(-1, places, ordered)
        chosen = torch.cat(
            [
                torch.multinomial(row, 1, generator=draw)
                for row, draw in zip(probabilities, self._draws, strict=True)
            ]
        )
        only = torch.full_like(scores, -torch.inf)
        return only.scatter(-1, chosen[:, None], 0.0)


class Answers:
    """What each row of a batch has generated so far.

    Args:
        rows: n.
        start: tokens of the input that the ids begin with.
        ends: ids of tokens that end an answer.
        watch: see ``model.backend.Watch``.

    Attributes:
        written: tokens of each row, those that end it not among them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: int,
        start: int,
        ends: frozenset[int],
        decoding: Decoding,
        watch: Watch | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._ends = ends
        self._stop = decoding.stop
        self._watch = watch
        self._done = [False] * rows
        self._shown = [""] * rows
        self.written: list[list[int]] = [[] for _ in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row is done, [n]; called by the library after each token."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._done[row]:
                self.take(row, int(token))
        return torch.tensor(self._done, device=input_ids.device)

    def is_done(self, row: int) -> bool:
        """Whether nothing more is to be added to a row."""
        return self._done[row]

    def take(self, row: int, token: int) -> None:
        """Adds one token to a row that is not done."""
        if token in self._ends:
            self._done[row] = True
            return
        self.written[row].append(token)
        if self._watch is None and not self._stop:
            return
        text, stopped = self._cut(self._decode(row))
        new = "" if stopped else self._new(row, text)
        wanted = self._watch is None or self._watch(row, new)
        self._done[row] = stopped or not wanted

    def _decode(self, row: int) -> str:
        return self._tokenizer.decode(self.written[row], skip_special_tokens=True).lstrip()

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop string, and whether there was one."""
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _new(self, row: int, text: str) -> str:
        """What can be shown of a text that may still change at its end."""
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        settled = text[: len(text) - hold].rstrip().rstrip(REPLACEMENT).rstrip()
        shown = self._shown[row]
        if len(settled) <= len(shown) or not settled.startswith(shown):
            return ""
        self._shown[row] = settled
        return settled[len(shown) :]

    def texts(self) -> list[str]:
        """The answers, without surrounding space."""
        return [self._cut(self._decode(row))[0].rstrip() for row in range(len(self.written))]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def end_ids(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer of this model."""
    known = model.generation_config.eos_token_id
    ids = known if isinstance(known, Sequence) else [known]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def continue_text(
    model: Any,
    tokenizer: Tokenizer,
    decoding: Decoding,
    watch: Watch | None,
    *,
    max_new_tokens: int,
    rows: int,
    pad: int,
    **inputs: Any,
) -> Answers:
    """Generates for n rows.

    Args:
        inputs: ``input_ids`` [n, T] or ``inputs_embeds`` [n, T, d], with ``attention_mask`` and
            ``past_key_values`` as ``generate`` takes them.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    ends = end_ids(model, tokenizer)
    start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    answers = Answers(tokenizer, rows, start, ends, decoding, watch)
    processors = LogitsProcessorList()
    if decoding.temperature:
        processors.append(Draw(rows, decoding, model.device))
    model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=sorted(ends),
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([answers]),
    )
    return answers
