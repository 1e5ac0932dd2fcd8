"""The resources requested from Ray and the spec on a node. No cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentwire.errors import InputError
from agentwire.spec.agent import AgentSpec, OutgoingBridge

pytest.importorskip("ray", reason="Ray is not installed here: make test-ray")


def spec(**changes: Any) -> AgentSpec:
    return AgentSpec.model_validate(
        {"name": "a", "backend": "fake", "model": "m", "threads": 2} | changes
    )


def test_resources_follow_from_device_and_threads() -> None:
    from agentwire.agent.launching.ray import ray_options

    assert ray_options(spec()) == {"num_cpus": 2, "num_gpus": 0.0}
    assert ray_options(spec(device="cuda:3")) == {"num_cpus": 2, "num_gpus": 1.0}


def test_a_place_overrides_the_defaults() -> None:
    from agentwire.agent.launching.ray import ray_options

    place = {"cpus": 4, "gpus": 0.5, "labels": {"rack": "in(a, b)"}, "resources": {"fast": 1}}
    assert ray_options(spec(device="cuda:0", place=place)) == {
        "num_cpus": 4,
        "num_gpus": 0.5,
        "label_selector": {"rack": "in(a,b)"},  # Ray would look for " b"
        "resources": {"fast": 1},
    }


def test_on_a_node_an_agent_has_its_own_gpu_and_shares_no_threads() -> None:
    from agentwire.agent.launching.ray import spec_on_node

    there = spec_on_node(spec(device="cuda:3", cpu_shares={"a": 1, "b": 1}))
    assert (there.device, there.cpu_shares) == ("cuda:0", {})
    assert spec_on_node(spec()).device == "cpu"


def test_bridges_are_written_on_nodes_that_lack_them(tmp_path: Path) -> None:
    from agentwire.agent.launching.ray import files_of, with_local_files

    folder = tmp_path / "bridge"
    folder.mkdir()
    (folder / "card.yaml").write_text("name: x\n")
    (folder / "weights.safetensors").write_bytes(b"\x00\x01")
    out = OutgoingBridge(wire="a->b", receiver="b", folder=str(folder))
    sent = spec(bridges=[out], readers=[str(folder)])
    files = files_of(sent)
    assert with_local_files(sent, files) == sent  # it is there
    folder.rename(tmp_path / "elsewhere")
    there = with_local_files(sent, files)
    moved = there.bridges[0].folder
    assert there.readers == (moved,)
    assert moved is not None and moved != str(folder)
    assert (Path(moved) / "weights.safetensors").read_bytes() == b"\x00\x01"
    assert (Path(moved) / "card.yaml").read_text() == "name: x\n"


def test_a_missing_cluster_is_an_input_error() -> None:
    from agentwire.agent.launching.ray import RayLauncher

    with pytest.raises(InputError, match="no Ray cluster"):
        RayLauncher("127.0.0.1:1")
