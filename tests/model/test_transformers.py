"""The transformers backend, on tiny models of two families."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import RAGGED, TASK

from agentwire.errors import BridgeError, DeviceError, ModelError, ScenarioError
from agentwire.model import texts as text_reader
from agentwire.model import transformers as backend
from agentwire.model.cpu.reading import Prefix
from agentwire.model.prompting import MAX_TEXT_TOKENS, compile_task, text_ids
from agentwire.model.transformers import LabelHead, TransformersBackend, trunk
from agentwire.task.tokens import start_ids
from agentwire.wire.messages import RelaySpec, TaskSpec

LONG = "a warm and moving story of the cast " * 200


def quiet(stage: str, fraction: float) -> None:
    pass


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> TransformersBackend:
    return TransformersBackend.load(tiny.spec("llama", tiny_llama), quiet)


@pytest.fixture(scope="module")
def gemma(tiny_gemma: Path) -> TransformersBackend:
    return TransformersBackend.load(tiny.spec("gemma", tiny_gemma), quiet)


@pytest.fixture(params=["llama", "gemma"])
def model(request: pytest.FixtureRequest) -> TransformersBackend:
    found: TransformersBackend = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=[("llama", "gemma", 3), ("gemma", "llama", 2)], ids=str)
def pair(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[TransformersBackend, TransformersBackend, str]:
    """A sender with an untrained bridge, its receiver, and the bridge's fingerprint."""
    sender = request.getfixturevalue(request.param[0])
    receiver = request.getfixturevalue(request.param[1])
    card = tiny.make_card(sender.identity, receiver.identity, request.param[2])
    tiny.write_bridge(tmp_path, card)
    return sender, receiver, sender.add_bridge(tmp_path).fingerprint


def payload(model: TransformersBackend, n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    draw = np.random.default_rng(seed)
    scale = model.identity.embedding_rms
    return (draw.standard_normal((n, 4, model.identity.width)) * scale).astype(np.float16)


# -- the trunk ------------------------------------------------------------------------------


def test_a_trunk_gives_the_hidden_states_of_the_whole_model(model: TransformersBackend) -> None:
    ids, _ = model.tokens(RAGGED)
    whole = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    layers = model.identity.layers
    for k in range(1, layers + 1):
        found = trunk(model.model, k)(input_ids=ids, use_cache=False).last_hidden_state
        if k < layers:
            assert torch.equal(found, whole[k]), k
        else:  # the whole model's last states have gone through its final norm
            assert torch.allclose(model.model.model.norm(found), whole[k], atol=1e-6)


def test_a_trunk_runs_no_later_layer_and_no_head(model: TransformersBackend) -> None:
    calls: list[str] = []
    base = model.model.model
    watched = {f"layer {i}": layer for i, layer in enumerate(base.layers)}
    watched |= {"norm": base.norm, "head": model.model.lm_head}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in watched.items()
    ]
    try:
        ids, _ = model.tokens(["a warm film"])
        model.states(trunk(model.model, 2), ids)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == ["layer 0", "layer 1"]


def test_a_trunk_shares_weights_and_does_not_change_the_model(model: TransformersBackend) -> None:
    ids, _ = model.tokens(["a warm film"])
    before = model.model(input_ids=ids).logits
    short = trunk(model.model, 1)
    assert torch.equal(model.model(input_ids=ids).logits, before)
    assert len(model.model.model.layers) == model.identity.layers
    mine = {p.data_ptr() for p in model.model.parameters()}
    assert {p.data_ptr() for p in short.parameters()} <= mine


@pytest.mark.parametrize("layers", [0, -1, 9])
def test_a_missing_layer_is_refused(model: TransformersBackend, layers: int) -> None:
    with pytest.raises(ModelError, match=f"layer {layers} does not exist in a model with") as error:
        trunk(model.model, layers)
    assert error.value.hint


def test_a_model_without_stacked_layers_has_no_trunk() -> None:
    with pytest.raises(ModelError, match="not a decoder of stacked layers"):
        trunk(torch.nn.Sequential(torch.nn.Linear(2, 2)), 1)


# -- results do not depend on the batch -----------------------------------------------------


def test_encode_does_not_depend_on_the_batch(
    pair: tuple[TransformersBackend, TransformersBackend, str],
) -> None:
    sender, receiver, bridge = pair
    texts = [*RAGGED, LONG]
    together = sender.encode(texts, bridge)
    assert together.payload.shape == (len(texts), 4, receiver.identity.width)
    assert together.payload.dtype == np.float16 and together.payload.flags.c_contiguous
    assert together.payload.nbytes == len(texts) * 4 * receiver.identity.width * 2
    assert set(together.stages) == {"tokenize", "encode", "bridge"}
    alone = np.concatenate([sender.encode([text], bridge).payload for text in texts])
    assert np.allclose(together.payload, alone, atol=4e-3)
    low, high = tiny.make_card(sender.identity, receiver.identity, 1).rms_range
    rms = np.sqrt((together.payload.astype(np.float32) ** 2).mean(-1))
    assert ((low < rms) & (rms < high)).all()
    scores = receiver.score_soft(together.payload, TASK).scores
    assert (scores.argmax(-1) == receiver.score_soft(alone, TASK).scores.argmax(-1)).all()


def test_score_soft_does_not_depend_on_the_batch(model: TransformersBackend) -> None:
    soft = payload(model, 7)
    together = model.score_soft(soft, TASK).scores
    alone = np.concatenate([model.score_soft(soft[i : i + 1], TASK).scores for i in range(7)])
    assert np.allclose(together, alone, atol=1e-5)
    assert (together.argmax(-1) == alone.argmax(-1)).all()


def test_score_text_does_not_depend_on_the_batch(model: TransformersBackend) -> None:
    texts = [*RAGGED, LONG]
    together = model.score_text(texts, TASK)
    assert set(together.stages) == {"tokenize", "decode"}
    alone = np.concatenate([model.score_text([text], TASK).scores for text in texts])
    assert np.allclose(together.scores, alone, atol=1e-5)
    assert (together.scores.argmax(-1) == alone.argmax(-1)).all()


def test_generated_texts_do_not_depend_on_the_batch(model: TransformersBackend) -> None:
    texts = [*RAGGED, LONG[:2000]]
    for call in (model.relay, model.generate):
        together = call(texts, TASK)
        assert together.texts == [call([text], TASK).texts[0] for text in texts]
        assert set(together.stages) == {"tokenize", "generate"}
    assert any(model.relay(texts, TASK).texts)


def test_generation_is_greedy(model: TransformersBackend) -> None:
    task = compile_task(model.tokenizer, TASK)
    for text in RAGGED[:3]:
        ids = [*task.before, *text_ids(model.tokenizer, [text], task.glue)[0], *task.after]
        written: list[int] = []
        for _ in range(TASK.max_new_tokens):
            logits = model.model(input_ids=torch.tensor([ids + written])).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == model.tokenizer.eos_token_id:
                break
        expected = model.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert model.generate([text], TASK).texts == [expected]


def test_a_verbatim_relay_is_the_text_itself(model: TransformersBackend) -> None:
    verbatim = TaskSpec("t", "Q:", "{text}", TASK.labels, RelaySpec(""))
    assert model.relay(list(RAGGED), verbatim).texts == list(RAGGED)


# -- scores are those of the whole model ----------------------------------------------------


def test_score_soft_equals_a_full_forward_pass(model: TransformersBackend) -> None:
    soft = payload(model, 3)
    task = compile_task(model.tokenizer, TASK)
    embed = model.model.get_input_embeddings()
    start, prompt = (
        embed(torch.tensor(list(ids)))[None].expand(3, -1, -1)
        for ids in (start_ids(model.tokenizer), task.prompt)
    )
    inputs = torch.cat([start, torch.from_numpy(soft).float(), prompt], dim=1)
    logits = model.model(inputs_embeds=inputs, use_cache=False).logits[:, -1]
    expected = logits[:, list(task.prompt_labels)].log_softmax(-1)
    scores = model.score_soft(soft, TASK).scores
    assert scores.dtype == np.float32
    assert np.allclose(scores, expected.numpy(), atol=1e-5)
    assert np.allclose(np.exp(scores).sum(-1), 1, atol=1e-5)
    assert np.abs(scores[:, 0] - scores[:, 1]).max() > 0.01  # these models do not say nothing


def test_score_text_equals_a_full_forward_pass(model: TransformersBackend) -> None:
    task = compile_task(model.tokenizer, TASK)
    scores = model.score_text(RAGGED, TASK).scores
    for row, text in zip(scores, RAGGED, strict=True):
        ids = [*task.before, *text_ids(model.tokenizer, [text], task.glue)[0], *task.after]
        logits = model.model(input_ids=torch.tensor([ids])).logits[0, -1]
        expected = logits[list(task.text_labels)].log_softmax(-1)
        assert np.allclose(row, expected.numpy(), atol=1e-5)


def test_gradients_reach_the_soft_tokens_and_no_weight(model: TransformersBackend) -> None:
    soft = torch.from_numpy(payload(model, 2)).float().requires_grad_()
    model.logits_from_soft(soft, TASK).sum().backward()
    assert soft.grad is not None and soft.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.model.parameters())


def test_a_read_only_payload_is_accepted(model: TransformersBackend) -> None:
    soft = payload(model, 2)
    frozen = np.frombuffer(soft.tobytes(), np.float16).reshape(soft.shape)
    scores = model.score_soft(frozen, TASK).scores
    assert np.array_equal(scores, model.score_soft(soft, TASK).scores)


def test_a_label_head_equals_the_lm_heads_rows() -> None:
    torch.manual_seed(0)
    last, head = torch.randn(5, 8) * 9, torch.nn.Linear(8, 20)
    index = torch.tensor([3, 17, 4])
    weight, bias = head.weight.detach()[index], head.bias.detach()[index]
    full = head(last).detach()[:, index]
    assert torch.allclose(LabelHead(weight, bias, None)(last), full, atol=1e-5)
    assert torch.allclose(LabelHead(weight, None, None)(last), full - bias, atol=1e-5)
    capped = LabelHead(weight, bias, 2.0)(last)
    assert torch.allclose(capped, 2 * torch.tanh(full / 2), atol=1e-5)
    assert capped.abs().max() <= 2
    half = LabelHead(weight.bfloat16(), None, None)(last.bfloat16())
    assert half.dtype == torch.float32


# -- tasks ----------------------------------------------------------------------------------


def test_tasks_are_compiled_once_and_the_cache_is_bounded(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TransformersBackend.load(tiny.spec("llama", tiny_llama), quiet)
    compiled: list[str] = []
    compile_one = compile_task

    def counted(tokenizer: Any, task: TaskSpec) -> Any:
        compiled.append(task.name)
        return compile_one(tokenizer, task)

    monkeypatch.setattr(backend, "compile_task", counted)
    monkeypatch.setattr(model._tasks, "_limit", 3)
    tasks = [TaskSpec(f"t{i}", f"Question {i}:", "{text}", TASK.labels) for i in range(4)]
    for task in (*tasks[:3], tasks[0], tasks[3], tasks[0], tasks[1]):
        model.prepare(task)
    assert compiled == ["t0", "t1", "t2", "t3", "t1"]  # t1 was the one not used for longest


def test_an_unusable_task_is_refused(model: TransformersBackend) -> None:
    with pytest.raises(ScenarioError):
        model.prepare(TaskSpec("t", "Q:", "no place for it", ("a", "b")))


# -- what a model says of itself ------------------------------------------------------------


def test_embedding_rms_is_that_of_the_layers_input(
    llama: TransformersBackend, gemma: TransformersBackend
) -> None:
    for model, scale in ((llama, 1.0), (gemma, 48**0.5)):
        table = model.model.get_input_embeddings().weight
        expected = float(table.pow(2).mean().sqrt()) * scale
        assert model.identity.embedding_rms == pytest.approx(expected, rel=2e-3)
        seen: list[torch.Tensor] = []
        first = model.model.model.layers[0]
        hook = first.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model.model(input_ids=torch.arange(5, table.shape[0])[None])
        hook.remove()
        assert float(seen[0].pow(2).mean().sqrt()) == pytest.approx(expected, rel=0.05)


def test_identity_names_what_was_loaded(tiny_gemma: Path, gemma: TransformersBackend) -> None:
    known = gemma.identity
    assert (known.width, known.layers, known.dtype, known.device) == (48, 3, "float32", "cpu")
    half = TransformersBackend.load(tiny.spec("g", tiny_gemma, dtype="bfloat16"), quiet)
    assert half.identity.dtype == "bfloat16"
    assert half.identity.fingerprint == known.fingerprint
    assert half.score_soft(payload(half, 2), TASK).scores.dtype == np.float32


def test_a_bridge_runs_in_fp32_behind_a_sender_in_bf16(
    tiny_llama: Path, gemma: TransformersBackend, tmp_path: Path
) -> None:
    sender = TransformersBackend.load(tiny.spec("l", tiny_llama, dtype="bfloat16"), quiet)
    tiny.write_bridge(tmp_path, tiny.make_card(sender.identity, gemma.identity, 2))
    encoded = sender.encode(RAGGED, sender.add_bridge(tmp_path).fingerprint)
    assert np.isfinite(encoded.payload).all()


# -- texts of all kinds ---------------------------------------------------------------------


def test_senders_input_is_one_start_token_and_the_text(model: TransformersBackend) -> None:
    ids, mask = model.tokens(["x", "a warm film", "", LONG])
    assert ids.shape == (4, 1 + MAX_TEXT_TOKENS)
    assert (ids[:, 0] == model.tokenizer.bos_token_id).all()
    assert mask.shape == (4, MAX_TEXT_TOKENS)
    assert mask.sum(1).tolist()[2:] == [1, MAX_TEXT_TOKENS]


def test_the_bridge_does_not_see_the_start_token(model: TransformersBackend) -> None:
    ids, mask = model.tokens(["a warm film"])
    short = trunk(model.model, 2)
    whole = short(input_ids=ids).last_hidden_state
    states = model.states(short, ids)
    assert states.shape[1] == mask.shape[1] == ids.shape[1] - 1
    assert torch.equal(states, whole[:, 1:])


# -- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sender": {"fingerprint": "f" * 64}}, "not the weights"),
        ({"sender": {"width": 33}}, "of width 33"),
        ({"sender": {"layers": 9}}, "9 layers"),
    ],
)
def test_a_bridge_for_another_sender_is_refused(
    llama: TransformersBackend,
    gemma: TransformersBackend,
    tmp_path: Path,
    changes: dict[str, dict[str, Any]],
    words: str,
) -> None:
    card = tiny.make_card(llama.identity, gemma.identity, 2)
    other = card.sender.model_copy(update=changes["sender"])
    tiny.write_bridge(tmp_path, card.model_copy(update={"sender": other}))
    with pytest.raises(BridgeError, match=words) as error:
        llama.add_bridge(tmp_path)
    assert error.value.hint


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "gpu", "cuda:x"])
def test_a_missing_device_is_refused(
    tiny_llama: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError) as error:
        TransformersBackend.load(tiny.spec("a", tiny_llama, device=device), quiet)
    assert error.value.hint


@pytest.fixture
def broken(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama to spoil."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in tiny_llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def spoil_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')


def spoil_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 7}')


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    torch.save({"x": torch.zeros(2)}, folder / "pytorch_model.bin")
    lose_weights(folder)


def one_tensor_less(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def one_tensor_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        spoil_config,
        spoil_kind,
        spoil_tokenizer,
        lose_weights,
        pickled_weights,
        one_tensor_less,
        one_tensor_of_another_shape,
    ],
)
def test_a_broken_model_folder_is_refused(broken: Path, spoil: Any) -> None:
    spoil(broken)
    with pytest.raises(ModelError) as error:
        TransformersBackend.load(tiny.spec("a", broken), quiet)
    assert error.value.hint
    assert "\n" not in error.value.message


def test_missing_weights_are_reported(tiny_llama: Path, tmp_path: Path) -> None:
    for folder in (None, str(tmp_path / "nowhere")):
        with pytest.raises(ModelError):
            TransformersBackend.load(tiny.spec("a", tiny_llama, folder=folder), quiet)


def test_loading_reports_its_stages(tiny_llama: Path) -> None:
    told: list[tuple[str, float]] = []
    TransformersBackend.load(tiny.spec("a", tiny_llama), lambda *news: told.append(news))
    assert told[-1] == ("ready", 1.0)
    assert [f for _, f in told] == sorted(f for _, f in told)


def test_a_model_without_start_token_or_words_before_the_text(llama: TransformersBackend) -> None:
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.bos_token = tokenizer.chat_template = None
    assert start_ids(tokenizer) == []
    model = TransformersBackend(llama.model, tokenizer, llama.identity, llama.device)
    task = TaskSpec("t", "Q:", "{text}", TASK.labels, RelaySpec("{text}", 3), 3)
    for call in (model.score_text, model.relay, model.generate):
        call(["a warm film", ""], task)
    assert model.score_soft(payload(model, 2), task).scores.shape == (2, 2)
    ids, _ = model.tokens(["x"])
    assert ids[0, 0] == tokenizer.pad_token_id  # the bridge's first token is still no word


def test_a_task_that_was_scored_can_be_trained_for(llama: TransformersBackend) -> None:
    task = TaskSpec("new", "Anew:", "{text}", TASK.labels)
    llama.score_soft(payload(llama, 1), task)
    soft = torch.from_numpy(payload(llama, 2)).float().requires_grad_()
    llama.logits_from_soft(soft, task).sum().backward()
    assert soft.grad is not None


def test_the_prefix_cache_is_bounded(tiny_gemma: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TransformersBackend.load(tiny.spec("g", tiny_gemma), quiet)
    made: list[int] = []
    monkeypatch.setattr(model._texts._prefixes, "_limit", 2)
    monkeypatch.setattr(
        text_reader, "Prefix", lambda owner, ids: made.append(len(ids)) or Prefix(owner, ids)
    )
    tasks = [TaskSpec("t", "Q:", f"{i} {{text}}", TASK.labels) for i in range(3)]
    scores = [model.score_text(RAGGED, task).scores for task in tasks]
    assert len(made) == 3
    assert np.array_equal(model.score_text(RAGGED, tasks[2]).scores, scores[2])
    assert len(made) == 3
    assert np.array_equal(model.score_text(RAGGED, tasks[0]).scores, scores[0])
    assert len(made) == 4


def test_threads_may_change_before_every_layer(tiny_llama: Path) -> None:
    model = TransformersBackend.load(tiny.spec("llama", tiny_llama), quiet).for_inference()
    before = torch.get_num_threads()
    expected = model.score_text(RAGGED, TASK).scores
    wanted = [1, 2]
    used: list[int] = []

    def threads() -> int:
        wanted.reverse()
        return wanted[0]

    try:
        model.set_thread_source(threads)
        for layer in model.model.model.layers:
            layer.mlp.register_forward_hook(lambda *_: used.append(torch.get_num_threads()))
        scores = model.score_text(RAGGED, TASK).scores
    finally:
        torch.set_num_threads(before)
    assert used[:4] == [2, 1, 2, 1]
    assert np.allclose(scores, expected, atol=1e-5)
