from pathlib import Path

import pytest

from agentwire.errors import InputError
from agentwire.gateway.keys import ANONYMOUS, ApiKeys, parse_keys, read_keys

KEY, OTHER = "k" * 32, "o" * 32


def test_only_a_bearer_key_names_its_owner() -> None:
    keys = ApiKeys({"ada": KEY, "bob": OTHER})
    assert keys.owner(f"Bearer {KEY}") == "ada"
    assert keys.owner(f"bearer {OTHER}") == "bob"
    for wrong in (None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[1:]}", KEY, f"Basic {KEY}"):
        assert keys.owner(wrong) is None
    assert keys.owner("Bearer \udcff") is None


def test_without_keys_everyone_is_anonymous() -> None:
    assert ApiKeys({}).owner(None) == ApiKeys({}).owner("Bearer x") == ANONYMOUS


def test_keys_are_not_kept_in_plain_text() -> None:
    assert KEY not in repr(vars(ApiKeys({"ada": KEY})))


def test_keys_are_read_from_lines_and_entries() -> None:
    text = f"# keys\nada {KEY}\n\nbob = {OTHER}\n"
    assert parse_keys(text, "keys") == {"ada": KEY, "bob": OTHER}
    assert parse_keys(f"ada={KEY},bob={OTHER}", "env") == {"ada": KEY, "bob": OTHER}
    assert parse_keys("", "env") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ada", "keys:1: expected a name and a key"),
        (f"ada {KEY}\nada {OTHER}", "keys:2: ada already has a key"),
        ("ada short", "fewer than 16"),
    ],
)
def test_malformed_key_files_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        parse_keys(text, "keys")
    assert "short" not in str(error.value)  # keys must not reach logs


def test_key_file_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"ada {KEY}\n")
    path.chmod(0o644)
    with pytest.raises(InputError, match="other users"):
        read_keys(path)
    path.chmod(0o600)
    assert read_keys(path) == {"ada": KEY}
    path.write_text("# none\n")
    with pytest.raises(InputError, match="has no key"):
        read_keys(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "nothing")
