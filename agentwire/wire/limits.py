"""How large each part of a message may be; docs/protocol.md lists the values."""

from __future__ import annotations

from dataclasses import dataclass

SCORE_BYTES = 4  # fp32


@dataclass(frozen=True, slots=True)
class Limits:
    """How large each part of a message may be. Counts, or bytes where the name says so."""

    header_bytes: int = 4 * 1024
    rows_bytes: int = 544 * 1024  # 256 rows of at most 48 bytes and a question
    rows: int = 256
    question_bytes: int = 2 * 1024
    text_row_bytes: int = 256 * 1024
    text_bytes: int = 16 * 1024 * 1024
    payload_bytes: int = 64 * 1024 * 1024
    hello_bytes: int = 4 * 1024
    define_bytes: int = 64 * 1024
    offer_bytes: int = 64 * 1024
    soft_tokens: int = 512
    sizes: int = 16
    width: int = 65_536
    layers: int = 1024
    labels: int = 4096
    label_bytes: int = 256
    stops: int = 8
    prompts: int = 256
    prompt_bytes: int = 32 * 1024
    new_tokens: int = 65_536
    name_bytes: int = 64
    wire_bytes: int = 160
    model_name_bytes: int = 512
    token_bytes: int = 128
    reason_bytes: int = 512
    stages: int = 16
    stage_bytes: int = 32
    versions: int = 16

    @property
    def frame_bytes(self) -> int:
        """Largest frame of any message: a transport may refuse larger ones."""
        scores = self.rows * self.labels * SCORE_BYTES
        return max(self.payload_bytes, self.text_bytes, scores)


LIMITS = Limits()
