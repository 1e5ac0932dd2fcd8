"""A launcher that starts every agent over tcp, as on another machine."""

import subprocess
import sys
from collections.abc import Collection

from agentwire.agent.launching.placement import Remote
from agentwire.agent.launching.run_keys import RunKeys
from agentwire.spec.agent import AgentSpec


class TcpLauncher:
    def __init__(self, address: str) -> None:
        self.keys = RunKeys()
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def place(self, agents: Collection[str]) -> Remote:
        return Remote(self.keys.access("tcp://127.0.0.1:*"), frozenset(agents), self)

    def close(self) -> None:
        pass

    def launch(self, spec: AgentSpec, endpoint: str, restarts: int) -> None:
        command = [sys.executable, "-m", "agentwire.agent.process"]
        agent = self.agents[spec.name] = subprocess.Popen(command, stdin=subprocess.PIPE)
        assert agent.stdin is not None
        agent.stdin.write(self.keys.bootstrap(spec, endpoint).model_dump_json().encode() + b"\n")
        agent.stdin.flush()  # not closed: the agent exits at the end of its stdin

    def wait(self, name: str) -> str:
        return f"it exited with code {self.agents[name].wait()}"

    def pending_reason(self, name: str) -> str:
        return ""

    def restart(self, name: str) -> None:
        self.agents[name].kill()  # this launcher does not start another

    def stop(self, name: str) -> None:
        self.agents[name].terminate()
