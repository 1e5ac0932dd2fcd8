"""Free-text generation: sampled or greedy, with stop strings, reported token by token.

The library's ``generate`` runs the decoder. A logits processor samples each row with its own
generator, so an answer does not depend on the batch. A stopping criterion collects tokens, reports
new text, and ends rows that are finished or no longer wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentwire.model.backend import Generated, Watch
from agentwire.model.timing import Stopwatch
from agentwire.task.tokens import Tokenizer
from agentwire.wire.messages import Decoding

REPLACEMENT = "\ufffd"  # a tokenizer's output for bytes that are not yet a whole character


class Sampler:
    """Logits processor that leaves one sampled token in each row for greedy decoding to take."""

    def __init__(self, rows: int, decoding: Decoding, device: torch.device) -> None:
        self._temperature = decoding.temperature / 1000
        self._mass = decoding.top_p / 1000
        self._generators = [torch.Generator(device).manual_seed(decoding.seed) for _ in range(rows)]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        probabilities = torch.softmax(scores.float() / self._temperature, dim=-1)
        if self._mass < 1:
            ordered, places = probabilities.sort(dim=-1, descending=True)
            # Keep a token if those before it have less than the mass: the first always stays.
            ordered[ordered.cumsum(dim=-1) - ordered >= self._mass] = 0.0
            probabilities = torch.zeros_like(probabilities).scatter(-1, places, ordered)
        rows = zip(probabilities, self._generators, strict=True)
        sampled = torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows])
        return torch.full_like(scores, -torch.inf).scatter(-1, sampled[:, None], 0.0)


class Confidence:
    """Logits processor that notes the log-probability of each row's most probable token."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._steps.append(scores.amax(dim=-1) - scores.logsumexp(dim=-1))
        return scores

    def means(self, counts: Sequence[int]) -> list[float]:
        """The mean of each row over its first ``counts`` steps."""
        steps = torch.stack(self._steps).float().cpu()
        return [float(steps[:count, row].mean()) for row, count in enumerate(counts)]


class Answers:
    """What each row of a batch has generated so far; ``ends`` are ids of end tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        rows: int,
        ends: frozenset[int],
        decoding: Decoding,
        watch: Watch | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._stop = decoding.stop
        self._watch = watch
        self._done = [False] * rows
        self._shown = [""] * rows
        self._stopped = [False] * rows
        self.taken = [0] * rows  # tokens, the end token included
        self.written: list[list[int]] = [[] for _ in range(rows)]  # without the end token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Stopping criterion: whether each row is done, [n]."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._done[row]:
                self.take(row, int(token))
        return torch.tensor(self._done, device=input_ids.device)

    def is_done(self, row: int) -> bool:
        return self._done[row]

    def take(self, row: int, token: int) -> None:
        """Adds one token to a row that is not done."""
        self.taken[row] += 1
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
        self._stopped[row] = stopped

    def _decode(self, row: int) -> str:
        return self._tokenizer.decode(self.written[row], skip_special_tokens=True).lstrip()

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop string, and whether there was one."""
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _new(self, row: int, text: str) -> str:
        """New text that later tokens cannot change."""
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        settled = text[: len(text) - hold].rstrip().rstrip(REPLACEMENT).rstrip()
        shown = self._shown[row]
        if len(settled) <= len(shown) or not settled.startswith(shown):
            return ""
        self._shown[row] = settled
        return settled[len(shown) :]

    def generated(self, read: Sequence[int], clock: Stopwatch) -> Generated:
        """The answers, stripped and cut at the first stop string; ``read``: tokens of each row.

        A token that completed a stop string does not count. So a row that ended by itself always
        has fewer than the limit, also if its end was the last allowed token.
        """
        texts = [self._cut(self._decode(row))[0].rstrip() for row in range(len(self.written))]
        clock.lap("generate")
        rows = zip(read, self.written, self._stopped, strict=True)
        counts = [(n, len(written) - stopped) for n, written, stopped in rows]
        return Generated(texts, clock.stages, counts)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that ``stop`` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def end_ids(generation_config: Any, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end an answer."""
    known = generation_config.eos_token_id
    ids = known if isinstance(known, Sequence) else [known]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def continue_text(
    model: Any,
    answers: Answers,
    decoding: Decoding,
    confidence: Confidence | None = None,
    **inputs: Any,
) -> None:
    """Generates into ``answers``; ``inputs`` are those of the library's ``generate``."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    processors = LogitsProcessorList([] if confidence is None else [confidence])
    if decoding.temperature:
        processors.append(Sampler(len(answers.written), decoding, model.device))
    model.generate(
        **inputs,
        do_sample=False,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([answers]),
    )
