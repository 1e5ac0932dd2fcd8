from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from agentwire.config import Config, ensure_writable
from agentwire.errors import CacheError


def test_without_variables_the_user_cache_is_used() -> None:
    config = Config.from_env({})
    assert config.home == Path(platformdirs.user_cache_dir("agentwire"))
    assert config.data is None
    assert config.bridges == ()
    assert not config.offline


def test_variables_are_read_and_made_absolute(tmp_path: Path) -> None:
    environ = {
        "AGENTWIRE_HOME": str(tmp_path / "home"),
        "AGENTWIRE_DATA": "some/data",
        "AGENTWIRE_BRIDGES": os.pathsep.join([str(tmp_path / "a"), "", str(tmp_path / "b")]),
        "HF_HUB_OFFLINE": "1",
    }
    config = Config.from_env(environ)
    assert config.models == tmp_path / "home" / "models"
    assert config.datasets == tmp_path / "home" / "datasets"
    assert config.bridge_cache == tmp_path / "home" / "bridges"
    assert config.data == Path.cwd() / "some/data"
    assert config.bridges == (tmp_path / "a", tmp_path / "b")
    assert config.offline


@pytest.mark.parametrize(("value", "offline"), [("", False), ("0", False), ("TRUE", True)])
def test_offline_is_a_switch(value: str, offline: bool) -> None:
    assert Config.from_env({"AGENTWIRE_OFFLINE": value}).offline is offline


def test_ensure_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert ensure_writable(folder) == folder
    assert list(folder.iterdir()) == []


def test_a_cache_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="AGENTWIRE_HOME"):
        ensure_writable(tmp_path / "file" / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere: run it as another user")
def test_a_cache_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CacheError, match="cannot be written"):
            ensure_writable(tmp_path / "cache")
    finally:
        tmp_path.chmod(0o700)
