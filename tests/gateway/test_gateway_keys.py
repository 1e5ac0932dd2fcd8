from pathlib import Path

import pytest

from agentwire.errors import InputError
from agentwire.gateway.keys import ANONYMOUS, ApiKeys, parse_keys, read_keys

KEY, OTHER = "k" * 32, "o" * 32


def test_a_key_names_its_owner_and_nothing_else_does() -> None:
    keys = ApiKeys({"ada": KEY, "bob": OTHER})
    assert keys.owner(f"Bearer {KEY}") == "ada"
    assert keys.owner(f"bearer {OTHER}") == "bob"
    for wrong in (None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[1:]}", KEY, f"Basic {KEY}"):
        assert keys.owner(wrong) is None
    assert keys.owner("Bearer \udcff") is None


def test_without_keys_everybody_is_the_same_owner() -> None:
    assert ApiKeys({}).owner(None) == ApiKeys({}).owner("Bearer x") == ANONYMOUS


def test_no_key_is_kept_as_it_is() -> None:
    assert KEY not in repr(vars(ApiKeys({"ada": KEY})))


def test_lines_and_entries_are_read() -> None:
    text = f"# keys\nada {KEY}\n\nbob = {OTHER}\n"
    assert parse_keys(text, "keys") == {"ada": KEY, "bob": OTHER}
    assert parse_keys(f"ada={KEY},bob={OTHER}", "env") == {"ada": KEY, "bob": OTHER}
    assert parse_keys("", "env") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ada", "keys:1: not a name and a key"),
        (f"ada {KEY}\nada {OTHER}", "keys:2: ada has a key already"),
        ("ada short", "shorter than 16"),
    ],
)
def test_what_is_no_key_file(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        parse_keys(text, "keys")
    assert "short" not in str(error.value).replace("shorter", "")  # keys do not reach logs


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"ada {KEY}\n")
    path.chmod(0o644)
    with pytest.raises(InputError, match="other users"):
        read_keys(path)
    path.chmod(0o600)
    assert read_keys(path) == {"ada": KEY}
    path.write_text("# none\n")
    with pytest.raises(InputError, match="holds no key"):
        read_keys(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "nothing")
