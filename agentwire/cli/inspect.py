"""``agentwire inspect``: shows what a bridge's soft tokens look like."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agentwire.bridge.card import CardModel
from agentwire.cli.bridges import find
from agentwire.cli.options import AsJson, check_device
from agentwire.cli.terminal import out, print_json, steps
from agentwire.errors import BridgeError, InputError
from agentwire.evaluation.inspect import tsne
from agentwire.evaluation.inspect.rows import InspectedRows, choose
from agentwire.scenario.inventory import Inventory
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import ModelChoice

if TYPE_CHECKING:
    from agentwire.evaluation.inspect.inspector import Inspection, SoftTokenView, TextView
    from agentwire.model.transformers import TransformersBackend

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
        print_json(result.model_dump(mode="json"))
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
    from agentwire.evaluation.inspect.inspector import (
        BridgeInspector,
        Inspection,
        check_inspectable,
    )

    card = store.verify(folder)
    check_inspectable(card)
    inventory = Inventory.here()
    with steps() as shown:
        some = choose(card, dataset, inventory.config, rows or 2) if rows or not texts else None
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


def _draw(payloads: npt.NDArray[np.float32], rows: InspectedRows, bridge: str, file: Path) -> None:
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
            hint="Run `pip install '.[inspect]'`, or leave --plot out.",
        )
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file.parent} is not a folder.", hint="Name another file with --plot.")


def _load(
    model: CardModel,
    inventory: Inventory,
    device: str,
    on_progress: Callable[[str, str, float], None],
) -> TransformersBackend:
    """One of the bridge's models, downloaded if necessary."""
    from agentwire.model.transformers import TransformersBackend

    location = inventory.locate(ModelChoice(model=model.model))

    def report(stage: str, fraction: float) -> None:
        on_progress(model.model, stage, fraction)

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
