"""Count the code that one warm ``send`` enters: distinct functions and files of agentwire.

A runtime with two fake agents answers warm-up requests. Then single requests are traced with
``sys.setprofile`` in every thread of the client process (event loop and broker) and of both agent
processes, from the call of ``send`` until the agents have finished their bookkeeping. Counted are
distinct code objects (functions, methods, lambdas, comprehensions) in files of the package.

The total is the sum over the three processes: what the sender and the receiver both enter counts
twice. A file counts once. The fake model (``model/fake.py``), other libraries and generated code
are not counted. A heartbeat can fall into a request, so the median request is printed.

    python bench/trace_send.py [--requests 9] [--list]

Commit a0896a4, before the restructuring, gives 494 code objects in 39 files with Python 3.11.
Python 3.12 and later give lower figures, because they inline comprehensions.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from fakes import two_agents

import agentwire
from agentwire.runtime import Runtime
from agentwire.spec.agent import FakeModel
from agentwire.telemetry.journal import NoJournal

WARM_UP = 20
SETTLE_S = 0.05  # agents finish their bookkeeping after the reply
ROLES = ("client", "sender", "receiver")

# Runs in every process before its own code (sitecustomize). A call is written down the first time
# it is seen in the request whose number stands in the file `now`.
HOOK = """
import mmap, os, sys, threading

package, folder = {package!r}, {folder!r}
descriptor = os.open(os.path.join(folder, "now"), os.O_RDONLY)
now = mmap.mmap(descriptor, 1, access=mmap.ACCESS_READ)
out = os.open(os.path.join(folder, str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
seen = set()

def on_event(frame, event, _):
    number = now[0]
    if number and event == "call":
        code = frame.f_code
        if (number, code) in seen or not code.co_filename.startswith(package):
            return
        seen.add((number, code))
        where = code.co_filename[len(package):]
        if where != "model/fake.py":
            line = f"{{number}} {{where}} {{code.co_firstlineno}} {{code.co_qualname}}\\n"
            os.write(out, line.encode())

threading.setprofile(on_event)
sys.setprofile(on_event)
"""


def hook_processes(folder: Path) -> None:
    """Trace this process, and every Python process that it starts from now on."""
    package = str(Path(agentwire.__file__).parent) + os.sep
    (folder / "now").write_bytes(b"\0")
    (folder / "sitecustomize.py").write_text(HOOK.format(package=package, folder=str(folder)))
    path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), path)))
    exec(compile((folder / "sitecustomize.py").read_text(), "hook", "exec"), {})


async def trace(requests: int, folder: Path) -> dict[str, str]:
    """Trace ``requests`` sends, one at a time; the name of each traced process by its pid."""
    fake = FakeModel(width=4096)
    deployment = two_agents(fake, fake, wire={"fallback": "error"}, max_wait_ms=0.0)
    number = os.open(folder / "now", os.O_WRONLY)
    async with Runtime(deployment, journal=NoJournal()) as runtime:
        for request in range(-WARM_UP, requests):
            await asyncio.sleep(SETTLE_S)
            os.pwrite(number, bytes([max(0, request + 1)]), 0)
            await runtime.send("sender", "receiver", f"text number {request}")
            await asyncio.sleep(SETTLE_S)
            os.pwrite(number, b"\0", 0)
        pids = {str(info.pid): name for name, info in runtime.agents.items()}
    return {str(os.getpid()): "client", **pids}


def calls_of(folder: Path, names: dict[str, str]) -> dict[int, dict[str, set[str]]]:
    """What each request entered, by process: lines ``file line name``."""
    found: dict[int, dict[str, set[str]]] = defaultdict(lambda: {role: set() for role in ROLES})
    for pid, name in names.items():
        for line in (folder / pid).read_text().splitlines():
            request, call = line.split(" ", 1)
            found[int(request)][name].add(call)
    return dict(found)


def files(calls: set[str]) -> set[str]:
    return {call.split()[0] for call in calls}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=9, help="traced one by one (at most 255)")
    parser.add_argument("--list", action="store_true", help="print what the median one entered")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentwire-trace-") as name:
        folder = Path(name)
        hook_processes(folder)
        names = asyncio.run(trace(args.requests, folder))
        requests = calls_of(folder, names)
    in_order = sorted(requests.values(), key=lambda found: sum(map(len, found.values())))
    median = in_order[len(in_order) // 2]
    for role, calls in median.items():
        print(f"{role:>9}: {len(calls)} code objects in {len(files(calls))} files")
        if args.list:
            print(*(f"           {call}" for call in sorted(calls)), sep="\n")
    distinct = set().union(*median.values())
    total = sum(map(len, median.values()))
    in_files = f"in {len(files(distinct))} files"
    print(f"    total: {total} code objects ({len(distinct)} distinct) {in_files}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
