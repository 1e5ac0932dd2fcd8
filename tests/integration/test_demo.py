"""`agentwire demo reader` with fake models whose bridge answers any question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import agentwire
from scenario_files import make_card, write_bridge

from agentwire.bridge.card import CardReader
from agentwire.cli.demo import passages
from agentwire.model.fake import READER_SIZES, text_hash

pytestmark = pytest.mark.integration


def scenario(folder: Path, answers: str = "free") -> Path:
    section = CardReader(layers=(0, 2), sizes=READER_SIZES, prompt=0, where="sender")
    card = make_card(
        architecture="reader", answers=answers, reader=section, soft_tokens=READER_SIZES[-1]
    )
    write_bridge(folder / "bridges" / "test-reader", card)
    path = folder / "demo.yaml"
    path.write_text(
        "name: demo\n"
        "agents:\n"
        "  a: {model: model-a, backend: fake}\n"
        "  b: {model: model-b, backend: fake}\n"
        "wires:\n"
        "  - {from: a, to: b, bridge: test-reader, soft_tokens: auto}\n"
    )
    return path


def test_the_passages_are_asked_from_soft_tokens_and_from_the_text(tmp_path: Path) -> None:
    file = str(scenario(tmp_path))
    done = agentwire(tmp_path, "demo", "reader", "--scenario", file, "--json")
    rows = json.loads(done.stdout)
    known = passages()
    assert len(known) == 3
    assert [(row["passage"], row["question"]) for row in rows] == [
        (passage.text, question) for passage in known for question, _ in passage.questions
    ]
    for row in rows:
        asked = row["question"]
        assert row["soft"]["text"] == f"model-b: soft {text_hash(row['passage']):08x} {asked}"
        assert row["soft"]["read"] < row["text"]["read"] and not row["soft"]["reason"]
        assert row["soft"]["bytes"] in {m * 16 * 2 for m in READER_SIZES}


def test_questions_are_given_for_a_passage_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Ada found a key.\n")
    asked = ["--text", "own.txt", "--ask", "Who?", "--ask", "What?"]
    done = agentwire(tmp_path, "demo", "reader", "--scenario", str(scenario(tmp_path)), *asked)
    assert "Ada found a key." in done.stdout
    assert f"soft {text_hash('Ada found a key.'):08x} Who?" in done.stdout
    assert "model-b: Ada found a key. What?" in done.stdout
    assert "2 questions" in done.stdout


def test_a_bridge_that_is_missing_or_for_labels_is_an_error(tmp_path: Path) -> None:
    missing = agentwire(tmp_path, "demo", "reader", code=2)
    assert "scenarios/read_once.yaml" in missing.stderr
    file = scenario(tmp_path, "labels")
    labels = agentwire(tmp_path, "demo", "reader", "--scenario", str(file), code=2)
    assert "does not answer free questions" in labels.stderr
    file.write_text(file.read_text().replace("test-reader", "other"))
    missing = agentwire(tmp_path, "demo", "reader", "--scenario", str(file), code=2)
    assert "there is no bridge 'other'" in missing.stderr and "docs/reader.md" in missing.stderr
