"""What is messages while bridges train."""

from __future__ import annotations

import pytest

from agentwire.training import reporting
from agentwire.training.loop import Evaluation
from agentwire.training.reporting import TrainingReport, duration


def evaluation(step: int, loss: float, accuracy: float) -> Evaluation:
    return Evaluation(step, loss, loss, accuracy)


def test_bridges_are_reported_as_means_without_those_that_ended() -> None:
    messages: list[tuple[str, float]] = []
    report = TrainingReport(
        lambda *message: messages.append(message), 3, steps=100, before=3, total=6
    )
    report.evaluated([evaluation(50, loss, 0.5) for loss in (1.0, 2.0, 3.0)])
    assert [text for text, _ in messages] == [
        "step 50: loss 2.000 ▁, held-out 0.500 (bridges 4 to 6 of 6)"
    ]
    assert messages[0][1] == pytest.approx(0.28 + 0.72 * 0.75)
    report.evaluated([evaluation(80, 0.5, 0.9)] * 2)  # the last bridge has ended
    assert messages[-1][0].startswith("step 80: loss 0.500")


def test_the_time_left_is_reported_between_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    messages: list[str] = []
    report = TrainingReport(lambda text, _: messages.append(text), 1, steps=1500)
    for number in range(101, 201):  # an earlier session had done 100 steps
        now[0] += 0.5
        report.stepped(number)
    assert len(messages) == 2
    assert messages[0].endswith(" of 1,500 steps, about 11 min left")
    assert int(messages[1].split()[0]) - int(messages[0].split()[0]) == 40


def test_durations_for_people() -> None:
    assert [duration(s) for s in (5, 89, 600, 5399, 7200)] == [
        "5 s", "89 s", "10 min", "90 min", "2.0 h",
    ]  # fmt: skip
