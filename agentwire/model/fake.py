"""The fake backend: a deterministic model without weights, and with faults on demand.

A real provider, not a mock: everything above it (agent, bus, runtime, runner) runs against it as
against a language model, in milliseconds. What it promises:

* The answer depends on the text alone, so lost, swapped and shuffled rows show.
* Soft tokens carry what the answer needs (a hash of the text in the signs of the first 32
  values), so ``score_soft(encode(text))`` equals ``score_text(text)``, bit for bit.
* Results do not depend on the batch.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agentwire.bridge.card import read_card
from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.backend import Encoded, Generated, ReportProgress, Scored, Watch
from agentwire.model.chat import parse_chat
from agentwire.spec.agent import AgentSpec, FakeModel
from agentwire.wire.messages import BridgeIdentity, ModelIdentity, TaskSpec

HASH_BITS = 32
SOFT_TOKENS = 8
BRIDGE_PREFIX = "fake:"
"""A bridge folder ``fake:<receiver's model>`` is a fake bridge for any prompt; with
``fake:<receiver's model>:<prompt hash>`` it knows that one prompt only."""


def fingerprint(model: str) -> str:
    """Fingerprint of the fake model with this name."""
    return hashlib.sha256(f"fake model {model}".encode()).hexdigest()


def bridge_fingerprint(sender: str, folder: str) -> str:
    """Fingerprint of the fake bridge ``folder`` of the fake model ``sender``."""
    return hashlib.sha256(f"{sender} {folder}".encode()).hexdigest()


def text_hash(text: str) -> int:
    """The 32 bits that an answer depends on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def label_scores(digest: int, labels: int) -> npt.NDArray[np.float32]:
    """Log-probabilities [L] for a text with this hash."""
    logits = np.random.default_rng(digest).normal(scale=2.0, size=labels)
    logits -= logits.max()
    scores: npt.NDArray[np.float32] = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    return scores


def answer(text: str, labels: Sequence[str]) -> str:
    """The label that every fake model answers for ``text``."""
    return labels[int(label_scores(text_hash(text), len(labels)).argmax())]


def joint_answer(texts: Sequence[str], labels: Sequence[str]) -> str:
    """What a fake model answers to the soft tokens of several texts, in this order."""
    digest = _combined([text_hash(text) for text in texts])
    return labels[int(label_scores(digest, len(labels)).argmax())]


def _combined(digests: Sequence[int]) -> int:
    """The hash of one text, or one that depends on all and on their order."""
    return digests[0] if len(digests) == 1 else text_hash(" ".join(map(str, digests)))


class OutOfMemoryError(RuntimeError):
    """Named and worded as torch's, which a backend without torch cannot raise."""


class FakeBackend:
    """A fake language model behind the ``Backend`` protocol.

    Args:
        name: of the model; its fingerprint is derived from it.
        settings: sizes, delays and faults.
        device: what the identity says.

    Faults fire on texts that hold the trigger; a receiver that gets soft tokens cannot see the
    text, so there they fire on the payload of exactly that text.
    """

    def __init__(self, name: str, settings: FakeModel, device: str = "cpu") -> None:
        self._settings = settings
        self._identity = ModelIdentity(
            name=name,
            fingerprint=fingerprint(name),
            width=settings.width,
            layers=settings.layers,
            embedding_rms=1.0,
            dtype="float32",
            device=device,
        )
        self._bridges: dict[str, BridgeIdentity] = {}

    @classmethod
    def load(cls, spec: AgentSpec, progress: ReportProgress) -> FakeBackend:
        """Builds the backend of ``spec``, as slowly as ``spec.fake.load_ms`` asks for."""
        steps = 4
        for step in range(steps):
            progress("load", step / steps)
            time.sleep(spec.fake.load_ms / 1000 / steps)
        progress("load", 1.0)
        return cls(spec.model, spec.fake, spec.device)

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Takes a fake bridge (``fake:<model>[:<prompt hash>]``) or a real one's card.

        Raises:
            BridgeError: the folder has no readable card, or it was made for another sender.
        """
        identity = (
            self._fake_bridge(folder.name)
            if folder.name.startswith(BRIDGE_PREFIX)
            else (read_card(folder).identity())
        )
        if identity.sender != self._identity.fingerprint:
            raise BridgeError(
                f"The bridge {identity.name} was made for another sender than "
                f"{self._identity.name}.",
                hint="Train one for this pair with `agentwire train`.",
            )
        self._bridges[identity.fingerprint] = identity
        return identity

    def _fake_bridge(self, name: str) -> BridgeIdentity:
        _, receiver, *prompts = name.split(":")
        return BridgeIdentity(
            name=f"{self._identity.name}--{receiver}",
            fingerprint=bridge_fingerprint(self._identity.name, name),
            sender=self._identity.fingerprint,
            receiver=fingerprint(receiver),
            layer=max(1, self._identity.layers // 2),
            soft_tokens=SOFT_TOKENS,
            width=self._identity.width,
            prompts=tuple(prompts) or ("any",),
            rms_range=(0.5, 2.0),
        )

    def prepare(self, task: TaskSpec) -> None:
        """Checks the labels.

        Raises:
            ScenarioError: two labels are the same.
        """
        if len(set(task.labels)) != len(task.labels):
            raise ScenarioError(
                f"The labels of {task.name} are not distinct.",
                hint="Give each class a word of its own.",
            )

    def encode(self, texts: Sequence[str], bridge: str) -> Encoded:
        """Soft tokens, float16 [n, M, d], of RMS 1."""
        start = time.perf_counter()
        self._faults(texts)
        time.sleep(self._settings.encode_ms / 1000)
        identity = self._bridges[bridge]
        shape = (len(texts), identity.soft_tokens, identity.width)
        payload = np.stack([self._soft_tokens(t, shape[1] * shape[2]) for t in texts])
        stages = {"tokenize": 0.0, "encode": _ms_since(start), "bridge": 0.0}
        return Encoded(payload.reshape(shape), stages)

    def _soft_tokens(self, text: str, size: int) -> npt.NDArray[np.float16]:
        digest = text_hash(text)
        values = np.random.default_rng(digest).uniform(0.5, 1.5, size)
        values /= np.sqrt((values**2).mean())
        bits = (digest >> np.arange(HASH_BITS)) & 1
        values[:HASH_BITS] *= 1 - 2 * bits
        if self._settings.nan_on and self._settings.nan_on in text:
            values[-1] = np.nan
        return values.astype(np.float16)

    def score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Scored:
        """Label scores, float32 [n, L], from the hash that the signs carry."""
        start = time.perf_counter()
        digests = _digests(payload)
        settings = self._settings
        self._allocate(len(digests), text_hash(settings.memory_on) in digests)
        if settings.crash_on and text_hash(settings.crash_on) in digests:
            _crash()
        if settings.raise_on and text_hash(settings.raise_on) in digests:
            raise RuntimeError("the fake model was told to raise on this payload")
        if settings.hang_on and text_hash(settings.hang_on) in digests:
            _hang()
        time.sleep(settings.decode_ms / 1000)
        scores = np.stack([label_scores(d, len(task.labels)) for d in digests])
        read = [(payload.shape[1] + len(task.prompt.split()), 1)] * len(payload)
        return Scored(scores, {"decode": _ms_since(start)}, read)

    def score_text(self, texts: Sequence[str], task: TaskSpec) -> Scored:
        """Label scores, float32 [n, L], from the hashes of the texts."""
        start = time.perf_counter()
        self._faults(texts)
        time.sleep(self._settings.decode_ms / 1000)
        scores = np.stack([label_scores(text_hash(t), len(task.labels)) for t in texts])
        read = [(len(t.split()) + len(task.prompt.split()), 1) for t in texts]
        return Scored(scores, {"tokenize": 0.0, "decode": _ms_since(start)}, read)

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        """The texts themselves, or the first words of each where the task asks for a summary."""
        start = time.perf_counter()
        if task.relay.verbatim:
            return Generated(list(texts), {"tokenize": 0.0, "generate": 0.0})
        self._faults(texts)
        time.sleep(self._settings.encode_ms / 1000)
        short = [" ".join(text.split()[: task.relay.max_new_tokens]) for text in texts]
        return Generated(short, {"tokenize": 0.0, "generate": _ms_since(start)})

    def generate(
        self, texts: Sequence[str], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        """``<model>: <text>``, cut to the task's length in words; of a chat, its last message."""
        self._faults(texts)
        said = texts
        if task.form == "chat":
            said = [parse_chat(text)[-1].content for text in texts]
        read = [len(text.split()) for text in texts]
        return self._write([f"{self._identity.name}: {text}" for text in said], read, task, watch)

    def generate_soft(
        self, payload: npt.NDArray[np.float16], task: TaskSpec, watch: Watch | None = None
    ) -> Generated:
        """``<model>: soft <hash of the text>``."""
        answers = [f"{self._identity.name}: soft {digest:08x}" for digest in _digests(payload)]
        read = [payload.shape[1] + len(task.prompt.split())] * len(payload)
        return self._write(answers, read, task, watch)

    def _write(
        self, answers: Sequence[str], read: Sequence[int], task: TaskSpec, watch: Watch | None
    ) -> Generated:
        """Says each answer word by word, as a language model says it token by token."""
        start = time.perf_counter()
        time.sleep(self._settings.decode_ms / 1000)
        written = []
        for row, text in enumerate(answers):
            for stop in task.decoding.stop:
                text = text.split(stop)[0]
            words = text.split()[: max(1, task.max_new_tokens)]
            for place, word in enumerate(words):
                time.sleep(self._settings.token_ms / 1000)
                if watch is not None and not watch(row, f" {word}" if place else word):
                    words = words[: place + 1]
                    break
            written.append(words)
        counts = [(n, len(words)) for n, words in zip(read, written, strict=True)]
        stages = {"tokenize": 0.0, "generate": _ms_since(start)}
        return Generated([" ".join(words) for words in written], stages, counts)

    def _allocate(self, rows: int, full: bool) -> None:
        most = self._settings.memory_rows
        if (most and rows > most) or (full and self._settings.memory_on):
            raise OutOfMemoryError("CUDA out of memory. The fake device tried to allocate a lot.")

    def _faults(self, texts: Sequence[str]) -> None:
        settings = self._settings
        full = bool(settings.memory_on) and any(settings.memory_on in text for text in texts)
        self._allocate(len(texts), full)
        for text in texts:
            if settings.crash_on and settings.crash_on in text:
                _crash()
            if settings.raise_on and settings.raise_on in text:
                raise RuntimeError("the fake model was told to raise on this text")
            if settings.hang_on and settings.hang_on in text:
                _hang()


def _digests(payload: npt.NDArray[np.float16]) -> list[int]:
    """The hashes that the signs of n payloads carry; each may be of several texts."""
    texts = max(1, payload.shape[1] // SOFT_TOKENS)
    signs = payload.reshape(len(payload), texts, -1)[:, :, :HASH_BITS] < 0
    weights = 1 << np.arange(HASH_BITS, dtype=np.uint64)
    return [_combined([int(d) for d in row]) for row in (signs * weights).sum(axis=2)]


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    while True:
        time.sleep(60)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
