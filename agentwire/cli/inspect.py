"""``agentwire inspect``: shows what a bridge's soft tokens look like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentwire.bridge.card import BridgeCard, CardModel
from agentwire.cli.bridges import find
from agentwire.cli.options import AsJson, check_device
from agentwire.cli.terminal import out, steps
from agentwire.errors import BridgeError, DataError, InputError
from agentwire.evaluation.inspect import tsne
from agentwire.evaluation.predictions import choose_rows
from agentwire.scenario.inventory import Inventory
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import ModelChoice
from agentwire.task.datasets import Dataset, load_rows
from agentwire.task.definitions import definitions, load_definition
from agentwire.task.rows import Example

if TYPE_CHECKING:
    from agentwire.evaluation.inspect.inspector import Inspection, SoftTokenView, TextView
    from agentwire.model.transformers import TransformersBackend

SPLITS = ("test", "validation", "sample")
"""Splits to take rows from, in this order; never the one that the bridge was trained on."""
SHOWN_WORDS = 6


def inspect(
    bridge: Annotated[str, typer.Argument(help="Name or folder of a bridge.")],
    text: Annotated[
        list[str] | None, typer.Option("--text", help="Text to look at (may be repeated).")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=0, help="Rows for cosines, ranks and the plot; 0: none.")
    ] = 200,
    dataset: Annotated[
        str | None, typer.Option(help="Dataset of the rows; default: the bridge's own.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="Nearest tokens per soft token.")] = 5,
    plot: Annotated[
        Path | None, typer.Option(help="Plot a t-SNE of the rows' payloads as PNG.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device of both models: cpu, cuda:0, …", callback=check_device)
    ] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Inspect a bridge: nearest vocabulary tokens, attention, cosines, rank, a map of payloads.

    Without --text, two of the rows are shown.
    """
    if plot is not None and rows < 5:
        raise InputError(
            "A t-SNE needs at least 5 rows.", hint="Use --rows 200, or leave --plot out."
        )
    if plot is not None:
        _check_plot(plot)
    result = _inspected(
        find(bridge),
        texts=tuple(text or ()),
        rows=rows,
        dataset=dataset,
        top=top,
        plot=plot,
        device=device,
    )
    if as_json:
        typer.echo(result.model_dump_json(indent=2))
    else:
        _print(result, out())


def _inspected(
    folder: Path,
    *,
    texts: tuple[str, ...],
    rows: int,
    dataset: str | None,
    top: int,
    plot: Path | None,
    device: str,
) -> Inspection:
    from agentwire.bridge import store
    from agentwire.evaluation.inspect.inspector import BridgeInspector, Inspection

    card = store.verify(folder)
    inventory = Inventory.here()
    with steps() as shown:
        some = _rows(card, dataset, inventory, rows or 2) if rows or not texts else None
        sender, receiver = (
            _load(model, inventory, device, shown.update) for model in (card.sender, card.receiver)
        )
        inspector = BridgeInspector(folder, sender, receiver)
        views = [inspector.view(text, None, top) for text in texts]
        if not views and some is not None:
            middle = len(some.texts) // 2  # of several datasets, a row of another one
            views = [
                inspector.view(some.texts[i], some.labels[i], top)
                for i in dict.fromkeys((0, middle))
            ]
        spread = None
        if rows and some is not None:
            payloads = inspector.payloads(
                some.texts, lambda stage, fraction: shown.update("the bridge", stage, fraction)
            )
            spread = inspector.spread(payloads)
            if plot is not None:
                shown.update("payloads", "map", 0.0)
                _draw(payloads.flatten(1).cpu().numpy(), some, card.name, plot)
        return Inspection(
            bridge=card.name,
            fingerprint=card.weights_sha256,
            sender=card.sender.model,
            receiver=card.receiver.model,
            layer=card.layer,
            soft_tokens=card.soft_tokens,
            width=card.width,
            parameters=card.parameters,
            random_cosine=inspector.random_cosine(),
            texts=views,
            spread=spread,
            data=some.provenance if some is not None else None,
            plot=str(plot) if plot is not None else None,
        )


def _draw(payloads: npt.NDArray[np.float32], rows: _Rows, bridge: str, file: Path) -> None:
    points = tsne.project(payloads)
    name, split = rows.provenance["name"], rows.provenance["split"]
    title = f"{bridge}\npayloads of {len(rows.texts)} rows of {name} ({split})"
    try:
        tsne.draw(points, rows.classes, rows.names, title, file)
    except OSError as error:
        raise InputError(
            f"{file} cannot be written: {error.strerror}.", hint="Name another file with --plot."
        ) from error


def _check_plot(file: Path) -> None:
    """Checks what a plot needs before models are loaded."""
    if not (find_spec("sklearn") and find_spec("matplotlib")):
        raise InputError(
            "A t-SNE needs scikit-learn and matplotlib.",
            hint="Run `pip install 'agentwire[inspect]'`, or leave --plot out.",
        )
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file.parent} is not a folder.", hint="Name another file with --plot.")


@dataclass(frozen=True, slots=True)
class _Rows:
    """Texts to look at.

    Attributes:
        texts: what the sender reads.
        labels: of each text, for people.
        classes: of each text, as index into ``names``.
        names: classes of the dataset; of several datasets, their names.
        provenance: where the rows come from.
    """

    texts: list[str]
    labels: list[str]
    classes: list[int]
    names: tuple[str, ...]
    provenance: dict[str, Any]


def _rows(card: BridgeCard, name: str | None, inventory: Inventory, n: int) -> _Rows:
    """Rows of the bridge's datasets, or of the named one, that the bridge was not trained on.

    Of several datasets, each gives as many rows. All tasks of a series have the same texts, so the
    first represents them.

    Raises:
        DataError: unknown dataset, or none of them is here.
    """
    if name is not None:
        load_definition(name)
    wanted = [name] if name is not None else _datasets(card.training.dataset)
    found = [data for dataset in wanted if (data := _unseen(dataset, inventory)) is not None]
    if not found:
        raise DataError(
            f"Only training rows of {', '.join(wanted)} are here.",
            hint="Use --dataset (see `agentwire data list`), or --text with --rows 0.",
        )
    if len(found) == 1:
        (data,) = found
        rows = _some(data, n)
        labels = [data.labels[row.label] for row in rows]
        classes = [row.label for row in rows]
        provenance = {"name": data.name, "split": data.split, **data.provenance}
        return _Rows([row.text for row in rows], labels, classes, data.labels, provenance)
    parts = [_some(data, -(-n // len(found))) for data in found]
    several = [
        (row.text, f"{data.name}: {data.labels[row.label]}", number)
        for number, (data, part) in enumerate(zip(found, parts, strict=True))
        for row in part
    ]
    return _Rows(
        texts=[text for text, _, _ in several],
        labels=[label for _, label, _ in several],
        classes=[number for _, _, number in several],
        names=tuple(data.name for data in found),
        provenance={
            "name": "+".join(data.name for data in found),
            "split": "+".join(dict.fromkeys(data.split for data in found)),
            "parts": {data.name: {"split": data.split, **data.provenance} for data in found},
        },
    )


def _unseen(dataset: str, inventory: Inventory) -> Dataset | None:
    """A split that no bridge trains on; None if none is here."""
    for split in SPLITS:
        try:
            return load_rows(dataset, split, config=inventory.config)
        except DataError:
            continue
    return None


def _some(data: Dataset, n: int) -> list[Example]:
    return [data.rows[i] for i in choose_rows(len(data), n, seed=0)]


def _datasets(trained_on: str) -> list[str]:
    """The datasets that a card names: ``a``, several as ``a+b``, or a series."""
    series = [name for name, task in definitions().items() if task.series == trained_on]
    return series[:1] or trained_on.split("+")


def _load(
    model: CardModel, inventory: Inventory, device: str, told: Callable[[str, str, float], None]
) -> TransformersBackend:
    """One of the bridge's models, downloaded if necessary."""
    from agentwire.model.transformers import TransformersBackend

    location = inventory.locate(ModelChoice(model=model.model))

    def report(stage: str, fraction: float) -> None:
        told(model.model, stage, fraction)

    folder = location.folder
    if folder is None and not location.fetchable:
        raise BridgeError(
            f"The weights of {model.model} are not here: {location.detail}.",
            hint=inventory.how_to_get("model", model.model),
        )
    spec = AgentSpec(
        name="inspected",
        backend="transformers",
        model=model.model,
        folder=str(folder or inventory.fetch(model.model, report)),
        dtype="float32",
        device=device,
    )
    return TransformersBackend.load(spec, report)


# -- on the screen --------------------------------------------------------------------------------


def _print(result: Inspection, console: Console) -> None:
    console.print(
        Text.assemble(
            (result.bridge, "bold"),
            f"   layer {result.layer} of {result.sender} -> {result.soft_tokens} x {result.width} "
            f"for {result.receiver}, {result.parameters:,} parameters",
        )
    )
    for view in result.texts:
        _print_text(view, console)
    console.print(
        f"\na random direction has cosine {result.random_cosine:.3f} to its nearest token; a soft "
        "token below that resembles no word",
        style="dim",
    )
    if result.spread is not None:
        _print_spread(result, console)
    if result.plot is not None:
        console.print(f"\nmap of the payloads written to {result.plot}", markup=False)


def _print_text(view: TextView, console: Console) -> None:
    label = f"   ({view.label})" if view.label else ""
    console.print(Text.assemble("\n", (view.text, "cyan"), (label, "dim")))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("soft token", justify="right")
    table.add_column("nearest tokens of the receiver (cosine)", overflow="fold")
    table.add_column("attends to", overflow="fold")
    for soft in view.soft_tokens:
        near = ", ".join(f"{n.token!r} {n.cosine:.3f}" for n in soft.nearest)
        table.add_row(str(soft.index), Text(near), Text(_attended(soft)))
    console.print(table)


def _attended(soft: SoftTokenView) -> str:
    """The words with the most attention, highest first; ``8#2`` is the second 8 of the text."""
    words = [w.word for w in soft.attention]
    named = [
        (f"{word}#{words[: place + 1].count(word)}" if words.count(word) > 1 else word, w.weight)
        for place, (word, w) in enumerate(zip(words, soft.attention, strict=True))
    ]
    most = sorted(named, key=lambda pair: -pair[1])[:SHOWN_WORDS]
    return ", ".join(f"{word} {weight:.2f}" for word, weight in most)


def _print_spread(result: Inspection, console: Console) -> None:
    spread, data = result.spread, result.data or {}
    if spread is None:
        return
    console.print(
        f"\n[bold]over {spread.rows:,} rows[/bold] of {data.get('name')} {data.get('split')}"
    )
    for part in (data, *data.get("parts", {}).values()):
        if part.get("source") == "sample":
            console.print(f"  SAMPLE: {part.get('note')}", style="bold yellow", markup=False)
    mean = "-" if spread.mean_cosine is None else f"{spread.mean_cosine:.3f}"
    for name, value in (
        ("mean cosine between the soft tokens of a text", mean),
        ("mean cosine to the nearest token", f"{spread.nearest_cosine:.3f}"),
        (
            "effective rank of a text's soft tokens",
            f"{spread.effective_rank_soft_tokens:.2f} of {result.soft_tokens}",
        ),
        (
            "effective rank of the payloads, centred",
            f"{spread.effective_rank_payloads:.1f} of {spread.rows} rows",
        ),
    ):
        console.print(f"  {name:<48} {value}", markup=False)
    console.print("  cosines between the soft tokens, mean over the rows:")
    for row in spread.pairwise_cosine[:16]:
        values = "".join(f"{value:5.2f}" for value in row[:16])
        console.print(f"   {values}", markup=False, soft_wrap=True)
