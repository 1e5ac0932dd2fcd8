"""Folders, addresses and tokens."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agentwire.bus.security import (
    check_endpoint,
    check_folder,
    ipc_endpoint,
    make_run_folder,
    new_token,
)
from agentwire.errors import InputError


def test_a_run_folder_is_private_and_unique(tmp_path: Path) -> None:
    first, second = make_run_folder(tmp_path), make_run_folder(tmp_path)
    assert first != second
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    check_folder(first)


def test_a_run_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TMPDIR"):
        make_run_folder(tmp_path / "missing")


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_folders_that_others_can_enter_are_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(InputError, match="chmod 700"):
        check_folder(tmp_path)


def test_links_files_and_missing_folders_are_refused(tmp_path: Path) -> None:
    private = make_run_folder(tmp_path)
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(private)
    file.touch(0o600)
    for path in (link, file, tmp_path / "missing"):
        with pytest.raises(InputError):
            check_folder(path)


def test_ipc_paths_have_a_limit() -> None:
    assert ipc_endpoint(Path("/tmp/x")) == "ipc:///tmp/x/bus"
    with pytest.raises(InputError, match="longer than 107 bytes"):
        ipc_endpoint(Path("/tmp") / ("é" * 60))


def test_tokens_are_fresh_and_long() -> None:
    assert new_token() != new_token()
    assert len(bytes.fromhex(new_token())) == 32


OPEN = [
    "tcp://*:5555",
    "tcp://0.0.0.0:5555",
    "tcp://10.1.2.3:5555",
    "tcp://[::]:5555",
    "tcp://eth0:5555",
    "tcp://example.org:5555",
    "tcp://127.0.0.1.example.org:5555",
    "tcp://localhost@10.1.2.3:5555",
]
CLOSED = [
    "tcp://127.0.0.1:5555",
    "tcp://127.0.0.1:*",
    "tcp://localhost:0",
    "tcp://[::1]:5555",
    "ipc:///tmp/x/bus",
    "inproc://x",
]


@pytest.mark.parametrize("endpoint", OPEN)
def test_open_tcp_needs_curve_or_force(endpoint: str) -> None:
    with pytest.raises(InputError, match="CURVE"):
        check_endpoint(endpoint, curve=False)
    check_endpoint(endpoint, curve=True)
    check_endpoint(endpoint, curve=False, force=True)


@pytest.mark.parametrize("endpoint", CLOSED)
def test_local_addresses_are_allowed(endpoint: str) -> None:
    check_endpoint(endpoint, curve=False)


@pytest.mark.parametrize(
    "endpoint", ["", "tcp://", "ipc://", "udp://x:1", "ipc://@abstract", "pgm://x", "x"]
)
def test_other_addresses_are_refused_even_by_force(endpoint: str) -> None:
    with pytest.raises(InputError, match="Invalid bus address"):
        check_endpoint(endpoint, curve=True, force=True)
