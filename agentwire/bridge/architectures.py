"""Bridge architectures, by the name in a card's ``architecture:`` (docs/design/bridge.md).

This module needs no torch: cards are read where no model runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from agentwire.spec.registry import Registry, known_name

if TYPE_CHECKING:
    from agentwire.bridge.module import BridgeModule

DEFAULT: Final = "resampler"
READER: Final = "reader"
ARCHITECTURES: Registry[type[BridgeModule]] = Registry("agentwire.bridges", "bridge architecture")
ARCHITECTURES.lazy(DEFAULT, "agentwire.bridge.resampler:Resampler")
ARCHITECTURES.lazy(READER, "agentwire.bridge.reader:Reader")

ArchitectureName = Annotated[str, known_name(ARCHITECTURES)]
