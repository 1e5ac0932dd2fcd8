"""The part of a text that each sender of a joint wire reads."""

from __future__ import annotations

from agentwire.spec.scenario import WireSpec


def shares(text: str, parts: int) -> list[str]:
    """Splits a text into consecutive parts of equally many words; the first ones may have one more.

    If there are fewer words than parts, the last word is repeated.
    """
    words = text.split()
    words += words[-1:] * (parts - len(words))
    size, more = divmod(len(words), parts)
    sizes = [size + (i < more) for i in range(parts)]
    ends = [sum(sizes[: i + 1]) for i in range(parts)]
    return [" ".join(words[end - n : end]) for n, end in zip(sizes, ends, strict=True)]


def texts_for(text: str, wire: WireSpec) -> list[str]:
    """The text for each sender of a wire, in the order of ``wire.joint``."""
    count = max(1, len(wire.joint))
    return shares(text, count) if wire.reads == "share" else [text] * count
