"""Texts of a batch packed into one sequence, instead of padded to the longest.

A CPU is always busy, so padding costs as much as text: among 16 film reviews the longest has nearly
twice the mean length. Positions restart with each text, which tells transformers to separate them.
Sequences are kept short, because attention between texts is computed although it is masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

PACKED_TOKENS = 192  # of one sequence, unless one text alone is longer
_PROBE = (3, 5)  # lengths of the two texts of ``can_pack``


def groups_of(
    lengths: Sequence[int], limit: int = PACKED_TOKENS, rows: int | None = None
) -> Iterator[list[int]]:
    """Consecutive indices of at most ``rows`` texts with at most ``limit`` tokens (or one text)."""
    group: list[int] = []
    size = 0
    for index, length in enumerate(lengths):
        if group and (size + length > limit or len(group) == rows):
            yield group
            group, size = [], 0
        group.append(index)
        size += length
    if group:
        yield group


def packed_states(short: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states [n, T, width] of the texts' tokens; zero behind a text's end.

    ``ids`` are right-padded [n, 1+T] with an opening token; ``mask`` [n, T] is True for the text's.
    """
    lengths: list[int] = (mask.sum(dim=1) + 1).tolist()
    texts: list[Tensor] = []
    for group in groups_of(lengths):
        sizes = [lengths[i] for i in group]
        row = torch.cat([ids[i, : lengths[i]] for i in group])
        positions = torch.cat([torch.arange(size, device=ids.device) for size in sizes])
        output = short(input_ids=row[None], position_ids=positions[None], use_cache=False)
        texts += [text[1:] for text in output.last_hidden_state[0].split(sizes)]
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)


@torch.inference_mode()
def can_pack(short: Any) -> bool:
    """Whether this trunk reads packed texts separately. Found by a probe: some models do not."""
    vocabulary = short.get_input_embeddings().weight.shape[0]
    ids = torch.arange(len(_PROBE) * max(_PROBE)).reshape(len(_PROBE), -1) % vocabulary
    mask = torch.arange(ids.shape[1] - 1)[None, :] < torch.tensor(_PROBE)[:, None] - 1
    padded = short(input_ids=ids, use_cache=False).last_hidden_state[:, 1:] * mask[:, :, None]
    first, second = ids[0, : _PROBE[0]], ids[1, : _PROBE[1]]
    joined = short(input_ids=torch.cat([first, second])[None], use_cache=False).last_hidden_state
    mixed = joined[0, _PROBE[0] + 1 :] - padded[1, : _PROBE[1] - 1]
    # Compared with the error of mixed texts: some features are 1,000 times as large as others.
    error = packed_states(short, ids, mask) - padded
    return bool(error.float().norm() < 0.1 * mixed.float().norm())
