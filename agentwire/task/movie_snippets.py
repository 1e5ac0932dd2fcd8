"""Movie-review snippets: sentiment rows from the package registry, for machines without the hub.

Source: C. J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
of Social Media Text", ICWSM 2014; the ground-truth file in the source archive of vaderSentiment
3.3.2 (MIT): 10,605 lines ``id <tab> mean rating in [-4, 4] by 20 people <tab> sentence``.

Neutral rows (|mean rating| < 0.5) are dropped, as in SST-2; the sign is the label. The split is
this project's own: 80 % train, 5 % validation, 15 % test by sha256 of the sentence's words, so that
equal sentences are in the same split.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path

from agentwire.download import Archive, OnProgress, pip_download, sha256_of
from agentwire.errors import DataError, DownloadError
from agentwire.task.rows import Example, normalise

ARCHIVE = Archive(
    requirement="vaderSentiment==3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    size=2_466_783,
)
FILE = "movieReviewSnippets_GroundTruth.txt"
FILE_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
SPLITS = ("train", "validation", "test")
NEUTRAL = 0.5
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBER = f"hutto_ICWSM_2014/{FILE}"
_LIMIT = 16 << 20  # bytes; both members are smaller


def cached_file(folder: Path) -> Path:
    """Path of the ground-truth file, which may not exist yet."""
    return folder / FILE


def fetch(folder: Path, progress: OnProgress | None = None) -> Path:
    """The ground-truth file, downloaded once into ``folder``.

    Raises:
        CacheError: ``folder`` cannot be written.
        DownloadError: the download failed, or is not the expected file.
    """
    target = cached_file(folder)
    if target.is_file() and sha256_of(target) == FILE_SHA256:
        return target
    archive = pip_download(ARCHIVE, folder, progress=progress)
    data = _extract(archive)
    if hashlib.sha256(data).hexdigest() != FILE_SHA256:
        archive.unlink()
        raise DownloadError(
            f"{FILE} in {archive.name} is not the expected file; it was removed.",
            hint="Run the command again.",
        )
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
        partial = Path(scratch, FILE)
        partial.write_bytes(data)
        os.replace(partial, target)
    archive.unlink()
    return target


def _extract(archive: Path) -> bytes:
    """The ground-truth file from the archive inside the archive; nothing else is unpacked."""
    try:
        return _member(_member(archive.read_bytes(), _INNER), _MEMBER)
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        archive.unlink(missing_ok=True)
        raise DownloadError(
            f"{archive.name} cannot be unpacked; it was removed.", hint="Run the command again."
        ) from error


def _member(data: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        stream = tar.extractfile(name)
        if stream is None:
            raise KeyError(name)
        return stream.read(_LIMIT)


def parse(file: Path, split: str) -> tuple[Example, ...]:
    """The rows of one split, in the file's order."""
    rows: list[Example] = []
    # Not splitlines(): a sentence may contain U+2028 and other Unicode line breaks.
    lines = file.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        example = _row(file, number, line)
        if example is not None and split_of(example.text) == split:
            rows.append(example)
    return tuple(rows)


def _row(file: Path, number: int, line: str) -> Example | None:
    try:
        _, rating, text = line.split("\t")
        mean = float(rating)
    except ValueError as error:
        raise DataError(
            f"{file}:{number}: not `id <tab> rating <tab> text`.",
            hint="Remove the file to download it again.",
        ) from error
    return None if abs(mean) < NEUTRAL else Example(text.strip(), int(mean > 0))


def split_of(text: str) -> str:
    """``train``, ``validation`` or ``test``, depending on the sentence's words only."""
    digest = hashlib.sha256(normalise(text).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    return "train" if bucket < 80 else "validation" if bucket < 85 else "test"
