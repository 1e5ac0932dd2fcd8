"""result.json has stable keys; docs/result.schema.json is generated from the code."""

from __future__ import annotations

from pathlib import Path

from run_results import make_result

from agentwire.evaluation.result import RunResult

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_schema_is_the_codes() -> None:
    documented = (ROOT / "docs" / "result.schema.json").read_text(encoding="utf-8")
    assert documented == RunResult.schema_text(), (
        "write it anew: python -c 'from agentwire.evaluation.result import RunResult; "
        'print(RunResult.schema_text(), end="")\' > docs/result.schema.json'
    )


def test_the_promised_keys_are_there() -> None:
    content = make_result().model_dump(mode="json")
    assert {"scenario", "run_id", "substitutions", "dataset", "agents", "methods"} <= set(content)
    assert {"name", "split", "rows", "provenance", "substitute_for"} <= set(content["dataset"])
    assert {"pid", "model", "device", "fingerprint"} <= set(content["agents"]["llama"])
    promised = {
        "accuracy", "correct", "n", "wilson95", "latency_ms", "stages_ms", "payload_bytes",
        "channels", "reasons",
    }  # fmt: skip
    for method in content["methods"].values():
        assert promised <= set(method)
        assert set(method["channels"]) == {"soft", "text"}
    assert set(content["methods"]["bridge"]["latency_ms"]) == {"p50", "p95"}
    assert {"kind", "wanted", "used", "reason"} <= set(content["substitutions"][0])


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "result.md").read_text(encoding="utf-8")
    result = make_result()
    for part in (result, result.dataset, result.methods["bridge"], result.settings):
        for key in type(part).model_fields:
            assert f"`{key}" in page, key


def test_it_is_written_whole_and_reads_back(tmp_path: Path) -> None:
    result = make_result()
    result.write(tmp_path / "result.json")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert RunResult.model_validate_json(text) == result
