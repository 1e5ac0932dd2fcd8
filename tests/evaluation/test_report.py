"""The report shows every figure, fits the screen and names the stand-ins."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from run_results import make_method, make_result

from agentwire.evaluation.report import print_banner, print_report, speed_up
from agentwire.evaluation.result import Latency, RunResult


def shown(result: RunResult, width: int = 100) -> str:
    stream = io.StringIO()
    print_report(result, Path("runs/x"), Console(file=stream, width=width, no_color=True))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_report_fits_its_width(width: int) -> None:
    assert max(len(line.rstrip()) for line in shown(make_result(), width).splitlines()) <= width


def test_it_names_every_method_figure_and_process() -> None:
    text = shown(make_result(), 120)
    for words in (
        "bridge", "text relay", "receiver direct", "sender direct",
        "0.865", "173/200", "0.811 .. 0.906", "412", "498", "64.2", "20.4 x", "10,240",
        "soft 198, text 2", "bad_payload 2", "process 41", "process 42", "200 of 1,234 rows",
        "runs/x/",
    ):  # fmt: skip
        assert words in text, words


def test_it_shows_the_stages_of_the_bridge() -> None:
    text = shown(make_result(), 120)
    for stage in (
        "tokenize 1.2",
        "encode 150",
        "bridge 4.1",
        "queue 120",
        "wire 2.5",
        "decode 131",
    ):
        assert stage in text, stage


def test_the_table_carries_the_stand_ins() -> None:
    text = shown(make_result(), 120)
    assert "smollm2-135m-instruct for meta-llama/Llama-3.1-8B-Instruct" in text
    assert "movie_snippets for sst2" in text
    assert "stand-ins" not in shown(make_result(substitutions=[]), 120)


def test_rows_without_an_answer_are_said() -> None:
    assert "receiver_direct: deadline 1" in shown(make_result())


def test_an_interrupted_run_says_so() -> None:
    assert "INTERRUPTED" in shown(make_result(interrupted=True))


def test_an_interrupted_run_without_figures_can_be_shown() -> None:
    nothing = make_method(
        n=0, accuracy=None, wilson95=None, latency_ms=None, stages_ms={}, rows_per_s=None
    )
    assert "INTERRUPTED" in shown(
        make_result(interrupted=True, agents={}, methods={"bridge": nothing})
    )


def test_the_banner_is_loud_and_says_why() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, no_color=True)
    print_banner([], console)
    assert stream.getvalue() == ""
    print_banner(make_result().substitutions, console)
    text = stream.getvalue()
    assert "STAND-INS" in text
    assert "because cuda:0 is not there" in text
    assert ".[hub]" in text  # not eaten as markup


def test_speed_up_is_over_text_relay() -> None:
    relay = make_method(latency_ms=Latency(p50=100.0, p95=100.0))
    fast = make_method(latency_ms=Latency(p50=20.0, p95=30.0))
    assert speed_up(fast, relay) == pytest.approx(5.0)
    assert speed_up(relay, relay) is None
    assert speed_up(fast, None) is None
