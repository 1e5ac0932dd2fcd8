"""Coverage-guided fuzzing of the codec and the session.

    pip install '.[fuzz]'
    python bench/fuzz.py [--minutes 10] [--seed 0] [--out bench/results/fuzz.json]

Two targets take half the time each. ``codec`` decodes frames, encodes the result and decodes it
again; ``session`` drives both ends of a session with messages, bytes and ticks in any order. The
golden messages are the first inputs. A crash, an exception other than the protocol's own, memory
beyond the limit, or a message that does not survive a round trip ends the run with its input.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
MEMORY_MB = 1024
TARGETS = ("codec", "session")


def seeds(target: str, folder: Path) -> None:
    """Write the golden messages as inputs of a target."""
    for path in GOLDEN.glob("*.bin"):
        data, packed = path.read_bytes(), b""
        while data:
            (size,) = struct.unpack_from("<I", data)
            packed += struct.pack("<H", size) + data[4 : 4 + size]
            data = data[4 + size :]
        if target == "session":
            packed = b"\1\2" + bytes([min(255, len(packed) // 4 + 1)]) + packed
        (folder / path.stem).write_bytes(packed)


def run_child(target: str, arguments: list[str]) -> None:
    """Runs in the fuzzed process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["agentwire.wire"]):
        import fuzz_targets
    atheris.Setup([sys.argv[0], *arguments], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


def run_target(target: str, seconds: int, seed: int) -> dict[str, float]:
    """Figures of one target.

    Raises:
        SystemExit: the fuzzer found something.
    """
    with tempfile.TemporaryDirectory() as folder:
        seeds(target, Path(folder))
        command = [sys.executable, __file__, "--child", target, "--"]
        options = [
            f"-max_total_time={seconds}", f"-seed={seed + 1}", "-print_final_stats=1",
            f"-rss_limit_mb={MEMORY_MB}", "-max_len=8192", "-timeout=10",
            f"-artifact_prefix={folder}/", folder,
        ]  # fmt: skip
        done = subprocess.run(command + options, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
            for path in Path(folder).glob("crash-*"):
                kept = ROOT / ".scratch" / f"{target}-{path.name}"
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(path.read_bytes())
                sys.stderr.write(f"input kept: {kept}\n")
            raise SystemExit(1)
        stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
        coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    return {
        "inputs": int(stats["number_of_executed_units"]),
        "inputs_per_s": int(stats["average_exec_per_sec"]),
        "peak_rss_mb": int(stats["peak_rss_mb"]),
        "features": int(coverage[-1][1]) if coverage else 0,
        "crashes": 0,
    }


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], sys.argv[4:])
        return 0
    from records import parser_of, provenance, write  # the fuzzed process does not need it

    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args, about = parser.parse_args(), provenance()
    seconds = max(1, round(args.minutes * 60 / len(TARGETS)))
    figures: dict[str, float] = {}
    for target in TARGETS:
        found = run_target(target, seconds, args.seed)
        print(f"{target}: {found}", file=sys.stderr, flush=True)
        figures |= {f"{target}_{name}": value for name, value in found.items()}
    settings = {"minutes": args.minutes, "seed": args.seed, "targets": list(TARGETS)}
    write({**about, "settings": settings, "figures": figures}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
