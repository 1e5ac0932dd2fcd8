"""What each sender reads of a text, where several share a wire."""

from __future__ import annotations

from agentwire.spec.scenario import WireSpec


def shares(text: str, parts: int) -> list[str]:
    """The words of a text in so many runs, one after the other, of the same length or one word more
    for the first. Of fewer words than parts the last one is read again.
    """
    words = text.split()
    words += words[-1:] * (parts - len(words))
    size, more = divmod(len(words), parts)
    sizes = [size + (i < more) for i in range(parts)]
    ends = [sum(sizes[: i + 1]) for i in range(parts)]
    return [" ".join(words[end - n : end]) for n, end in zip(sizes, ends, strict=True)]


def texts_for(text: str, wire: WireSpec) -> list[str]:
    """What each sender of a wire reads of a text, in the order of ``wire.joint``."""
    count = max(1, len(wire.joint))
    return shares(text, count) if wire.reads == "share" else [text] * count
