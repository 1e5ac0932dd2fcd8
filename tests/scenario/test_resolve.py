"""``resolve`` on simulated machines: models, stand-ins, devices, threads and bridges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from scenario_files import make_card, write_bridge

from agentwire.config import Config
from agentwire.errors import BridgeError, DataError, DeviceError, ModelError, ScenarioError
from agentwire.runtime.deployment import Deployment
from agentwire.scenario.inventory import Inventory, WeightsLocation
from agentwire.scenario.resolve import Resolved, resolve
from agentwire.spec.scenario import DataChoice, ModelChoice, Scenario

HERE = WeightsLocation(Path("/weights"), kind="local", fetchable=False, detail="in /weights")
REGISTRY = WeightsLocation(
    None, kind="registry", fetchable=True, detail="not downloaded yet (93 MB)"
)
HUB = WeightsLocation(None, kind="hub", fetchable=True, detail="not downloaded yet (hub)")


class Machine(Inventory):
    """A machine with the given GPUs, cores, models and datasets."""

    def __init__(
        self,
        folder: Path,
        *,
        gpus: int = 0,
        cpus: int = 8,
        models: dict[str, WeightsLocation] | None = None,
        data: tuple[str, ...] = ("sst2", "movie_snippets"),
    ) -> None:
        super().__init__(Config(home=folder / "home", bridges=(folder / "trained",)))
        self._count, self._cores, self._models, self._data = gpus, cpus, models or {}, data

    def gpus(self) -> int:
        return self._count

    def cpus(self) -> int:
        return self._cores

    def locate(self, choice: ModelChoice) -> WeightsLocation:
        if choice.backend == "fake":
            return WeightsLocation(None, needed=False)
        return self._models.get(choice.model, REGISTRY)

    def fingerprint(self, choice: ModelChoice) -> str | None:
        return None

    def data_problem(self, choice: DataChoice) -> str | None:
        return None if choice.dataset in self._data else "it is not here"

    def bridge_folders(self, source: Path | None = None) -> list[Path]:
        return list(self.config.bridges)


def scenario(**changes: Any) -> Scenario:
    """A scenario like the shipped ones."""
    return Scenario.model_validate(
        {
            "name": "test",
            "agents": {
                "a": {
                    "model": "big/A",
                    "layer": 16,
                    "device": "cuda:0",
                    "stand_in": {"model": "small-a", "layer": 2},
                },
                "b": {
                    "model": "big/B",
                    "device": "cuda:1",
                    "stand_in": {"model": "small-b"},
                },
            },
            "wires": [{"from": "a", "to": "b"}],
            "task": {
                "dataset": "sst2",
                "split": "validation",
                "stand_in": {"dataset": "movie_snippets"},
            },
            **changes,
        }
    )


def small_bridge(folder: Path, **changes: Any) -> Path:
    """The bridge of the two stand-ins for SST-2."""
    card = make_card()
    training = card.training.model_copy(update={"dataset": "sst2"})
    card = card.model_copy(
        update={
            "sender": card.sender.model_copy(update={"model": "small-a"}),
            "receiver": card.receiver.model_copy(update={"model": "small-b"}),
            "training": training,
            **changes,
        }
    )
    return write_bridge(folder / "trained" / "small-a--small-b--sst2", card)


def without_bridges(machine: Machine, **changes: Any) -> Resolved:
    return resolve(scenario(**changes), inventory=machine, require_bridges=False)


def test_the_named_pair_runs_where_it_can(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=2, models={"big/A": HERE, "big/B": HERE})
    found = without_bridges(machine)
    assert found.substitutions == ()
    assert [s.device for s in found.agents.values()] == ["cuda:0", "cuda:1"]
    assert found.agents["a"].folder == "/weights"
    assert found.data == DataChoice(dataset="sst2", split="validation")
    assert not found.on_cpu


def test_without_gpus_the_stand_ins_run_and_say_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path, models={"big/A": HERE, "big/B": HUB}, data=("movie_snippets",))
    found = without_bridges(machine)
    assert [s.model for s in found.agents.values()] == ["small-a", "small-b"]
    assert [s.device for s in found.agents.values()] == ["cpu", "cpu"]
    records = {(s.kind, s.subject): s for s in found.substitutions}
    assert set(records) == {("model", "a"), ("model", "b"), ("dataset", "task")}
    assert records["model", "a"].wanted == "big/A"
    assert records["model", "a"].used == "small-a"
    assert "cuda:0 is not there" in records["model", "a"].reason
    assert "weights" not in records["model", "a"].reason
    assert "weights" in records["model", "b"].reason
    assert records["dataset", "task"].used == "movie_snippets"
    assert found.data == DataChoice(dataset="movie_snippets", split="test")


def test_weights_that_are_not_here_are_a_reason_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=2, models={"big/A": HUB, "big/B": HUB})
    reasons = [s.reason for s in without_bridges(machine).substitutions]
    assert all("its weights are not here" in reason for reason in reasons)


def test_one_named_model_alone_is_not_paired_with_a_stand_in(tmp_path: Path) -> None:
    small_bridge(tmp_path)
    machine = Machine(tmp_path, gpus=2, models={"big/A": HERE, "big/B": HUB})
    found = resolve(scenario(), inventory=machine)
    assert [s.model for s in found.agents.values()] == ["small-a", "small-b"]
    assert "no bridge joins the two" in found.substitutions[-1].reason


def test_strict_refuses_and_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"--strict.*big/A.*and 1 more") as caught:
        resolve(scenario(), inventory=Machine(tmp_path, models={"big/A": HUB}), strict=True)
    assert "agentwire models pull big/A" in str(caught.value.hint)


def test_strict_passes_where_nothing_stands_in(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=2, models={"big/A": HERE, "big/B": HERE})
    assert resolve(scenario(), inventory=machine, strict=True, require_bridges=False)


def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    agents = {"a": {"model": "m", "device": "cuda:3"}, "b": {"model": "m"}}
    with pytest.raises(DeviceError, match="cuda:3 is not there") as caught:
        resolve(scenario(agents=agents), inventory=Machine(tmp_path, gpus=2))
    assert "--device" in str(caught.value.hint)


def test_a_model_that_is_not_here_and_nothing_stands_in(tmp_path: Path) -> None:
    agents = {"a": {"model": "gone"}, "b": {"model": "m"}}
    gone = WeightsLocation(None, kind="local", detail="the folder gone does not exist")
    with pytest.raises(ModelError, match=r"agents\.a"):
        resolve(scenario(agents=agents), inventory=Machine(tmp_path, models={"gone": gone}))


def test_a_hub_model_that_nothing_stands_in_for_is_fetched(tmp_path: Path) -> None:
    agents = {"a": {"model": "x/Y"}, "b": {"model": "m"}}
    found = without_bridges(Machine(tmp_path, models={"x/Y": HUB}), agents=agents)
    assert found.agents["a"].model == "x/Y"
    assert found.weights["a"].fetchable


def test_data_that_nothing_stands_in_for(tmp_path: Path) -> None:
    machine = Machine(tmp_path, data=())
    with pytest.raises(DataError, match="sst2"):
        resolve(scenario(task={"dataset": "sst2"}), inventory=machine)
    with pytest.raises(DataError, match="neither sst2"):
        resolve(scenario(), inventory=machine)


def test_auto_spreads_agents_over_gpus(tmp_path: Path) -> None:
    agents = {name: {"model": "m"} for name in ("a", "b", "c")}
    found = without_bridges(Machine(tmp_path, gpus=2), agents=agents)
    assert [s.device for s in found.agents.values()] == ["cuda:0", "cuda:1", "cuda:0"]


def test_auto_leaves_a_named_gpu_to_its_agent(tmp_path: Path) -> None:
    agents = {"a": {"model": "m"}, "b": {"model": "m", "device": "cuda:0"}}
    found = without_bridges(Machine(tmp_path, gpus=2), agents=agents)
    assert [s.device for s in found.agents.values()] == ["cuda:1", "cuda:0"]


def test_replicas_take_gpus_in_turn_or_as_written(tmp_path: Path) -> None:
    agents = {"a": {"model": "m"}, "b": {"model": "m", "replicas": 3}}
    found = without_bridges(Machine(tmp_path, gpus=2), agents=agents)
    assert found.devices == {"b": ("cuda:1", "cuda:0", "cuda:1")} and found.most_replicas == 3
    agents["b"] = {"model": "m", "devices": ["cuda:1", "cpu"]}
    found = without_bridges(Machine(tmp_path, gpus=2, cpus=6), agents=agents)
    assert found.agents["a"].device == "cuda:0" and found.devices == {"b": ("cuda:1", "cpu")}
    assert [s.threads for s in found.agents.values()] == [2, 2] and found.on_cpu
    processes = Deployment.of(found).processes
    assert [(n, s.device) for n, s in processes.items()] == [
        ("a", "cuda:0"),
        ("b.1", "cuda:1"),
        ("b.2", "cpu"),
    ]
    assert Deployment.of(found).in_flight == 2 * found.scenario.in_flight
    with pytest.raises(DeviceError, match="cuda:1 is not there"):
        without_bridges(Machine(tmp_path, gpus=1, models={"m": HERE}), agents=agents)
    forced = resolve(
        found.scenario, inventory=Machine(tmp_path), device="cpu", require_bridges=False
    )
    assert forced.devices == {"b": ("cpu", "cpu")}


def test_replicas_on_the_cpu_share_its_cores_and_lend_each_other_threads(tmp_path: Path) -> None:
    agents = {"a": {"model": "m"}, "b": {"model": "m", "replicas": 2}}
    found = without_bridges(Machine(tmp_path, cpus=6), agents=agents)
    assert [s.threads for s in found.agents.values()] == [2, 2]
    assert Deployment.of(found).processes["b.2"].cpu_shares == {"a": 2, "b.1": 2, "b.2": 2}
    assert not without_bridges(Machine(tmp_path, cpus=2), agents=agents).agents["b"].cpu_shares


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ({"device": "cpu", "devices": ["cpu", "cpu"]}, "not both"),
        ({"replicas": 3, "devices": ["cpu", "cpu"]}, "2 devices for 3 replicas"),
        ({"replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_replicas_that_do_not_fit_their_devices(agent: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        scenario(agents={"a": {"model": "m"}, "b": {"model": "m", **agent}})


def test_more_routes_than_a_bus_has_are_refused() -> None:
    agents = {"a": {"model": "m", "replicas": 30}, "b": {"model": "m", "replicas": 32}}
    assert len(scenario(agents=agents).processes) == 62  # 960 + 62 routes
    agents["b"]["replicas"] = 33
    with pytest.raises(ValidationError, match="1053 routes"):
        scenario(agents=agents)


def test_device_overrides_every_agent(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=1, models={"big/A": HERE, "big/B": HERE})
    found = resolve(scenario(), inventory=machine, device="cuda:0", require_bridges=False)
    assert [s.device for s in found.agents.values()] == ["cuda:0", "cuda:0"]
    assert found.substitutions == ()


@pytest.mark.parametrize(("cpus", "share"), [(2, 1), (8, 4), (1, 1)])
def test_cpu_threads_are_divided(tmp_path: Path, cpus: int, share: int) -> None:
    found = without_bridges(Machine(tmp_path, cpus=cpus))
    assert [s.threads for s in found.agents.values()] == [share, share]


def test_threads_as_written_stay(tmp_path: Path) -> None:
    agents = {"a": {"model": "m", "threads": 3}, "b": {"model": "m"}}
    found = without_bridges(Machine(tmp_path, cpus=8), agents=agents)
    assert [s.threads for s in found.agents.values()] == [3, 4]


def test_agents_on_the_cpu_lend_each_other_threads(tmp_path: Path) -> None:
    def shares(cpus: int, **agents: dict[str, Any]) -> list[dict[str, int]]:
        found = without_bridges(Machine(tmp_path, cpus=cpus, gpus=1), agents=agents)
        return [spec.cpu_shares for spec in found.agents.values()]

    model = {"model": "m", "device": "cpu"}
    assert shares(8, a=model, b=model) == [{"a": 4, "b": 4}] * 2
    assert shares(8, a=model, b=model | {"threads": 2}) == [{}, {}]  # its number is what it says
    assert shares(1, a=model, b=model) == [{}, {}]  # they share one core already
    assert shares(8, a=model, b=model | {"device": "cuda:0"}) == [{}, {}]
    assert shares(8, a=model, b=model | {"backend": "fake"}) == [{}, {}]


def test_the_bridge_is_named_after_what_runs(tmp_path: Path) -> None:
    folder = small_bridge(tmp_path)
    found = resolve(scenario(), inventory=Machine(tmp_path))
    assert found.wire.bridge == "small-a--small-b--sst2"
    assert found.wire.folder == folder.resolve()
    assert found.agents["a"].bridges[0].folder == str(folder.resolve())
    assert found.agents["b"].incoming == ("a->b",)
    assert found.agents["a"].fallback == {"a->b": "text"}


def test_the_scenarios_own_folder_comes_first(tmp_path: Path) -> None:
    small_bridge(tmp_path)
    own = small_bridge(tmp_path / "mine")
    own.parent.rename(tmp_path / "mine" / "bridges")
    found = resolve(scenario(), source=tmp_path / "mine" / "s.yaml", inventory=Machine(tmp_path))
    assert found.wire.folder == (tmp_path / "mine" / "bridges" / own.name).resolve()


def test_a_missing_bridge_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="small-a--small-b--sst2") as caught:
        resolve(scenario(), source=Path("scenarios/x.yaml"), inventory=Machine(tmp_path))
    assert "agentwire train scenarios/x.yaml" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"soft_tokens": 4}, "makes 4 soft tokens"),
        ({"layer": 3}, "reads layer 3"),
        ({"sender": make_card().sender}, "trained for the sender model-a"),
        ({"receiver": make_card().receiver}, "trained for the receiver model-b"),
    ],
)
def test_a_bridge_for_something_else(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    small_bridge(tmp_path, **changes)
    with pytest.raises(BridgeError, match=words) as caught:
        resolve(scenario(), inventory=Machine(tmp_path))
    assert "agentwire train" in str(caught.value.hint)


def test_a_bridge_is_not_scored_on_sentences_that_it_saw(tmp_path: Path) -> None:
    folder = small_bridge(tmp_path)  # trained on sst2
    wires = [{"from": "a", "to": "b", "bridge": folder.name}]
    task = {"dataset": "movie_snippets"}
    with pytest.raises(BridgeError, match="shares sentences"):
        resolve(scenario(wires=wires, task=task), inventory=Machine(tmp_path))


def test_methods_without_a_bridge_need_none(tmp_path: Path) -> None:
    small_bridge(tmp_path, soft_tokens=4)
    found = without_bridges(Machine(tmp_path))
    assert found.wire.folder is None


@pytest.mark.parametrize(
    ("wire", "fails"),
    [
        ({"from": "a", "to": "b"}, False),
        ({"from": "a", "to": "b", "fallback": "error"}, True),
        ({"from": "a", "to": "b", "bridge": "mine"}, True),
    ],
)
def test_without_a_task_only_a_bridge_that_is_asked_for_must_be_there(
    tmp_path: Path, wire: dict[str, str], fails: bool
) -> None:
    wanted = scenario(wires=[wire], task=None)
    if fails:
        with pytest.raises(BridgeError):
            resolve(wanted, inventory=Machine(tmp_path))
    else:
        assert resolve(wanted, inventory=Machine(tmp_path)).wire.folder is None


def test_a_bridge_name_is_no_path(tmp_path: Path) -> None:
    wires = [{"from": "a", "to": "b", "bridge": "../../etc"}]
    with pytest.raises(BridgeError, match="not the name of a bridge folder"):
        resolve(scenario(wires=wires), inventory=Machine(tmp_path))


def test_fake_models_need_no_folder(tmp_path: Path) -> None:
    agents = {
        "a": {"model": "ma", "backend": "fake"},
        "b": {"model": "mb", "backend": "fake"},
    }
    found = resolve(scenario(agents=agents), inventory=Machine(tmp_path))
    assert found.agents["a"].bridges[0].folder == "fake:mb"
    assert found.substitutions == ()


def test_the_resolved_configuration_is_json(tmp_path: Path) -> None:
    import json

    small_bridge(tmp_path)
    found = resolve(scenario(), inventory=Machine(tmp_path))
    config = json.loads(json.dumps(found.to_json()))
    assert config["agents"]["a"]["model"] == "small-a"
    assert config["substitutions"][0]["wanted"] == "big/A"
    assert Scenario.model_validate(config["scenario"]) == found.scenario


def test_a_sample_that_stands_in_is_named_as_one(tmp_path: Path) -> None:
    class Bare(Machine):
        def data_problem(self, choice: DataChoice) -> str | None:
            return None if choice.split == "sample" else "it is not here"

    task = {"dataset": "trec", "stand_in": {"dataset": "trec", "split": "sample"}}
    found = without_bridges(Bare(tmp_path), task=task)
    assert found.data == DataChoice(dataset="trec", split="sample")
    (record,) = (s for s in found.substitutions if s.kind == "dataset")
    assert record.used == "trec sample (48 rows written for agentwire; no part of trec)"
    assert found.wire.bridge == "small-a--small-b--trec"


def test_where_a_sample_could_stand_in_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        without_bridges(Machine(tmp_path, data=()), task={"dataset": "trec"})
    assert "split: sample" in (caught.value.hint or "")


def test_tasks_of_one_series_share_a_bridge(tmp_path: Path) -> None:
    machine = Machine(tmp_path, data=("passkey_4",))
    found = without_bridges(machine, task={"dataset": "passkey_4"})
    assert found.wire.bridge == "small-a--small-b--passkey"


class WithoutVllm(Machine):
    def installed(self, library: str) -> bool:
        return library != "vllm"


def test_a_backend_that_is_not_installed_is_named(tmp_path: Path) -> None:
    agents = {
        "llama": {"model": "fake-a", "backend": "fake"},
        "mistral": {"model": "gemma-3-270m", "backend": "vllm", "device": "cpu"},
    }
    wanted = Scenario.model_validate(
        {"name": "x", "agents": agents, "wires": [{"from": "llama", "to": "mistral"}]}
    )
    with pytest.raises(ModelError, match=r"agents\.mistral .*vLLM is not installed") as caught:
        resolve(wanted, inventory=WithoutVllm(tmp_path), require_bridges=False)
    assert ".[vllm]" in (caught.value.hint or "")
