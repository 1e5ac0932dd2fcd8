"""Messages and peers for the tests of the bus."""

from __future__ import annotations

from agentwire.wire import messages as m

TOKEN = "c0ffee"
WIRE = "llama->mistral"
WIRES = {WIRE: ("llama", "mistral")}
TASK = m.TaskSpec("film", "Good or bad?", "Good or bad? {text}", ("good", "bad"))
WIDE = m.Credit(WIRE, 1000, 2**30)


def model(name: str) -> m.ModelIdentity:
    return m.ModelIdentity(name, "f" * 64, 16, 4, 0.5, "float32", "cpu")


def hello(name: str, *, ready: bool = False, token: str = TOKEN) -> m.Hello:
    role = m.Role.CLIENT if name.startswith("client") else m.Role.AGENT
    return m.Hello(name, role, token=token, model=model(name) if ready else None)


def bridge(fingerprint: str = "b" * 64) -> m.BridgeIdentity:
    return m.BridgeIdentity("b", fingerprint, "f" * 64, "f" * 64, 2, 2, 16, ("any",), (0.1, 10.0))


def rows(*ids: int, ms_left: int | None = None, size: int = 0) -> tuple[m.Row, ...]:
    return tuple(m.Row(i.to_bytes(16, "big"), ms_left=ms_left, size=size) for i in ids)


def encode(*ids: int, wire: str = WIRE, ms_left: int | None = None, origin: str = "") -> m.Encode:
    """One row a number; each text is its number in one digit."""
    return m.Encode(
        wire,
        TASK.task_id,
        m.Channel.SOFT,
        "text",
        rows(*ids, ms_left=ms_left, size=1),
        tuple(str(i % 10) for i in ids),
        origin=origin,
    )


def soft(*ids: int, wire: str = WIRE, origin: str = "client") -> m.Soft:
    payload = m.Payload(b"\0" * (len(ids) * 2 * 16 * 2), n=len(ids), soft_tokens=2, width=16)
    return m.Soft(wire, TASK.task_id, "b" * 64, rows(*ids), payload, origin=origin)


def text(*ids: int, wire: str, origin: str = "") -> m.Text:
    texts = tuple(str(i % 10) for i in ids)
    return m.Text(wire, TASK.task_id, rows(*ids, size=1), texts, origin=origin)


def result(*ids: int, wire: str = WIRE, origin: str = "client") -> m.Result:
    return m.Result(
        wire, TASK.task_id, rows(*ids), m.Channel.SOFT, bytes(len(ids) * 8), 2, origin=origin
    )
