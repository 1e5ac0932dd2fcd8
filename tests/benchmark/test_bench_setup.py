"""What a benchmark starts, from a scenario."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentwire.benchmark.setup import BenchSetup, count_words, setup_of
from agentwire.errors import ScenarioError
from agentwire.scenario.load import load_scenario
from agentwire.scenario.resolve import resolve
from agentwire.spec.scenario import BenchPlan

FAKE = """\
name: fakes
agents:
  ada: {model: model-a, backend: fake, threads: 2}
  bob: {model: model-b, backend: fake, threads: 1}
wires:
  - {from: ada, to: bob}
"""


def setting(folder: Path, **plan: object) -> BenchSetup:
    file = folder / "scenario.yaml"
    file.write_text(FAKE)
    known = {"prompt_tokens": 6, "batch_sizes": [1, 32], "length_batch": 4, **plan}
    return setup_of(resolve(load_scenario(file), source=file), BenchPlan.model_validate(known))


def test_a_message_is_a_batch_and_the_largest_fits(tmp_path: Path) -> None:
    for spec in setting(tmp_path).deployment.agents.values():
        assert (spec.batch_by, spec.max_wait_ms, spec.max_batch) == ("message", 0.0, 32)
    assert setting(tmp_path, length_batch=64).deployment.agents["ada"].max_batch == 64


def test_the_replica_is_the_receiver_in_the_senders_place(tmp_path: Path) -> None:
    made = setting(tmp_path)
    assert made.replica == "bob-replica"
    agents = made.deployment.agents
    replica = agents["bob-replica"]
    assert (replica.model, replica.threads, replica.cpu_share_of) == ("model-b", 2, "ada")
    assert not replica.incoming and not replica.bridges
    assert agents["bob"].incoming == ("ada->bob",)
    without = setting(tmp_path, methods=["bridge", "receiver_direct"])
    assert without.replica is None and set(without.deployment.agents) == {"ada", "bob"}


def test_the_question_is_as_long_as_the_plan_says(tmp_path: Path) -> None:
    task = setting(tmp_path, generated_tokens=50).task
    assert count_words(task.prompt) == 6
    assert task.text_prompt == "{text} " + task.prompt
    assert task.relay.max_new_tokens == 50 and len(task.labels) == 2


def test_a_task_by_name_gives_its_own_words(tmp_path: Path) -> None:
    task = setting(tmp_path, prompt_tokens=None, task="sst2").task
    assert task.labels == ("negative", "positive") and task.relay.max_new_tokens == 32


def test_no_question_is_an_error_that_says_where_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        setting(tmp_path, prompt_tokens=None)
    assert "bench.task" in str(caught.value.hint)


def test_texts_have_the_length_that_is_asked_for(tmp_path: Path) -> None:
    texts = setting(tmp_path).texts(20)
    assert len(set(texts)) == len(texts) and {count_words(text) for text in texts} == {20}
