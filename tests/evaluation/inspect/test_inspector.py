"""``agentwire inspect`` on two tiny models: what it says of each text is the bridge's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch

from agentwire.bridge.card import read_card
from agentwire.cli.app import main
from agentwire.config import Config
from agentwire.errors import BridgeError
from agentwire.evaluation.inspect import payloads as inspection
from agentwire.evaluation.inspect.inspector import BridgeInspector, attention_by_word
from agentwire.evaluation.inspect.rows import choose
from agentwire.model.transformers import TransformersBackend

pytestmark = pytest.mark.integration
TEXT = "a wonderful  film,\nmoving and warm"


@pytest.fixture(scope="module")
def models(tiny_llama: Path, tiny_gemma: Path) -> tuple[TransformersBackend, TransformersBackend]:
    sender, receiver = (
        TransformersBackend.load(tiny.spec(name, folder), lambda stage, fraction: None)
        for name, folder in (("ada", tiny_llama), ("bob", tiny_gemma))
    )
    return sender, receiver


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    models: tuple[TransformersBackend, TransformersBackend],
    tiny_llama: Path,
    tiny_gemma: Path,
) -> Path:
    place = tmp_path_factory.mktemp("bridges") / "tiny"
    card = tiny.make_card(models[0].identity, models[1].identity, 2)
    update = {"model": str(tiny_llama)}, {"model": str(tiny_gemma)}
    card = card.model_copy(
        update={
            "sender": card.sender.model_copy(update=update[0]),
            "receiver": card.receiver.model_copy(update=update[1]),
        }
    )
    tiny.write_bridge(place, card)
    return place


@pytest.fixture(scope="module")
def inspector(
    folder: Path, models: tuple[TransformersBackend, TransformersBackend]
) -> BridgeInspector:
    return BridgeInspector(folder, *models)


def test_soft_tokens_are_those_that_cross_the_bus(
    inspector: BridgeInspector,
    folder: Path,
    models: tuple[TransformersBackend, TransformersBackend],
) -> None:
    sender, _ = models
    bridge = sender.add_bridge(folder).fingerprint
    crossed = torch.from_numpy(sender.encode([TEXT], bridge).payload).float()
    assert torch.allclose(inspector.encode([TEXT]).soft, crossed, atol=2e-3)


def test_a_text_is_seen_soft_token_by_soft_token(
    inspector: BridgeInspector, models: tuple[TransformersBackend, TransformersBackend]
) -> None:
    view = inspector.view(TEXT, "positive", 3)
    assert [soft.index for soft in view.soft_tokens] == [0, 1, 2, 3]
    table = models[1].model.get_input_embeddings().weight
    cosines, ids = inspection.nearest(inspector.encode([TEXT]).soft[0], table, 3)
    for i, soft in enumerate(view.soft_tokens):
        assert [near.id for near in soft.nearest] == ids[i].tolist()
        assert [near.cosine for near in soft.nearest] == pytest.approx(
            cosines[i].tolist(), abs=1e-3
        )
        assert [weight.word for weight in soft.attention] == TEXT.split()
        assert sum(weight.weight for weight in soft.attention) == pytest.approx(1, abs=1e-3)


def test_attention_of_a_word_is_that_of_its_tokens(
    models: tuple[TransformersBackend, TransformersBackend],
) -> None:
    sender, _ = models
    ids = sender.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    pieces = [sender.tokenizer.decode([token]) for token in ids]
    weights = torch.zeros(len(ids))
    weights[[i for i, piece in enumerate(pieces) if "," in piece]] = 1.0
    found = {w.word: w.weight for w in attention_by_word(sender, TEXT, weights)}
    assert found == {**dict.fromkeys(TEXT.split(), 0.0), "film,": 1.0}
    assert attention_by_word(sender, "  ", torch.ones(1)) == []


def test_the_spread_over_many_texts(inspector: BridgeInspector) -> None:
    payloads = inspector.payloads([f"film number {i}" for i in range(40)], lambda stage, done: None)
    spread = inspector.spread(payloads)
    assert spread.rows == 40
    assert 1 <= spread.effective_rank_soft_tokens <= 4
    assert [row[i] for i, row in enumerate(spread.pairwise_cosine)] == [1.0] * 4


def test_a_bridge_of_other_models_is_refused(
    folder: Path, models: tuple[TransformersBackend, TransformersBackend]
) -> None:
    sender, receiver = models
    with pytest.raises(BridgeError, match="was made for"):
        BridgeInspector(folder, receiver, sender)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_the_command_prints_json_and_draws_a_map(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn", reason="`make test` installs sklearn")
    tiny.write_rows(tmp_path / "data" / "movie_snippets" / "test.jsonl", 20, seed=3)
    monkeypatch.setenv("AGENTWIRE_DATA", str(tmp_path / "data"))
    file = tmp_path / "map.png"
    assert call("inspect", str(folder), "--rows", "12", "--json", "--plot", str(file)) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["texts"]) == 2
    assert shown["texts"][0]["label"] in {"negative", "positive"}
    assert shown["spread"]["rows"] == 12
    assert shown["data"]["split"] == "test"
    assert file.read_bytes().startswith(b"\x89PNG")
    assert call("inspect", str(folder), "--rows", "0", "--text", TEXT) == 0
    printed = capsys.readouterr().out
    assert "wonderful" in printed and "nearest tokens" in printed


SHIPPED = sorted(
    folder
    for folder in (Path(__file__).resolve().parents[3] / "bridges").iterdir()
    if not folder.name.endswith("--reader")  # `agentwire inspect` refuses readers
)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda folder: folder.name)
def test_every_bridge_that_ships_has_rows_to_look_at_on_a_bare_machine(
    shipped: Path, tmp_path: Path
) -> None:
    # The snippets would be downloaded; the others are samples, or generated.
    tiny.write_rows(tmp_path / "data" / "movie_snippets" / "test.jsonl", 8, seed=3)
    bare = Config(home=tmp_path / "home", data=tmp_path / "data", offline=True)
    rows = choose(read_card(shipped), None, bare, 8)
    assert len(rows.texts) == len(rows.labels) == len(rows.classes) >= 8
    assert "train" not in rows.provenance["split"]
    trained_on = read_card(shipped).training.dataset
    assert rows.provenance["name"] in {trained_on, f"{trained_on}_1"}


def test_a_bridge_for_several_tasks_is_shown_rows_of_each(tmp_path: Path) -> None:
    (shipped,) = (folder for folder in SHIPPED if folder.name.endswith("--universal"))
    bare = Config(home=tmp_path / "home", offline=True)
    rows = choose(read_card(shipped), None, bare, 10)
    assert rows.names == ("sst2", "trec", "banking77", "ag_news")
    assert rows.classes == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3  # as many of each, 10 or more
    assert rows.labels[0].startswith("sst2: ") and rows.labels[-1].startswith("ag_news: ")
    notes = [part["note"] for part in rows.provenance["parts"].values()]
    assert [note.split(" of ")[-1] for note in notes] == list(rows.names)  # each named as a sample
    only = choose(read_card(shipped), "trec", bare, 10)
    assert only.provenance["name"] == "trec" and len(only.names) == 6


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("nowhere",), "There is no bridge 'nowhere'", "Bridges here"),
        (("FOLDER", "--rows", "3", "--plot", "x.png"), "needs at least 5 rows", "--rows 200"),
        (("FOLDER", "--plot", "no/such/x.png"), "is not a folder", "--plot"),
        (("FOLDER", "--dataset", "sst-2"), "sst-2", "sst2"),
    ],
)
def test_bad_input_is_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    hint: str,
) -> None:
    assert call("inspect", *(a.replace("FOLDER", str(folder)) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and hint in error and "Traceback" not in error


def test_a_reader_bridge_is_refused_before_its_models_load(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shipped = Path(__file__).resolve().parents[3] / "bridges"
    assert call("inspect", str(shipped / "smollm2-135m-instruct--gemma-3-270m--reader")) == 2
    assert "only a resampler can be inspected" in capsys.readouterr().err
