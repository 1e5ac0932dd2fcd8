"""pydantic-ai on the gateway: a reader keeps soft tokens, and a judge answers from them.

agentwire serve scenarios/llama_to_mistral_sst2.yaml     # in another terminal
pip install 'pydantic-ai-slim[openai]'
python examples/gateway_pydantic_ai.py
"""

from __future__ import annotations

import argparse

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

REVIEW = "A moving, funny and beautifully acted film."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    provider = OpenAIProvider(base_url=options.url, api_key=options.key)
    reader = Agent(OpenAIChatModel("llama->mistral:keep", provider=provider))
    judge = Agent(OpenAIChatModel("mistral", provider=provider))
    handle = reader.run_sync(REVIEW).output
    print("reader:", handle)
    print("judge:", judge.run_sync(handle).output)


if __name__ == "__main__":
    main()
