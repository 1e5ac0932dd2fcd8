"""Methods: the ways to answer a task's rows that a scenario can compare."""

from __future__ import annotations

from collections.abc import Sequence

from agentwire.errors import AgentwireError, ScenarioError
from agentwire.evaluation.methods.base import Kind, MethodSpec
from agentwire.evaluation.methods.local import baseline_method
from agentwire.spec.methods import METHODS
from agentwire.spec.scenario import DataChoice, WireSpec
from agentwire.task.definitions import load_definition
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


def _kind(data: DataChoice | None) -> Kind:
    return load_definition(data.dataset).kind if data else "classify"


def check_methods(wire: WireSpec, methods: Sequence[MethodSpec], data: DataChoice | None) -> None:
    """Raises ScenarioError for a method that supports one sender only on a wire of several, and for
    one that does not support the task's kind."""
    kind = _kind(data)
    for method in methods:
        if kind not in method.kinds:
            what = "answers in words" if kind == "answer" else "labels"
            raise ScenarioError(
                f"The method {method.name} does not support tasks with {what}.",
                hint="docs/methods.md says which methods do.",
            )
        if wire.joint and not method.several_senders:
            raise ScenarioError(
                f"wire {wire.set_name}: the method {method.name} supports one sender only.",
                hint="A wire of several senders supports bridge, receiver_direct and "
                "sender_direct (which measures the first sender).",
            )


def need_training_rows(methods: Sequence[MethodSpec], data: DataChoice | None) -> bool:
    """Whether one of the methods reads training rows of this dataset."""
    kind = _kind(data)
    return any(method.prepare is not None and kind in method.trains_on for method in methods)


__all__ = [
    "METHODS",
    "MethodSpec",
    "check_methods",
    "get_method",
    "need_training_rows",
    "title_of",
]
