"""The fake backend: a deterministic model without weights, with faults on demand.

Everything above it (agent, bus, runtime, runner) runs with it as with a language model, in
milliseconds. Its guarantees:

* The answer depends on the text alone, so lost, swapped and shuffled rows show.
* Soft tokens carry what the answer needs: the signs of their first 32 values hold a hash of the
  text. So ``score_soft(encode(text))`` equals ``score_text(text)`` bit for bit.
* Results do not depend on the batch.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from numpy.random import default_rng

from agentwire.bridge.card import read_card
from agentwire.bridge.shape import size_for
from agentwire.errors import BridgeError, ScenarioError
from agentwire.model.backend import PLAIN, Asked, Encoded, Generated, Job, Scored, Watch
from agentwire.model.timing import ms_since
from agentwire.spec.agent import FakeModel
from agentwire.task.transcript import parse_chat
from agentwire.wire.messages import FREE_TEXT, BridgeIdentity, ModelIdentity, TaskSpec

T = TypeVar("T")
Made = TypeVar("Made", Encoded, Scored)

HASH_BITS = 32
SOFT_TOKENS = 8
BRIDGE_PREFIX = "fake:"
"""``fake:<receiver's model>`` in place of a folder is a fake bridge for any prompt;
``fake:<receiver's model>:<prompt hash>`` knows one prompt only; ``fake:<receiver's model>:reader``
answers any question, with ``READER_SIZES`` soft tokens."""
READER_SIZES = (8, 16, 32)


def fingerprint(model: str) -> str:
    return hashlib.sha256(f"fake model {model}".encode()).hexdigest()


def bridge_fingerprint(sender: str, folder: str) -> str:
    return hashlib.sha256(f"{sender} {folder}".encode()).hexdigest()


def text_hash(text: str) -> int:
    """The 32 bits that determine an answer."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def label_scores(digest: int, labels: int) -> npt.NDArray[np.float32]:
    logits = default_rng(digest).normal(scale=2.0, size=labels)
    logits -= logits.max()
    scores: npt.NDArray[np.float32] = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
    return scores


def answer(text: str, labels: Sequence[str]) -> str:
    """The label that every fake model answers for ``text``."""
    return labels[int(label_scores(text_hash(text), len(labels)).argmax())]


def joint_answer(texts: Sequence[str], labels: Sequence[str]) -> str:
    """A fake model's answer to the soft tokens of several texts, in this order."""
    digest = _combined([text_hash(text) for text in texts])
    return labels[int(label_scores(digest, len(labels)).argmax())]


def confidence(answer: str) -> float:
    """A fake model's confidence in an answer from soft tokens: -0.999 to 0."""
    return -(text_hash(answer) % 1000) / 1000


def _combined(digests: Sequence[int]) -> int:
    """One hash of several texts, which depends on their order."""
    return digests[0] if len(digests) == 1 else text_hash(" ".join(map(str, digests)))


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error, which this module cannot import."""


class FakeBackend:
    """A fake language model behind the ``Backend`` protocol.

    Faults fire on texts that contain the trigger. With soft tokens, where the text is not visible,
    they fire on the payload of exactly that text.
    """

    def __init__(self, name: str, settings: FakeModel, device: str = "cpu") -> None:
        self._settings = settings
        self.identity = ModelIdentity(
            name=name,
            fingerprint=fingerprint(name),
            width=settings.width,
            layers=settings.layers,
            embedding_rms=1.0,
            dtype="float32",
            device=device,
        )
        self._bridges: dict[str, BridgeIdentity] = {}

    def add_bridge(self, folder: Path) -> BridgeIdentity:
        """Accepts a fake bridge, or a real bridge's folder of which it reads only the card."""
        identity = (
            self._fake_bridge(folder.name)
            if folder.name.startswith(BRIDGE_PREFIX)
            else read_card(folder).identity()
        )
        if identity.sender != self.identity.fingerprint:
            raise BridgeError(
                f"The bridge {identity.name} is not for the sender {self.identity.name}.",
                hint="Train one for this pair with `agentwire train`.",
            )
        self._bridges[identity.fingerprint] = identity
        return identity

    def _fake_bridge(self, name: str) -> BridgeIdentity:
        _, receiver, *prompts = name.split(":")
        reader = prompts == ["reader"]
        return BridgeIdentity(
            name=f"{self.identity.name}--{receiver}",
            fingerprint=bridge_fingerprint(self.identity.name, name),
            sender=self.identity.fingerprint,
            receiver=fingerprint(receiver),
            layer=max(1, self.identity.layers // 2),
            soft_tokens=READER_SIZES[-1] if reader else SOFT_TOKENS,
            width=self.identity.width,
            prompts=("any", FREE_TEXT) if reader else tuple(prompts) or ("any",),
            rms_range=(0.5, 2.0),
            sizes=READER_SIZES if reader else (),
        )

    def add_reader(self, folder: Path) -> BridgeIdentity:
        """Reads only the card."""
        card = read_card(folder)
        if card.receiver.fingerprint != self.identity.fingerprint:
            raise BridgeError(
                f"The bridge {card.name} is not for the receiver {self.identity.name}.",
                hint="Train one for this pair with `agentwire train`.",
            )
        return card.identity()

    def prepare(self, task: TaskSpec) -> None:
        if len(set(task.labels)) != len(task.labels):
            raise ScenarioError(
                f"The labels of {task.name} are not distinct.", hint="Give each class its own word."
            )

    def encode(self, texts: Sequence[str], bridge: str, soft_tokens: int = 0) -> Encoded:
        """Soft tokens with RMS 1. A word counts as a token."""
        start = time.perf_counter()
        self._faults(texts)
        time.sleep(self._settings.encode_ms / 1000)
        identity = self._bridges[bridge]
        m, d = identity.soft_tokens, identity.width
        sizes = [soft_tokens or m] * len(texts)
        if identity.sizes:
            sizes = [soft_tokens or size_for(identity.sizes, len(t.split())) for t in texts]
        payload = np.zeros((len(texts), max(sizes) * d), dtype=np.float16)
        for row, text, size in zip(payload, texts, sizes, strict=True):
            row[: size * d] = self._soft_tokens(text, size * d)
        stages = {"tokenize": 0.0, "encode": ms_since(start), "bridge": 0.0}
        given = sizes if identity.sizes else ()
        return Encoded(payload.reshape(len(texts), -1, d), stages, sizes=given)

    def _soft_tokens(self, text: str, size: int) -> npt.NDArray[np.float16]:
        digest = text_hash(text)
        values = default_rng(digest).uniform(0.5, 1.5, size)
        values /= np.sqrt((values**2).mean())
        bits = (digest >> np.arange(HASH_BITS)) & 1
        values[:HASH_BITS] *= 1 - 2 * bits
        if self._settings.nan_on and self._settings.nan_on in text:
            values[-1] = np.nan
        return values.astype(np.float16)

    def score_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        asked: Asked = PLAIN,
    ) -> Scored:
        start = time.perf_counter()
        digests = _digests(payload)
        self._check_faults(len(digests), lambda trigger: text_hash(trigger) in digests)
        time.sleep(self._settings.decode_ms / 1000)
        about = _about(digests, asked)
        scores = np.stack([label_scores(d, len(task.labels)) for d in about])
        read = [(payload.shape[1] + len(task.prompt.split()), 1)] * len(payload)
        return Scored(scores, {"decode": ms_since(start)}, read)

    def score_text(self, texts: Sequence[str], task: TaskSpec, asked: Asked = PLAIN) -> Scored:
        start = time.perf_counter()
        self._faults(texts)
        time.sleep(self._settings.decode_ms / 1000)
        about = _about(list(map(text_hash, texts)), asked)
        scores = np.stack([label_scores(d, len(task.labels)) for d in about])
        read = [(len(t.split()) + len(task.prompt.split()), 1) for t in texts]
        return Scored(scores, {"tokenize": 0.0, "decode": ms_since(start)}, read)

    def relay(self, texts: Sequence[str], task: TaskSpec) -> Generated:
        """The texts, or the first words of each for a summary."""
        start = time.perf_counter()
        if task.relay.verbatim:
            return Generated(list(texts), {"tokenize": 0.0, "generate": 0.0})
        self._faults(texts)
        time.sleep(self._settings.encode_ms / 1000)
        short = [" ".join(text.split()[: task.relay.max_new_tokens]) for text in texts]
        return Generated(short, {"tokenize": 0.0, "generate": ms_since(start)})

    def generate(
        self,
        texts: Sequence[str],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        """``<model>: <text> <question>``, cut to the task's length in words. Of a chat, the last
        message."""
        self._faults(texts)
        chat = task.form == "chat"
        said = [parse_chat(text)[-1].content for text in texts] if chat else texts
        read = [len(text.split()) for text in texts]
        pairs = zip(said, asked.of_rows(len(said)), strict=True)
        answers = [f"{self.identity.name}: {text} {asks}".rstrip() for text, asks in pairs]
        return self._write(answers, read, task, watch)

    def generate_soft(
        self,
        payload: npt.NDArray[np.float16],
        task: TaskSpec,
        watch: Watch | None = None,
        asked: Asked = PLAIN,
    ) -> Generated:
        """``<model>: soft <hash of the text> <question>``."""
        pairs = zip(_digests(payload), asked.of_rows(len(payload)), strict=True)
        name = self.identity.name
        answers = [f"{name}: soft {digest:08x} {asks}".rstrip() for digest, asks in pairs]
        read = [payload.shape[1] + len(task.prompt.split())] * len(payload)
        written = self._write(answers, read, task, watch)
        return replace(written, confidence=list(map(confidence, answers)) if asked else ())

    def _write(
        self, answers: Sequence[str], read: Sequence[int], task: TaskSpec, watch: Watch | None
    ) -> Generated:
        """Reports each answer word by word."""
        start = time.perf_counter()
        time.sleep(self._settings.decode_ms / 1000)
        written, counts = [], []
        for row, answer in enumerate(answers):
            limit = max(1, task.max_new_tokens)
            ends = [match.end() for match in re.finditer(r"\S+", answer)][:limit]
            text = answer[: ends[-1]]
            stops = [(text.find(stop), stop) for stop in task.decoding.stop if stop in text]
            place, stop = min(stops, default=(len(text), ""))
            words = text[:place].split()
            # As real models count: without the word that completes the stop string.
            count = sum(end < place + len(stop) for end in ends) if stop else len(words)
            for place, word in enumerate(words):
                time.sleep(self._settings.token_ms / 1000)
                if watch is not None and not watch(row, f" {word}" if place else word):
                    words = words[: place + 1]
                    break
            written.append(words)
            counts.append((read[row], count))
        stages = {"tokenize": 0.0, "generate": ms_since(start)}
        return Generated([" ".join(words) for words in written], stages, counts)

    def _faults(self, texts: Sequence[str]) -> None:
        self._check_faults(len(texts), lambda trigger: any(trigger in text for text in texts))

    def _check_faults(self, rows: int, present: Callable[[str], bool]) -> None:
        """Fails as the settings say if a trigger is present in a batch of this many rows."""
        settings = self._settings

        def fires(trigger: str) -> bool:
            return bool(trigger) and present(trigger)

        if (settings.memory_rows and rows > settings.memory_rows) or fires(settings.memory_on):
            raise OutOfMemoryError("CUDA out of memory. The fake device tried to allocate a lot.")
        if fires(settings.crash_on):
            os.kill(os.getpid(), signal.SIGKILL)
        if fires(settings.raise_on):
            raise RuntimeError("the fake model raises on this batch")
        while fires(settings.hang_on):
            time.sleep(60)


def _digests(payload: npt.NDArray[np.float16]) -> list[int]:
    """The hashes in the signs of n payloads, each of one or more texts."""
    texts = max(1, payload.shape[1] // SOFT_TOKENS)
    signs = payload.reshape(len(payload), texts, -1)[:, :, :HASH_BITS] < 0
    weights = 1 << np.arange(HASH_BITS, dtype=np.uint64)
    rows = (signs * weights).sum(axis=2)
    # A reader's payload may be larger than one text needs; the rest has no signs.
    return [_combined([int(d) for d in row if d] or [0]) for row in rows]


def _about(digests: Sequence[int], asked: Asked) -> list[int]:
    """Hashes of texts with what is asked about them."""
    if not asked.questions:
        return list(digests)
    pairs = zip(digests, asked.questions, strict=True)
    return [text_hash(f"{digest} {asks}") if asks else digest for digest, asks in pairs]


class FakeJob(Job[T]):
    """A batch that is done at a monotonic time in seconds."""

    def __init__(self, end: float, made: T) -> None:
        self._end = end
        self._made = made

    def done(self) -> bool:
        return time.monotonic() >= self._end

    def wait(self) -> None:
        time.sleep(max(0.0, self._end - time.monotonic()))

    def result(self) -> T:
        self.wait()
        return self._made


class FakeDevice:
    """A fake model that is also ``Pipelined``: its delays pass on a device, batch after batch.

    It stands in for a GPU, so that the agent's pipeline can be tested, and the time that processes
    and bus add can be measured, where there is no GPU (``bench/hops.py``).
    """

    def __init__(self, name: str, settings: FakeModel, device: str = "cpu") -> None:
        # The delays belong to the device; this thread computes without them.
        undelayed = settings.model_copy(update={"encode_ms": 0.0, "decode_ms": 0.0})
        model = FakeBackend(name, undelayed, device)
        self.identity, self.add_bridge = model.identity, model.add_bridge
        self.add_reader = model.add_reader
        self.prepare, self.encode = model.prepare, model.encode
        self.score_soft, self.score_text = model.score_soft, model.score_text
        self.relay, self.generate = model.relay, model.generate
        self.generate_soft = model.generate_soft
        self._encode_ms, self._decode_ms = settings.encode_ms, settings.decode_ms
        self._free_at = 0.0
        self._counts: Counter[str] = Counter()

    def begin_encode(self, texts: Sequence[str], bridge: str) -> Job[Encoded]:
        stages = {"encode": self._encode_ms}
        return self._begin("encode", stages, lambda: self.encode(texts, bridge))

    def begin_score_soft(self, payload: npt.NDArray[np.float16], task: TaskSpec) -> Job[Scored]:
        stages = {"decode": self._decode_ms}
        return self._begin("soft", stages, lambda: self.score_soft(payload, task))

    def begin_score_text(self, texts: Sequence[str], task: TaskSpec) -> Job[Scored]:
        stages = {"decode": self._decode_ms}
        return self._begin("text", stages, lambda: self.score_text(texts, task))

    def summary(self) -> str:
        return ", ".join(f"{what} {count}" for what, count in sorted(self._counts.items()))

    def _begin(
        self, what: str, stages: dict[str, float], make: Callable[[], Made]
    ) -> FakeJob[Made]:
        """Makes the answer at once; the job is done when the device's time has passed."""
        self._counts[what] += 1
        begin = max(self._free_at, time.monotonic())
        self._free_at = begin + sum(stages.values()) / 1000
        return FakeJob(self._free_at, replace(make(), stages=stages))
