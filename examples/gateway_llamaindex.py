"""LlamaIndex on the gateway: a reader keeps soft tokens, and a judge answers from them.

agentwire serve scenarios/llama_to_mistral_sst2.yaml     # in another terminal
pip install llama-index-llms-openai-like
python examples/gateway_llamaindex.py
"""

from __future__ import annotations

import argparse

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

REVIEW = "A moving, funny and beautifully acted film."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()

    def model(name: str) -> OpenAILike:
        return OpenAILike(model=name, api_base=options.url, api_key=options.key, is_chat_model=True)

    handle = model("llama->mistral:keep").chat([ChatMessage(role="user", content=REVIEW)])
    print("reader:", handle.message.content)
    verdict = model("mistral").chat([ChatMessage(role="user", content=handle.message.content)])
    print("judge:", verdict.message.content)


if __name__ == "__main__":
    main()
