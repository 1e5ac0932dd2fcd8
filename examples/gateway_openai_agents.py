"""openai-agents on the gateway: a reader keeps soft tokens, and a judge answers from them.

agentwire serve scenarios/llama_to_mistral_sst2.yaml     # in another terminal
pip install openai-agents
python examples/gateway_openai_agents.py
"""

from __future__ import annotations

import argparse
import asyncio

from openai import AsyncOpenAI

from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled

REVIEW = "A moving, funny and beautifully acted film."


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=options.url, api_key=options.key)

    def agent(name: str, model: str) -> Agent:
        return Agent(name=name, model=OpenAIChatCompletionsModel(model, client))

    handle = await Runner.run(agent("reader", "llama->mistral:keep"), REVIEW)
    print("reader:", handle.final_output)
    verdict = await Runner.run(agent("judge", "mistral"), handle.final_output)
    print("judge:", verdict.final_output)


if __name__ == "__main__":
    asyncio.run(main())
