"""A gateway in its own process, with fake models, under clients that misbehave and signals."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from patience import COMMAND_S, EVENT_S, TEST_S, patience

from agentwire.gateway.limits import GatewayLimits

httpx = pytest.importorskip("httpx2", reason="`make test` installs httpx2")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(TEST_S)]

ROOT = Path(__file__).resolve().parents[2]
ADA, BOB = "ada-" + "a" * 28, "bob-" + "b" * 28
SERVER = """
import asyncio, sys
sys.path[:0] = ["tests", "tests/integration"]
from gateway_run import KEYS, deployment
from agentwire.gateway.limits import GatewayLimits
from agentwire.gateway.server import ServeOptions, serve
limits = GatewayLimits(**{limits})
options = ServeOptions(port=0, keys=KEYS, limits=limits, drain_s={drain_s})
ready = lambda url, models: print(url, flush=True)
asyncio.run(serve(deployment(**{fakes}), options, ready=ready))
"""
HELLO = [{"role": "user", "content": "one two three four five"}]
LONG = {"model": "writer", "messages": [{"role": "user", "content": "word " * 400}]}
LONG["max_tokens"] = 400


@dataclass
class Gateway:
    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        parsed = httpx.URL(self.url)
        return parsed.host, parsed.port

    def post(self, key: str = ADA, path: str = "/chat/completions", **body: Any) -> Any:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=COMMAND_S)

    def get(self, path: str) -> Any:
        return httpx.get(self.url.removesuffix("/v1") + path, timeout=8)

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.address, timeout=30)
        client.sendall(data)
        return client

    def send(self, body: dict[str, Any]) -> socket.socket:
        """A connection that has sent a whole request."""
        data = json.dumps(body).encode()
        return self.connect(head(len(data)) + data)

    def in_flight(self) -> float:
        lines = self.get("/metrics").text.splitlines()
        return float(
            next(x for x in lines if x.startswith("agentwire_gateway_in_flight ")).split()[1]
        )


def head(length: int) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {ADA}"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


@contextlib.contextmanager
def gateway(
    folder: Path, *, descriptors: int = 1024, drain_s: float = 5.0,
    fakes: dict[str, Any] | None = None, **limits: Any,
) -> Iterator[Gateway]:  # fmt: skip
    code = SERVER.format(limits=limits, drain_s=drain_s, fakes=fakes or {})
    command = ["bash", "-c", f'ulimit -n {descriptors}; exec "$0" -c "$1"', sys.executable, code]
    log = folder / "stderr"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, log.read_text()
            yield Gateway(process, url, log)
        finally:
            process.terminate()
            process.wait(COMMAND_S)
    assert "Traceback" not in log.read_text()


def seconds_until_closed(client: socket.socket) -> float:
    """Reads what comes until the server closes the connection."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while client.recv(65536):
            pass
    return time.monotonic() - began


def wait_until(condition: Callable[[], bool], seconds: float = EVENT_S) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)


# -- connections ----------------------------------------------------------------------------


def test_default_deadlines_close_every_kind_of_silent_client_within_30_s() -> None:
    limits = GatewayLimits()
    assert limits.client_s <= 30 and limits.body_s + 5.0 <= 30


def test_half_open_connections_keep_nobody_out(tmp_path: Path) -> None:
    """More connections than descriptors, none with a whole request head."""
    with gateway(tmp_path, descriptors=128) as server, contextlib.ExitStack() as stack:
        starts = (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n", head(100) + b"{")
        for number in range(300):
            stack.enter_context(server.connect(starts[number % 3]))
        open_files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        assert open_files < 100
        for _ in range(3):
            assert server.get("/healthz").status_code == 200
        assert server.post(model="writer", messages=HELLO).status_code == 200
        assert server.log.stat().st_size < 10_000


def test_silent_clients_are_closed(tmp_path: Path) -> None:
    with gateway(tmp_path, client_s=1.0, body_s=1.0) as server:
        host = b"Host: x\r\n"
        healthy = b"GET /healthz HTTP/1.1\r\n" + host + b"\r\n"
        for sent in (
            b"",
            b"POST /v1/chat/completions HTTP/1.1\r\n" + host,
            healthy,  # idle after an answer
            healthy + healthy[:20],  # half a head after an answer
            head(100) + b"{",
            b"GET /healthz HTTP/1.1\r\nContent-Length: 9\r\n" + host + b"\r\n",  # not read by us
            healthy.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"),
        ):
            with server.connect(sent) as client:
                assert seconds_until_closed(client) < patience(4), sent

        with server.connect(b"GET / HTTP/1.1\r\n") as client, contextlib.suppress(OSError):
            began = time.monotonic()
            while time.monotonic() - began < patience(10):  # a byte now and then is not enough
                client.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - began < patience(4)


def test_client_that_does_not_read_is_closed(tmp_path: Path) -> None:
    with gateway(tmp_path, client_s=1.0) as server, server.connect() as client:
        client.settimeout(20)
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("writer", [{"decode_ms": 6000}, {"token_ms": 100}], ids=str)
def test_client_that_leaves_frees_its_slot(
    tmp_path: Path, stream: bool, writer: dict[str, Any]
) -> None:
    """Before the first piece of an answer, and between pieces."""
    with gateway(tmp_path, fakes={"writer": writer}) as server:
        for trailing in (b"", b"\r\n"):
            client = server.send(LONG | {"stream": stream})
            wait_until(lambda: server.in_flight() == 1)
            time.sleep(0.3)
            client.sendall(trailing)
            client.close()
            wait_until(lambda: server.in_flight() == 0, 4)  # the answers would take longer


# -- stopping -------------------------------------------------------------------------------


def test_sigterm_drains_and_then_answers_503(tmp_path: Path) -> None:
    fakes = {"writer": {"token_ms": 100}, "llama": {"decode_ms": 1000}}
    with (
        gateway(tmp_path, drain_s=6.0, fakes=fakes) as server,
        ThreadPoolExecutor() as pool,
    ):
        streamed: Future[Any] = pool.submit(lambda: server.post(**LONG, stream=True))
        wait_until(lambda: server.in_flight() == 1)
        time.sleep(1)
        late: Future[Any] = pool.submit(lambda: server.post(**LONG))  # waits for the stream
        short: Future[Any] = pool.submit(lambda: server.post(model="llama", messages=HELLO))
        wait_until(lambda: server.in_flight() == 3)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        wait_until(lambda: server.get("/healthz").json()["status"] == "stopping")
        assert server.get("/healthz").status_code == 503
        refused = server.post(model="mistral", messages=HELLO)
        assert short.result().status_code == 200
        for response in (refused, late.result()):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "closing"
        assert 5 < time.monotonic() - began < patience(20)
        *_, last = streamed.result().text.split("\n\n")[:-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "closing"
        assert server.process.wait(COMMAND_S) == 0


def test_second_signal_ends_the_drain(tmp_path: Path) -> None:
    with (
        gateway(tmp_path, drain_s=60.0, fakes={"writer": {"token_ms": 100}}) as server,
        ThreadPoolExecutor() as pool,
    ):
        late: Future[Any] = pool.submit(lambda: server.post(**LONG))
        wait_until(lambda: server.in_flight() == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.get("/healthz").json()["status"] == "stopping")
        server.process.send_signal(signal.SIGTERM)
        assert late.result().status_code == 503
        assert server.process.wait(COMMAND_S) == 0


# -- answers --------------------------------------------------------------------------------


def test_one_keys_handles_survive_the_flood_of_another(tmp_path: Path) -> None:
    with gateway(tmp_path) as server:
        keep = {"model": "llama->mistral:keep"}
        mine = server.post(**keep, messages=HELLO).json()["choices"][0]["message"]["content"]
        big = [{"role": "user", "content": "x" * 250_000}]
        for _ in range(272):  # more than the 64 MiB that a sender keeps
            assert server.post(BOB, **keep, messages=big).status_code == 200
        read = server.post(model="mistral", messages=[{"role": "user", "content": mine}])
        assert read.status_code == 200 and read.json()["agentwire"]["channel"] == "soft"


def test_limits_of_an_answer_hold_and_are_reported(tmp_path: Path) -> None:
    with gateway(tmp_path) as server:
        prompt = {"agentwire": {"prompt": "Go on:"}}
        for fields in ({"model": "writer"}, {"model": "llama->mistral", **prompt}):
            for limit, stop, words, reason in (
                (3, None, 3, "length"),
                (3, " two", 2, "stop"),  # completed by the third word
                (3, "three", 3, "length"),  # would come with the fourth
                (4, "three", 3, "stop"),
                (3, "wo", 3, "stop"),  # within the third word
                (9, "three", 3, "stop"),
            ):
                body = {**fields, "messages": HELLO, "max_tokens": limit, "stop": stop}
                (choice,) = server.post(**body).json()["choices"]
                found = len(choice["message"]["content"].split()), choice["finish_reason"]
                assert found == (words, reason), (fields, limit, stop)
                events = server.post(**body, stream=True).text.split("\n\n")
                last = json.loads(events[-3].removeprefix("data: "))
                assert last["choices"][0]["finish_reason"] == reason


def test_unsupported_fields_are_refused_over_http(tmp_path: Path) -> None:
    with gateway(tmp_path) as server:
        for fields in ({"top_k": 3}, {"tool_choice": "required"}, {"unheard_of": 1}):
            refused = server.post(model="writer", messages=HELLO, **fields)
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == next(iter(fields))
        refused = server.post(path="/completions", model="writer", prompt="x", logprobs=0)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
