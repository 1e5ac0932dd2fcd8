"""Weights that change on the disk, damaged records, and conversions that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from patience import COMMAND_S

from agentwire.config import Config
from agentwire.errors import ModelError
from agentwire.model.sources import fingerprint as module
from agentwire.model.sources.fingerprint import fingerprint, write_source

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(home=tmp_path / "home", offline=True)


@pytest.fixture(params=["converted", "published"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, tiny_llama: Path) -> Path:
    """A model that was converted here, and one whose files are used as they were published."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))
    if request.param == "converted":
        write_source(folder, "tiny", PUBLISHED, ["tiny==1.0"])
    return folder


def agentwire(config: Config, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentwire", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AGENTWIRE_HOME": str(config.home)},
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def verify(config: Config, folder: Path) -> tuple[int, dict[str, Any]]:
    done = agentwire(config, "models", "verify", str(folder), "--json")
    (row,) = json.loads(done.stdout)
    return done.returncode, row


def damage(file: Path, *, zero: bool = False) -> None:
    """Flips a bit in the middle of a file, or zeroes half of it; size and time stay the same."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    half = len(content) // 2
    if zero:
        content[half:] = bytes(len(content) - half)
    else:
        content[half] ^= 1
    with file.open("r+b") as stream:
        stream.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and file.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("zero", [False, True], ids=["flipped bit", "zeroed half"])
def test_damaged_weights_are_found_by_verify_and_at_the_next_load(
    folder: Path, config: Config, zero: bool
) -> None:
    good = fingerprint(folder, config=config)
    assert verify(config, folder) == (
        0,
        {"name": str(folder), "valid": True, "fingerprint": good, "error": None},
    )
    damage(folder / "model.safetensors", zero=zero)
    code, row = verify(config, folder)
    assert code == 2 and ("was changed" in row["error"] or "was damaged" in row["error"])
    with pytest.raises(ModelError, match="changed") as error:
        fingerprint(folder, config=config)
    assert error.value.hint


def test_a_user_may_change_their_own_model(
    tmp_path: Path, tiny_llama: Path, config: Config
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))
    good = fingerprint(folder, config=config)
    (folder / "tokenizer_config.json").write_text("{}")
    assert fingerprint(folder, config=config) != good
    assert verify(config, folder)[0] == 0


def test_damage_that_leaves_no_trace_is_found_at_the_next_boot(
    folder: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a disk had changed its bytes: no time of the file shows it."""
    good = fingerprint(folder, config=config)
    damage(folder / "model.safetensors")
    (kept,) = (config.home / "fingerprints").iterdir()
    names = module.published_files(folder)
    names += ["source.json"] if (folder / "source.json").exists() else []
    record = {**json.loads(kept.read_text()), "files": module._stamps(folder, names)}
    kept.write_text(json.dumps(record))
    assert fingerprint(folder, config=config) == good  # checked since this boot
    code, row = verify(config, folder)
    assert code == 2 and ("was changed" in row["error"] or "was damaged" in row["error"])
    monkeypatch.setattr(module, "_boot", lambda: "another boot")
    with pytest.raises(ModelError, match="changed"):
        fingerprint(folder, config=config)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"sha256": {}, "fingerprint": ""}'])
def test_a_damaged_record_says_what_to_do(
    tmp_path: Path, tiny_llama: Path, config: Config, content: str
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))
    write_source(folder, "tiny", PUBLISHED, [])
    fingerprint(folder, config=config)
    (folder / "source.json").write_text(content)
    with pytest.raises(ModelError, match=r"source.json is empty or damaged") as error:
        fingerprint(folder, config=config)
    assert error.value.hint and "models pull tiny" in error.value.hint
    code, row = verify(config, folder)
    assert code == 2 and "source.json is empty or damaged" in row["error"]


def test_an_agent_refuses_damaged_weights(tmp_path: Path, tiny_llama: Path, config: Config) -> None:
    """From outside: the run fails and names the file; it does not answer."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))
    write_source(folder, "tiny", PUBLISHED, [])
    fingerprint(folder, config=config)
    damage(folder / "model.safetensors")
    script = f"""
import asyncio, agentwire
async def main():
    async with agentwire.open({str(tmp_path / "s.yaml")!r}) as wire:
        print(await wire.direct("ada", "x", prompt="Good?", labels=["yes", "no"]))
asyncio.run(main())
"""
    agents = {name: {"model": str(folder), "device": "cpu"} for name in ("ada", "bob")}
    scenario = {"name": "s", "agents": agents, "wires": [{"from": "ada", "to": "bob"}]}
    (tmp_path / "s.yaml").write_text(json.dumps(scenario))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AGENTWIRE_HOME": str(config.home)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode and not done.stdout
    assert "model.safetensors was changed since it was converted" in done.stderr


def test_a_killed_conversion_leaves_nothing_after_the_next_one(
    tmp_path: Path, config: Config
) -> None:
    script = tmp_path / "pull.py"
    script.write_text(
        f"""
import hashlib, sys, time
from dataclasses import replace
from pathlib import Path
from agentwire.config import Config
from agentwire.model.sources import lookup
from agentwire.model.sources.registry import SMOLLM2
hang = sys.argv[1] == "hang"
def download(model, downloads, gguf, progress):
    gguf.write_bytes(bytes(1000))
def convert(model, gguf, folder, progress):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text(name)
    if hang:
        print("converting", flush=True)
        time.sleep(60)
lookup.MODELS = {{"tiny": replace(SMOLLM2, name="tiny", sha256="{PUBLISHED}")}}
lookup._download, lookup._run_conversion = download, convert
print(lookup.fetch("tiny", config=Config(home=Path({str(config.home)!r}), offline=True)))
"""
    )
    command = [sys.executable, str(script)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "hang"], env=env, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"converting\n"
        second = subprocess.Popen([*command, "go"], env=env, stdout=subprocess.PIPE)
        time.sleep(1.0)
        assert second.poll() is None  # it waits, and does not take the first one's folder away
        assert [item.name[:6] for item in config.models.iterdir()] == [".tiny-"]
        first.send_signal(signal.SIGKILL)
    out, _ = second.communicate(timeout=COMMAND_S)
    assert second.returncode == 0 and Path(out.decode().strip()) == config.models / "tiny"
    assert [item.name for item in config.models.iterdir()] == ["tiny"]
    assert fingerprint(config.models / "tiny", config=config) == PUBLISHED
