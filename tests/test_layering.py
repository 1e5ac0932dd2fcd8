"""The layering of the package: who may import what, and what must not exist at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "agentwire"
LONGEST_FILE = 600

FILES = sorted(p for p in PACKAGE.rglob("*.py"))
IDS = [str(p.relative_to(ROOT)) for p in FILES]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "download"),
    ("wire",),
    ("telemetry",),
    ("spec",),
    ("bus",),
    ("task",),
    ("bridge",),
    ("model",),
    ("agent",),
    ("scenario",),
    ("runtime",),
    ("training",),
    ("evaluation",),
    ("chat",),
    ("gateway",),
    ("adapters",),
    ("benchmark",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: a module imports only from floors below its own. Imports inside functions and
imports that only type checkers see count too. bench/ stands above all of them."""

FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
MOST_LINES_OF_A_FOLDER = 5_800
MOST_ROOT_MODULES = 6

# These may be named by every file of the project, or by those listed alone.
ONLY_IN = {
    "msgpack": {"agentwire/wire/codec.py"},
    # bare: the bus's yardstick
    "zmq": {"agentwire/bus/zmq.py", "agentwire/bus/curve.py", "agentwire/benchmark/bare.py"},
    "uvicorn": {"agentwire/gateway/connections.py"},
    "ray": {"agentwire/agent/launching/ray.py"},
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


MODULES = {module_of(file): file for file in FILES}


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that the code names in an import, dotted; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(file: Path) -> Iterator[str]:
    """The modules of agentwire that a file imports: ``wire.codec`` for a name of that module."""
    for name in imports(tree_of(file)):
        if name == "agentwire" or name.startswith("agentwire."):
            name = name.removeprefix("agentwire").removeprefix(".")
            yield name if name in MODULES else name.rpartition(".")[0]


def upward(top: str) -> list[str]:
    """Imports of one part of the package that do not go to a floor below it."""
    wrong = []
    for module, file in MODULES.items():
        if module.split(".")[0] != top:
            continue
        for name in own_imports(file):
            part = name.split(".")[0]
            below = part == "" or FLOOR_OF[part] < FLOOR_OF[top]
            if part != top and not below:
                wrong.append(f"{module} -> {name}")
    return wrong


@pytest.mark.parametrize("floor", FLOORS, ids=lambda floor: "-".join(floor))
def test_a_floor_imports_only_from_floors_below(floor: tuple[str, ...]) -> None:
    for top in floor:
        others = [name for name in upward(top) if name.split(" -> ")[1].split(".")[0] not in floor]
        assert not others


def test_every_module_stands_on_a_floor() -> None:
    tops = {module.split(".")[0] for module in MODULES} - {""}
    assert tops == set(FLOOR_OF)


def test_the_package_itself_imports_errors_and_the_runtime_alone() -> None:
    assert {name.split(".")[0] for name in own_imports(PACKAGE / "__init__.py")} <= {
        "errors",
        "runtime",
    }


def test_folders_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        folder = str(file.parent.relative_to(PACKAGE))
        for name in own_imports(file):
            other = str(MODULES[name].parent.relative_to(PACKAGE))
            if other != folder and "." not in (other, folder):  # the root: floors say it
                graph.setdefault(folder, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_the_package_imports_nothing_from_bench_or_tests() -> None:
    for file in FILES:
        tops = {name.split(".")[0] for name in imports(tree_of(file))}
        assert not tops & {"bench", "tests", "chaos", "rendering"}, file


def test_few_modules_at_the_root_and_no_folder_too_large() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_ROOT_MODULES
    for folder in PACKAGE.iterdir():
        if folder.is_dir():
            lines = sum(file.read_text("utf-8").count("\n") for file in folder.rglob("*.py"))
            assert lines <= MOST_LINES_OF_A_FOLDER, f"{folder.name} has {lines} lines"


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


@pytest.mark.parametrize("module", ["agentwire", "agentwire.cli.app", "agentwire.scenario.resolve"])
def test_importing_it_loads_no_heavy_library(module: str) -> None:
    heavy = ["torch", "transformers", "safetensors.torch", "datasets"]
    if module == "agentwire":
        heavy += ["zmq", "numpy", "prometheus_client"]
    code = f"import {module}, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['agentwire', '--help']\n"
        "from agentwire.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(3 if {'torch', 'transformers', 'zmq'} & set(sys.modules) else 0)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
