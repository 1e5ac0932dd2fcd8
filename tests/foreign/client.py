"""A client of a bus, written from docs/protocol.md alone: pyzmq and msgpack, nothing of agentwire.

    python client.py '{"endpoint": "ipc://…", "run": "<hex>", "token": "…", "questions": […]}'

Joins, defines the task, asks each question on a wire, prints one JSON line for each answer, and
leaves. Names in comments are sections of that page.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
import zlib
from typing import Any

import msgpack
import zmq

VERSION = 2
HELLO, WELCOME, DEFINE, ENCODE, TEXT, RESULT = 1, 2, 3, 6, 8, 9
NACK, CREDIT, PING, PONG, GOODBYE = 10, 11, 12, 13, 16
COMMON = {"v", "t", "r", "s", "e", "n", "c"}
KEYS = {  # Message types: the keys that each adds to a header
    HELLO: {"name", "role", "token", "versions"},
    WELCOME: {"version", "ping_ms", "liveness_ms"},
    DEFINE: set(),
    4: {"wire"},
    5: {"wire", "bridge"},
    ENCODE: {"wire", "task", "origin", "channel", "fallback", "reason", "solo", "mode"},
    7: {"wire", "task", "origin", "bridge", "soft_tokens", "width", "dtype", "stages", "solo"},
    TEXT: {"wire", "task", "origin", "stages", "solo", "reason"},
    RESULT: {"wire", "task", "origin", "stages", "channel", "labels", "payload_bytes", "reason"}
    | {"tokens"},
    NACK: {"code", "reason", "wire", "origin", "retry_after_ms"},
    CREDIT: {"wire", "messages", "bytes"},
    PING: {"busy_ms"},
    PONG: {"busy_ms"},
    14: {"wire", "origin"},
    15: {"stage", "fraction"},
    GOODBYE: {"reason"},
    17: {"wire", "task", "origin", "offsets"},
}
NO_DEADLINE, NO_TRACE = None, bytes(16)


def pack(header: dict[str, Any], rows: list[Any], body: bytes) -> list[bytes]:
    """Frames: header, rows, body."""
    packed = msgpack.packb(rows)
    header = {**header, "n": len(rows), "c": zlib.crc32(body, zlib.crc32(packed))}
    return [msgpack.packb(header), packed, body]


def unpack(frames: list[bytes]) -> tuple[dict[str, Any], list[Any], bytes]:
    """The frames of one message, checked as Frames says."""
    header_frame, rows_frame, body = frames
    header, rows = msgpack.unpackb(header_frame), msgpack.unpackb(rows_frame)
    if header["v"] != VERSION:
        raise ValueError(f"version {header['v']}")
    if header.keys() != COMMON | KEYS[header["t"]]:
        raise ValueError(f"keys of type {header['t']}: {sorted(header)}")
    if header["c"] != zlib.crc32(body, zlib.crc32(rows_frame)):
        raise ValueError("checksum")
    if header["n"] != len(rows):
        raise ValueError(f"{header['n']} rows are said, {len(rows)} came")
    return header, rows, body


def task_id(task: dict[str, Any]) -> str:
    """Fingerprints: what messages call a task by."""
    decoding = task["decoding"]
    named = {
        **{key: task[key] for key in ("form", "labels", "max_new_tokens", "name", "prompt")},
        "text_prompt": task["text_prompt"],
        "relay": [task["relay"]["template"], task["relay"]["max_new_tokens"]],
        "decoding": [decoding[key] for key in ("temperature", "top_p", "seed", "stop", "stream")],
    }
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Client:
    """One incarnation of one client (Session, Order and incarnations, Flow control)."""

    def __init__(self, endpoint: str, run: bytes, token: str, name: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 1000
        self.socket.connect(endpoint)
        self.run, self.name, self.token = run, name, token
        self.out = self.next_in = 0
        self.messages: dict[str, int] = {}  # credit, by wire
        self.bytes: dict[str, int] = {}
        self.ping_s = 1.0

    def send(self, kind: int, fields: dict[str, Any], rows: Any = (), body: bytes = b"") -> None:
        header = {"v": VERSION, "t": kind, "r": self.run, "s": self.out, "e": 1, **fields}
        self.socket.send_multipart(pack(header, list(rows), body))
        self.out += 1

    def receive(self) -> tuple[dict[str, Any], list[Any], bytes]:
        """The next message that is not the session's own business."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not self.socket.poll(self.ping_s * 1000):
                self.send(PING, {"busy_ms": 0})
                continue
            header, rows, body = unpack(self.socket.recv_multipart())
            if header["s"] != self.next_in or header["r"] != self.run:
                raise ValueError(f"message {header['s']} came where {self.next_in} was due")
            self.next_in += 1
            if header["t"] == PING:
                self.send(PONG, {"busy_ms": 0})
            elif header["t"] == CREDIT:
                wire = header["wire"]
                self.messages[wire] = self.messages.get(wire, 0) + header["messages"]
                self.bytes[wire] = self.bytes.get(wire, 0) + header["bytes"]
            elif header["t"] != PONG:
                return header, rows, body
            if header["t"] == CREDIT:
                return header, rows, body
        raise TimeoutError("nothing came for a minute")

    def join(self) -> None:
        hello = {"name": self.name, "role": "client", "token": self.token, "versions": [VERSION]}
        self.send(HELLO, hello)
        header, _, _ = self.receive()
        if header["t"] != WELCOME:
            raise ConnectionError(f"turned away: {header['code']}: {header['reason']}")
        self.ping_s = header["ping_ms"] / 1000

    def ask(self, wire: str, task: str, texts: list[str], channel: str) -> list[dict[str, Any]]:
        """One answer a text: the message is sent when there is credit for it."""
        bodies = [text.encode() for text in texts]
        ids = [os.urandom(16) for _ in texts]
        rows = [[i, 60_000, NO_TRACE, len(body)] for i, body in zip(ids, bodies, strict=True)]
        while self.messages.get(wire, 0) <= 0 or self.bytes.get(wire, 0) <= 0:
            header, _, _ = self.receive()
            if header["t"] == NACK:
                raise ConnectionError(header["reason"])
        body = b"".join(bodies)
        self.messages[wire] -= 1
        self.bytes[wire] -= len(body)
        about = {"wire": wire, "task": task, "origin": "", "reason": "", "solo": False}
        if wire.startswith("@"):  # direct: client --Text--> agent
            self.send(TEXT, {**about, "stages": {}}, rows, body)
        else:
            fallback = {"channel": channel, "fallback": "text", "mode": "forward"}
            self.send(ENCODE, {**about, **fallback}, rows, body)
        answers: dict[bytes, dict[str, Any]] = {}
        while len(answers) < len(ids):
            header, found, content = self.receive()
            if header["t"] == RESULT:
                answers |= results(header, found, content)
            elif header["t"] == NACK:
                error = {"code": header["code"], "reason": header["reason"]}
                answers |= {row[0]: error for row in found}
        return [answers[i] for i in ids]

    def leave(self) -> None:
        self.send(GOODBYE, {"reason": "done"})
        self.socket.close()


def results(header: dict[str, Any], rows: list[Any], body: bytes) -> dict[bytes, dict[str, Any]]:
    """Result: scores where there are labels, else texts."""
    about = {"channel": header["channel"], "reason": header["reason"]}
    if not header["labels"]:
        texts, start = {}, 0
        for row in rows:
            texts[row[0]] = {**about, "text": body[start : start + row[3]].decode()}
            start += row[3]
        return texts
    scores = struct.unpack(f"<{len(rows) * header['labels']}f", body)
    width = header["labels"]
    return {
        row[0]: {**about, "scores": scores[i * width : (i + 1) * width]}
        for i, row in enumerate(rows)
    }


def main() -> None:
    given = json.loads(sys.argv[1])
    client = Client(given["endpoint"], bytes.fromhex(given["run"]), given["token"], "foreign")
    client.join()
    for question in given["questions"]:
        task = question["task"]
        client.send(DEFINE, {}, body=msgpack.packb(task))
        answers = client.ask(
            question["wire"], task_id(task), question["texts"], question["channel"]
        )
        for answer in answers:
            print(json.dumps(answer))
    client.leave()
    foreign = not any(name.split(".")[0] == "agentwire" for name in sys.modules)
    print(json.dumps({"foreign": foreign}))


if __name__ == "__main__":
    main()
