"""What the two source papers report, as they report it: none of it was measured here.

The figures are theirs: Llama-3.1-8B-Instruct and Mistral-7B-Instruct, 200 rows a task, one seed.
"""

from __future__ import annotations

from rendering.markdown import table

TELEPATHY, LATENTWIRE = "Telepathy", "LatentWire"
ACCURACY = (
    ("bridge, Llama -> Mistral", TELEPATHY, "96.7", "90.7", "95.3", "21.5"),
    ("bridge, Llama -> Mistral", LATENTWIRE, "91.5", "90.3", "94.5", "–"),
    ("bridge, Mistral -> Llama", TELEPATHY, "97.2", "–", "–", "–"),
    ("bridge, Mistral -> Llama", LATENTWIRE, "97.0", "63.5", "89.0", "–"),
    ("prompt tuning that never saw the text", TELEPATHY, "49.5", "19.8", "19.0", "–"),
    ("prompt tuning that saw the text", LATENTWIRE, "93.2", "84.2", "84.7", "–"),
    ("text relay", TELEPATHY, "71.0", "64.5", "58.0", "1.0"),
    ("text relay", LATENTWIRE, "70.5", "70.0", "47.0", "–"),
)
SOFT_TOKENS = {16: 0.215, 32: 0.135, 64: 0.075, 128: 0.010}
"""Telepathy, Banking77, one seed and one budget."""
LAYERS = {0: 0.665, 8: 0.880, 16: 0.920, 31: 0.945}
"""Telepathy, SST-2, M = 32, of 32 layers."""
PASSKEY_DIGITS = {16: 0.234, 128: 0.098}
"""Telepathy, accuracy per digit."""

NOTES = (
    "The prompt tuning that Telepathy compares with never saw the text; against one that did "
    "(LatentWire) the bridge is ahead by a few points. Neither paper shows a probe on the sender's "
    "states, so neither shows that the receiver adds anything.",
    "Text relay is timed one row at a time and compared with a batched bridge.",
    '"Fewer tokens are better" has one seed, one budget and no control for convergence.',
    "The two papers differ in learning rate (1e-4, 2e-4), batch (8, 16) and in what the diversity "
    "loss is; it is off for SST-2, which stood at chance before M, layer, rate and sampling were "
    "changed, on the reported rows as far as the text tells.",
    "188 thousand parameters cannot be at an inner width of 512: the two projections alone are 4.2 "
    "million. Eight soft tokens of width 4,096 in fp16 are 64 KiB, not 8 KB.",
    "At 200 rows a 95 % interval is 3 to 7 points wide to each side: many differences lie inside.",
)


def section() -> str:
    """The papers' tables, marked as theirs, and where they do not add up."""
    header = ["what", "paper", "SST-2", "AG News", "TREC", "Banking77"]
    notes = "\n".join(f"- {note}" for note in NOTES)
    return "\n\n".join(
        [
            "### What the source papers report (theirs, not measured here)",
            "Llama 3.1 8B and Mistral 7B, 200 rows a task, per cent. Other models, other rows and "
            "other baselines: to be read beside the tables above, not compared with them.",
            table(header, [list(row) for row in ACCURACY]),
            "Where these figures do not add up:",
            notes,
        ]
    )
