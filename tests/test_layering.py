"""The rooms of the project, enforced: who may import what, and what must not exist at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agentwire"
LONGEST_FILE = 600

FILES = sorted(p for p in PACKAGE.rglob("*.py"))
IDS = [str(p.relative_to(ROOT)) for p in FILES]

CLIENT_ROOMS = {
    "deadletters",
    "endings",
    "hearing",
    "ledger",
    "outcomes",
    "reply",
    "transcript",
    "question",
    "dispatch",
    "client",
    "replicas",
    "fanout",
    "fanin",
    "wiring",
}
CLIENT_MAY = (
    {"errors", "wire", "telemetry.live", "agent.fallback", "agent.spec", "task.definitions"}
    | CLIENT_ROOMS
    | {"scenario.schema", "scenario.load", "scenario.resolve"}
)
SCORING_MAY = {"errors", "config", "__version__", "scenario", "task", "telemetry", "reply"}

# A room may import the rooms on its right. Rooms are the parts of agentwire's module names.
# Imports that only type checkers see are free: they load nothing.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "download": {"errors", "config"},
    "wire": {"errors", "wire"},
    "bus": {"errors", "config", "wire", "bus", "agent.spec", "telemetry.journal"},
    "telemetry": {"errors", "telemetry"},
    "task": {"errors", "config", "download", "wire.messages", "task"},
    "model": {
        "errors",
        "config",
        "download",
        "wire.messages",
        "agent.spec",
        "model",
        "bridge.resampler",
        "bridge.card",
        "bridge.store",
    },
    "agent": {"errors", "config", "wire", "bus", "model", "telemetry", "agent"},
    "bridge": {"errors", "config", "wire.messages", "bridge"},
    # Training reads models and data.
    "bridge.train": {"errors", "config", "bridge", "model", "task"}
    | {"scenario.schema", "scenario.resolve"},
    "bridge.prepare": {"errors", "config", "wire.messages", "bridge", "model", "task"}
    | {"scenario.schema", "scenario.resolve"},
    "bridge.side_by_side": {"errors", "config", "wire.messages", "bridge", "model"}
    | {"scenario.schema"},
    "bridge.rows": {"errors", "config", "scenario.schema", "task"},
    "bridge.train_joint": {"errors", "config", "wire.messages", "bridge", "model", "task"}
    | {"agent.spec", "scenario.schema", "scenario.resolve", "scenario.bridging", "scenario.shares"},
    "bridge.new_card": {"bridge", "wire.messages", "model.sources", "scenario.schema"}
    | {"task.datasets"},
    "bridge.train_shared": {"errors", "config", "wire.messages", "bridge", "model", "task"}
    | {"scenario.resolve", "scenario.schema"},
    "bridge.trainer": {"errors", "bridge", "scenario.schema", "task"},
    "bridge.optimise": {"bridge", "scenario.schema"},
    "bridge.problem": {"bridge", "scenario.schema"},
    "bridge.series": {"errors", "config", "wire.messages", "bridge", "task", "scenario.schema"},
    # Trained baselines: probes, prompts, adapters. They train in the runner's own process.
    "baseline": {"errors", "config", "download", "wire.messages", "bridge", "model", "task"}
    | {"agent.spec", "scenario.schema", "scenario.resolve", "baseline"},
    "bridge.states": {"errors", "bridge", "model"},
    "bridge.examine": {"errors", "bridge", "model"},
    # What a scenario says and means; the runtime starts from it.
    "scenario": {
        "errors",
        "config",
        "replicas",
        "agent.spec",
        "bridge.card",
        "wire.messages",
        "scenario",
    }
    | {"model", "task"},
    # The client's half of the runtime.
    **{room: CLIENT_MAY for room in CLIENT_ROOMS},
    "host": {"errors", "wire", "bus", "agent", "telemetry"} | CLIENT_ROOMS,
    "running": {"host", "launch", "errors", "wire", "agent"}
    | CLIENT_ROOMS
    | {"scenario.resolve", "scenario.fetch"},
    "runtime": {"running", "errors", "config", "wire", "bus", "agent", "telemetry", "task"}
    | CLIENT_ROOMS
    | {"scenario.schema", "scenario.load", "scenario.resolve"},
    "launch": {"errors", "config", "agent", "bus", "model.sources"},
    "gateway": {
        "errors",
        "runtime",
        "replicas",
        "question",
        "reply",
        "ledger",
        "wiring",
        "wire.messages",
    }
    | {"scenario.resolve", "scenario.schema", "scenario.shares", "telemetry", "gateway"},
    "adapters": {"errors", "runtime", "wiring", "gateway", "adapters"}
    | {"scenario.load", "scenario.resolve"},
    # Running and showing a scenario.
    "scenario.plan": SCORING_MAY,
    "scenario.predictions": SCORING_MAY,
    "scenario.result": SCORING_MAY,
    "scenario.summary": SCORING_MAY,
    "scenario.matrix_summary": SCORING_MAY,
    "scenario.runner": {"*"},
    "scenario.report": {"*"},
    "scenario.methods": {"*"},
    "benchmark": {"*"},
    "cli": {"*"},
    "__main__": {"cli"},
    "commands": {"*"},
}

# These may be named by every file of the project, or by those listed alone.
ONLY_IN = {
    "msgpack": {"agentwire/wire/codec.py"},
    # bare: the bus's yardstick
    "zmq": {"agentwire/bus/zmq.py", "agentwire/bus/curve.py", "agentwire/benchmark/bare.py"},
    "uvicorn": {"agentwire/gateway/server.py"},
    "ray": {"agentwire/launch/ray.py"},
    "pickle": set(),
    "cPickle": set(),
    "dill": set(),
    "joblib": set(),
    "marshal": set(),
    "shelve": set(),
    "cloudpickle": set(),
}
SANS_IO = {"zmq", "asyncio", "anyio", "torch", "time", "os", "socket", "threading", "datetime"}
FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py", "util.py", "misc.py"}


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def module_of(file: Path) -> str:
    """``agentwire/wire/codec.py`` -> ``wire.codec``."""
    parts = list(file.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(node: ast.AST) -> Iterator[str]:
    """Every module that the code imports at run time, dotted; ``from a import b`` gives ``a.b``."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        else:
            yield from imports(child)


def own_imports(file: Path) -> Iterator[str]:
    for name in imports(tree_of(file)):
        if name.startswith("agentwire."):
            yield name.removeprefix("agentwire.")


def rule_of(module: str) -> set[str] | None:
    """The rule of the longest prefix of ``module``."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        rule = MAY_IMPORT.get(".".join(parts[:length]))
        if rule is not None:
            return rule
    return None


def covers(allowed: str, name: str) -> bool:
    return allowed == "*" or name == allowed or name.startswith(allowed + ".")


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_a_room_imports_only_the_rooms_below_it(file: Path) -> None:
    module = module_of(file)
    if module == "":  # the package itself: lazy re-exports
        assert set(own_imports(file)) <= {"errors.AgentwireError", "errors.RequestError", "runtime"}
        return
    allowed = rule_of(module)
    assert allowed is not None, f"{module} belongs to no room: add its rule here"
    wrong = [n for n in own_imports(file) if not any(covers(a, n) for a in allowed)]
    assert not wrong, f"{module} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_some_libraries_live_in_one_file(file: Path) -> None:
    here = str(file.relative_to(ROOT))
    for name in imports(tree_of(file)):
        top = name.split(".")[0]
        if top in ONLY_IN:
            assert here in ONLY_IN[top], f"{top} may be imported in {ONLY_IN[top] or 'no file'}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "wire").glob("*.py")), ids=lambda p: p.name)
def test_the_wire_does_no_io_and_has_no_clock(file: Path) -> None:
    tops = {name.split(".")[0] for name in imports(tree_of(file))}
    assert not tops & SANS_IO


@pytest.mark.parametrize("room", ["task", "telemetry", "bus", "agent"])
def test_rooms_that_need_no_torch(room: str) -> None:
    for file in sorted((PACKAGE / room).rglob("*.py")):
        tops = {name.split(".")[0] for name in imports(tree_of(file))}
        assert not tops & {"torch", "transformers"}, file


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_only_config_reads_the_environment(file: Path) -> None:
    if file == PACKAGE / "config.py":
        return
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}:
            # Handing the environment on to a child process, with more set in it, is not reading.
            shown = ast.unparse(node)
            assert shown == "os.environ", f"{file.name}: {shown}"
            assert is_copied(tree_of(file), node), f"{file.name}:{node.lineno} reads {shown}"


def is_copied(tree: ast.Module, wanted: ast.Attribute) -> bool:
    """Whether every use on that line is ``{**os.environ, …}`` or ``os.environ.copy()``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                same_line = getattr(value, "lineno", 0) == wanted.lineno
                if key is None and same_line and ast.unparse(value) == "os.environ":
                    return True
        if isinstance(node, ast.Call) and ast.unparse(node) == "os.environ.copy()":
            return True
    return False


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_nothing_received_is_unpickled_or_evaluated(file: Path) -> None:
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "eval", "exec", "yaml.load", "np.load"}, called
            for keyword in node.keywords:
                allowed = keyword.arg not in {"allow_pickle", "trust_remote_code"}
                assert allowed or ast.unparse(keyword.value) == "False", keyword.arg


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_files_stay_short_and_well_named(file: Path) -> None:
    assert file.name not in FORBIDDEN_NAMES
    length = len(file.read_text(encoding="utf-8").splitlines())
    assert length <= LONGEST_FILE, f"{length} lines"
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ClassDef):
            assert not node.name.endswith(("Manager", "Mixin")), node.name


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("module", ["agentwire", "agentwire.cli", "agentwire.scenario.resolve"])
def test_importing_it_loads_no_heavy_library(module: str) -> None:
    heavy = ["torch", "transformers", "safetensors.torch", "datasets"]
    if module == "agentwire":
        heavy += ["zmq", "numpy"]
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['agentwire', '--help']\n"
        "from agentwire.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(3 if {'torch', 'transformers', 'zmq'} & set(sys.modules) else 0)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
