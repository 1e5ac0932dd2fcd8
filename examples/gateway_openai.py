"""OpenAI's SDK on the gateway: a wire as a model, a handle, and a stream.

agentwire serve scenarios/llama_to_mistral_sst2.yaml     # in another terminal
pip install openai
python examples/gateway_openai.py
"""

from __future__ import annotations

import argparse

from openai import OpenAI

REVIEW = "A moving, funny and beautifully acted film."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key=options.key)

    def ask(model: str, text: str) -> str:
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}]
        )
        print(f"{model}: {reply.choices[0].message.content}  {reply.agentwire['channel']}")
        return reply.choices[0].message.content

    ask("llama->mistral", REVIEW)  # llama reads, mistral answers
    handle = ask("llama->mistral:keep", REVIEW)  # llama reads, and the answer is a handle
    ask("mistral", handle)  # mistral answers from the soft tokens
    with client.chat.completions.create(
        model="llama", messages=[{"role": "user", "content": "Say hello."}], stream=True
    ) as stream:
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
