"""A method, in which the receiver reads only the first words, and a baseline without any model."""

from zlib import crc32

import torch

from agentwire.evaluation.methods import MethodSpec
from agentwire.training.baselines.baseline import Baseline, Fitted, receiver_model

WORDS, BUCKETS = 5, 4096


async def send_first_words(runtime, resolved, texts):
    short = [" ".join(text.split()[:WORDS]) for text in texts]
    return await runtime.direct_batch(resolved.wire.spec.receiver, short)


def count_words(texts):
    counts = torch.zeros(len(texts), BUCKETS)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            counts[row, crc32(word.encode()) % BUCKETS] += 1
    return counts


def fit(context):  # naive Bayes
    rows = context.rows.rows
    counts, labels = count_words([row.text for row in rows]), [row.label for row in rows]
    of_class = torch.ones(context.classes, BUCKETS).index_add(0, torch.tensor(labels), counts)
    return Fitted({"log": (of_class / of_class.sum(1, keepdim=True)).log()})


def answer(context, fitted, texts):
    return count_words(texts) @ fitted.tensors["log"].T


def describe(resolved):
    return f"{receiver_model(resolved)} reads the first {WORDS} words"


FIRST_WORDS = MethodSpec("first_words", "first words", describe, send_first_words)
BAG_OF_WORDS = Baseline("bag of words", lambda resolved: "naive Bayes", fit, answer)
