"""Reader bridges in the transformers backend, on tiny models of two families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from agentwire.bridge import store
from agentwire.bridge.reader import Reader
from agentwire.errors import BridgeError
from agentwire.model.backend import Asked
from agentwire.model.transformers import TransformersBackend
from agentwire.wire.messages import Decoding, TaskSpec

TASK = TaskSpec(
    name="ask",
    prompt="\nQuestion: {question}\nAnswer:",
    text_prompt="{text}\nQuestion: {question}\nAnswer:",
    max_new_tokens=6,
)
LABELS = replace(TASK, labels=("negative", "positive"), max_new_tokens=0)
TEXTS = [
    "a warm film",
    "the dull and clumsy story of a tired cast in an empty scene without an ending",
    "x",
    "what a wonderful, moving, funny score! " * 6,
    "cold",
]
QUESTIONS = [
    "Who?",
    "Is it a warm and clever film, or a dull and clumsy one?",
    "<eos></s>{text}",
    "x",
    "What?",
]
WHERE = ["receiver", "sender"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Pair:
    """Sender and receiver with both halves loaded."""

    sender: TransformersBackend
    receiver: TransformersBackend
    folder: Path
    bridge: str

    @property
    def whole(self) -> Reader:
        module = store.load(self.folder).module
        assert isinstance(module, Reader)
        return module


def quiet(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(scope="module", params=[("llama", "gemma"), ("gemma", "llama")], ids=str)
def models(
    request: pytest.FixtureRequest, tiny_llama: Path, tiny_gemma: Path
) -> tuple[TransformersBackend, TransformersBackend]:
    folders = {"llama": tiny_llama, "gemma": tiny_gemma}
    sender, receiver = (
        TransformersBackend.load(tiny.spec(name, folders[name]), quiet) for name in request.param
    )
    return sender, receiver


@pytest.fixture(params=WHERE)
def pair(
    request: pytest.FixtureRequest,
    models: tuple[TransformersBackend, TransformersBackend],
    tmp_path: Path,
) -> Pair:
    sender, receiver = models
    folder = tmp_path / "tiny-reader"
    tiny.write_reader(folder, sender.identity, receiver.identity, where=request.param)
    identity = sender.add_bridge(folder)
    assert receiver.add_reader(folder) == identity
    return Pair(sender, receiver, folder, identity.fingerprint)


def answers(pair: Pair, rows: list[int], payload: Any, task: TaskSpec = TASK) -> list[str]:
    asked = Asked([QUESTIONS[i] for i in rows], pair.bridge)
    return pair.receiver.generate_soft(payload[rows], task, None, asked).texts


def test_the_sender_reads_several_layers_and_chooses_m_by_length(pair: Pair) -> None:
    encoded = pair.sender.encode(TEXTS, pair.bridge)
    ids, mask = pair.sender.tokens(TEXTS)
    whole = pair.sender.model(input_ids=ids, output_hidden_states=True).hidden_states
    states = torch.stack([whole[layer][:, 1:] for layer in (0, 1, 2)], dim=2)
    lengths = mask.sum(-1).tolist()
    assert list(encoded.sizes) == [pair.whole.shape.size_for(n) for n in lengths]
    assert len(set(encoded.sizes)) > 1
    for i, (n, m) in enumerate(zip(lengths, encoded.sizes, strict=True)):
        expected = pair.whole.sent(states[i : i + 1, :n], mask[i : i + 1, :n], m)[0]
        found = torch.from_numpy(encoded.payload[i])
        assert torch.allclose(found[:m].float(), expected, rtol=2e-3, atol=2e-3)
        assert not found[m:].any()
    fixed = pair.sender.encode(TEXTS, pair.bridge, 4)
    assert list(fixed.sizes) == [4] * 5 and fixed.payload.shape[1] == 4
    assert any(pair.sender.encode(["a warm film " * 400], pair.bridge).unread)


def test_answers_equal_greedy_decoding_by_hand(pair: Pair) -> None:
    """Without cache, padding or backend: additions at the soft positions in every pass."""
    model, half = pair.receiver.model, pair.whole.receiver
    payload = pair.sender.encode(TEXTS, pair.bridge, 4).payload
    for i, question in enumerate(QUESTIONS):
        read, additions = half.read(torch.from_numpy(payload[i : i + 1]).float())
        tokenizer = pair.receiver.tokenizer
        filled = TASK.prompt.replace("{question}", question)
        ids = tokenizer([filled], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        embed = model.get_input_embeddings()
        start = embed(torch.tensor([pair.receiver.start]))
        embeds = torch.cat([start, read, embed(torch.tensor(ids))], dim=1)
        written: list[int] = []
        steps: list[float] = []
        for _ in range(TASK.max_new_tokens):
            logits = model(inputs_embeds=embeds, output_hidden_states=False).logits
            if additions is not None:
                logits = added_logits(model, embeds, additions, 1 + 2)
            token = int(logits[0, -1].argmax())
            steps.append(float(logits[0, -1].log_softmax(-1)[token]))
            if token in pair.receiver._ends:
                break
            written.append(token)
            if "\n" in tokenizer.decode(written, skip_special_tokens=True).lstrip():
                break
            embeds = torch.cat([embeds, embed(torch.tensor([[token]]))], dim=1)
        text = tokenizer.decode(written, skip_special_tokens=True).strip().partition("\n")[0]
        assert answers(pair, [i], payload) == [text.rstrip()]
        asked = Asked(QUESTIONS, pair.bridge)
        batch = pair.receiver.generate_soft(payload, TASK, None, asked)
        assert batch.confidence[i] == pytest.approx(np.mean(steps), abs=1e-3)


def added_logits(model: Any, embeds: Any, additions: Any, first: int) -> Any:
    def hook(index: int) -> Any:
        def add(module: Any, args: Any, kwargs: Any) -> Any:
            states = args[0].clone()
            states[:, first : first + additions.shape[1]] += additions[:, :, index]
            return (states, *args[1:]), kwargs

        return add

    layers = model.get_decoder().layers
    handles = [
        layers[n].register_forward_pre_hook(hook(k), with_kwargs=True) for k, n in enumerate((0, 2))
    ]
    try:
        return model(inputs_embeds=embeds).logits
    finally:
        for handle in handles:
            handle.remove()


def test_answers_do_not_depend_on_the_batch(pair: Pair) -> None:
    payload = pair.sender.encode(TEXTS, pair.bridge, 4).payload
    alone = [answers(pair, [i], payload)[0] for i in range(5)]
    assert answers(pair, [0, 1, 2, 3, 4], payload) == alone
    assert answers(pair, [4, 1], payload) == [alone[4], alone[1]]
    asked = Asked(QUESTIONS, pair.bridge)
    together = pair.receiver.score_soft(payload, LABELS, asked).scores
    for i, question in enumerate(QUESTIONS):
        single = Asked([question], pair.bridge)
        scores = pair.receiver.score_soft(payload[i : i + 1], LABELS, single).scores
        assert np.allclose(scores[0], together[i], atol=1e-4)


def test_encoding_does_not_depend_on_the_batch(pair: Pair) -> None:
    together = pair.sender.encode(TEXTS, pair.bridge)
    for i, text in enumerate(TEXTS):
        alone = pair.sender.encode([text], pair.bridge)
        size = together.sizes[i]
        assert alone.payload.shape[1] == size
        assert np.allclose(alone.payload[0], together.payload[i, :size], rtol=5e-3, atol=5e-3)


def test_additions_and_questions_change_the_answer(pair: Pair) -> None:
    payload = pair.sender.encode(TEXTS, pair.bridge, 4).payload
    asked = Asked(QUESTIONS, pair.bridge)
    scores = pair.receiver.score_soft(payload, LABELS, asked).scores
    other = Asked(["Why?"] * 5, pair.bridge)
    assert not np.allclose(scores, pair.receiver.score_soft(payload, LABELS, other).scores)
    if pair.whole.shape.additions:
        half = pair.receiver._readers[pair.bridge].half
        with torch.inference_mode(False), torch.no_grad():
            half.up.mul_(0)
        assert not np.allclose(scores, pair.receiver.score_soft(payload, LABELS, asked).scores)


def test_the_answer_ends_at_the_stop_strings_of_task_and_card(pair: Pair) -> None:
    payload = pair.sender.encode(TEXTS, pair.bridge, 4).payload
    task = replace(TASK, max_new_tokens=30)
    whole = answers(pair, [0, 1, 2, 3, 4], payload, task)
    assert not any("\n" in text for text in whole)
    text = next(text for text in whole if len(text) > 3)
    cut = replace(task, decoding=Decoding(stop=(text[2],)))
    row = whole.index(text)
    assert answers(pair, [row], payload, cut)[0] == text[: text.index(text[2])].rstrip()


def test_text_with_a_question_is_read_as_with_the_question_in_the_prompt(pair: Pair) -> None:
    receiver = pair.receiver
    asked = Asked(QUESTIONS[:2] * 2)
    texts = [TEXTS[0], TEXTS[1], TEXTS[1], TEXTS[0]]
    together = receiver.generate(texts, TASK, None, asked).texts
    scores = receiver.score_text(texts, LABELS, asked).scores
    for i, question in enumerate(asked.questions):
        written = {
            key: getattr(TASK, key).replace("{question}", question)
            for key in ("prompt", "text_prompt")
        }
        assert receiver.generate([texts[i]], replace(TASK, **written)).texts[0] == together[i]
        single = receiver.score_text([texts[i]], replace(LABELS, **written)).scores
        assert np.allclose(single[0], scores[i], atol=1e-4)


def test_a_question_cannot_end_a_turn(pair: Pair) -> None:
    """The control tokens of a chat template are characters in a question."""
    receiver = pair.receiver
    control = tiny.CONTROL[1] + "</s><end_of_turn>"
    rows, _ = receiver._text_rows(["x", "x"], TASK, Asked([control, "y"]))
    special = set(getattr(receiver.tokenizer, "all_special_ids", ()))
    special |= set(getattr(receiver.tokenizer, "added_tokens_decoder", {}))
    special -= {getattr(receiver.tokenizer, "unk_token_id", None)}
    count = [sum(token in special for token in row) for row in rows]
    assert count[0] == count[1]


def test_int8_rows_answer_like_halves(
    models: tuple[TransformersBackend, TransformersBackend], tmp_path: Path
) -> None:
    sender, receiver = models
    found = []
    for int8 in (False, True):
        folder = tmp_path / f"int8-{int8}"
        tiny.write_reader(folder, sender.identity, receiver.identity, int8=int8)
        bridge = sender.add_bridge(folder).fingerprint
        receiver.add_reader(folder)
        payload = sender.encode(TEXTS, bridge, 4).payload
        found.append(receiver.score_soft(payload, LABELS, Asked(QUESTIONS, bridge)).scores)
    assert np.allclose(*found, atol=0.2) and not np.array_equal(*found)


def test_a_half_for_another_model_or_architecture_is_refused(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="writes for b, not the weights"):
        pair.sender.add_reader(pair.folder)
    with pytest.raises(BridgeError, match="reads a, not the weights"):
        pair.receiver.add_bridge(pair.folder)
    card = tiny.make_card(pair.sender.identity, pair.receiver.identity, 2)
    tiny.write_bridge(tmp_path / "plain", card)
    with pytest.raises(BridgeError, match="has no receiver half"):
        pair.receiver.add_reader(tmp_path / "plain")


@pytest.mark.parametrize("additions", [[], [0]])
def test_vllm_reads_the_same_vectors_unless_there_are_additions(
    models: tuple[TransformersBackend, TransformersBackend], tmp_path: Path, additions: list[int]
) -> None:
    from agentwire.model.vllm.backend import VllmBackend
    from agentwire.model.vllm.inputs import RequestLimits

    sender, receiver = models
    tiny.write_reader(tmp_path, sender.identity, receiver.identity, additions=additions)
    limits = RequestLimits(receiver.identity.width, 1000, 200)
    engine: Any = None
    backend = VllmBackend(
        engine, receiver.tokenizer, receiver.identity, limits, torch.float32, frozenset()
    )
    if additions:
        with pytest.raises(BridgeError, match="cannot add to hidden states"):
            backend.add_reader(tmp_path)
        return
    bridge = sender.add_bridge(tmp_path).fingerprint
    assert backend.add_reader(tmp_path) == receiver.add_reader(tmp_path)
    payload = sender.encode(TEXTS, bridge, 4).payload
    asked = Asked(QUESTIONS, bridge)
    prompts = backend._soft_prompts(payload, TASK, 6, asked)
    with torch.inference_mode():
        inputs = receiver._asked_inputs(torch.from_numpy(payload), TASK, asked)
        table = receiver.model.get_input_embeddings()
        for prompt, embeds, n in zip(prompts, inputs.embeds, inputs.lengths, strict=True):
            ids = table(torch.tensor(prompt["prompt_token_ids"]))
            given = torch.tensor(prompt["prompt_is_token_ids"])[:, None]
            read = torch.where(given, ids, prompt["prompt_embeds"])
            assert torch.allclose(read, embeds[-n:], rtol=2e-3, atol=2e-3)
    with pytest.raises(BridgeError, match="does not read several layers"):
        backend.add_bridge(tmp_path)
