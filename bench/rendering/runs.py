"""Recorded runs of a scenario: the result.json of ``agentwire run``."""

from __future__ import annotations

from rendering.markdown import Record, Records, provenance, table


def owns(name: str, record: Record) -> bool:
    """A result.json has figures by method and says which scenario ran."""
    return "methods" in record and "scenario" in record


def chapter(records: Records) -> str:
    """One section for each run."""
    return "\n\n".join(_run(record) for record in records.values())


def _run(record: Record) -> str:
    data = record["dataset"]
    parts = [
        f"## Run: {record['scenario']}, {data['rows']:,} rows of {data['name']}",
        "\n".join(_facts(record)),
        _methods(record),
        *_zero_shot(record),
        "Mean milliseconds of a row by stage, waiting for its batch included:",
        _stages(record),
    ]
    return "\n\n".join(parts)


def _zero_shot(record: Record) -> list[str]:
    """What keeps the accuracies above from being a comparison of methods."""
    untrained = [
        m for m in ("text_relay", "receiver_direct", "sender_direct") if m in record["methods"]
    ]
    if "bridge" not in record["methods"] or not untrained:
        return []
    return [
        f"The bridge was trained for this task; {', '.join(untrained)} are zero-shot: latency and "
        "bytes compare, accuracies do not (the chapter on accuracy has trained rivals)."
    ]


def _facts(record: Record) -> list[str]:
    data, settings = record["dataset"], record["settings"]
    instead = f" (stands in for {data['substitute_for']})" if data["substitute_for"] else ""
    if data["provenance"].get("source") == "sample":
        instead += f" — a **sample**: {data['provenance']['note']}"
    return [
        f"- data: {data['name']} {data['split']}, {data['rows']:,} of {data['rows_in_split']:,} "
        f"rows{instead}",
        *(
            f"- {name}: {agent['model']}, {agent['dtype']}, on {agent['device']}"
            for name, agent in record["agents"].items()
        ),
        *(
            f"- bridge: {bridge['name']}, layer {bridge['layer']}, M = {bridge['soft_tokens']}, "
            f"d = {bridge['width']}, weights sha256 {bridge['fingerprint'][:12]}…"
            for bridge in record["bridges"]
        ),
        f"- batches of {settings['batch_size']}, {settings['in_flight']} in flight, "
        f"seed {settings['seed']}",
        *provenance(record),
    ]


def _methods(record: Record) -> str:
    header = ["method", "accuracy", "95 %", "right", "p50", "p95", "rows/s", "bytes a row"]
    rows = [
        [
            name,
            f"{m['accuracy']:.4f}",
            f"{m['wilson95'][0]:.4f} .. {m['wilson95'][1]:.4f}",
            f"{m['correct']} / {m['n']}",
            f"{m['latency_ms']['p50']:,.0f}",
            f"{m['latency_ms']['p95']:,.0f}",
            f"{m['rows_per_s']:.1f}",
            f"{m['payload_bytes']:,.0f}",
            f"{m['channels']['soft']} / {m['channels']['text']}",
        ]
        for name, m in record["methods"].items()
    ]
    return table([*header, "soft / text"], rows)


def _stages(record: Record) -> str:
    methods = record["methods"]
    stages = sorted({stage for m in methods.values() for stage in m["stages_ms"]})
    rows = [
        [name, *(f"{m['stages_ms'].get(stage, 0):,.1f}" for stage in stages)]
        for name, m in methods.items()
    ]
    return table(["method", *stages], rows)
