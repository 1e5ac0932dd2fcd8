"""The options that connect two machines are checked before anything starts."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agentwire.bus.keys import KeyFolder
from agentwire.cli.agent import spec_of
from agentwire.cli.app import main
from agentwire.cli.run import remote_of
from agentwire.errors import ScenarioError
from agentwire.scenario.load import load_scenario

SCENARIO = "scenarios/llama_to_mistral_sst2.yaml"
ADDRESS = "tcp://0.0.0.0:5555"


def test_listen_and_remote_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTWIRE_KEYS", str(tmp_path / "keys"))
    assert remote_of(None, None, ["llama"]) is None
    for listen, names in ((ADDRESS, None), (None, ["llama"]), (ADDRESS, [])):
        with pytest.raises(ScenarioError, match="belong together"):
            remote_of(listen, names, ["llama"])
    with pytest.raises(ScenarioError, match="no agent 'other'"):
        remote_of(ADDRESS, ["other"], ["llama"])
    assert not (tmp_path / "keys").exists()
    remote = remote_of(ADDRESS, ["llama"], ["llama", "mistral"])
    assert remote is not None and remote.agents == {"llama"}
    assert stat.S_IMODE((tmp_path / "keys" / "bus.key").stat().st_mode) == 0o600
    again = remote_of(ADDRESS, ["llama"], ["llama"])
    assert again is not None and again.access.secret == remote.access.secret  # the same bus


def test_an_agent_without_its_keys_is_an_input_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = KeyFolder(tmp_path)
    keys.server(), keys.new("llama")
    good = {"--key": str(tmp_path / "llama.key"), "--server": str(tmp_path / "bus.pub")}
    for wrong, words in (
        ({"--key": str(tmp_path / "none.key")}, "Cannot read the key"),
        ({"--server": "nonsense"}, "not a public key"),
    ):
        options = [word for pair in (good | wrong).items() for word in pair]
        with pytest.raises(SystemExit) as ended:
            main(["agent", SCENARIO, "llama", "--connect", "tcp://127.0.0.1:1", *options])
        assert ended.value.code == 2
        shown = capsys.readouterr().err
        assert words in shown and "next:" in shown and "Traceback" not in shown


def test_a_replica_can_run_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTWIRE_KEYS", str(tmp_path / "keys"))
    file = tmp_path / "scenario.yaml"
    file.write_text(
        "name: two\nagents:\n  a: {model: m, backend: fake}\n"
        "  b: {model: n, backend: fake, replicas: 2}\nwires: [{from: a, to: b}]\n"
    )
    spec = spec_of(file, "b.2", None)
    assert (spec.name, spec.incoming) == ("b.2", ("a->b.2",))
    with pytest.raises(ScenarioError, match="no agent 'b'") as caught:
        spec_of(file, "b", None)
    assert "a, b.1, b.2" in (caught.value.hint or "")
    remote = remote_of(ADDRESS, ["b.2"], load_scenario(file).processes)
    assert remote is not None and remote.agents == {"b.2"}
