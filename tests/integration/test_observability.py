"""Observability of a runtime: status file, top, Prometheus, and logs with trace ids."""

from __future__ import annotations

import io
import json
import time
import urllib.request
from pathlib import Path

import pytest
from fake_run import fake_runtime
from patience import EVENT_S
from typer.testing import CliRunner

from agentwire.cli.top import newest, view
from agentwire.errors import InputError, RequestError
from agentwire.telemetry.journal import read_lines
from agentwire.telemetry.metrics import serving
from agentwire.telemetry.status import read_status, write_status

pytestmark = pytest.mark.integration


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=EVENT_S) as answer:
        return str(answer.read().decode())


async def test_status_metrics_and_logs_show_what_happened(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    faults = {"raise_on": "boom", "nan_on": "nan"}
    async with fake_runtime(sender=faults, run_folder=run) as wire:
        await wire.send_batch("sender", "receiver", ["a", "b", "nan"], relay="verbatim")
        bad = await wire.send_batch("sender", "receiver", ["boom"], fallback="error")
        assert isinstance(bad[0], RequestError)
        status = wire.status()
        with serving(wire.registry, 0) as port:
            text = scrape(port)
            with pytest.raises(InputError, match="Metrics"), serving(wire.registry, port):
                pass
        write_status(run, status | {"time": time.time()})
        shown = CliRunner().invoke(_app(), [str(run), "--once"])
    assert 'agentwire_requests_total{outcome="answered",wire="sender->receiver"} 3.0' in text
    assert 'agentwire_requests_total{outcome="model_error",wire="sender->receiver"} 1.0' in text
    assert 'agentwire_fallbacks_total{reason="bad_payload",wire="sender->receiver"} 1.0' in text
    assert 'agentwire_stage_seconds_count{stage="all"} 3.0' in text
    assert 'agentwire_stage_seconds_bucket{le="+Inf",stage="decode"}' in text
    assert "agentwire_bus_forwarded_total" in text and "agentwire_bus_queued_bytes 0.0" in text
    assert 'agentwire_credits{wire="sender->receiver"}' in text
    assert shown.exit_code == 0, shown.output
    for words in ("sender-model", "sender->receiver", "running", "decode"):
        assert words in shown.output
    assert newest(run.parent) == run
    last = read_status(run)  # the final status, with all outcomes
    assert last is not None and last["ended"] and last["outstanding"] == 0
    assert last["outcomes"] == status["outcomes"]
    shown = CliRunner().invoke(_app(), [str(run)])  # returns by itself
    assert shown.exit_code == 0 and "ended" in shown.output
    # The trace id of the row on which the model raised leads from the journal to the agent's log.
    lines = [json.loads(line) for line in (run / "logs" / "sender.log").read_text().splitlines()]
    raised = next(line for line in lines if "raised" in line["message"])
    admitted = [line for line in read_lines(run / "journal.jsonl") if line["event"] == "admitted"]
    assert raised["trace_ids"] == [admitted[-1]["trace_id"]] != ["0" * 32]
    assert raised["agent"] == "sender" and "the fake model raises" in raised["error"]


def _app() -> object:
    import typer

    from agentwire.cli.top import top

    app = typer.Typer()
    app.command()(top)
    return app


def test_rates_are_computed_from_two_readings(tmp_path: Path) -> None:
    from rich.console import Console

    def reading(at: float, answered: int) -> dict[str, object]:
        return {
            "time": at, "outstanding": 0, "agents": {}, "bus": {}, "restarts": {}, "stages": {},
            "credits": {"a->b": 4}, "outcomes": [["a->b", "answered", answered]], "fallbacks": [],
        }  # fmt: skip

    console = Console(record=True, width=100, file=io.StringIO())
    console.print(view(tmp_path, reading(102.0, 50), reading(100.0, 20)))
    assert "15.0" in console.export_text()


def test_a_folder_without_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    with pytest.raises(InputError, match="has a status"):
        newest(tmp_path)
