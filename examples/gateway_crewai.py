"""CrewAI's models on the gateway.

agentwire serve scenarios/llama_to_mistral_sst2.yaml     # in another terminal
pip install crewai
python examples/gateway_crewai.py
"""

from __future__ import annotations

import argparse

from crewai import LLM

REVIEW = "A moving, funny and beautifully acted film."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()

    def model(name: str) -> LLM:
        return LLM(model=name, provider="openai", base_url=options.url, api_key=options.key)

    handle = model("llama->mistral:keep").call(REVIEW)
    print("reader:", handle)
    print("judge:", model("mistral").call(handle))


if __name__ == "__main__":
    main()
