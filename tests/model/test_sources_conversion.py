"""The conversion from GGUF, of a tiny file and of the real ones."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentwire.config import Config
from agentwire.download import sha256_of
from agentwire.errors import ModelError
from agentwire.model.sources.convert import bfloat16, convert, hf_name
from agentwire.model.sources.fingerprint import fingerprint
from agentwire.model.sources.gguf import GgufFile
from agentwire.model.sources.lookup import locate
from agentwire.model.sources.registry import GEMMA3, MODELS, SMOLLM2, KnownModel
from agentwire.model.sources.tokenizer_json import implied_merges

gguf = pytest.importorskip("gguf", reason="`make test` installs gguf")

WIDTH, HEADS = 64, 2
TOKENS = ["<eos>", "<bos>", "a", "b", "ab", "  "]
GENERATOR = np.random.default_rng(0)
TENSORS = {
    "token_embd.weight": GENERATOR.normal(size=(len(TOKENS), WIDTH)),
    "blk.0.attn_q.weight": GENERATOR.normal(size=(WIDTH, WIDTH)),
    "blk.0.ffn_norm.weight": GENERATOR.normal(size=WIDTH),
}


def write_gguf(file: Path, arch: str, kind: Any = None) -> Path:
    writer = gguf.GGUFWriter(file, arch)
    writer.add_tokenizer_model("gpt2" if arch == "llama" else "llama")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 1, 1, 1, 4])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    writer.add_bool("some.flag", True)
    writer.add_float32("some.float", 0.5)
    for name, values in TENSORS.items():
        data = values.astype(np.float32)
        if kind is not None and data.ndim == 2:
            packed = gguf.quants.quantize(data, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tiny(model: KnownModel) -> KnownModel:
    sizes = {"num_attention_heads": HEADS, "vocab_size": len(TOKENS)}
    return replace(model, name="tiny", config={**model.config, **sizes})


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of a safetensors file by its specification, bfloat16 as float32."""
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert (8 + size) % 8 == 0
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        raw = np.frombuffer(data[8 + size + start : 8 + size + end], "<u2").astype(np.uint32)
        found[name] = (raw << 16).view(np.float32).reshape(entry["shape"])
    return found


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    source = GgufFile(write_gguf(tmp_path / "tiny.gguf", "llama"))
    assert source.metadata["general.architecture"] == "llama"
    assert source.metadata["tokenizer.ggml.tokens"] == TOKENS
    assert source.metadata["tokenizer.ggml.token_type"] == [3, 3, 1, 1, 1, 4]
    assert (source.metadata["some.flag"], source.metadata["some.float"]) == (True, 0.5)
    for tensor in source.tensors:
        values = np.concatenate(list(source.blocks(tensor))).reshape(tensor.shape)
        assert np.array_equal(values, TENSORS[tensor.name].astype(np.float32))


def test_quantized_blocks_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    source = GgufFile(write_gguf(tmp_path / "tiny.gguf", "llama", kind))
    for tensor in source.tensors:
        values = np.concatenate(list(source.blocks(tensor))).reshape(tensor.shape)
        expected = TENSORS[tensor.name].astype(np.float32)
        if len(tensor.shape) == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("cut", [0, 3, 20, 200])
def test_a_truncated_head_is_refused(tmp_path: Path, cut: int) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", "llama")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="is not a readable GGUF file"):
        GgufFile(file)


def test_truncated_tensors_are_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", "llama")
    file.write_bytes(file.read_bytes()[:-64])
    source = GgufFile(file)
    with pytest.raises(ModelError, match="is truncated"):
        list(source.blocks(source.tensors[-1]))


def test_a_llama_file_becomes_a_folder(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    folder = tmp_path / "out"
    folder.mkdir()
    source = write_gguf(tmp_path / "tiny.gguf", "llama")
    convert(tiny(SMOLLM2), source, folder, lambda *step: told.append(step))
    assert told[-1] == ("convert", 1.0)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    found = weights(folder)
    assert sorted(found) == [
        "model.embed_tokens.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ]
    # Row i of each half of a head stands at 2 i (+ 1) in the file.
    query = TENSORS["blk.0.attn_q.weight"].reshape(HEADS, WIDTH // HEADS, WIDTH)
    halves = np.concatenate([query[:, 0::2], query[:, 1::2]], axis=1).reshape(WIDTH, WIDTH)
    assert found["model.layers.0.self_attn.q_proj.weight"] == pytest.approx(halves, rel=2**-8)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["model"]["merges"] == [["a", "b"]]
    assert [token["content"] for token in tokenizer["added_tokens"]] == ["<eos>", "<bos>", "  "]
    assert [token["special"] for token in tokenizer["added_tokens"]] == [True, True, False]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<bos>", "<eos>")


def test_gemmas_norm_offset_and_spaces_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    source = write_gguf(tmp_path / "tiny.gguf", "gemma3")
    convert(tiny(GEMMA3), source, folder, lambda stage, fraction: None)
    norm = weights(folder)["model.layers.0.pre_feedforward_layernorm.weight"]
    expected = TENSORS["blk.0.ffn_norm.weight"] - 1
    assert norm == pytest.approx(expected, rel=2**-8, abs=1e-6)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["\u2581\u2581"] == 5
    assert tokenizer["model"]["merges"] == [["a", "b"]]
    assert tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"] == "<bos>"


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", "llama")
    model = replace(tiny(SMOLLM2), config={**tiny(SMOLLM2).config, "vocab_size": 7})
    with pytest.raises(ModelError, match="has 6 tokens, expected 7"):
        convert(model, source, tmp_path, lambda stage, fraction: None)


def test_tensor_names() -> None:
    assert hf_name("output_norm.weight", "llama") == "model.norm.weight"
    assert hf_name("blk.3.attn_k_norm.weight", "gemma3") == "model.layers.3.self_attn.k_norm.weight"
    assert hf_name("rope_freqs.weight", "llama") is None
    with pytest.raises(ModelError, match="is unknown"):
        hf_name("blk.3.ssm_in.weight", "llama")


def test_merges_follow_from_the_order_of_the_vocabulary() -> None:
    vocabulary = {token: index for index, token in enumerate(["a", "b", "bc", "ab", "abc", "c"])}
    assert implied_merges(vocabulary) == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]


def test_bfloat16_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch", reason="`make test` installs torch")
    generator = np.random.default_rng(1)
    values = generator.normal(size=10_000).astype(np.float32) * np.float32(
        10
    ) ** generator.integers(-30, 30, 10_000).astype(np.float32)
    ties = np.array([1.00390625, 1.01171875, -1.00390625, 0.0, -0.0, 65280.0], dtype=np.float32)
    for array in (values, ties):
        expected = torch.from_numpy(array).to(torch.bfloat16).view(torch.int16).numpy()
        assert np.array_equal(bfloat16(array).view(np.int16), expected)


# Made once with `from_pretrained(gguf_file=…)` and `save_pretrained` of transformers 5.23, to which
# the conversion is bit-equal in every weight and equal in every token and merge.
@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "weights_sha256", "tokenizer_sha256"),
    [
        (
            "smollm2-135m-instruct",
            "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
            "7f42ca5d21ab15c9b10a4f7b2220525df65f587220d4cec6f3fbfa86db7f964e",
        ),
        (
            "gemma-3-270m",
            "d9df495ac8121f17441f73a45548b59cd75068fbd5e57ed0883c9e4a443fe908",
            "768700fc7c229db48bb45b444090ff8449d3085bc551e574d71577f2d277ed02",
        ),
    ],
)
def test_the_real_conversions(name: str, weights_sha256: str, tokenizer_sha256: str) -> None:
    config = Config.from_env()
    folder = locate(name, config=config).folder
    if folder is None:
        pytest.skip(f"{name} is not in the cache (`agentwire models pull {name}`)")
    assert sha256_of(folder / "model.safetensors") == weights_sha256
    assert sha256_of(folder / "tokenizer.json") == tokenizer_sha256
    assert fingerprint(folder, config=config) == MODELS[name].sha256
    source = json.loads((folder / "source.json").read_text())
    assert source["origin"] == [part.archive.requirement for part in MODELS[name].parts]
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert source["sha256"]["config.json"] == digest
