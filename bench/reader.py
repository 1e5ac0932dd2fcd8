"""Trains reader bridges and baselines on a GPU, and scores them with EM and F1.

    python bench/reader.py prepare --data DATA --models MODELS --out corpus.npz
    python bench/reader.py train main text:cuts=0 --corpus corpus.npz --models MODELS --out FOLDER

``prepare`` tokenizes the data; it needs no GPU. ``train`` takes jobs, from the command line or from
a file (``--queue``). A job is a name with options: ``main:add=all,seed=1`` trains a reader bridge,
``text:cuts=64`` tunes prompt vectors around the first 64 tokens of the text. Each job writes its
figures and answers to a JSON file, and a bridge also its weights. docs/reader.md has more.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from reader_data import RECEIVER, SENDER, SETS, Scored, packed, prepare
from safetensors.torch import load_file, save_file
from torch import Tensor

from agentwire.bridge.reader import Reader
from agentwire.bridge.shape import ReaderShape
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.agent import AgentSpec
from agentwire.spec.scenario import TrainSpec
from agentwire.task.answers import exact_match, f1, fault
from agentwire.task.tokens import data_rows
from agentwire.training.baselines.reader import Adapter
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import Score
from agentwire.training.reader.alignment import least_squares, shared_pieces
from agentwire.training.reader.corpus import Corpus
from agentwire.training.reader.objective import ReaderObjective, ReaderTrainee, TextTrainee
from agentwire.training.reader.receiver import FrozenReceiver
from agentwire.training.reader.schedule import ReaderStage, Schedule
from agentwire.training.reader.states import LayerStates, read_states

SIZES = (16, 32, 64, 128)
MOST = 24
"""Tokens of the longest answer."""
STAGES = (
    ReaderStage(share=0.15, continuation=0.5, cloze=0.25, question=0.25),
    ReaderStage(share=0.65, cloze=0.35, question=0.65, joined=0.1),
    ReaderStage(share=0.2, cloze=0.1, question=0.9, joined=0.1),
)
TUNING_STAGES = (ReaderStage(question=0.9, cloze=0.1),)
"""For a bridge that was trained before."""
TEXT_STAGES = (ReaderStage(question=1.0),)


# -- scoring -------------------------------------------------------------------------------------


class Examiner:
    """Greedy answers of a trained module, and their figures."""

    def __init__(
        self, receiver: FrozenReceiver, scored: Scored, states: LayerStates | None
    ) -> None:
        self.receiver, self.scored, self.states = receiver, scored, states
        newline = data_rows(receiver.backend.tokenizer, ["a\n", "\n", "a\n\n"])
        ends = {newline[0][-1], newline[1][-1], newline[2][-1], *receiver.backend.ends}
        place = {int(v): i for i, v in enumerate(receiver.vocabulary.tolist())}
        self.ends = [place[e] for e in ends if e in place]
        self.first = np.concatenate([[0], np.cumsum(scored.pieces)]).tolist()

    def _batches(self, extra: int) -> Iterable[list[int]]:
        lengths = self.scored.receiver.lengths.tolist()
        order = sorted(
            range(len(self.scored.rows)), key=lambda i: (self.scored.pieces[i], lengths[i])
        )
        batch: list[int] = []
        for i in order:
            wide = (lengths[i] if extra < 0 else extra * self.scored.pieces[i]) + 96
            if batch and ((len(batch) + 1) * wide > 60_000 or len(batch) >= 256
                          or self.scored.pieces[batch[0]] != self.scored.pieces[i]):  # fmt: skip
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    @torch.inference_mode()
    def answers(self, module: Any, size: int, control: str = "") -> list[str]:
        """Answers to all rows.

        Args:
            size: M; for a ``TextTrainee`` the tokens of the text (0: all, -1: none).
            control: replace the payloads: ``zero``, ``shuffled`` or ``mean``.
        """
        found = [""] * len(self.scored.rows)
        mean = self._mean(module, size) if control == "mean" else None
        for batch in self._batches(-1 if isinstance(module, TextTrainee) else size):
            asked = [self.scored.asked[i] for i in batch]
            additions = hidden = None
            if isinstance(module, TextTrainee):
                prefix, hidden = self._text(module, batch, size)
            else:
                prefix, vectors = self._soft(module, batch, size, control, mean)
                if vectors is not None:
                    start = len(self.receiver.start) + module.reader.shape.prompt
                    additions = (start, module.reader.shape.additions, vectors)
            rows = self.receiver.greedy(
                prefix, asked, self.ends, MOST, additions, module.adapter, hidden
            )
            for i, row in zip(batch, rows, strict=True):
                found[i] = self.receiver.text(row)
        return found

    def _text(self, module: TextTrainee, batch: list[int], size: int) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(batch, device=self.receiver.device)
        lengths = self.scored.receiver.lengths[rows]
        if size:
            lengths = lengths.clamp(max=max(size, 0))
        width = max(1, int(lengths.max()))
        text, _ = self.scored.receiver.gather(rows, width)
        ids = torch.zeros(len(batch), 1, dtype=torch.long, device=text.device)
        embedded, first = module.sequence(self.receiver, text, lengths, ids)
        embedded = embedded[:, :-1]
        place = torch.arange(embedded.shape[1], device=text.device)[None]
        return embedded, place >= first[:, None]

    def _latents(self, module: Any, batch: list[int], size: int) -> Tensor:
        pieces = [p for i in batch for p in range(self.first[i], self.first[i + 1])]
        rows = torch.tensor(pieces, device=self.receiver.device)
        assert self.states is not None
        states, mask = self.states.gather(rows, int(self.states.lengths[rows].max()))
        found: Tensor = module.reader.sender(states, mask, size)
        return found.half().float()

    def _mean(self, module: Any, size: int) -> Tensor:
        sums = [self._latents(module, b, size).mean(0) for b in self._batches(size)]
        return torch.stack(sums).mean(0)

    def _soft(
        self, module: Any, batch: list[int], size: int, control: str, mean: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        latents = self._latents(module, batch, size)
        if control == "zero":
            latents = torch.zeros_like(latents)
        elif control == "shuffled":
            latents = latents.roll(max(1, len(latents) // 3), 0)
        elif mean is not None:
            latents = mean.expand_as(latents)
        soft, additions = module.reader.receiver(latents)
        prefix: tuple[Tensor, Tensor | None] = module.around(
            self.receiver, soft, additions, len(soft) // len(batch)
        )
        return prefix

    def figures(self, answers: Sequence[str]) -> dict[str, Any]:
        """EM and F1 in percent, and faulty answers in percent by kind."""
        rows = self.scored.rows
        faults = [fault(a) for a in answers]
        n = len(rows)
        return {
            "em": 100
            * fmean(exact_match(a, r["answers"]) for a, r in zip(answers, rows, strict=True)),
            "f1": 100 * fmean(f1(a, r["answers"]) for a, r in zip(answers, rows, strict=True)),
            "faults": {k: 100 * faults.count(k) / n for k in ("empty", "loop", "garbage")},
            "n": n,
        }


# -- train ---------------------------------------------------------------------------------------


class Study:
    """Models, data and cached states of one pair of models; trains one variant after another."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        names = (RECEIVER, SENDER) if args.reverse else (SENDER, RECEIVER)
        self.sender, backend = (self._load(args, name) for name in names)
        found = np.load(args.corpus)
        self.corpus = Corpus.of_arrays(found).to(self.device)
        self.receiver = FrozenReceiver(backend, self.corpus.vocabulary)
        held = {k.removeprefix("held."): v for k, v in found.items() if k.startswith("held.")}
        self.held = Scored.of_corpus(
            Corpus.of_arrays(held).to(self.device), self.receiver, args.judged
        )
        self.tests = {name: Scored.of_arrays(found, name, self.device) for name in SETS}
        deep = self.sender.identity.layers > 20
        self.layers = tuple(args.layers) or ((0, 8, 16, 24) if deep else (0, 5, 10, 15))
        self.states: LayerStates | None = None
        self.log("loaded")

    def _load(self, args: argparse.Namespace, name: str) -> TransformersBackend:
        spec = AgentSpec(name="a", backend="transformers", model=name, device=args.device,
                         folder=str(Path(args.models) / name), dtype=args.dtype)  # fmt: skip
        backend = TransformersBackend.load(spec, lambda stage, done: None)
        backend.model.requires_grad_(False)
        return backend

    def log(self, *what: object) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.args.device}", *what, flush=True)

    def cached(self) -> LayerStates:
        if self.states is None:
            self.states = read_states(self.sender, self.layers, self.corpus.sender)
            self.log("states", tuple(self.states.flat.shape))
        return self.states

    def reader(self, additions: Sequence[int], recipe: TrainSpec) -> Reader:
        """An untrained reader, aligned and calibrated."""
        torch.manual_seed(recipe.seed)
        shape = ReaderShape(
            sender_width=self.sender.identity.width, sender_layers=self.layers,
            width=self.receiver.backend.identity.width, sizes=SIZES, additions=tuple(additions),
            hidden=self.args.hidden, down=self.args.down, blocks=self.args.blocks,
        )  # fmt: skip
        reader = Reader(shape, dropout=recipe.dropout).to(self.device)
        mean, std = self.cached().statistics()
        half, alpha = reader.receiver, self.receiver.backend.identity.embedding_rms
        reader.calibrate(mean, std, alpha)
        pairs = torch.tensor(shared_pieces(self.sender.tokenizer, self.receiver.backend.tokenizer),
                             device=self.device)  # fmt: skip
        counts = torch.bincount(self.corpus.sender.flat, minlength=int(pairs[:, 0].max()) + 1)
        with torch.no_grad():
            ours = self.sender.model.get_input_embeddings()(pairs[:, 0]).float()
            theirs = self.receiver.backend.model.get_input_embeddings()(pairs[:, 1]).float()
            weight, bias, r2 = least_squares(ours, theirs, (counts[pairs[:, 0]] + 1.0) ** 0.25)
            half.align.weight.copy_(weight)
            half.align.bias.copy_(bias)
            half.before.copy_(torch.randn_like(half.before) * alpha * 0.5)
            half.after.copy_(torch.randn_like(half.after) * alpha * 0.5)
            if additions:
                half.rho.copy_(self.args.rho * self._residuals(additions))
        self.log("alignment R2", round(r2, 3), "parameters", reader.count_parameters())
        return reader

    @torch.no_grad()
    def _residuals(self, layers: Sequence[int]) -> Tensor:
        """RMS of what each layer reads, over plain text, without the first token."""
        ids, mask = self.corpus.receiver.gather(torch.arange(64, device=self.device), 96)
        rows = mask.all(1)
        model = self.receiver.decoder
        output = model(inputs_embeds=self.receiver.embed(ids[rows]), use_cache=False,
                       output_hidden_states=True)  # fmt: skip
        rms = [h[:, 1:].float().pow(2).mean(-1).sqrt().median() for h in output.hidden_states]
        return torch.stack([rms[layer] for layer in layers])

    def recipe(self, given: dict[str, str], rate: float) -> TrainSpec:
        """The recipe of a job; ``rate`` is its learning rate unless it names one."""
        args, seed = self.args, int(given.get("seed", 0))
        rate = float(given.get("rate", rate))
        return TrainSpec(
            steps=args.steps, batch_size=args.items, learning_rate=rate, weight_decay=args.decay,
            dropout=args.dropout, token_dropout=args.token_dropout, average=args.average,
            evaluate_every=args.every, seed=seed, warmup=0.04,
        )  # fmt: skip

    def fit(self, name: str, module: Any, stages: Sequence[ReaderStage], recipe: TrainSpec,
            sizes: Sequence[int], judged: int, states: LayerStates | None) -> Any:  # fmt: skip
        """Trains a module; ``judged`` is the size at which held-out F1 chooses the best step."""
        held_states = None
        if states is not None:
            held_states = read_states(self.sender, self.layers, packed(self.held.sender))
        examiner = Examiner(self.receiver, self.held, held_states)

        def judge(one: Any) -> Score:
            figures = examiner.figures(examiner.answers(one, judged))
            return Score(1 - figures["f1"] / 100, figures["f1"] / 100)

        schedule = Schedule(
            self.corpus, stages, recipe.steps, recipe.batch_size, sizes, recipe.seed
        )
        objective = ReaderObjective(
            module, self.receiver, self.corpus, schedule, recipe, judge, states
        )
        began = time.monotonic()
        curve = []

        def report(evaluations: Sequence[Evaluation]) -> None:
            for e in evaluations:
                spent = (time.monotonic() - began) / e.step * 1000
                curve.append((e.step, e.train_loss, e.accuracy))
                self.log(
                    name,
                    f"step {e.step} loss {e.train_loss:.3f} F1 {e.accuracy:.3f} {spent:.0f} ms",
                )

        (trained,) = train_many(objective, [recipe], report)
        if not isinstance(trained, Trained):
            raise trained
        self.curve = {
            "curve": curve,
            "seconds": time.monotonic() - began,
            "best": trained.best.step,
        }
        torch.cuda.empty_cache()
        return trained.module

    def examine(
        self, name: str, module: Any, sizes: Sequence[int], controls: Sequence[str] = ()
    ) -> None:
        """Writes figures and answers of all test sets."""
        found: dict[str, Any] = dict(self.curve)
        for which, scored in self.tests.items():
            states = None
            if isinstance(module, ReaderTrainee):
                states = read_states(self.sender, self.layers, scored.sender)
            examiner = Examiner(self.receiver, scored, states)
            for size in sizes:
                given = examiner.answers(module, size)
                found[f"{which}.{size}"] = {**examiner.figures(given), "answers": given}
                self.log(name, which, size, examiner.figures(given))
                (self.out / f"{name}.json").write_text(json.dumps(found))
            for control in controls:
                given = examiner.answers(module, 64, control)
                found[f"{which}.64.{control}"] = examiner.figures(given)
                self.log(name, which, control, found[f"{which}.64.{control}"])
        (self.out / f"{name}.json").write_text(json.dumps(found))

    def save(self, name: str, module: torch.nn.Module) -> None:
        state = {k: v.detach().half().cpu().contiguous() for k, v in module.state_dict().items()}
        save_file(state, self.out / f"{name}.safetensors")


def train(args: argparse.Namespace) -> None:
    """Runs all jobs. A job's options replace options of the command line of the same name."""
    study = Study(args)
    for job in queued(Path(args.queue)) if args.queue else args.jobs:
        name, _, options = job.partition(":")
        given = dict(option.split("=") for option in options.split(",") if option)
        study.args = argparse.Namespace(
            **{k: type(v)(given[k]) if k in given else v for k, v in vars(args).items()}
        )
        study.log("begin", job)
        (train_text if name == "text" else train_reader)(study, job, given)


def train_text(study: Study, job: str, given: dict[str, str]) -> None:
    """Prompt vectors around the text or its first tokens (``cuts``), perhaps with LoRA."""
    cuts = [int(cut) for cut in given.get("cuts", "0").split("/")]
    recipe = study.recipe(given, 3e-3)
    module = TextTrainee(study.receiver, 8, _adapter(study, given))
    trained = study.fit(job, module, TEXT_STAGES, recipe, cuts, cuts[-1], None)
    study.examine(_file(job), trained, cuts)


def train_reader(study: Study, job: str, given: dict[str, str]) -> None:
    """A reader bridge, perhaps with LoRA on the receiver, perhaps starting ``from`` another's."""
    layers = study.receiver.decoder.config.num_hidden_layers
    which = {"all": range(1, layers), "none": (), "half": range(1, layers, 2)}
    recipe = study.recipe(given, study.args.rate)
    reader = study.reader(tuple(which[given.get("add", "all")]), recipe)
    if "from" in given:
        state = load_file(study.out / f"{given['from']}.safetensors")
        reader.load_state_dict({k.removeprefix("reader."): v.float() for k, v in state.items()})
    module = ReaderTrainee(reader, _adapter(study, given))
    sizes = [int(m) for m in given.get("sizes", "16/32/64/128").split("/")]
    stages = TUNING_STAGES if "from" in given else STAGES
    trained = study.fit(job, module, stages, recipe, sizes, 64, study.cached())
    study.save(_file(job), trained)
    study.examine(_file(job), trained, sizes, ("zero", "shuffled", "mean"))


def queued(file: Path) -> Iterator[str]:
    """The lines of a file that may grow, up to the line ``end``."""
    for number in count():
        while len(lines := file.read_text().split("\n")) <= number + 1:
            time.sleep(1)
        if lines[number] == "end":
            return
        yield lines[number]


def _adapter(study: Study, given: dict[str, str]) -> Adapter | None:
    if "lora" not in given:
        return None
    return Adapter(study.receiver.backend.model, int(given["lora"])).to(study.device)


def _file(job: str) -> str:
    return job.replace(":", "-").replace("=", "").replace(",", "-").replace("/", "_")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sub = parser.add_subparsers(dest="what", required=True)
    one = sub.add_parser("prepare")
    one.add_argument("--data", required=True)
    one.add_argument("--take", type=int, default=0, help="passages of each kind; 0: all")
    two = sub.add_parser("train")
    two.add_argument("jobs", nargs="*", help="main:add=all,seed=0,steps=6000  text:cuts=0  …")
    two.add_argument("--corpus", required=True)
    two.add_argument("--queue", help="a file with a job on each line, which may grow")
    for parsed in (one, two):
        parsed.add_argument("--models", required=True)
        parsed.add_argument("--out", required=True)
        parsed.add_argument("--reverse", action="store_true")
    two.add_argument("--device", default="cuda:0")
    two.add_argument("--dtype", default="bfloat16")
    two.add_argument("--layers", type=int, nargs="*", default=())
    two.add_argument("--steps", type=int, default=6000)
    two.add_argument("--items", type=int, default=128)
    two.add_argument("--every", type=int, default=1000)
    two.add_argument("--judged", type=int, default=512)
    two.add_argument("--rate", type=float, default=1e-3)
    two.add_argument("--decay", type=float, default=0.02)
    two.add_argument("--dropout", type=float, default=0.1)
    two.add_argument("--token-dropout", type=float, default=0.0)
    two.add_argument("--average", type=float, default=0.998)
    two.add_argument("--rho", type=float, default=0.3)
    two.add_argument("--hidden", type=int, default=512)
    two.add_argument("--down", type=int, default=320)
    two.add_argument("--blocks", type=int, default=2)
    args = parser.parse_args()
    {"prepare": prepare, "train": train}[args.what](args)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    main()
