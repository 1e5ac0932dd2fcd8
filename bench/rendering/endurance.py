"""Long runs without a model: twice the load, a million messages, fuzzing. Each beside its goal."""

from __future__ import annotations

from rendering.markdown import Record, Records, provenance, table

GOODPUT = 0.90
"""Of the capacity, while twice of it is offered."""
LOAD_MINUTES = 5.0
MESSAGES, MINUTES = 1_000_000, 30.0
"""A soak lasts as long as either takes."""
FUZZED_MINUTES = 10.0
KEYS = {"load": "goodput_of_capacity_worst_phase", "soak": "agents_killed", "fuzz": "codec_inputs"}
"""A figure that only such a record has."""


def owns(name: str, record: Record) -> bool:
    """It is of one of the three kinds."""
    return any(key in record.get("figures", {}) for key in KEYS.values())


def chapter(records: Records) -> str:
    """One section for each record."""
    kinds = {KEYS["load"]: _load, KEYS["soak"]: _soak, KEYS["fuzz"]: _fuzz}
    parts = [
        section(name, record)
        for key, section in kinds.items()
        for name, record in records.items()
        if key in record["figures"]
    ]
    return "\n\n".join(parts)


def _head(title: str, name: str, record: Record) -> str:
    settings, lines = record["settings"], provenance(record)
    if "models" in settings:
        lines.insert(0, f"- models: {settings['models']}; seed {settings['seed']}")
    if "load_average" in settings:
        lines.append(f"- load average of the machine, this run included: {_short(record)}")
    if "note" in settings:
        lines.append(f"- note: {settings['note']}")
    return f"## {title}: {name}\n\n" + "\n".join(lines)


def _short(record: Record) -> str:
    return f"{record['settings']['load_average']:.1f} on {record['hardware']['cores']} cores"


def _verdict(goal: str, reached: bool) -> str:
    return f"goal {goal}: {'reached' if reached else '**missed**'}"


def _load(name: str, record: Record) -> str:
    f, phases = record["figures"], record["phases"]
    says = (
        f"Capacity and overload in turns, {f['phases']} times, in the same processes; overload for "
        f"{record['settings']['minutes']:.0f} minutes together "
        f"({_verdict('5', record['settings']['minutes'] >= LOAD_MINUTES)}). Capacity (as "
        f"many outstanding as bring the most, {f['outstanding_for_capacity']}): "
        f"{f['capacity_per_s']:,.0f} rows a second; offered: {f['offered_per_s']:,.0f}; answered: "
        f"{f['goodput_per_s']:,.0f}, **{f['goodput_of_capacity']:.4f}** of the capacity (medians; "
        f"{_verdict(f'{GOODPUT:.2f}', f['goodput_of_capacity'] >= GOODPUT)}), "
        f"{f['goodput_of_capacity_worst_phase']:.3f} in the worst phase. Of {f['requests']:,} "
        f"requests {f['refused_overloaded']:,} were refused as overloaded, "
        f"{f['other_errors']:,} ended in another error, {f['lost']:,} were lost and "
        f"{f['wrong']:,} answered wrongly. A refusal takes {f['refusal_us']:,.0f} us, a row that "
        f"is answered {f['served_row_us']:,.0f} us. Admitted ones (at most "
        f"{f['admitted_rows_at_once']:,} at once) took {f['p50_ms_of_admitted']:,.0f} ms (p50) and "
        f"{f['p99_ms_of_admitted']:,.0f} ms (p99); peak memory {f['peak_memory_mb']:.0f} MB."
    )
    columns = ["", *(str(i + 1) for i in range(len(phases["capacities_per_s"])))]
    goodputs = [f"{rate:,}" for rate in phases["goodputs_per_s"]]
    rows = [
        ["capacity", *(f"{rate:,}" for rate in phases["capacities_per_s"])],
        ["goodput after it", *goodputs, ""],
    ]
    return "\n\n".join([_head("Twice the load", name, record), says, table(columns, rows)])


def _soak(name: str, record: Record) -> str:
    f = record["figures"]
    long_enough = f["messages"] >= MESSAGES or f["minutes"] >= MINUTES
    says = (
        f"{f['messages']:,} messages of one row in {f['minutes']:.1f} minutes "
        f"({_verdict(f'{MESSAGES:,} messages or {MINUTES:.0f} minutes', long_enough)}), "
        f"{f['agents_killed']} agents killed meanwhile: {f['lost']} lost, {f['wrong']} wrong, "
        f"{f['dead_letters']} dead letters, {f['other_errors']} other errors. From half of the "
        f"time to the end memory went from {f['memory_mb_at_half']} to {f['memory_mb_at_end']} MB "
        f"(a line through it: {f['memory_slope_mb_per_hour']:+} MB an hour), open descriptors from "
        f"{f['descriptors_at_half']} to {f['descriptors_at_end']}."
    )
    return "\n\n".join([_head("Soak", name, record), says])


def _fuzz(name: str, record: Record) -> str:
    f, settings = record["figures"], record["settings"]
    says = (
        f"Coverage-guided, {settings['minutes']:.0f} minutes, seed {settings['seed']} "
        f"({_verdict(f'{FUZZED_MINUTES:.0f} minutes', settings['minutes'] >= FUZZED_MINUTES)}). "
        "A crash is any exception but the protocol's own, a message that does not survive a round "
        "trip, or memory beyond the limit."
    )
    rows = [
        [
            target,
            f"{f[f'{target}_inputs']:,}",
            f"{f[f'{target}_inputs_per_s']:,}",
            f"{f[f'{target}_features']:,}",
            f"{f[f'{target}_peak_rss_mb']:,}",
            f"{f[f'{target}_crashes']:,}",
        ]
        for target in settings["targets"]
    ]
    head = ["target", "inputs", "a second", "features covered", "peak MB", "crashes"]
    return "\n\n".join([_head("Fuzzing", name, record), says, table(head, rows)])
