"""Passkeys hidden in filler text: five digits that a bridge must carry exactly.

Passkey retrieval after A. Mohtashami and M. Jaggi, "Landmark Attention" (2023, arXiv:2305.16300),
in texts of at most 96 tokens. Texts are generated from their split and number, so every machine has
the same rows without a download.

The tasks ``passkey_1`` … ``passkey_5`` each ask for one digit of the same texts: row i is the same
text in all five. Accuracy is per digit, and a passkey is right if row i is right in all five tasks.
"""

from __future__ import annotations

import random

from agentwire.task.rows import Example

SERIES = "passkey"
DIGITS = 5
SPLITS = {"train": 20_000, "validation": 1_000, "test": 1_000}
"""Texts of each split."""

FILLER = (
    "The ferry leaves the harbour at noon.",
    "A grey cat sleeps on the warm step.",
    "Rain is expected along the coast tonight.",
    "The baker opens his shop before dawn.",
    "Somebody left a bicycle by the gate.",
    "The museum is closed for the winter.",
    "Two boats lie idle beside the pier.",
    "The orchard smells of ripe apples.",
    "An old clock ticks in the hallway.",
    "The teacher wiped the board clean.",
    "Snow still covers the higher paths.",
    "The market sells bread, fish and flowers.",
    "A thin fog drifts over the meadow.",
    "The train was late again this morning.",
    "Her umbrella stands by the door.",
    "The river turns west below the bridge.",
    "Children play in the empty square.",
    "The library lends maps and records.",
    "A lamp burns in the upper window.",
    "The gardener waters the young trees.",
    "Nobody has painted the fence for years.",
    "The soup needs salt and a little time.",
    "Swallows nest under the station roof.",
    "The road climbs slowly to the village.",
)
NEEDLES = (
    "The passkey is {key}. Remember it.",
    "Remember this: the passkey is {key}.",
    "Note that {key} is the passkey.",
    "Keep the passkey {key} in mind.",
)
FEWEST, MOST = 3, 6
"""Number of filler sentences around the passkey."""


def place_of(task: str) -> int:
    """Which digit (0-based) a task of the series asks for, from its name."""
    return int(task.removeprefix(f"{SERIES}_")) - 1


def generate(split: str, task: str) -> tuple[Example, ...]:
    """The rows of one split for one task of the series (``passkey_1`` … ``passkey_5``)."""
    place = place_of(task)
    return tuple(_example(split, number, place) for number in range(SPLITS[split]))


def _example(split: str, number: int, place: int) -> Example:
    # ``random`` hashes a string seed with sha512, so it is the same on every machine and version.
    generator = random.Random(f"{SERIES}:{split}:{number}")
    digits = [generator.randrange(10) for _ in range(DIGITS)]
    sentences = generator.sample(FILLER, generator.randint(FEWEST, MOST))
    needle = generator.choice(NEEDLES).format(key=" ".join(map(str, digits)))
    sentences.insert(generator.randint(0, len(sentences)), needle)
    return Example(" ".join(sentences), digits[place])
