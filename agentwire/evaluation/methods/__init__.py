"""Methods: the ways to answer a task's rows that a scenario can compare."""

from __future__ import annotations

from collections.abc import Sequence

from agentwire.errors import AgentwireError, ScenarioError
from agentwire.evaluation.methods.base import MethodSpec
from agentwire.evaluation.methods.local import baseline_method
from agentwire.spec.methods import METHODS
from agentwire.spec.scenario import WireSpec
from agentwire.training.baselines.baseline import Baseline


def get_method(name: str) -> MethodSpec:
    """The method or baseline of this name; raises as ``Registry.get``."""
    found = METHODS.get(name)
    if isinstance(found, Baseline):
        return baseline_method(name, found)
    if not isinstance(found, MethodSpec):
        raise AgentwireError(
            f"The method {name!r} is a {type(found).__name__}, not a MethodSpec or a Baseline.",
            hint="Correct the entry point of the package that provides it.",
        )
    return found


def title_of(name: str) -> str:
    """A method's title for tables; of a method that is not installed, its name."""
    return get_method(name).title if name in METHODS else name


def check_methods(wire: WireSpec, methods: Sequence[MethodSpec]) -> None:
    """Raises ScenarioError if a method supports one sender only, and the wire has several."""
    for method in methods:
        if wire.joint and not method.several_senders:
            raise ScenarioError(
                f"wire {wire.set_name}: the method {method.name} supports one sender only.",
                hint="A wire of several senders supports bridge, receiver_direct and "
                "sender_direct (which measures the first sender).",
            )


__all__ = ["METHODS", "MethodSpec", "check_methods", "get_method", "title_of"]
