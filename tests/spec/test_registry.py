"""Registries: built-in entries, lazy ones, and entry points of other packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentwire.errors import AgentwireError, ScenarioError
from agentwire.spec.registry import Registry


@pytest.fixture
def registry() -> Registry[object]:
    return Registry("agentwire.test_things", "thing")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """A third-party distribution on sys.path with one module and one entry point."""
    (folder / "thirdparty_thing.py").write_text(module)
    info = folder / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[agentwire.test_things]\ntheirs = thirdparty_thing:THING\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "thirdparty_thing", raising=False)


def test_registered_and_lazy_entries_are_found_by_name(registry: Registry[object]) -> None:
    thing = object()
    registry.add("mine", thing)
    registry.lazy("path", "pathlib:Path")
    assert registry.get("mine") is thing
    assert registry.get("path") is Path
    assert registry.names() == ("path", "mine")
    assert "path" in registry
    assert "other" not in registry


def test_an_unknown_name_is_refused_with_a_suggestion(registry: Registry[object]) -> None:
    registry.add("static", object())
    with pytest.raises(ScenarioError, match=r"no thing 'statik'.*Did you mean 'static'\?"):
        registry.get("statik")
    with pytest.raises(ScenarioError, match=r"Things: static\."):
        registry.get("zzz")


def test_a_name_is_registered_once(registry: Registry[object]) -> None:
    registry.add("a", 1)
    registry.add("a", registry.get("a"))
    with pytest.raises(AgentwireError, match="Two things are named 'a'"):
        registry.add("a", 2)


def test_another_package_adds_an_entry(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "THING = 'theirs'\n")
    assert registry.names() == ("theirs",)
    assert registry.get("theirs") == "theirs"


def test_a_broken_package_is_named(
    registry: Registry[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "import no_such_library\n")
    with pytest.raises(AgentwireError, match="package thirdparty cannot be loaded"):
        registry.get("theirs")
