"""The training of a small reader bridge between two tiny random models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentwire.bridge.reader import Reader
from agentwire.bridge.shape import ReaderShape
from agentwire.model.transformers import TransformersBackend
from agentwire.spec.scenario import TrainSpec
from agentwire.training.checkpoint import Checkpoint
from agentwire.training.loop import Evaluation, Trained, train_many
from agentwire.training.objective import Score
from agentwire.training.reader.corpus import Corpus, CorpusBuilder
from agentwire.training.reader.objective import ReaderObjective, ReaderTrainee, TextTrainee
from agentwire.training.reader.questions import Passage
from agentwire.training.reader.receiver import FrozenReceiver, fuse_norms
from agentwire.training.reader.schedule import ReaderStage, Schedule
from agentwire.training.reader.states import LayerStates, read_states

LAYERS = (0, 1, 3)
SIZES = (2, 4, 8)


def load(folder: Path) -> TransformersBackend:
    backend = TransformersBackend.load(tiny.spec("a", folder), lambda stage, done: None)
    backend.model.requires_grad_(False)
    return backend


@pytest.fixture(scope="module")
def sender(tiny_llama: Path) -> TransformersBackend:
    return load(tiny_llama)


@pytest.fixture(scope="module")
def corpus(tiny_llama: Path, tiny_gemma: Path) -> Corpus:
    passages = [
        Passage(text, [("how is it?", text.split()[-1]), ("what is it?", text.split()[1])])
        for text, _ in tiny.sentences(40, 3)
    ]
    tokenizers = [load(folder).tokenizer for folder in (tiny_llama, tiny_gemma)]
    builder = CorpusBuilder(*tokenizers, question=" {question}", longest=160)
    builder.add_questions(passages)
    builder.add_continuations([" and ".join(p.text for p in passages[i : i + 3]) for i in range(9)])
    return builder.build()


@pytest.fixture(scope="module")
def receiver(tiny_gemma: Path, corpus: Corpus) -> FrozenReceiver:
    return FrozenReceiver(load(tiny_gemma), corpus.vocabulary)


@pytest.fixture(scope="module")
def states(sender: TransformersBackend, corpus: Corpus) -> LayerStates:
    return read_states(sender, LAYERS, corpus.sender)


# -- frozen models --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
def test_fused_norms_give_the_same_states(name: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(name)).model
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    for norm in norms:
        nn.init.normal_(norm.weight, std=0.2)
    ids = torch.arange(30).view(2, 15)
    before = model(ids).logits
    assert fuse_norms(model) == len(norms) > 0
    assert all("forward" in norm.__dict__ for norm in norms)
    assert torch.allclose(model(ids).logits, before, atol=1e-4)


def test_cached_states_are_those_of_the_model(
    sender: TransformersBackend, corpus: Corpus, states: LayerStates
) -> None:
    row = torch.tensor([5])
    found, mask = states.gather(row, 60)
    n = int(corpus.sender.lengths[5])
    assert int(mask.sum()) == n
    ids = corpus.sender.gather(row, n)[0]
    whole = torch.cat([torch.tensor([sender.start]), ids], dim=1)
    expected = sender.model(whole, output_hidden_states=True).hidden_states
    for number, layer in enumerate(LAYERS):
        after = expected[layer][0, len(sender.start) :]
        assert torch.allclose(found[0, :n, number].float(), after, atol=5e-3, rtol=2e-3)
    mean, std = states.statistics()
    assert mean.shape == std.shape == (3, 32)
    assert (std > 0).all()


def test_the_answer_loss_is_the_cross_entropy_of_the_answers(receiver: FrozenReceiver) -> None:
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(3, 20, 48, generator=draw)
    ids = torch.randint(0, len(receiver.vocabulary), (3, 9), generator=draw)
    first, begins, ends = (torch.tensor(x) for x in ([5, 8, 11], [2, 0, 6], [5, 7, 9]))
    losses = []
    for i in range(3):
        for place in range(int(begins[i]), min(int(ends[i]), int(begins[i]) + 4)):
            logits = receiver.logits(states[i, int(first[i]) + place - 1])
            losses.append(F.cross_entropy(logits, ids[i, place]))
    found = receiver.answer_loss(states, ids, first, begins, ends, 4)
    assert float(found) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
def test_padding_changes_no_greedy_answer(name: str, request: pytest.FixtureRequest) -> None:
    backend = load(request.getfixturevalue(name))
    # The padding counts in a sliding window, so the window must hold the whole text.
    backend.model.config.sliding_window = 64
    receiver = FrozenReceiver(backend, torch.arange(400))
    width = receiver.table.shape[1]
    draw = torch.Generator().manual_seed(1)
    prefix = receiver.embed(torch.randint(0, 400, (3, 5), generator=draw))
    added = torch.randn(3, 2, 2, width, generator=draw)
    asked = [[7, 8, 9, 10, 11, 12], [20], [30, 31, 32]]

    def answers(rows: list[int], hidden: Tensor | None = None) -> list[list[int]]:
        additions = (1, (0, 2), added[rows])
        questions = [asked[i] for i in rows]
        return receiver.greedy(prefix[rows], questions, [0], 6, additions, hidden=hidden)

    alone = [answers([i])[0] for i in range(3)]
    assert answers([0, 1, 2]) == alone
    assert all(alone)
    end = alone[0][2]
    first = receiver.greedy(prefix[:1], asked[:1], [end], 6, (1, (0, 2), added[:1]))[0]
    assert first == alone[0][: alone[0].index(end)]
    # Hidden places of a prefix are padding as well.
    hidden = torch.zeros(1, 5, dtype=torch.bool)
    hidden[0, 3:] = True
    short = receiver.greedy(prefix[:1, :3], asked[:1], [0], 6, (1, (0, 2), added[:1]))
    assert answers([0], hidden) == short


# -- training -------------------------------------------------------------------------------------


def test_a_text_stands_between_its_vectors(receiver: FrozenReceiver) -> None:
    torch.manual_seed(0)
    module = TextTrainee(receiver, 2)
    text, lengths = torch.tensor([[3, 4, 5], [6, 0, 0], [0, 0, 0]]), [3, 1, 0]
    ids = torch.tensor([[7, 8], [9, 10], [11, 12]])
    found, first = module.sequence(receiver, text, torch.tensor(lengths), ids)
    for i, length in enumerate(lengths):
        words = receiver.embed(text[i, :length]), receiver.embed(ids[i])
        parts = [receiver.start, module.vectors[0], words[0], module.vectors[1], words[1]]
        expected = torch.cat([part.detach() for part in parts])
        assert torch.equal(found[i, : len(expected)], expected)
        assert int(first[i]) == len(expected) - 2


def trainee(receiver: FrozenReceiver, states: LayerStates) -> ReaderTrainee:
    torch.manual_seed(0)
    shape = ReaderShape(
        sender_width=32, sender_layers=LAYERS, width=48, sizes=SIZES, additions=(0, 2), hidden=16,
        blocks=1, heads=2, prompt=2, down=8, local=3,
    )  # fmt: skip
    reader = Reader(shape, dropout=0.1)
    reader.calibrate(*states.statistics(), receiver.backend.identity.embedding_rms)
    return ReaderTrainee(reader)


def test_joined_passages_become_one_text(receiver: FrozenReceiver, states: LayerStates) -> None:
    module = trainee(receiver, states).eval()
    given = states.gather(torch.arange(4), 40)
    apart, added = module.prefix(receiver, *given, 4)
    joined, together = module.prefix(receiver, *given, 4, joined=2)
    assert added is not None and together is not None
    begin = len(receiver.start) + 2
    assert joined.shape == (2, begin + 8 + 2, 48)
    soft = apart[:, begin : begin + 4].reshape(2, 8, 48)
    assert torch.equal(joined[:, begin : begin + 8], soft)
    assert torch.equal(together, added.reshape(2, 8, 2, 48))


def train(
    module: ReaderTrainee | TextTrainee,
    receiver: FrozenReceiver,
    corpus: Corpus,
    states: LayerStates | None,
    judge: Callable[[nn.Module], Score],
    checkpoint: Checkpoint | None = None,
    report: Callable[[list[Evaluation]], None] = lambda evaluations: None,
    **changes: object,
) -> Trained:
    recipe = TrainSpec.model_validate(
        {"steps": 20, "batch_size": 8, "learning_rate": 1e-2, "average": 0.5, "evaluate_every": 5,
         "token_dropout": 0.1, **changes}
    )  # fmt: skip
    stages = [ReaderStage(continuation=0.0 if states is None else 0.1)]
    sizes = SIZES if states is not None else (0, 6, -1)
    schedule = Schedule(corpus, stages, recipe.steps, recipe.batch_size, sizes, recipe.seed)
    objective = ReaderObjective(module, receiver, corpus, schedule, recipe, judge, states)
    (done,) = train_many(objective, [recipe], lambda now: report(list(now)), checkpoint)
    assert isinstance(done, Trained)
    return done


def test_a_reader_learns(receiver: FrozenReceiver, corpus: Corpus, states: LayerStates) -> None:
    module = trainee(receiver, states)
    trained = train(module, receiver, corpus, states, lambda module: Score(1.0, 0.0))
    first, last = trained.history[0], trained.history[-1]
    assert (first.step, last.step) == (5, 20)
    assert last.train_loss < 0.9 * first.train_loss
    assert not any(p.requires_grad for p in receiver.backend.model.parameters())


def test_vectors_around_the_text_learn(receiver: FrozenReceiver, corpus: Corpus) -> None:
    torch.manual_seed(0)
    module = TextTrainee(receiver, 2)
    trained = train(module, receiver, corpus, None, lambda module: Score(1.0, 0.0))
    assert trained.history[-1].train_loss < trained.history[0].train_loss


class Killed(Exception):
    pass


def test_a_killed_training_of_a_reader_resumes(
    tmp_path: Path, receiver: FrozenReceiver, corpus: Corpus, states: LayerStates
) -> None:
    def moved(module: nn.Module) -> Score:
        """Grows while the additions, which start at zero, are trained."""
        assert isinstance(module, ReaderTrainee)
        return Score(1.0, float(module.reader.receiver.up.detach().abs().mean()))

    given, plan = (receiver, corpus, states, moved), {"steps": 8, "evaluate_every": 2}
    whole = train(trainee(receiver, states), *given, **plan)
    assert whole.best.step == 8

    def dies(evaluations: list[Evaluation]) -> None:
        if evaluations[0].step == 6:  # the checkpoint is of step 4
            raise Killed

    saved = Checkpoint(tmp_path / "training.safetensors", "this one")
    with pytest.raises(Killed):
        train(trainee(receiver, states), *given, saved, dies, **plan)
    again = train(trainee(receiver, states), *given, saved, **plan)
    assert again.history == whole.history
    weights = whole.module.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in again.module.state_dict().items())
