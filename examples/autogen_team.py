"""An AutoGen team: a reader passes soft tokens to a judge.

pip install '.[models,autogen]'
python examples/autogen_team.py "A moving, funny film."
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat

from agentwire.adapters.autogen import AgentwireClient
from agentwire.adapters.autogen_team import LatentMessage, LatentReader
from agentwire.adapters.local import LocalAgents

SCENARIO = Path(__file__).parent.parent / "scenarios" / "llama_to_mistral_sst2.yaml"


async def main(review: str) -> None:
    with LocalAgents(SCENARIO) as agents:
        team = RoundRobinGroupChat(
            [
                LatentReader("reader", agents, "llama->mistral"),
                AssistantAgent("judge", model_client=AgentwireClient(agents, "mistral")),
            ],
            termination_condition=MaxMessageTermination(3),
            custom_message_types=[LatentMessage],
        )
        async for message in team.run_stream(task=review):
            if hasattr(message, "source"):
                print(f"{message.source}: {message.to_text()}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "A moving, funny film."))
