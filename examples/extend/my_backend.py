"""A backend that counts words. It has no weights; its soft token is the mood of the text."""

from hashlib import sha256

import numpy as np

from agentwire.model.backend import Encoded, Scored
from agentwire.spec.backends import BackendKind, SyntheticBridges
from agentwire.wire.messages import BridgeIdentity, ModelIdentity

WIDTH, MOODS = 8, {"warm": 1, "moving": 1, "dull": -1, "empty": -1}


def fingerprint(*names):
    return sha256(" ".join(names).encode()).hexdigest()


def mood(text):
    return 1 if sum(MOODS.get(word, 0) for word in text.lower().split()) > 0 else -1


class WordCounter:
    def __init__(self, spec, progress):
        sha = fingerprint(spec.model)
        self.identity = ModelIdentity(spec.model, sha, WIDTH, 1, 1.0, "float32", "cpu")

    def add_bridge(self, folder):
        name, me = folder.name, self.identity
        ends = me.fingerprint, fingerprint(name.removeprefix("words:"))
        sizes = 1, 1, WIDTH  # layer, soft tokens, width
        return BridgeIdentity(name, fingerprint(me.name, name), *ends, *sizes, ("any",), (0.5, 2.0))

    def prepare(self, task): ...

    def encode(self, texts, bridge):
        rows = [np.full((1, WIDTH), mood(text), np.float16) for text in texts]
        return Encoded(np.stack(rows), {"encode": 0.0})

    def score_soft(self, payload, task):
        return self._scored(payload.mean(axis=(1, 2)))

    def score_text(self, texts, task):
        return self._scored([mood(text) for text in texts])

    def _scored(self, moods):
        scores = [[-0.1, -2.4] if mood < 0 else [-2.4, -0.1] for mood in moods]
        return Scored(np.array(scores, np.float32), {"decode": 0.0})


KIND = BackendKind(
    load=WordCounter,
    summary="a word counter",
    needs_weights=False,
    uses_gpu=False,
    fingerprint=fingerprint,
    bridges=SyntheticBridges("words:", fingerprint),
)
