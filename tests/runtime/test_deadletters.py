"""Dead letters: stored with everything that a retry needs, readable by their owner only."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from agentwire.errors import InputError, NackCode, RequestError
from agentwire.runtime.deadletters import DeadLetters, pick
from agentwire.runtime.ledger import Request
from agentwire.runtime.reply import Reply
from agentwire.wire.messages import Channel, RelaySpec, TaskSpec

TASK = TaskSpec("t", "Answer:", "{text}\nAnswer:", ("good", "bad"), RelaySpec("Sum up: {text}", 9))


def request(number: int, text: str = "poison ☠") -> Request:
    request_id = number.to_bytes(16, "big")
    return Request(request_id, "a->b", TASK.task_id, text, Channel.SOFT, "text", 0.0)


def reply() -> Reply:
    return Reply("00", "good", 0, {}, None, Channel.SOFT, "", {}, 1.0, 8)


def test_a_dead_letter_keeps_everything_a_retry_needs(tmp_path: Path) -> None:
    file = DeadLetters(tmp_path)
    assert file.all() == []
    text = "poison ☠\u2028and a line separator"
    file.add(request(1, text), TASK, "a", "SIGKILL")
    (letter,) = DeadLetters(tmp_path).all()
    assert (letter.task, letter.text, letter.wire) == (TASK, text, "a->b")
    assert (letter.channel, letter.agent, letter.reason) == (Channel.SOFT, "a", "SIGKILL")
    assert letter.task.task_id == TASK.task_id and letter.open
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_an_answered_letter_is_not_picked_again(tmp_path: Path) -> None:
    file = DeadLetters(tmp_path)
    for number in (1, 2, 3):
        file.add(request(number), TASK, "a", "SIGKILL")
    ids = [letter.request_id for letter in file.all()]
    file.retried(ids[0], reply())
    file.retried(ids[1], RequestError(NackCode.DEAD_LETTER, "again"))
    letters = file.all()
    assert [letter.outcome for letter in letters] == ["answered", "dead_letter", ""]
    assert [letter.request_id for letter in pick(letters, [])] == ids[1:]
    assert [letter.request_id for letter in pick(letters, [ids[2][-32:]])] == ids[2:]
    with pytest.raises(InputError, match="no dead letter ffff"):
        pick(letters, ["ffff"])


def test_a_torn_last_line_is_skipped_and_a_broken_line_is_named(tmp_path: Path) -> None:
    file = DeadLetters(tmp_path)
    file.add(request(1), TASK, "a", "SIGKILL")
    with file.path.open("a") as out:
        out.write('{"event": "dea')
    assert len(file.all()) == 1
    file.path.write_text(json.dumps({"event": "dead", "request_id": "x"}) + "\n")
    with pytest.raises(InputError, match=r"jsonl:1 is not a dead letter"):
        file.all()
    with pytest.raises(InputError, match="not the folder of a run"):
        DeadLetters(tmp_path / "none").all()


def test_the_command_lists_dead_letters(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from agentwire.cli.deadletters import app

    DeadLetters(tmp_path).add(request(1, "x" * 99), TASK, "a", "ended by SIGKILL")
    shown = CliRunner().invoke(app, ["list", str(tmp_path)])
    assert shown.exit_code == 0 and "a->b" in shown.stdout and "SIGKILL" in shown.stdout
    listed = json.loads(CliRunner().invoke(app, ["list", str(tmp_path), "--json"]).stdout)
    assert listed[0]["text"] == "x" * 99
    DeadLetters(tmp_path).retried(listed[0]["request_id"], reply())
    done = CliRunner().invoke(app, ["retry", str(tmp_path)])
    assert done.exit_code == 0 and "nothing to retry" in done.stdout


def test_the_command_lists_unfinished_requests_of_a_killed_run(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from agentwire.cli.deadletters import app
    from agentwire.telemetry.journal import Journal

    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("admitted", request_ids=["aa", "bb", "cc"])
    journal.write("finished", request_ids=["bb"], outcome="answered")
    journal.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"seq": 2, "event": "fini')  # killed while writing a line
    shown = CliRunner().invoke(app, ["list", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert [line for line in shown.output.splitlines() if line.startswith("unfinished")] == [
        "unfinished: aa",
        "unfinished: cc",
    ]
