"""Two tiny random language models of different families, in folders like those of real models.

``llama``: Llama architecture, d 32, 4 layers, byte-level BPE, a chat template with control tokens.
``gemma``: Gemma 3 architecture (scaled embeddings, sliding windows), d 48, 3 layers, BPE over words
with a marker for spaces, no chat template. torch and transformers are imported inside functions,
because most tests need neither.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from agentwire.bridge.card import BridgeCard, CardModel, CardTraining
from agentwire.spec.agent import AgentSpec
from agentwire.wire.messages import ModelIdentity, RelaySpec, TaskSpec

GOOD = ("wonderful", "moving", "funny", "warm", "clever", "rich", "brave", "tender")
BAD = ("dull", "clumsy", "empty", "tired", "noisy", "stale", "cold", "messy")
NOUNS = ("film", "story", "cast", "ending", "score", "script", "scene", "drama")
TASK = TaskSpec(
    name="reviews",
    prompt="\nSentiment:",
    text_prompt="Film review: {text}\nSentiment:",
    labels=("negative", "positive"),
    relay=RelaySpec("Sum up this review.\n\n{text}", 6),
    max_new_tokens=4,
)
CONTROL = ("<|im_start|>", "<|im_end|>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RAGGED = (
    "a warm film",
    "the dull and clumsy story of a tired cast in an empty scene without an ending",
    "x",
    "what a wonderful, moving, funny score! " * 6,
    "cold",
    "",
)


def sentences(n: int, seed: int) -> list[tuple[str, int]]:
    """n different invented reviews with their classes. A single word tells the class."""
    draw = random.Random(seed)
    rows: dict[str, int] = {}
    while len(rows) < n:
        label = len(rows) % 2
        first, second = draw.sample(GOOD if label else BAD, 2)
        text = f"the {draw.choice(NOUNS)} number {draw.randrange(10**6)} is {first} and {second}"
        rows.setdefault(text, label)
    return list(rows.items())


def write_rows(file: Path, n: int, seed: int) -> Path:
    """Write invented reviews as a JSON Lines file."""
    lines = [json.dumps({"text": text, "label": label}) for text, label in sentences(n, seed)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _corpus() -> list[str]:
    reviews = [f"Film review: {text}\nSentiment:" for text, _ in sentences(200, 99)]
    words = ["negative positive Sentiment: negative", "Sentiment: positive", "user assistant"]
    return reviews + words * 20 + ["Sum up this review.", "cold", "what a score!"]


def build_llama(folder: Path) -> Path:
    """Write the tiny Llama, with an untied LM head."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=["<s>", "</s>", "<pad>", *CONTROL],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_gemma(folder: Path) -> Path:
    """Write the tiny Gemma 3, with a tied LM head and capped logits."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=False))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    core.train_from_iterator(
        [word for line in _corpus() for word in line.replace(" ", " ▁").split()],
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
            initial_alphabet=[*map(chr, range(33, 127)), "▁", "\n"],
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(12)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=1024,
        initializer_range=0.2,
        final_logit_softcapping=5.0,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def spec(name: str, model: Path, **changes: Any) -> AgentSpec:
    """The spec of an agent that runs the model in this folder."""
    known: dict[str, Any] = {"name": name, "backend": "transformers", "model": str(model)}
    return AgentSpec.model_validate({**known, "folder": str(model), "threads": 1, **changes})


def make_card(
    sender: ModelIdentity, receiver: ModelIdentity, layer: int, **changes: Any
) -> BridgeCard:
    """The card of a small bridge between two models, with M = 4."""
    alpha = receiver.embedding_rms
    values: dict[str, Any] = {
        "name": "tiny",
        "sender": CardModel(
            model="a", fingerprint=sender.fingerprint, width=sender.width, layers=sender.layers
        ),
        "receiver": CardModel(
            model="b",
            fingerprint=receiver.fingerprint,
            width=receiver.width,
            layers=receiver.layers,
        ),
        "layer": layer,
        "soft_tokens": 4,
        "hidden": 16,
        "blocks": 2,
        "heads": 2,
        "feed_forward": 2,
        "parameters": 1,
        "rms_range": (alpha * 0.95, alpha * 1.05),
        "prompts": (TASK.prompt_hash,),
        "training": CardTraining(
            dataset="movie_snippets",
            split="train",
            rows=1,
            held_out=16,
            held_out_accuracy=0.5,
            step=1,
            seconds=1.0,
            device="cpu",
            recipe={},
            provenance={},
            versions={},
            date="2026-01-01",
        ),
        "weights_sha256": "0" * 64,
    }
    return BridgeCard.model_validate({**values, **changes})


def write_bridge(folder: Path, card: BridgeCard, seed: int = 5) -> BridgeCard:
    """Write an untrained bridge of the card's shape, scaled to the receiver's embeddings."""
    import torch

    from agentwire.bridge import store

    torch.manual_seed(seed)
    module = store.build(card)
    module.alpha.fill_(sum(card.rms_range) / 2)
    return store.save(folder, card, module)


def write_reader(
    folder: Path,
    sender: ModelIdentity,
    receiver: ModelIdentity,
    *,
    where: str = "receiver",
    int8: bool = False,
    seed: int = 5,
    **section: Any,
) -> BridgeCard:
    """Write an untrained reader bridge whose parts all do something."""
    import torch

    from agentwire.bridge import store
    from agentwire.bridge.reader import Reader

    own = {
        "layers": [0, 1, 2],
        "sizes": [2, 4, 8],
        "additions": [0, 2] if where == "receiver" else [],
        "prompt": 2,
        "down": 8,
        "local": 3,
        "where": where,
    }
    card = make_card(
        sender,
        receiver,
        2,
        name=folder.name,
        architecture="reader",
        answers="free",
        soft_tokens=8,
        hidden=16,
        prompts=("any",),
        rms_range=(1e-3, 1e3),
        reader=own | section,
    )
    torch.manual_seed(seed)
    module = store.build(card)
    assert isinstance(module, Reader)
    module.receiver.alpha.fill_(receiver.embedding_rms)
    for vectors in (module.receiver.before, module.receiver.after):
        torch.nn.init.normal_(vectors, std=receiver.embedding_rms)
    if module.shape.additions:
        torch.nn.init.normal_(module.receiver.up, std=0.3)
    return store.save(folder, card, module, int8=int8)
