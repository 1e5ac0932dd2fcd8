"""The messages that freeze the wire, and the script that writes them to tests/golden/.

    python tests/wire/golden_messages.py              writes the files that are missing
    python tests/wire/golden_messages.py --overwrite  writes all: only with a new protocol version
    python tests/wire/golden_messages.py --docs       prints them as docs/protocol.md shows them

A file holds the three frames, each after its length as a little-endian 32-bit integer.
"""

from __future__ import annotations

import struct
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

from agentwire.errors import NackCode
from agentwire.wire import messages as m
from agentwire.wire.codec import encode

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
RUN = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
WIRE = "llama->mistral"
ROWS = (
    m.Row(bytes.fromhex("a0" * 16), ms_left=30_000, trace_id=bytes.fromhex("70" * 16)),
    m.Row(bytes.fromhex("a1" * 16)),
)
TASK = m.TaskSpec(
    name="sentiment",
    prompt="\nSentiment (negative or positive):",
    text_prompt="Review: {text}\nSentiment (negative or positive):",
    labels=("negative", "positive"),
    relay=m.RelaySpec("Summarise the review: {text}", 32),
)
MODEL = m.ModelIdentity("tiny", "5e" * 32, 4, 2, 0.5, "float32", "cpu")
BRIDGE = m.BridgeIdentity(
    name="llama--mistral--sst2",
    fingerprint="b1" * 32,
    sender="5e" * 32,
    receiver="4e" * 32,
    layer=1,
    soft_tokens=2,
    width=4,
    prompts=(TASK.prompt_hash,),
    rms_range=(0.25, 1.0),
)
ASK = m.TaskSpec(
    name="ask",
    prompt="\nQuestion: {question}\nAnswer:",
    text_prompt="{text}\nQuestion: {question}\nAnswer:",
    max_new_tokens=24,
)
ASKING = (ROWS[0]._replace(question="Who wrote it?"), ROWS[1])
READER = replace(
    BRIDGE,
    name="llama--mistral--reader",
    soft_tokens=4,
    prompts=("any", m.FREE_TEXT),
    sizes=(2, 4),
    receiver_half=True,
)
# 1, -1, 0.5, -0.5, 2, -2, 0.25, 0 in fp16, for each of two rows.
PAYLOAD = struct.pack("<16e", *[1, -1, 0.5, -0.5, 2, -2, 0.25, 0] * 2)

MESSAGES: dict[str, tuple[m.Message, m.Envelope]] = {
    "hello": (m.Hello("llama", m.Role.AGENT, token="5ec7e7"), m.Envelope(RUN, 0, 3)),
    "hello_ready": (
        m.Hello("llama", m.Role.AGENT, token="5ec7e7", model=MODEL),
        m.Envelope(RUN, 2, 3),
    ),
    "welcome": (m.Welcome(2, 1_000, 15_000), m.Envelope(RUN, 0, 0)),
    "define": (m.Define(TASK), m.Envelope(RUN, 1, 1)),
    "offer": (m.Offer(WIRE, BRIDGE), m.Envelope(RUN, 3, 3)),
    "offer_reader": (m.Offer(WIRE, READER), m.Envelope(RUN, 3, 3)),
    "encode_question": (
        m.Encode(
            WIRE, ASK.task_id, m.Channel.SOFT, "text", ASKING, ("A delight.", "Öde."), origin="cli"
        ),
        m.Envelope(RUN, 2, 1),
    ),
    "soft_question": (
        m.Soft(
            WIRE,
            ASK.task_id,
            READER.fingerprint,
            ASKING,
            m.Payload(PAYLOAD, 2, 2, 4),
            stages={"encode": 12.5, "bridge": 1.25},
            origin="cli",
        ),
        m.Envelope(RUN, 4, 3),
    ),
    "accept": (m.Accept(WIRE, BRIDGE.fingerprint), m.Envelope(RUN, 3, 1)),
    "encode": (
        m.Encode(
            WIRE, TASK.task_id, m.Channel.SOFT, "text", ROWS, ("A delight.", "Öde."), origin="cli"
        ),
        m.Envelope(RUN, 2, 1),
    ),
    "soft": (
        m.Soft(
            WIRE,
            TASK.task_id,
            BRIDGE.fingerprint,
            ROWS,
            m.Payload(PAYLOAD, 2, 2, 4),
            stages={"encode": 12.5, "bridge": 1.25},
            origin="cli",
        ),
        m.Envelope(RUN, 4, 3),
    ),
    "text": (
        m.Text(
            WIRE,
            TASK.task_id,
            ROWS,
            ("It delights.", ""),
            reason="bridge_mismatch",
            stages={"generate": 250.0},
            solo=True,
            origin="cli",
        ),
        m.Envelope(RUN, 5, 3),
    ),
    "result": (
        m.Result(
            WIRE,
            TASK.task_id,
            ROWS,
            m.Channel.SOFT,
            scores=struct.pack("<4f", -2.0, -0.125, -0.25, -1.5),
            labels=2,
            payload_bytes=16,
            stages={"encode": 12.5, "bridge": 1.25, "decode": 20.0},
            origin="cli",
        ),
        m.Envelope(RUN, 4, 1),
    ),
    "result_text": (
        m.Result(
            WIRE,
            TASK.task_id,
            ROWS[1:],
            m.Channel.TEXT,
            texts=("Good.",),
            payload_bytes=12,
            tokens=struct.pack("<2I", 9, 2),
        ),
        m.Envelope(RUN, 5, 1),
    ),
    "result_judged": (
        m.Result(
            WIRE,
            TASK.task_id,
            ROWS[1:],
            m.Channel.SOFT,
            texts=("Rome.",),
            payload_bytes=16,
            tokens=struct.pack("<2If", 9, 2, -0.25),
        ),
        m.Envelope(RUN, 5, 1),
    ),
    "define_generation": (
        m.Define(
            m.TaskSpec(
                name="chat",
                prompt="",
                text_prompt="{text}",
                max_new_tokens=64,
                decoding=m.Decoding(700, 950, 7, ("\n\n",), stream=True),
                form="chat",
            )
        ),
        m.Envelope(RUN, 10, 1),
    ),
    "encode_kept": (
        m.Encode(
            WIRE,
            TASK.task_id,
            m.Channel.SOFT,
            "error",
            ROWS[1:],
            ("c0" * 16,),
            origin="cli",
            mode=m.Mode.KEPT,
        ),
        m.Envelope(RUN, 11, 1),
    ),
    "piece": (
        m.Piece(WIRE, TASK.task_id, ROWS[1:], (" delight",), (5,), origin="cli"),
        m.Envelope(RUN, 8, 3),
    ),
    "nack": (
        m.Nack(NackCode.BAD_PAYLOAD, "soft token 1 is not finite", WIRE, ROWS[:1], origin="cli"),
        m.Envelope(RUN, 6, 1),
    ),
    "credit": (m.Credit(WIRE, 4, 8 * 1024 * 1024), m.Envelope(RUN, 7, 1)),
    "ping": (m.Ping(), m.Envelope(RUN, 8, 1)),
    "pong": (m.Pong(busy_ms=350), m.Envelope(RUN, 6, 3)),
    "cancel": (
        m.Cancel(WIRE, (ROWS[0].request_id, ROWS[1].request_id), origin="cli"),
        m.Envelope(RUN, 9, 1),
    ),
    "progress": (m.Progress("load", 0.5), m.Envelope(RUN, 1, 3)),
    "goodbye": (m.Goodbye("done"), m.Envelope(RUN, 7, 3)),
}


def packed(name: str) -> bytes:
    """The content of tests/golden/<name>.bin, from today's encoder."""
    message, envelope = MESSAGES[name]
    return b"".join(struct.pack("<I", len(frame)) + frame for frame in encode(message, envelope))


def frames_of(data: bytes) -> list[bytes]:
    """The frames in the content of a golden file."""
    frames = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        frames.append(data[4 : 4 + size])
        data = data[4 + size :]
    return frames


def shown(name: str) -> str:
    """The message as docs/protocol.md shows it: three lines of hex, long ones continued."""
    lines = []
    frames = frames_of((GOLDEN / f"{name}.bin").read_bytes())
    for label, frame in zip(("header", "rows", "body"), frames, strict=True):
        parts = textwrap.wrap(frame.hex(), 80) or ["(empty)"]
        lines += [f"{label:7}{parts[0]}", *(f"{'':7}{part}" for part in parts[1:])]
    return f"{name}\n" + "\n".join(lines)


def main(arguments: list[str]) -> int:
    if arguments == ["--docs"]:
        print("\n\n".join(f"```hex\n{shown(name)}\n```" for name in MESSAGES))
        return 0
    for name in MESSAGES:
        path = GOLDEN / f"{name}.bin"
        if arguments == ["--overwrite"] or not path.exists():
            path.write_bytes(packed(name))
            print(f"wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
