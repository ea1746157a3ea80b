# SPDX-License-Identifier: Apache-2.0
"""HAProxy itself with the rendered configuration, in front of two small engines in this process."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.gateway.haproxy import render_haproxy
from ansible_collections.fleet.inference.plugins.module_utils.gateway.pools import pools
from gateway_samples import fragment, service

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed here")
POOL = "/pool/smollm2-135m-instruct--llamacpp"


class Engine:
    """A small engine; a broken one closes each connection without an answer, or answers 503."""

    def __init__(self, port: int = 0) -> None:
        self.broken = ""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                if engine.broken == "silent":
                    self.close_connection = True
                    return
                time.sleep(0.02)
                self.answer(503 if engine.broken else 200)

            def answer(self, status: int = 200) -> None:
                body = json.dumps({"path": self.path, "port": engine.port}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Gateway:
    """HAProxy with the rendered configuration."""

    def __init__(self, directory: Path) -> None:
        self.engines = [Engine(), Engine()]
        self.replica = Engine()
        self.port, self.pool_port = free_ports(2)
        self.config = directory / "haproxy.cfg"
        self.write()
        self.log = (directory / "log").open("w")
        command = [str(HAPROXY), "-W", "-f", str(self.config)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def write(self, drained: bool = False) -> None:
        fragments = [
            fragment(f"gpu-{n}", "127.0.0.1", service(port=engine.port), drained=drained and n == 1)
            for n, engine in enumerate(self.engines)
        ]
        settings = {
            "address": "127.0.0.1",
            "port": self.port,
            "pool_port": self.pool_port,
            "metrics_port": 0,
            "litellm_port": self.replica.port,
            "litellm_replicas": 1,
        }
        text = render_haproxy(settings, pools(fragments))
        skipped = ("user", "group", "chroot", "stats")
        kept = [line for line in text.splitlines() if (line.split() or [""])[0] not in skipped]
        self.config.write_text("\n".join(kept) + "\n")

    def ask(self, path: str, body: bytes | None = None, port: int | None = None) -> tuple[int, dict[str, object], str]:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.pool_port, timeout=20)
        try:
            connection.request("POST" if body else "GET", path, body)
            answer = connection.getresponse()
            text = answer.read()
            data = json.loads(text) if text.startswith(b"{") else {}
            return answer.status, data, answer.getheader("x-inference-server", "")
        finally:
            connection.close()

    def wait(self, path: str, status: int, port: int | None = None) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                if self.ask(path, port=port)[0] == status:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{path} never answered {status}: {Path(self.log.name).read_text()}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()
        for engine in [*self.engines, self.replica]:
            engine.stop()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    try:
        gateway.wait(f"{POOL}/v1/models", 200)
        yield gateway
    finally:
        gateway.stop()


def test_paths_lead_to_pools(gateway: Gateway) -> None:
    assert gateway.ask(f"{POOL}/v1/models?a=b")[1]["path"] == "/v1/models?a=b"
    assert gateway.ask("/pool/none/v1/models")[0] == 404
    assert gateway.ask("/v1/models")[0] == 404
    assert {gateway.ask(f"{POOL}/v1", b"{}")[2] for _ in range(4)} == {"gpu-0-llamacpp", "gpu-1-llamacpp"}


@pytest.mark.parametrize("failure", ["silent", "503"])
def test_a_failing_engine_loses_no_request(gateway: Gateway, failure: str) -> None:
    gateway.engines[0].broken = failure
    body = b"x" * 500_000
    assert {gateway.ask(f"{POOL}/v1/chat/completions", body)[::2] for _ in range(8)} == {(200, "gpu-1-llamacpp")}


def test_a_dead_engine_and_reloads_lose_no_request_and_a_drained_node_gets_none(gateway: Gateway) -> None:
    statuses: list[int | str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                statuses.append(gateway.ask(f"{POOL}/v1/chat/completions", b"{}")[0])
            except OSError as error:
                statuses.append(repr(error))

    clients = [threading.Thread(target=client) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        time.sleep(0.5)
        gateway.engines[0].stop()
        time.sleep(1)
        gateway.engines[0] = Engine(gateway.engines[0].port)
        for drained in (False, False, True):
            gateway.write(drained)
            gateway.process.send_signal(signal.SIGUSR2)
            time.sleep(1)
    finally:
        stop.set()
        for each in clients:
            each.join()
    assert len(statuses) > 50
    assert set(statuses) == {200}
    assert {gateway.ask(f"{POOL}/v1", b"{}")[2] for _ in range(6)} == {"gpu-0-llamacpp"}
    gateway.engines[0].stop()
    gateway.wait(f"{POOL}/v1/models", 503)
    assert "no healthy server" in json.dumps(gateway.ask(f"{POOL}/v1/models")[1])


def test_healthz_follows_the_litellm_replicas(gateway: Gateway) -> None:
    gateway.wait("/healthz", 200, gateway.port)
    assert gateway.ask("/v1/models", port=gateway.port)[1]["port"] == gateway.replica.port
    gateway.replica.stop()
    gateway.wait("/healthz", 503, gateway.port)
    assert "no LiteLLM replica" in json.dumps(gateway.ask("/v1/models", port=gateway.port)[1])
