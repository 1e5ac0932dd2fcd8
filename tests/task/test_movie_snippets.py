from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from agentwire.config import Config
from agentwire.errors import DataError, DownloadError
from agentwire.task import movie_snippets
from agentwire.task.datasets import load_rows
from agentwire.task.rows import Example, normalise

LINES = [
    "1\t2.25\tA joy.\r\n",
    "2\t-0.5\tNot  quite a joy. \r\n",
    "3\t0.49\tIt is a film.\r\n",
    "4\t-3.0\tOne \x85 odd character.\r\n",
]


def tar_gz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    file = tmp_path / movie_snippets.FILE
    file.write_bytes("".join(LINES).encode())
    return file


def test_neutral_rows_are_dropped_and_the_sign_is_the_label(truth: Path) -> None:
    rows = [row for split in movie_snippets.SPLITS for row in movie_snippets.parse(truth, split)]
    assert sorted(rows) == [
        Example("A joy.", 1),
        Example("Not  quite a joy.", 0),
        Example("One \x85 odd character.", 0),
    ]


def test_the_split_goes_by_the_words_alone() -> None:
    assert movie_snippets.split_of("A joy!") == movie_snippets.split_of("a  JOY .")
    assert normalise("A  JOY .") == "a joy"
    counts = dict.fromkeys(movie_snippets.SPLITS, 0)
    for index in range(2000):
        counts[movie_snippets.split_of(f"sentence {index}")] += 1
    assert 1500 < counts["train"] < 1700
    assert 60 < counts["validation"] < 140
    assert 240 < counts["test"] < 360


def test_a_bad_line_is_named(truth: Path) -> None:
    truth.write_bytes(truth.read_bytes() + b"5\tmany\ttext\r\n")
    with pytest.raises(DataError, match=r"GroundTruth.txt:5: not"):
        movie_snippets.parse(truth, "test")


def archive_of(data: bytes) -> dict[str, bytes]:
    inner = tar_gz({f"hutto_ICWSM_2014/{movie_snippets.FILE}": data, "other": b"x"})
    return {"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the downloaded archive, which the test writes."""
    archive = tmp_path / "cache" / "archive.tar.gz"
    archive.parent.mkdir()
    monkeypatch.setattr(movie_snippets, "pip_download", lambda *args, **kwargs: archive)
    return archive


def test_only_the_ground_truth_is_kept(
    registry: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = truth.read_bytes()
    registry.write_bytes(tar_gz(archive_of(data)))
    monkeypatch.setattr(movie_snippets, "FILE_SHA256", hashlib.sha256(data).hexdigest())
    file = movie_snippets.fetch(registry.parent)
    assert file.read_bytes() == data
    assert [item.name for item in registry.parent.iterdir()] == [movie_snippets.FILE]
    assert movie_snippets.fetch(registry.parent) == file  # the archive is gone: from the cache


@pytest.mark.parametrize(
    "content",
    [
        tar_gz(archive_of(b"other rows")),
        tar_gz({"something": b"else"}),
        tar_gz(archive_of(b"other rows"))[:200],
        b"no archive",
        gzip.compress(b"no tar"),
    ],
)
def test_a_wrong_archive_is_removed_and_never_used(registry: Path, content: bytes) -> None:
    registry.write_bytes(content)
    with pytest.raises(DownloadError, match="it was removed"):
        movie_snippets.fetch(registry.parent)
    assert list(registry.parent.iterdir()) == []


@pytest.mark.real
def test_the_published_rows_and_their_split() -> None:
    config = Config.from_env()
    if not movie_snippets.cached_file(config.datasets / "movie_snippets").is_file():
        pytest.skip("the snippets are not in the cache (`agentwire data pull movie_snippets`)")
    found = {
        split: load_rows("movie_snippets", split, config=config, allow_download=False)
        for split in movie_snippets.SPLITS
    }
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 8064,
        "validation": 474,
        "test": 1534,
    }
    assert sum(row.label for row in found["test"].rows) == 761
    assert {split: rows.provenance["rows_sha256"][:16] for split, rows in found.items()} == {
        "train": "1bd0db4b869c0ac7",
        "validation": "2fda9e71223d07db",
        "test": "aadbc04e25cf3b1a",
    }
    texts = {split: {normalise(row.text) for row in rows.rows} for split, rows in found.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & (texts["train"] | texts["test"])
