"""``agentwire report`` on the screen and as SVG."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_results import make_result

from agentwire.cli.app import main


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", "one")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(make_result().model_dump_json(), encoding="utf-8")
    return folder


def test_it_shows_a_recorded_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "report", str(run))
    assert code == 0
    assert "text relay" in out and "smollm2-135m-instruct" in out


def test_it_draws_a_recorded_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "report", str(run), "--svg", "run.svg")[0] == 0
    svg = Path("run.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "STAND-INS" in svg


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("nowhere",), "nowhere/result.json cannot be read", "folder that a run wrote"),
        (("bad",), "is not the result of a run", "Run the scenario again"),
        (("runs/one", "--svg", "no/such/x.svg"), "cannot be written", "Name another file"),
    ],
)
def test_bad_input_is_refused(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    Path("bad").mkdir()
    Path("bad/result.json").write_text("{}", encoding="utf-8")
    code, _, err = call(capsys, "report", *arguments)
    assert code == 2
    assert message in err and hint in err and "Traceback" not in err
