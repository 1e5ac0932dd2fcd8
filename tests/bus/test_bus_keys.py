"""Key files: private keys that nobody else can read, and the list of registered keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentwire.bus.keys import AllowList, KeyFolder, read_pair, read_public
from agentwire.cli.keys import app
from agentwire.errors import InputError


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


def test_a_new_pair_is_private_and_unique(keys: KeyFolder) -> None:
    pair = keys.new("llama")
    path = keys.folder / "llama.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    assert read_pair(path) == pair and pair.secret not in repr(pair)
    assert pair.secret not in (keys.folder / "llama.pub").read_text()
    assert read_public(str(keys.folder / "llama.pub")) == ("llama", pair.public)
    with pytest.raises(InputError, match="already"):
        keys.new("llama")
    assert keys.new("mistral").public != pair.public
    assert keys.names() == ["llama", "mistral"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", ".hidden", "x" * 80])
def test_invalid_names_are_refused(keys: KeyFolder, name: str) -> None:
    with pytest.raises(InputError):
        keys.new(name)


def test_a_key_that_others_can_read_is_refused(keys: KeyFolder) -> None:
    keys.new("llama")
    path = keys.folder / "llama.key"
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600") as error:
        read_pair(path)
    assert read_secret(path) not in str(error.value)


def read_secret(path: Path) -> str:
    import json

    return str(json.loads(path.read_text())["secret"])


def test_errors_about_a_key_file_do_not_show_its_content(keys: KeyFolder) -> None:
    keys.new("llama")
    path = keys.folder / "llama.key"
    secret = read_secret(path)
    path.write_text(path.read_text().replace('"public": "', '"public": "x'))
    with pytest.raises(InputError, match="does not hold a pair") as error:
        read_pair(path)
    assert secret not in str(error.value)


def test_the_list_changes_while_it_is_used(keys: KeyFolder) -> None:
    listed = AllowList(keys.allowed)
    pair = keys.new("llama")
    assert listed.name_of(pair.public) is None
    keys.allow("llama", pair.public)
    assert listed.name_of(pair.public) == "llama"
    with pytest.raises(InputError, match="already registered as llama"):
        keys.allow("other", pair.public)
    other = keys.new("mistral").public
    keys.allow("llama", other)  # a new key for the same name: the old one is out
    assert (listed.name_of(pair.public), listed.name_of(other)) == (None, "llama")
    keys.revoke("llama")
    assert listed.name_of(other) is None
    with pytest.raises(InputError, match="No key"):
        keys.revoke("llama")


def test_an_unreadable_list_admits_nobody(keys: KeyFolder) -> None:
    pair = keys.new("llama")
    keys.allow("llama", pair.public)
    listed = AllowList(keys.allowed)
    assert listed.name_of(pair.public) == "llama"
    keys.allowed.write_text(f"llama {pair.public}\nnonsense\n")
    assert listed.name_of(pair.public) is None


def test_the_commands(keys: KeyFolder) -> None:
    folder = ["--folder", str(keys.folder)]
    run = CliRunner().invoke
    made = run(app, ["new", "llama", *folder])
    assert made.exit_code == 0
    assert read_secret(keys.folder / "llama.key") not in made.output
    assert run(app, ["allow", "llama", *folder]).exit_code == 0
    shown = run(app, ["list", *folder]).output
    assert "allowed: llama" in shown and read_secret(keys.folder / "llama.key") not in shown
    assert run(app, ["revoke", "llama", *folder]).exit_code == 0
    assert "allowed: nobody" in run(app, ["list", *folder]).output
