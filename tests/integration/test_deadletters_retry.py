"""A dead letter of one run can be answered in another run."""

from pathlib import Path

import pytest
from fake_run import TASK, fake_runtime

from agentwire.errors import NackCode, RequestError
from agentwire.model.fake import answer
from agentwire.runtime.deadletters import DeadLetters, pick
from agentwire.runtime.reply import Reply

pytestmark = pytest.mark.integration


async def test_a_dead_letter_is_stored_and_resent_under_its_id(tmp_path: Path) -> None:
    async with fake_runtime(sender={"crash_on": "poison"}, run_folder=tmp_path) as wire:
        good, dead = await wire.send_batch("sender", "receiver", ["fine", "poison"])
    assert isinstance(good, Reply) and isinstance(dead, RequestError)
    assert dead.code is NackCode.DEAD_LETTER
    file = DeadLetters(tmp_path)
    (letter,) = file.all()
    assert letter.request_id in dead.message and "poison" in letter.text
    assert "poison" not in (tmp_path / "journal.jsonl").read_text()
    async with fake_runtime() as wire:
        outcome = await wire.resend(letter, deadline=30.0)
        again = await wire.resend(letter, deadline=30.0)
        assert again is outcome and wire.metrics()["results"] == 1
    assert isinstance(outcome, Reply) and outcome.label == answer("poison", TASK.labels)
    assert outcome.request_id == letter.request_id
    file.retried(letter.request_id, outcome)
    assert pick(file.all(), []) == []
