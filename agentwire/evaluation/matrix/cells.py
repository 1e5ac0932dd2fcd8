"""Resolves the cells of a matrix: models, rows, bridges, and the methods of each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentwire.errors import BridgeError, MissingBridge
from agentwire.evaluation.matrix.expand import Cell, expand
from agentwire.evaluation.matrix.result import AxisValue
from agentwire.evaluation.methods import MethodSpec, check_methods
from agentwire.scenario.resolve import Resolved, Resolver, training_key
from agentwire.spec.scenario import DataChoice, Scenario
from agentwire.task.definitions import load_definition

SHARED_AXES = ("wire", "task")
"""Axes that every method depends on."""


@dataclass(frozen=True, slots=True)
class CellPlan:
    """A cell as it runs on this machine."""

    cell: Cell
    resolved: Resolved
    methods: tuple[MethodSpec, ...]  # each once per combination of the axes that it depends on
    problem: BridgeError | None = None  # why its bridge cannot be used

    @property
    def needs_bridge(self) -> bool:
        return any(method.needs_bridge for method in self.methods)

    @property
    def can_be_trained(self) -> bool:
        """Whether the bridge is only missing, so that training helps."""
        return isinstance(self.problem, MissingBridge)


def plan_cells(
    scenario: Scenario, methods: Sequence[MethodSpec], resolver: Resolver
) -> tuple[CellPlan, ...]:
    """Every cell that measures something, resolved. Loads and downloads nothing."""
    base = resolver.resolve(scenario, bridges=())
    plans: list[CellPlan] = []
    seen: set[tuple[object, ...]] = set()
    for cell in expand(scenario, base.choices):
        check_methods(cell.wire, methods, cell.scenario.task)
        own = []
        for method in methods:
            known = (method.name, *relevant_axes(method, cell.axes).items())
            if known not in seen:
                seen.add(known)
                own.append(method)
        if own:
            plans.append(plan_cell(cell, tuple(own), resolver))
    return tuple(plans)


def relevant_axes(method: MethodSpec, axes: Mapping[str, AxisValue]) -> dict[str, AxisValue]:
    """The axes of a matrix that a method's figures depend on.

    A trained baseline reads the same layer and uses the same recipe as the bridge, but it has no
    soft tokens.
    """
    if method.needs_bridge or method.uses_soft_tokens:
        return dict(axes)
    if method.prepare is not None:
        return {name: value for name, value in axes.items() if name != "soft_tokens"}
    return {name: value for name, value in axes.items() if name in SHARED_AXES}


def plan_cell(cell: Cell, methods: tuple[MethodSpec, ...], resolver: Resolver) -> CellPlan:
    needed = [part.name for part in cell.parts if any(method.needs_bridge for method in methods)]
    try:
        return CellPlan(cell, resolver.resolve(cell.scenario, bridges=needed), methods)
    except BridgeError as problem:
        return CellPlan(cell, resolver.resolve(cell.scenario, bridges=()), methods, problem)


def trained_together(plan: CellPlan, later: Sequence[CellPlan]) -> tuple[CellPlan, ...]:
    """The cell and those of ``later`` whose missing bridges can be trained together with its own.

    There is one cell per bridge (tasks of a series share a bridge). Where several tasks name one
    bridge, it is trained on all of them and these cells are returned.
    """
    later = [other for other in later if other.can_be_trained]
    if sharing := _sharing(plan, later):
        return (plan, *sharing)
    key = training_key(plan.resolved)
    found = {plan.resolved.wire.bridge: plan}
    for other in later:
        if training_key(other.resolved) == key:
            found.setdefault(other.resolved.wire.bridge, other)
    return tuple(found.values())


def _sharing(plan: CellPlan, later: Sequence[CellPlan]) -> list[CellPlan]:
    """Cells of other tasks that name the same missing bridge, one for each task.

    There are none in the same series, and none for a joint set of bridges, which learns one task.
    """
    own = plan.resolved
    if own.data is None or own.wire.spec.joint:
        return []
    found: dict[str, CellPlan] = {}
    for other in later:
        data = other.resolved.data
        same = other.resolved.wire.bridge == own.wire.bridge
        if data is None or data.dataset == own.data.dataset or not same:
            continue
        if not _same_series(own.data, data):
            found.setdefault(data.dataset, other)
    return list(found.values())


def _same_series(first: DataChoice, second: DataChoice) -> bool:
    series = load_definition(first.dataset).series
    return series is not None and load_definition(second.dataset).series == series


def without_bridges(plan: CellPlan) -> CellPlan | None:
    """The cell without the methods that need its bridge; None if no other is left."""
    rest = tuple(method for method in plan.methods if not method.needs_bridge)
    return replace(plan, methods=rest, problem=None) if rest else None


def check_bridges(
    plans: Sequence[CellPlan], *, train: bool, skip: bool, source: Path | None
) -> tuple[CellPlan, ...]:
    """The cells that are skipped because their bridge is missing and will not be trained.

    They may be skipped with ``skip`` (``matrix.missing``), if any cell has a bridge. Raises
    BridgeError if a bridge does not fit, or if a required one is missing.
    """
    for plan in plans:
        if plan.problem is not None and not plan.can_be_trained:
            raise BridgeError(
                f"cell {plan.cell.id}: {plan.problem.message}", hint=plan.problem.hint
            )
    missing = tuple(plan for plan in plans if plan.can_be_trained)
    if not missing or train:
        return ()
    if skip and len(missing) < sum(plan.needs_bridge for plan in plans):
        return missing
    raise MissingBridge(
        f"{len(missing)} of {len(plans)} cells have no bridge here "
        f"(the first: {missing[0].resolved.wire.bridge}).",
        hint=f"Run `agentwire train {source or '<scenario>'}`, or add --train to train them first.",
    )
