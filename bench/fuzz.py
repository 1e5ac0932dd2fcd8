"""Coverage-guided fuzzing of the codec and the session: nothing but the protocol's own errors.

    pip install 'agentwire[fuzz]'
    python bench/fuzz.py [--minutes 10] [--seed 0] [--out bench/results/fuzz.json]

Two targets, half the time each: ``codec`` decodes three frames that the fuzzer makes, encodes what
came out, and decodes that again; ``session`` drives both ends of a session with messages, bytes and
ticks in any order. The golden messages are the first inputs. A crash, an exception, a growth of
memory beyond the limit, or a message that does not survive a round trip ends the run with its
input.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import struct
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
MEMORY_MB = 1024
TARGETS = ("codec", "session")


def seeds(target: str, folder: Path) -> None:
    """The golden messages, as this program takes them."""
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
    """In the fuzzed process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["agentwire.wire"]):
        import fuzz_targets
    atheris.Setup([sys.argv[0], *arguments], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


def run_target(target: str, seconds: int, seed: int) -> dict[str, float]:
    """Runs one target for so long; its figures.

    Raises:
        SystemExit: it found something.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds = max(1, round(args.minutes * 60 / len(TARGETS)))
    figures: dict[str, float] = {}
    for target in TARGETS:
        found = run_target(target, seconds, args.seed)
        print(f"{target}: {found}", flush=True)
        figures |= {f"{target}_{name}": value for name, value in found.items()}
    if args.out:
        from agentwire.evaluation.summary import hardware, versions

        record: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "bench/fuzz.py", *sys.argv[1:]]),
            "hardware": hardware().model_dump(mode="json"),
            "versions": versions(),
            "settings": {"minutes": args.minutes, "seed": args.seed, "targets": list(TARGETS)},
            "figures": figures,
        }
        args.out.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
