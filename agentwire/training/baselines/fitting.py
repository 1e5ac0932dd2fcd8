"""How each baseline of a scenario is fitted, and how it then answers.

Settings are chosen on the bridge's held-out training rows; one training with the scenario's seed
follows. What was learned lies in the user cache and is used again by every run with the same rows,
models and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentwire.errors import BridgeError
from agentwire.spec.scenario import TrainSpec
from agentwire.task.datasets import Dataset
from agentwire.training.baselines.encoder import embed, fetch_encoder
from agentwire.training.baselines.few_shot import few_shot_task
from agentwire.training.baselines.fitted import Fitted, cache_file, load_fitted, save_fitted
from agentwire.training.baselines.lora import Adapter, adapters
from agentwire.training.baselines.probe import (
    ATTENTION_GRID,
    AttentionProbe,
    Logistic,
    ProbeObjective,
    Scaler,
    choose_logistic,
    mean_pooled,
    probe_logits,
)
from agentwire.training.baselines.reader import (
    LORA_GRID,
    PROMPT_GRID,
    BlindObjective,
    Reader,
    ReaderObjective,
    SoftPrompt,
    TextRows,
    Trainee,
    text_rows,
)
from agentwire.training.baselines.setting import Setting
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import Objective
from agentwire.training.reporting import TimeLeft

CHOOSING = 3
"""A run that only chooses settings has this part of the steps of the one that counts."""
SHOTS = (1, 2, 4)
SHOT_TOKENS = 2000
"""Longest few-shot prompt, in characters divided by four."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """One baseline.

    Attributes:
        fit: learns from a setting's training rows.
        answer: label logits [n, L] of texts, from what was learned.
    """

    fit: Callable[[Setting], Fitted]
    answer: Callable[[Setting, Fitted, Sequence[str]], Tensor]


def fitted(setting: Setting, name: str) -> Fitted:
    """What the baseline ``name`` learned: from the cache, or now.

    Raises:
        CacheError: the cache cannot be written.
        BridgeError: its loss was never finite.
        DataError, ModelError, DownloadError: what it needs cannot be had.
    """
    file = cache_file(setting, name)
    found = load_fitted(file)
    if found is None:
        found = BASELINES[name].fit(setting)
        save_fitted(file, found)
    return found


def answers(setting: Setting, name: str, learned: Fitted, texts: Sequence[str]) -> Tensor:
    """Label logits [n, L] of a fitted baseline, on the CPU."""
    return BASELINES[name].answer(setting, learned, texts).float().cpu()


def _labels(setting: Setting, part: Dataset) -> Tensor:
    return torch.tensor([row.label for row in part.rows], device=setting.receiver.device)


def _recipe(setting: Setting, **changes: Any) -> TrainSpec:
    """The scenario's training settings with those of a baseline."""
    values = {"evaluate_every": max(1, setting.recipe.steps // 10), "token_dropout": 0.0}
    return setting.recipe.model_copy(update={**values, **changes})


def _train(
    setting: Setting, problem: Objective, recipes: Sequence[TrainSpec], stage: str
) -> list[Trained]:
    """The trainings that ended well; at least one.

    Raises:
        BridgeError: none did.
    """

    steps = recipes[0].steps
    pace = TimeLeft(steps)

    def report(member: int, now: Evaluation) -> None:
        setting.tell(f"{stage}: held-out {now.accuracy:.3f}", now.step / steps)

    def stepped(number: int) -> None:
        said = pace.stepped(number)
        if said:
            setting.tell(f"{stage}: {said}", number / steps)

    done = train_many(problem, recipes, report, stepped=stepped)
    good = [one for one in done if isinstance(one, Trained)]
    if not good:
        raise next(one for one in done if isinstance(one, BridgeError))
    return good


# -- on the sender's states -----------------------------------------------------------------------


def _fit_mean(setting: Setting) -> Fitted:
    train, held = setting.train_states, setting.held_out_states
    scaler = Scaler.of(train)
    best = choose_logistic(
        mean_pooled(train, scaler), train.labels, mean_pooled(held, scaler), held.labels,
        setting.classes,
    )  # fmt: skip
    probe = best.probe
    tensors = {"scaler_mean": scaler.mean, "scaler_std": scaler.std, "mean": probe.mean,
               "std": probe.std, "weight": probe.weight, "bias": probe.bias}  # fmt: skip
    return Fitted(tensors, {"l2": best.l2, "held_out_accuracy": best.held_out_accuracy})


def _answer_mean(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    known = {key: value.to(setting.sender.device) for key, value in learned.tensors.items()}
    scaler = Scaler(known.pop("scaler_mean"), known.pop("scaler_std"))
    return Logistic(**known)(mean_pooled(setting.states_of(texts), scaler))


def _fit_attention(setting: Setting) -> Fitted:
    train, held = setting.train_states, setting.held_out_states
    scaler, seed = Scaler.of(train), setting.recipe.seed

    def one(choice: dict[str, Any]) -> AttentionProbe:
        torch.manual_seed(seed)
        module = AttentionProbe(
            scaler, setting.classes, heads=choice["heads"], dropout=choice["dropout"]
        )
        return module.to(setting.sender.device)

    recipes = [
        _recipe(setting, learning_rate=choice["learning_rate"], clip=10.0)
        for choice in ATTENTION_GRID
    ]
    modules = [one(choice) for choice in ATTENTION_GRID]
    done = train_many(ProbeObjective(modules, train, held), recipes)
    best = _best(done)
    notes = {**ATTENTION_GRID[best[0]], "held_out_accuracy": best[1].best.accuracy}
    return Fitted(dict(best[1].module.state_dict()), notes)


def _best(done: Sequence[Trained | BridgeError]) -> tuple[int, Trained]:
    """Index and result of the training that did best on held-out rows.

    Raises:
        BridgeError: none ended well.
    """
    good = [(i, one) for i, one in enumerate(done) if isinstance(one, Trained)]
    if not good:
        raise next(one for one in done if isinstance(one, BridgeError))
    return max(good, key=lambda pair: pair[1].best.rank)


def _answer_attention(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    tensors = learned.tensors
    module = AttentionProbe(
        Scaler(tensors["mean"], tensors["std"]), setting.classes, heads=learned.notes["heads"]
    )
    module.load_state_dict(tensors)
    return probe_logits(module.to(setting.sender.device).eval(), setting.states_of(texts))


def _fit_encoder(setting: Setting) -> Fitted:
    folder = fetch_encoder(setting.config, setting.tell)
    device = setting.receiver.device

    def features(part: Dataset, stage: str) -> Tensor:
        texts = [row.text for row in part.rows]
        return embed(folder, texts, device, progress=lambda done: setting.tell(stage, done))

    best = choose_logistic(
        features(setting.rows, "sentence embeddings"), _labels(setting, setting.rows),
        features(setting.held_out, "sentence embeddings"), _labels(setting, setting.held_out),
        setting.classes,
    )  # fmt: skip
    probe = best.probe
    tensors = {"mean": probe.mean, "std": probe.std, "weight": probe.weight, "bias": probe.bias}
    return Fitted(tensors, {"l2": best.l2, "held_out_accuracy": best.held_out_accuracy})


def _answer_encoder(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    device = setting.receiver.device
    known = {key: value.to(device) for key, value in learned.tensors.items()}
    return Logistic(**known)(embed(fetch_encoder(setting.config), texts, device))


# -- receivers that read the text -----------------------------------------------------------------


def _rows(setting: Setting, part: Dataset, cut: int | None) -> TextRows:
    texts, labels = [row.text for row in part.rows], [row.label for row in part.rows]
    return text_rows(setting.receiver, setting.task, texts, labels, cut)


def _fit_reader(
    setting: Setting, grid: Sequence[dict[str, Any]], make: Callable[[dict[str, Any]], Trainee]
) -> Fitted:
    """Short trainings choose from ``grid``; a whole one follows."""
    receiver, task = setting.receiver, setting.task
    receiver.prepare(task)
    train = _rows(setting, setting.rows, setting.recipe.max_text_tokens)
    held = _rows(setting, setting.held_out, None)

    def trained(choice: dict[str, Any], steps: int, stage: str) -> Trained:
        torch.manual_seed(setting.recipe.seed)
        module = make(choice)
        recipe = _recipe(setting, learning_rate=choice["learning_rate"], steps=steps,
                         evaluate_every=max(1, steps // 5), weight_decay=0.0)  # fmt: skip
        lora = isinstance(module, Adapter)
        with adapters(receiver.model) if lora else nullcontext() as adapted:
            reader = Reader(receiver, task, adapted)
            problem = ReaderObjective(reader, [module], train, held, [recipe])
            return _train(setting, problem, [recipe], stage)[0]

    steps = setting.recipe.steps
    tried = [trained(choice, max(1, steps // CHOOSING), f"choosing {choice}") for choice in grid]
    best = max(range(len(grid)), key=lambda i: tried[i].best.rank)
    final = trained(grid[best], steps, "training")
    notes = {**grid[best], "held_out_accuracy": final.best.accuracy}
    return Fitted(dict(final.module.state_dict()), notes)


def _answer_reader(setting: Setting, module: nn.Module, texts: Sequence[str]) -> Tensor:
    receiver = setting.receiver
    lora = isinstance(module, Adapter)
    with adapters(receiver.model) if lora else nullcontext() as adapted:
        reader = Reader(receiver, setting.task, adapted)
        rows = text_rows(receiver, setting.task, texts, [0] * len(texts))
        return reader.scores([module], rows)[0]


def _prompt(setting: Setting, learned: Fitted) -> SoftPrompt:
    module = SoftPrompt(setting.receiver, learned.tensors["latents"].shape[0])
    module.load_state_dict(learned.tensors)
    return module.to(setting.receiver.device)


def _fit_prompt(setting: Setting) -> Fitted:
    return _fit_reader(setting, PROMPT_GRID, lambda c: SoftPrompt(setting.receiver, c["length"]))


def _answer_prompt(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    return _answer_reader(setting, _prompt(setting, learned), texts)


def _adapter(setting: Setting) -> Adapter:
    return Adapter(setting.receiver.model).to(setting.receiver.device)


def _fit_lora(setting: Setting) -> Fitted:
    return _fit_reader(setting, LORA_GRID, lambda choice: _adapter(setting))


def _answer_lora(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    module = _adapter(setting)
    module.load_state_dict(learned.tensors)
    return _answer_reader(setting, module, texts)


def _fit_blind(setting: Setting) -> Fitted:
    receiver, task = setting.receiver, setting.task
    receiver.prepare(task)
    torch.manual_seed(setting.recipe.seed)
    module = SoftPrompt(receiver, setting.resolved.wire.spec.soft_tokens)
    recipe = _recipe(setting, learning_rate=1e-2, weight_decay=0.0)
    labels, held = _labels(setting, setting.rows), _labels(setting, setting.held_out)
    problem = BlindObjective(lambda z: receiver.logits_from_soft(z, task), [module], labels, held)
    done = _train(setting, problem, [recipe], "training")[0]
    return Fitted(dict(done.module.state_dict()), {"held_out_accuracy": done.best.accuracy})


@torch.inference_mode()
def _answer_blind(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    soft = _prompt(setting, learned)()[None]
    return setting.receiver.logits_from_soft(soft, setting.task).expand(len(texts), -1)


def _fit_few_shot(setting: Setting) -> Fitted:
    """Only chooses how many examples; nothing is trained."""
    rows, held = setting.rows.rows, setting.held_out.rows[:200]
    labels = torch.tensor([row.label for row in held])
    found: dict[int, float] = {}
    for shots in SHOTS:
        task = few_shot_task(setting.task, rows, shots, setting.recipe.seed)
        if found and len(task.text_prompt) / 4 > SHOT_TOKENS:
            break
        scores = setting.receiver.score_text([row.text for row in held], task).scores
        found[shots] = float((torch.from_numpy(scores).argmax(-1) == labels).double().mean())
        setting.tell(f"{shots} examples a class: held-out {found[shots]:.3f}", shots / SHOTS[-1])
    best = max(found, key=lambda shots: found[shots])
    return Fitted({"shots": torch.tensor(best)}, {"held_out_accuracy": found[best]})


def _answer_few_shot(setting: Setting, learned: Fitted, texts: Sequence[str]) -> Tensor:
    shots = int(learned.tensors["shots"])
    task = few_shot_task(setting.task, setting.rows.rows, shots, setting.recipe.seed)
    return torch.from_numpy(setting.receiver.score_text(texts, task).scores)


BASELINES = {
    "probe_mean": Baseline(_fit_mean, _answer_mean),
    "probe_attention": Baseline(_fit_attention, _answer_attention),
    "encoder_linear": Baseline(_fit_encoder, _answer_encoder),
    "prompt_tuning": Baseline(_fit_prompt, _answer_prompt),
    "prompt_tuning_blind": Baseline(_fit_blind, _answer_blind),
    "lora": Baseline(_fit_lora, _answer_lora),
    "few_shot": Baseline(_fit_few_shot, _answer_few_shot),
}
