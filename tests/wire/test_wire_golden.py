"""The wire is frozen: the encoder, the golden files and docs/protocol.md show the same bytes.

A failure here means that peers of two builds no longer understand each other. Do not overwrite the
files: raise PROTOCOL_VERSION.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from golden_messages import GOLDEN, MESSAGES, frames_of, packed

from agentwire.errors import NackCode
from agentwire.wire import fields
from agentwire.wire.codec import decode
from agentwire.wire.limits import LIMITS
from agentwire.wire.messages import MessageType
from agentwire.wire.session import MAY_SEND, Side, State

PROTOCOL = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


def shown_in_docs() -> dict[str, list[bytes]]:
    blocks = re.findall(r"```hex\n(\w+)\n(.*?)\n```", PROTOCOL.read_text(), re.DOTALL)
    result = {}
    for name, block in blocks:
        joined = re.sub(r"\n {7}", "", block)
        parts = [line.split()[1] for line in joined.splitlines()]
        result[name] = [bytes.fromhex("" if part == "(empty)" else part) for part in parts]
    return result


@pytest.mark.parametrize("name", MESSAGES)
def test_the_encoder_writes_the_golden_bytes(name: str) -> None:
    assert packed(name) == (GOLDEN / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_the_golden_bytes_decode(name: str) -> None:
    message, envelope = MESSAGES[name]
    frames = frames_of((GOLDEN / f"{name}.bin").read_bytes())
    got_envelope, got = decode(frames)
    assert got_envelope == envelope
    assert packed(name) == b"".join(len(f).to_bytes(4, "little") + f for f in frames)
    assert type(got) is type(message)


def test_the_docs_show_the_golden_bytes() -> None:
    golden = {name: frames_of((GOLDEN / f"{name}.bin").read_bytes()) for name in MESSAGES}
    assert shown_in_docs() == golden


def test_every_type_is_frozen_and_no_file_is_left_over() -> None:
    assert {type(message) for message, _ in MESSAGES.values()} == set(fields.TYPE_OF)
    assert {path.stem for path in GOLDEN.glob("*.bin")} == set(MESSAGES)


def test_the_docs_name_every_type_field_code_and_limit() -> None:
    text = PROTOCOL.read_text()
    for kind in MessageType:
        assert f"| {kind.value} | {kind.name.capitalize()} |" in text
        assert f"### {kind.name.capitalize()}" in text
    for layout in fields.LAYOUTS.values():
        section = text.split(f"### {layout.kind.__name__}\n")[1].split("\n### ")[0]
        for name in layout.header:
            assert f"`{name}`" in section, (layout.kind.__name__, name)
    for table in (fields.MODEL, fields.BRIDGE, fields.BRIDGE_OPTIONAL, fields.TASK, fields.RELAY):
        for name in table:
            assert f"`{name}`" in text
    for code in NackCode:
        assert f"| `{code}` |" in text
    for name in LIMITS.__dataclass_fields__:
        assert f"| `{name}` | {getattr(LIMITS, name):,} |" in text


def test_the_docs_name_every_state_and_what_each_role_may_send() -> None:
    text = PROTOCOL.read_text()
    for state in State:
        assert state.name in text
    always = {MessageType.NACK, MessageType.CREDIT, MessageType.PING, MessageType.PONG}
    for (side, role), kinds in MAY_SEND.items():
        ends = (role.value, "broker") if side is Side.PEER else ("broker", role.value)
        row = next(
            line for line in text.splitlines() if line.startswith(f"| {' -> '.join(ends)} |")
        )
        named = set(re.findall(r"[A-Z][a-z]+", re.sub(r"\(.*?\)", "", row)))
        assert named == {k.name.capitalize() for k in kinds - always - {MessageType.GOODBYE}}
