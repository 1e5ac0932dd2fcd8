"""A set of bridges for two senders: trained together on tiny models, checked, and run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_train import RECIPE

from agentwire.bridge import store
from agentwire.bridge.card import part_prompt, read_card
from agentwire.bridge.resampler import Resampler
from agentwire.bridge.shape import BridgeShape
from agentwire.cli.train import others_of
from agentwire.config import Config
from agentwire.errors import BridgeError, MissingBridge, ScenarioError
from agentwire.evaluation.methods import MethodSpec
from agentwire.evaluation.plan import plan_run
from agentwire.evaluation.result import MethodRecord
from agentwire.evaluation.runner import run_plan
from agentwire.runtime.reply import ProgressEvent
from agentwire.scenario.inventory import Inventory
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.scenario.shares import shares
from agentwire.spec.scenario import Scenario, TrainSpec
from agentwire.task.definitions import load_definition
from agentwire.training.joint import JointBridge, JointStates, States
from agentwire.training.loop import Trained, train_many
from agentwire.training.objective import BridgeObjective, TrainingTask
from agentwire.training.states import StateCache
from agentwire.training.train import train_scenario, train_scenarios

SET = "tiny-llama+tiny-gemma--tiny-gemma--movie_snippets"
Build = Callable[..., Resolved]


@pytest.fixture
def build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tiny_gemma: Path
) -> Build:
    monkeypatch.setenv("AGENTWIRE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGENTWIRE_BRIDGES", str(tmp_path / "out"))
    monkeypatch.delenv("AGENTWIRE_DATA", raising=False)
    tiny.write_rows(tmp_path / "rows" / "train.jsonl", 600, seed=1)
    tiny.write_rows(tmp_path / "rows" / "test.jsonl", 40, seed=2)

    def made(*, required: bool = False, train: Any = None, **wire: Any) -> Resolved:
        raw = {
            "name": "tiny",
            "agents": {
                "ada": {"model": str(tiny_llama), "layer": 1, "device": "cpu"},
                "eve": {"model": str(tiny_gemma), "layer": 1, "device": "cpu"},
                "bob": {"model": str(tiny_gemma), "device": "cpu"},
            },
            "wires": [{"from": ["ada", "eve"], "to": "bob", "soft_tokens": 4, **wire}],
            "task": {"dataset": "movie_snippets", "path": str(tmp_path / "rows")},
            "train": {**RECIPE, **(train or {})},
        }
        scenario = Scenario.model_validate(raw)
        return resolve(scenario, inventory=Inventory(Config.from_env()), require_bridges=required)

    return made


def trained(resolved: Resolved, out: Path) -> Path:
    return train_scenario(resolved, out=out, progress=lambda stage, fraction: None)


class Silent:
    """Nobody looks at the run."""

    def progress(self, event: ProgressEvent) -> None: ...
    def method_started(self, method: MethodSpec, done: int, total: int) -> None: ...
    def rows_done(self, method: MethodSpec, rows: int, correct: int) -> None: ...
    def method_finished(self, method: MethodSpec, record: MethodRecord) -> None: ...


# -- shares and modules ---------------------------------------------------------------------


def test_shares_of_a_text() -> None:
    assert shares("a b c d e", 2) == ["a b c", "d e"]
    assert shares(" a  b ", 2) == ["a", "b"]
    assert shares("a", 3) == ["a", "a", "a"]
    assert shares("", 2) == ["", ""]


def test_the_module_puts_soft_tokens_in_order_and_knows_its_parts() -> None:
    torch.manual_seed(0)
    parts = [Resampler(BridgeShape(width, 6, m, 8, 1, 2)) for width, m in ((5, 2), (7, 3))]
    for part in parts:
        part.eval()
    module = JointBridge(parts)
    assert (module.soft_tokens, module.bridges) == (5, tuple(parts))
    caches = [
        StateCache(
            torch.randn(12, width).half(),
            torch.arange(0, 12, 4),
            torch.tensor(lengths),
            torch.tensor([0, 1, 0]),
        )
        for width, lengths in ((5, [4, 2, 3]), (7, [1, 4, 2]))
    ]
    joint = JointStates(tuple(caches))
    assert (len(joint), joint.lengths.tolist(), joint.longest) == (3, [4, 4, 3], 4)
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        soft = module(*joint.gather(rows, 4))
        apart = [part(*cache.gather(rows, 4)) for part, cache in zip(parts, caches, strict=True)]
    assert soft.shape == (2, 5, 6)
    assert torch.equal(soft[:, :2], apart[0]) and torch.equal(soft[:, 2:], apart[1])


def test_a_set_of_one_learns_exactly_as_an_ordinary_bridge() -> None:
    torch.manual_seed(1)
    cache = StateCache(
        torch.randn(60, 5).half(), torch.arange(0, 60, 6), torch.full((10,), 6),
        torch.arange(10) % 2,
    )  # fmt: skip
    answer = torch.randn(6, 2)
    recipe = TrainSpec(
        steps=12, batch_size=4, evaluate_every=4, learning_rate=3e-3, average=0.5, hidden=8, heads=2
    )

    def history(*, joint: bool) -> tuple[Any, list[torch.Tensor]]:
        torch.manual_seed(recipe.seed)
        bridge = Resampler(BridgeShape(5, 6, 3, 8, 1, 2), dropout=recipe.dropout)
        bridge.mean, bridge.std = cache.statistics()
        module = JointBridge([bridge]) if joint else bridge
        states: States = JointStates((cache,)) if joint else cache
        task = TrainingTask(lambda soft: soft.mean(dim=1) @ answer, [states], [states])
        (done,) = train_many(BridgeObjective([module], [task], [recipe]), [recipe])
        assert isinstance(done, Trained)
        figures = [(e.step, e.loss, e.train_loss, e.accuracy) for e in done.history]
        return figures, [p.detach().clone() for p in bridge.parameters()]

    (alone, weights), (together, others) = history(joint=False), history(joint=True)
    assert together == alone
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


# -- training, and what becomes of it -------------------------------------------------------


async def test_a_set_is_trained_its_cards_say_so_and_a_run_reads_both(
    build: Build, tmp_path: Path
) -> None:
    reported: list[tuple[str, float]] = []
    folder = train_scenario(
        build(reads="share"),
        out=tmp_path / "out",
        progress=lambda *message: reported.append(message),
    )
    folders = [folder, *others_of(folder)]
    assert [f.name for f in folders] == [f"{SET}.1", f"{SET}.2"]
    cards = [store.load(f).card for f in folders]
    task = load_definition("movie_snippets").spec()
    for place, card in enumerate(cards, 1):
        joint = card.joint
        assert joint is not None and (joint.name, joint.place) == (SET, place)
        assert joint.senders == ("tiny-llama", "tiny-gemma") and joint.reads == "share"
        assert joint.parts == tuple(c.weights_sha256 for c in cards)
        assert joint.prompts == (task.prompt_hash,)
        assert card.prompts == (part_prompt(SET, place),)
        assert card.training.held_out_accuracy > 0.75 and card.soft_tokens == 4
    assert cards[0].weights_sha256 != cards[1].weights_sha256
    fractions = [fraction for _, fraction in reported]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0

    resolved = build(required=True, reads="share")
    (joint_spec,) = resolved.agents["bob"].joint
    assert joint_spec.bridges == tuple(c.weights_sha256 for c in cards)
    assert resolved.agents["bob"].soft_tokens == (8,)
    plan = plan_run(resolved, config=Config.from_env(), methods=["bridge"], out=tmp_path / "runs")
    result = await run_plan(plan, Silent())
    record = result.methods["bridge"]
    assert (record.n, record.channels.soft) == (40, 40) and not record.errors
    assert "(each reads a share of the text) -> 2 x 4 soft tokens" in record.label
    assert record.accuracy is not None and record.accuracy > 0.7
    assert record.payload_bytes == 2 * 4 * 48 * 2
    assert {bridge.name for bridge in result.bridges} == {f"{SET}.1", f"{SET}.2"}


def test_a_set_trained_beside_others_is_the_same_as_alone(build: Build, tmp_path: Path) -> None:
    short = {"steps": 8, "evaluate_every": 4, "max_rows": 64, "dropout": 0.1, "token_dropout": 0.1}
    scenarios = [build(train={**short, "seed": seed}, bridge=f"auto--s{seed}") for seed in (3, 4)]
    both = train_scenarios(scenarios, out=tmp_path / "both", progress=lambda stage, fraction: None)
    assert [folder.name for folder in both] == [f"{SET}--s{seed}.1" for seed in (3, 4)]
    alone = trained(scenarios[1], tmp_path / "alone")
    for ours, theirs in zip(
        (both[1], *others_of(both[1])), (alone, *others_of(alone)), strict=True
    ):
        one, other = store.load(ours), store.load(theirs)
        assert one.card.training.device.endswith("2 side by side")
        assert one.card.training.held_out_accuracy == other.card.training.held_out_accuracy
        for a, b in zip(one.module.parameters(), other.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_bridges_of_different_sets_are_refused(build: Build, tmp_path: Path) -> None:
    short = {"steps": 2, "max_rows": 32}
    with pytest.raises(MissingBridge, match="needs bridges that were trained together") as caught:
        build(required=True)
    assert "agentwire train" in (caught.value.hint or "")
    first, second = (folder := trained(build(train=short), tmp_path / "out")), *others_of(folder)
    assert build(required=True).agents["bob"].joint
    with pytest.raises(BridgeError, match="reads: whole"):
        build(required=True, reads="share")
    trained(build(train={**short, "seed": 5}), tmp_path / "other")
    shutil.rmtree(second)
    shutil.copytree(tmp_path / "other" / second.name, second)
    with pytest.raises(BridgeError, match="were not trained together"):
        build(required=True)
    assert not build().agents["bob"].joint  # not required: nothing is read together
    alone = read_card(first).model_copy(update={"joint": None})
    (tmp_path / "out" / "alone.1").mkdir()
    store.save(tmp_path / "out" / "alone.1", alone, store.load(first).module)
    with pytest.raises(BridgeError, match="was trained for one sender only"):
        build(required=True, bridge="alone")


def test_a_bridge_of_a_set_is_refused_on_a_plain_wire(build: Build, tmp_path: Path) -> None:
    trained(build(train={"steps": 2, "max_rows": 32}), tmp_path / "out")
    scenario = build().scenario
    plain = scenario.model_dump(mode="json", by_alias=True, exclude={"matrix"})
    plain["wires"] = [{"from": "ada", "to": "bob", "soft_tokens": 4, "bridge": f"{SET}.1"}]
    with pytest.raises(BridgeError, match="belongs to a set for 2 senders"):
        resolve(Scenario.model_validate(plain), inventory=Inventory(Config.from_env()))


def test_methods_for_one_sender_are_refused_on_a_wire_of_several(build: Build) -> None:
    resolved = build()
    with pytest.raises(ScenarioError, match="text_relay supports one sender only") as caught:
        plan_run(resolved, config=Config.from_env(), methods=["bridge", "text_relay"])
    assert "receiver_direct" in (caught.value.hint or "")
