"""vLLM beside transformers: how many rows get another label, and how far scores are apart."""

from __future__ import annotations

from rendering.markdown import Record, Records, described, provenance, table

REFERENCE = "transformers-transformers"


def owns(name: str, record: Record) -> bool:
    """A record of ``bench/vllm_agreement.py``."""
    return "parts" in record and REFERENCE in record["parts"]


def chapter(records: Records) -> str:
    """One section for each record."""
    return "\n\n".join(_section(record) for record in records.values())


def _section(record: Record) -> str:
    rows = [
        [
            part.replace("-", " -> "),
            method,
            f"{found['other_label']} of {found['rows']:,}",
            f"{found['largest_difference']:.1e}",
            f"{found['accuracy']:.4f}",
            f"{found['accuracy_of_reference']:.4f}",
        ]
        for part, methods in record["figures"].items()
        for method, found in methods.items()
    ]
    header = ["engines", "method", "another label", "largest difference", "accuracy", "reference"]
    facts = [
        f"- models (stand-ins): {described(record['models'])}",
        f"- data: {record['data']}; batches of {record['batch_size']}",
        f"- bridge: {record['parts'][REFERENCE]['bridge']}",
    ]
    sources = provenance({**record["parts"][REFERENCE], "hardware": record["hardware"]})
    return "\n\n".join(
        [
            "## vLLM beside transformers",
            "\n".join([*facts, *sources]),
            "Sender's engine -> receiver's engine, each row beside the same row computed by "
            f"`{REFERENCE}`; differences are of the probability of the second label. The other "
            "parts were run by the same program, one after the other.",
            table(header, rows),
        ]
    )
