"""Downloads, with a script in the place of pip: no network is touched."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from agentwire.download import Archive, pip_download, sha256_of
from agentwire.errors import CacheError, DownloadError

CONTENT = b"the archive" * 1000
ARCHIVE = Archive(
    requirement="some-package==1.0",
    filename="some_package-1.0-py3-none-any.whl",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
)


def fake_pip(folder: Path, body: str) -> list[str]:
    """A command that stands for ``python -m pip``; ``body`` sees ``args`` and ``dest``."""
    script = folder / "fake_pip.py"
    script.write_text(
        "import pathlib, sys\n"
        "args = sys.argv[1:]\n"
        "dest = pathlib.Path(args[args.index('--dest') + 1])\n"
        "dest.mkdir(parents=True, exist_ok=True)\n"
        f"name, content = {ARCHIVE.filename!r}, b'the archive' * 1000\n"
        f"{body}\n"
    )
    return [sys.executable, str(script)]


GOOD = "(dest / name).write_bytes(content)"


def left_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_good_download_is_kept_under_its_name(tmp_path: Path) -> None:
    into = tmp_path / "cache"
    file = pip_download(ARCHIVE, into, pip=fake_pip(tmp_path, GOOD))
    assert file == into / ARCHIVE.filename
    assert file.read_bytes() == CONTENT
    assert left_in(into) == [ARCHIVE.filename]


def test_pip_is_asked_for_the_pinned_hash_and_no_dependencies(tmp_path: Path) -> None:
    body = (
        "requirements = pathlib.Path(args[args.index('--requirement') + 1]).read_text()\n"
        f"log = pathlib.Path({str(tmp_path / 'log')!r})\n"
        "log.write_text(' '.join(args) + '\\n' + requirements)\n" + GOOD
    )
    pip_download(ARCHIVE, tmp_path / "cache", pip=fake_pip(tmp_path, body))
    arguments, requirement = (tmp_path / "log").read_text().splitlines()
    assert arguments.startswith("download --no-deps --require-hashes --no-input")
    assert "--only-binary :all:" in arguments
    assert requirement == f"some-package==1.0 --hash=sha256:{ARCHIVE.sha256}"


def test_what_is_there_and_right_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE.filename).write_bytes(CONTENT)
    file = pip_download(ARCHIVE, tmp_path, pip=["/no/such/command"])
    assert file.read_bytes() == CONTENT


def test_what_is_there_and_wrong_is_replaced(tmp_path: Path) -> None:
    into = tmp_path / "cache"
    into.mkdir()
    (into / ARCHIVE.filename).write_bytes(b"half")
    file = pip_download(ARCHIVE, into, pip=fake_pip(tmp_path, GOOD))
    assert sha256_of(file) == ARCHIVE.sha256


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(dest / name).write_bytes(content[:500])", "is truncated (500 of 11,000 bytes"),
        ("(dest / name).write_bytes(content[:-1] + b'!')", "has a wrong checksum (11,000 of"),
        ("(dest / 'other.whl').write_bytes(content)", "returned other.whl for some-package==1.0"),
        ("pass", "returned nothing for some-package==1.0"),
        (
            "print('ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM'); sys.exit(1)",
            "has a wrong checksum; it was removed",
        ),
        (
            "print('ERROR: No matching distribution found for some-package==1.0'); sys.exit(1)",
            "is not in the cache and cannot be downloaded: there is no network",
        ),
        ("print('NewConnectionError: Max retries exceeded'); sys.exit(2)", "no network"),
        (
            "print('ERROR: [Errno 28] No space left on device'); sys.exit(1)",
            "not enough disk space",
        ),
        ("print('/usr/bin/python: No module named pip'); sys.exit(1)", "has no pip"),
        ("print('ERROR: something else.'); sys.exit(1)", "cannot be downloaded: something else."),
        ("sys.exit(3)", "pip gave no reason"),
    ],
)
def test_a_bad_download_is_named_and_nothing_of_it_is_kept(
    tmp_path: Path, body: str, message: str
) -> None:
    into = tmp_path / "cache"
    with pytest.raises(DownloadError) as caught:
        pip_download(ARCHIVE, into, pip=fake_pip(tmp_path, body))
    assert message in caught.value.message
    assert caught.value.hint
    assert left_in(into) == []


def test_a_missing_command_is_a_download_error(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        pip_download(ARCHIVE, tmp_path, pip=["/no/such/command"])


def test_progress_is_read_from_pip(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    body = "print('Progress 0 of 11000'); print('Progress 5500 of 11000')\n" + GOOD
    pip_download(
        ARCHIVE,
        tmp_path / "cache",
        progress=lambda stage, fraction: seen.append((stage, fraction)),
        pip=fake_pip(tmp_path, body),
    )
    assert seen == [("download", 0.0), ("download", 0.0), ("download", 0.5), ("download", 1.0)]


def test_an_interrupted_download_leaves_nothing(tmp_path: Path) -> None:
    into = tmp_path / "cache"
    body = "(dest / name).write_bytes(content)\nprint('Progress 1 of 2', flush=True)\n"
    body += "import time\ntime.sleep(600)"

    def stop(stage: str, fraction: float) -> None:
        if fraction:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pip_download(ARCHIVE, into, progress=stop, pip=fake_pip(tmp_path, body))
    assert left_in(into) == []


def test_a_folder_that_cannot_be_made_is_a_cache_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError):
        pip_download(ARCHIVE, tmp_path / "file", pip=fake_pip(tmp_path, GOOD))
