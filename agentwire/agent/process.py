"""The process of an agent: ``python -m agentwire.agent.process``, started by the supervisor.

The first line of stdin is the ``AgentBootstrap``. Later, the end of stdin means that the parent is
gone, and this process exits. Nothing heavy is imported before the number of threads is set, because
numerical libraries read it when they load.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from typing import Final

from pydantic import ValidationError

from agentwire.agent.launching.failure import ExitCode, encode_error
from agentwire.errors import InputError
from agentwire.spec.agent import AgentBootstrap, CurveKeys
from agentwire.telemetry.logs import log_json

MAX_BOOTSTRAP_BYTES: Final = 1024 * 1024
PR_SET_PDEATHSIG: Final = 1
PR_SET_TIMERSLACK: Final = 29
TIMER_SLACK_NS: Final = 1000
SWITCH_S: Final = 0.0005
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def main() -> int:
    """Reads the bootstrap and runs the agent; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the runner to handle
    _die_with_parent()
    set_timer_slack()
    bootstrap = _read_bootstrap()
    if bootstrap is None:
        return ExitCode.ERROR
    log_json(agent=bootstrap.agent.name, epoch=bootstrap.bus.epoch)
    threading.Thread(target=_watch_stdin, name="parent-guard", daemon=True).start()
    _set_threads(bootstrap.agent.threads)
    # By default the IO thread could wait 5 ms for the compute loop to yield the interpreter.
    sys.setswitchinterval(SWITCH_S)
    from agentwire.agent.service import serve

    try:
        if bootstrap.keys is not None:
            return _join(bootstrap, bootstrap.keys)
        return serve(bootstrap)
    except Exception:
        logging.getLogger(__name__).exception("internal error; the agent exits")
        return ExitCode.ERROR


def _join(bootstrap: AgentBootstrap, keys: CurveKeys) -> int:
    """Joins a bus on another machine. An input error goes to stdout."""
    from agentwire.agent.join import join
    from agentwire.bus.transport import PeerKeys

    own = PeerKeys(keys.public, keys.secret, keys.server)
    report = logging.getLogger("agentwire").info
    try:
        return join(bootstrap.agent, bootstrap.bus.endpoint, own, on_event=report)
    except InputError as error:
        print(encode_error(error), flush=True)
        return ExitCode.INPUT


def _read_bootstrap() -> AgentBootstrap | None:
    line = sys.stdin.buffer.readline(MAX_BOOTSTRAP_BYTES)
    try:
        return AgentBootstrap.model_validate_json(line)
    except ValidationError as error:
        places = ", ".join(".".join(map(str, e["loc"])) for e in error.errors(include_input=False))
        print(
            f"agentwire: no valid bootstrap on stdin ({places or 'empty'}). agentwire starts this "
            "module itself; type `agentwire run <scenario>`.",
            file=sys.stderr,
        )
        return None


def _watch_stdin() -> None:
    # The file descriptor itself: the buffered reader's lock would block the interpreter's exit.
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    os._exit(ExitCode.ORPHANED)


def _die_with_parent() -> None:
    """On Linux the kernel kills this process with its parent, even while Python is stuck."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def set_timer_slack() -> None:
    """Makes sleeps of microseconds accurate on Linux, for ``Endpoint.poll``."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS, 0, 0, 0)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        for name in THREAD_VARIABLES:
            os.putenv(name, str(threads))
    os.putenv("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Not sys.exit: a library's thread or exit handler must not keep a finished agent alive.
    os._exit(code)
