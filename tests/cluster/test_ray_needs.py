"""What is asked of Ray for an agent, and what an agent finds on its node. No cluster."""

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


def test_needs_follow_from_device_and_threads() -> None:
    from agentwire.agent.launching.ray import needs

    assert needs(spec()) == {"num_cpus": 2, "num_gpus": 0.0}
    assert needs(spec(device="cuda:3")) == {"num_cpus": 2, "num_gpus": 1.0}


def test_a_place_says_it_all() -> None:
    from agentwire.agent.launching.ray import needs

    place = {"cpus": 4, "gpus": 0.5, "labels": {"rack": "in(a, b)"}, "resources": {"fast": 1}}
    assert needs(spec(device="cuda:0", place=place)) == {
        "num_cpus": 4,
        "num_gpus": 0.5,
        "label_selector": {"rack": "in(a,b)"},  # Ray would look for " b"
        "resources": {"fast": 1},
    }


def test_on_its_node_an_agent_sees_its_own_gpu_and_lends_nothing() -> None:
    from agentwire.agent.launching.ray import on_its_node

    there = on_its_node(spec(device="cuda:3", cpu_shares={"a": 1, "b": 1}))
    assert (there.device, there.cpu_shares) == ("cuda:0", {})
    assert on_its_node(spec()).device == "cpu"


def test_bridges_travel_to_nodes_that_lack_them(tmp_path: Path) -> None:
    from agentwire.agent.launching.ray import files_of, here

    folder = tmp_path / "bridge"
    folder.mkdir()
    (folder / "card.yaml").write_text("name: x\n")
    (folder / "weights.safetensors").write_bytes(b"\x00\x01")
    sent = spec(bridges=[OutgoingBridge(wire="a->b", receiver="b", folder=str(folder))])
    files = files_of(sent)
    assert here(sent, files) == sent  # it is there
    folder.rename(tmp_path / "elsewhere")
    moved = here(sent, files).bridges[0].folder
    assert moved is not None and moved != str(folder)
    assert (Path(moved) / "weights.safetensors").read_bytes() == b"\x00\x01"
    assert (Path(moved) / "card.yaml").read_text() == "name: x\n"


def test_no_cluster_is_an_input_error() -> None:
    from agentwire.agent.launching.ray import RayLauncher

    with pytest.raises(InputError, match="no Ray cluster"):
        RayLauncher("127.0.0.1:1")
