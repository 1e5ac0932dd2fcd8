"""Label words in the tokenizers of the registry models."""

from __future__ import annotations

import pytest

from agentwire.config import Config
from agentwire.model.sources.lookup import locate
from agentwire.model.sources.registry import MODELS
from agentwire.task.definitions import definitions


@pytest.mark.real
@pytest.mark.parametrize("model", list(MODELS))
def test_label_words_differ_in_their_first_token(model: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="`make test` installs tokenizers")
    folder = locate(model, config=Config.from_env()).folder
    if folder is None:
        pytest.skip(f"{model} is not in the cache (`agentwire models pull {model}`)")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for task in (t for t in definitions().values() if t.kind == "classify"):
        for space in ("", " "):  # after a chat template's line break, and after a prompt
            first = [
                tokenizer.encode(space + word, add_special_tokens=False).ids[0]
                for word in task.label_words
            ]
            assert len(set(first)) == len(task.labels), (task.name, space)
