"""Builds ``tokenizer.json`` (the ``tokenizers`` library's format) from a GGUF file's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentwire.errors import ModelError
from agentwire.model.sources.registry import KnownModel, read_data

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"  # how sentencepiece writes a space


def tokenizer_json(
    model: KnownModel, metadata: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of tokenizer.json and tokenizer_config.json from a GGUF file's metadata."""
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    if len(tokens) != (vocabulary := int(model.config["vocab_size"])):
        raise ModelError(
            f"{model.name} has {len(tokens):,} tokens, expected {vocabulary:,}.",
            hint="Run `agentwire models pull` again.",
        )
    make = _byte_level if model.layout == "llama" else _sentencepiece
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    content = make(tokens, metadata)
    content["added_tokens"] = _added(tokens, kinds, content["model"]["vocab"])
    return content, _config(tokens, metadata)


def _config(tokens: Sequence[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    ids = {
        "bos_token": "tokenizer.ggml.bos_token_id",
        "eos_token": "tokenizer.ggml.eos_token_id",
        "unk_token": "tokenizer.ggml.unknown_token_id",
        "pad_token": "tokenizer.ggml.padding_token_id",
    }
    named = {name: tokens[metadata[key]] for name, key in ids.items() if key in metadata}
    # Every release of transformers loads tokenizer.json unchanged with this class.
    return {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **named}


def _added(
    tokens: Sequence[str], kinds: Sequence[int], vocabulary: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Tokens that are matched as a whole: control tokens and user-defined ones."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **plain, "special": kind == _CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) and token in vocabulary
    ]


def _byte_level(tokens: Sequence[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Byte-level BPE as in GPT-2, with the merges that the file lists."""
    content = read_data("tokenizer-byte-level")
    content["post_processor"] = _template([])
    content["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    content["model"]["merges"] = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
    return content


def _sentencepiece(tokens: Sequence[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Sentencepiece BPE as in Gemma: spaces become U+2581, and the vocabulary implies merges."""
    content = read_data("tokenizer-sentencepiece")
    bos: int = metadata["tokenizer.ggml.bos_token_id"]
    content["post_processor"] = _template([(tokens[bos], bos)])
    # The file holds runs of spaces as spaces, but they are looked up as U+2581 like all spaces.
    spelled = [
        _SPACE * len(token) if " " in token and not token.strip() else token for token in tokens
    ]
    content["model"]["vocab"] = {token: index for index, token in enumerate(spelled)}
    content["model"]["merges"] = implied_merges(content["model"]["vocab"])
    return content


def implied_merges(vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of a BPE vocabulary that is sorted by merge order: every split of a token into
    two known tokens. Earlier tokens merge first; within a token, the longer left half."""
    merges: list[tuple[str, str]] = []
    for token in vocabulary:  # in the order of ids
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        pairs.sort(key=lambda pair: len(pair[0]), reverse=True)
        merges.extend(pairs)
    return merges


def _template(prefix: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A post-processor that prepends the tokens of ``prefix`` to every sequence."""

    def sequence(name: str, kind: int) -> list[dict[str, Any]]:
        opening = [{"SpecialToken": {"id": token, "type_id": kind}} for token, _ in prefix]
        return [*opening, {"Sequence": {"id": name, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": [*sequence("A", 0), *sequence("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]} for token, index in prefix
        },
    }
