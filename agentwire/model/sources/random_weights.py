"""Models with random weights in the exact shape of a known model, to measure speed without weights.

The weights are drawn on the device from a fixed seed, texts become fixed token ids, and generation
runs to its full length (there is no EOS). The answers mean nothing, so accuracy is never reported.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from agentwire.bridge.shape import BridgeShape
from agentwire.errors import BridgeError, ModelError
from agentwire.model.sources.registry import HUB_MODELS, read_data
from agentwire.wire.messages import BridgeIdentity, ModelIdentity

if TYPE_CHECKING:
    import torch

    from agentwire.bridge.resampler import Resampler

SEED: Final = 0
BRIDGE_PREFIX: Final = "random:"
"""``random:<receiver>:<M>:<layer>`` in place of a folder is a bridge with random weights."""
BRIDGE_HIDDEN: Final = 512
EMBEDDING_STD: Final = 0.02
RMS_SLACK: Final = 0.05

_TINY = read_data("random-tiny")
SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    **{name: model.config for name, model in HUB_MODELS.items()},
    "random/tiny-llama": {**_TINY, "model_type": "llama"},
    "random/tiny-mistral": {**_TINY, "model_type": "mistral", "sliding_window": None},
}
"""Configs by model name; the tiny models are for tests and dry runs on a CPU."""


def shape(name: str) -> Mapping[str, Any]:
    """The config of this model; raises ModelError if its shape is unknown."""
    if name not in SHAPES:
        raise ModelError(
            f"{name} cannot have random weights: its shape is unknown.",
            hint=f"Known shapes: {', '.join(SHAPES)}. For others set `weights: pretrained`.",
        )
    return SHAPES[name]


def fingerprint(name: str) -> str:
    """Stands in for the weights' sha256: shape and seed define them."""
    return hashlib.sha256(f"random weights, seed {SEED}: {name}".encode()).hexdigest()


def identity(name: str, dtype: str, device: str) -> ModelIdentity:
    """The identity of such a model."""
    config = shape(name)
    return ModelIdentity(
        name=f"{name} (random weights)",
        fingerprint=fingerprint(name),
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        embedding_rms=EMBEDDING_STD,
        dtype=dtype,
        device=device,
    )


def build(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A transformers model of this shape, in eval mode, with weights drawn on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**shape(name))
    config.eos_token_id = None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()
    model.to_empty(device=device)
    decoder = model.get_decoder()
    # ``to_empty`` left its buffers uninitialised; they are computed, not drawn.
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config).to(device)
    generator = torch.Generator(device=device).manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # the norms' weights
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, EMBEDDING_STD, generator=generator)
    model.generation_config.eos_token_id = None
    return model.requires_grad_(False)


def bridge_folder(receiver: str, soft_tokens: int, layer: int) -> str:
    """Name of a random bridge, in place of a folder."""
    return f"{BRIDGE_PREFIX}{receiver}:{soft_tokens}:{layer}"


def random_bridge(
    folder: str, sender: ModelIdentity, device: torch.device
) -> tuple[BridgeIdentity, Resampler]:
    """The bridge that ``bridge_folder`` names: 10.5 M parameters at width 4096."""
    import torch

    from agentwire.bridge.resampler import Resampler

    receiver, soft_tokens, layer = folder.removeprefix(BRIDGE_PREFIX).rsplit(":", 2)
    width = shape(receiver)["hidden_size"]
    if not 1 <= int(layer) <= sender.layers:
        raise BridgeError(
            f"layer {layer} does not exist in {sender.name}, which has {sender.layers}.",
            hint="Set `layer` in the agent's file.",
        )
    hidden = min(BRIDGE_HIDDEN, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = Resampler(BridgeShape(sender.width, width, int(soft_tokens), hidden)).eval()
    module.alpha.fill_(EMBEDDING_STD)
    name = hashlib.sha256(f"{folder} of {sender.fingerprint}, seed {SEED}".encode()).hexdigest()
    found = BridgeIdentity(
        name=f"random-{soft_tokens}x{width}",
        fingerprint=name,
        sender=sender.fingerprint,
        receiver=fingerprint(receiver),
        layer=int(layer),
        soft_tokens=int(soft_tokens),
        width=width,
        prompts=("any",),
        rms_range=(EMBEDDING_STD * (1 - RMS_SLACK), EMBEDDING_STD * (1 + RMS_SLACK)),
    )
    return found, module.requires_grad_(False).to(device)


class RandomTokenizer:
    """One token per word. ``t123`` is token 123 in both directions; other words are hashed."""

    eos_token_id: int | None = None
    pad_token_id: int | None = 0
    chat_template: Any = None

    def __init__(self, name: str) -> None:
        config = shape(name)
        self._vocabulary: int = config["vocab_size"]
        self.bos_token_id: int | None = config["bos_token_id"]

    def __call__(self, text: str | Sequence[str], **options: Any) -> dict[str, Any]:
        most = options.get("max_length") if options.get("truncation") else None

        def ids(one: str) -> list[int]:
            return [self._id(word) for word in one.split()[:most]]

        return {"input_ids": ids(text) if isinstance(text, str) else [ids(one) for one in text]}

    def _id(self, word: str) -> int:
        if word[:1] == "t" and word[1:].isdecimal():
            return int(word[1:]) % self._vocabulary
        return zlib.crc32(word.encode()) % self._vocabulary

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        raise NotImplementedError("a model with random weights has no chat template")

    def decode(self, token_ids: Any, **options: Any) -> str:
        return " ".join(f"t{int(token)}" for token in token_ids)
