"""Microsoft's agent-framework: one agent passes soft tokens to another.

pip install '.[models,agent-framework]'
python examples/agent_framework_pair.py "A moving, funny film."
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent_framework import Agent

from agentwire.adapters.agent_framework import AgentwireChatClient
from agentwire.adapters.local import LocalAgents

SCENARIO = Path(__file__).parent.parent / "scenarios" / "llama_to_mistral_sst2.yaml"


async def main(review: str) -> None:
    with LocalAgents(SCENARIO) as agents:
        reader = Agent(AgentwireChatClient(agents, "llama->mistral:keep"), name="reader")
        judge = Agent(AgentwireChatClient(agents, "mistral"), name="judge")
        handle = await reader.run(review)
        print("reader:", handle.text)
        print("judge: ", (await judge.run(handle.text)).text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "A moving, funny film."))
