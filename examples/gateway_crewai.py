"""A CrewAI crew of two on the gateway: the reader passes soft tokens to the judge.

agentwire serve scenarios/llama_to_mistral_sst2.yaml     # in another terminal
pip install crewai
python examples/gateway_crewai.py

CrewAI adds its own words around a task. The reader reads them together with the review.
"""

from __future__ import annotations

import argparse

from crewai import LLM, Agent, Crew, Process, Task

REVIEWS = [
    "A moving, funny and beautifully acted film.",
    "A dull, clumsy and endless mess without a single idea.",
]


def crew(url: str, key: str) -> Crew:
    """A reader and a judge. The reader answers with a handle, which is the judge's context."""

    def model(name: str) -> LLM:
        return LLM(model=name, provider="openai", base_url=url, api_key=key)

    reader = Agent(
        role="reader",
        goal="Understand the review.",
        backstory="You have read many.",
        llm=model("llama->mistral:keep"),
    )
    judge = Agent(
        role="judge",
        goal="Say whether a review is in favour of its film.",
        backstory="You are fair.",
        llm=model("mistral"),
    )
    reading = Task(description="{review}", expected_output="what it says", agent=reader)
    judging = Task(
        description="Is the review positive or negative?",
        expected_output="positive or negative",
        agent=judge,
        context=[reading],
    )
    return Crew(agents=[reader, judge], tasks=[reading, judging], process=Process.sequential)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    options = parser.parse_args()
    for review in REVIEWS:
        done = crew(options.url, options.key).kickoff(inputs={"review": review})
        print(review)
        for output in done.tasks_output:
            print(f"{output.agent}: {output.raw}")


if __name__ == "__main__":
    main()
