"""Captures one layer's hidden states in a vLLM engine of this process, in eager mode.

A hook sees the tokens of all requests of a step in one long row. The engine's input embeddings are
captured as well and compared with those of the requested ids, so no text gets another's states.
Later layers are skipped, as in a pipeline stage: such a request ends with its first step, so
nothing reads the keys and values that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.errors import ModelError
from agentwire.model.transformers import sampled_rms


class StateTap:
    """Captures the states after ``layer`` layers of a vLLM model.

    They equal transformers' ``hidden_states[layer]``, without the final norm after the last layer.
    """

    def __init__(self, model: Any, layer: int) -> None:
        self._decoder = decoder_of(model)
        if not 1 <= layer <= len(self._decoder.layers):
            raise ModelError(
                f"layer {layer} does not exist in a model with {len(self._decoder.layers)} layers.",
                hint=f"Set `layer` to 1 to {len(self._decoder.layers)}.",
            )
        self._layer = layer
        self._inputs: list[Tensor] = []
        self._states: list[Tensor] = []

    @contextmanager
    def open(self) -> Iterator[None]:
        """Captures while the context is open; drops what was captured before."""
        self._inputs, self._states = [], []
        layers = self._decoder.layers
        end = self._decoder.end_layer
        hooks = [
            layers[0].register_forward_pre_hook(self._capture_input, with_kwargs=True),
            layers[self._layer - 1].register_forward_hook(self._capture_states),
        ]
        self._decoder.end_layer = self._layer
        try:
            yield
        finally:
            self._decoder.end_layer = end
            for hook in hooks:
                hook.remove()

    def _capture_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        states = args[1] if len(args) > 1 else kwargs["hidden_states"]
        self._inputs.append(states.detach().clone())

    def _capture_states(self, module: nn.Module, args: Any, output: Any) -> None:
        states, residual = output
        self._states.append((states + residual).detach().clone())

    @torch.inference_mode()
    def states(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """States [len(row), width] of each row of ids; raises RuntimeError if another batch ran."""
        device = next(self._decoder.parameters()).device
        ids = torch.tensor([token for row in rows for token in row], device=device)
        expected = self._decoder.embed_input_ids(ids)
        if len(self._states) != 1 or len(self._inputs[0]) < len(ids):
            raise RuntimeError(f"the engine took {len(self._states)} steps for one batch of texts")
        # A step may be padded behind the tokens of its requests.
        if not torch.equal(self._inputs[0][: len(ids)].to(expected.dtype), expected):
            raise RuntimeError("the engine read the texts of a batch in another order")
        return list(torch.split(self._states[0][: len(ids)], [len(row) for row in rows]))


def decoder_of(model: Any) -> Any:
    """The stack of layers inside a vLLM model; raises ModelError."""
    inner = getattr(model, "language_model", model)
    decoder = getattr(inner, "model", None)
    needed = ("layers", "end_layer", "embed_input_ids")
    if decoder is None or not all(hasattr(decoder, name) for name in needed):
        raise ModelError(
            f"vLLM's {type(model).__name__} is not a decoder of stacked layers.",
            hint="Use a Llama-, Mistral-, Qwen- or Gemma-like model, or `backend: transformers`.",
        )
    return decoder


def embedding_rms(model: Any) -> float:
    """RMS of the model's input embeddings."""
    decoder = decoder_of(model)
    table = decoder.embed_tokens.weight
    # The table of embeddings may be padded.
    count = min(decoder.config.vocab_size, table.shape[0])
    return sampled_rms(decoder.embed_input_ids, count, table.device)
