# SPDX-License-Identifier: Apache-2.0
"""The readiness program against a real HTTP server on the loopback address."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services import readiness
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import readiness_program

CHOICE = {"choices": [{"message": {"content": "Hi"}}]}


class Engine:
    """An HTTP server whose answers a test sets: path → (status, body), or a function of the request headers."""

    def __init__(self) -> None:
        self.answers: Dict[str, Any] = {
            "/health": (200, {"status": "ok"}),
            "/v1/models": (200, {"data": [{"id": "smollm2"}]}),
            "/v1/chat/completions": (200, CHOICE),
        }
        self.seen: List[Tuple[str, str, bytes]] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                engine.seen.append((self.command, self.path, body))
                found = engine.answers.get(self.path, (404, {}))
                status, content = found(self.headers) if callable(found) else found
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def settings(self, **changes: Any) -> Dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "timeout_seconds": 0.5,
            "interval_seconds": 0.05,
            "health_path": "/health",
            "models_path": "/v1/models",
            "model": "smollm2",
            "generate_path": "/v1/chat/completions",
            "generate_body": {"max_tokens": 1},
            **changes,
        }


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.server.shutdown()
    engine.server.server_close()


def test_ready_asks_all_three_in_order(engine):
    ready, sentence = readiness.wait(engine.settings())
    assert ready and sentence.startswith("ready after")
    assert [(method, path) for method, path, _ in engine.seen] == [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
    ]
    assert json.loads(engine.seen[-1][2]) == {"max_tokens": 1}


def test_loading_then_ready(engine):
    asked = iter([503, 503, 200])
    engine.answers["/health"] = lambda _: (next(asked, 200), {})
    assert readiness.wait(engine.settings(timeout_seconds=5))[0]
    assert [path for _, path, _ in engine.seen].count("/v1/models") == 1


def test_connection_refused_then_ready(engine):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    ready, sentence = readiness.wait(engine.settings(port=port))
    assert not ready
    assert sentence.startswith(
        f"127.0.0.1:{port} did not answer as it should within 0.5 s: GET /health got no answer ("
    )
    assert "refused" in sentence


@pytest.mark.parametrize(
    ("path", "answer", "word"),
    [
        ("/health", (503, {}), "GET /health answered 503 instead of 200"),
        ("/v1/models", (503, {"error": "Loading"}), 'GET /v1/models answered 503 instead of 200: {"error": "Loading"}'),
        ("/v1/models", (200, {"data": [{"id": "a"}]}), "GET /v1/models lists a and not the model smollm2"),
        ("/v1/models", (200, b"<html>"), "not JSON"),
        ("/v1/chat/completions", (500, {}), "POST /v1/chat/completions answered 500"),
        ("/v1/chat/completions", (200, {"choices": []}), "without a generated token"),
        ("/v1/chat/completions", (200, {"choices": [{"message": {"content": ""}}]}), "without a generated token"),
    ],
)
def test_last_reason_is_said_at_the_deadline(engine, path, answer, word):
    engine.answers[path] = answer
    began = time.monotonic()
    ready, sentence = readiness.wait(engine.settings())
    assert not ready and word in sentence
    assert time.monotonic() - began < 2


def test_a_hanging_engine_does_not_outlast_the_deadline(engine):
    def hang(_: Any) -> Any:
        time.sleep(1.5)
        return 200, CHOICE

    engine.answers["/v1/chat/completions"] = hang
    began = time.monotonic()
    ready, sentence = readiness.wait(engine.settings())
    assert not ready and "POST /v1/chat/completions got no answer" in sentence
    assert time.monotonic() - began < 1.2


def test_questions_that_are_not_set_are_not_asked(engine):
    assert readiness.wait(engine.settings(models_path=None, generate_path=None, health_path="/health"))[0]
    assert len(engine.seen) == 1


def test_another_health_status(engine):
    engine.answers["/health"] = (204, b"")
    assert readiness.wait(engine.settings(health_status=204))[0]


def test_a_container_that_ended_ends_the_wait(engine):
    engine.answers["/health"] = (503, {})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    began = time.monotonic()
    ready, sentence = readiness.wait(engine.settings(timeout_seconds=60), main_pid=gone.pid)
    assert not ready and "the container ended before it was ready" in sentence
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("answer", "token"),
    [
        (CHOICE, True),
        ({"choices": [{"text": "x"}]}, True),
        ({"choices": [{"message": {"content": "", "reasoning_content": "hm"}}]}, True),
        ({"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 1}}, True),
        ({"choices": [], "usage": {"completion_tokens": 1}}, False),
        ({"message": {"content": "x"}, "done": True}, True),
        ({"response": "", "eval_count": 1}, True),
        ([{"text": "x"}], True),
        ({"error": "no", "text": "x"}, False),
        ({}, False),
        ([], False),
        ("x", False),
    ],
)
def test_tokens_in_every_form(answer, token):
    assert readiness.has_token(answer) is token


def test_model_names_in_every_form():
    assert readiness.model_names({"data": [{"id": "a"}, {"id": "a"}, 1]}) == ["a"]
    assert readiness.model_names({"models": [{"name": "a:1", "model": "a:2"}]}) == ["a:1", "a:2"]
    assert readiness.model_names([]) == []


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    script = tmp_path / "inference-ready"
    script.write_bytes(readiness_program())

    def run(settings: Dict[str, Any], env_text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "readiness.json").write_text(json.dumps(settings))
        (tmp_path / "service.env").write_text(env_text)
        return subprocess.run(
            [sys.executable, "-I", str(script), str(tmp_path / "readiness.json")],
            capture_output=True,
            text=True,
            check=False,
            env={"http_proxy": "http://127.0.0.1:1", **environment},
        )

    return run


def bearer_wanted(key: str) -> Callable[[Any], Tuple[int, Any]]:
    return lambda headers: (200, CHOICE) if headers.get("Authorization") == f"Bearer {key}" else (401, {"key": key})


def test_program_with_a_key(engine, program):
    engine.answers["/v1/chat/completions"] = bearer_wanted("canary=1")
    settings = engine.settings(bearer_env="KEY")
    done = program(settings, "# comment\nA=1\nKEY=canary=1\n")
    assert (done.returncode, done.stderr) == (0, "")
    done = program(engine.settings(bearer_env="KEY", model="other"), "KEY=canary=1\n")
    assert done.returncode == 1 and done.stderr.startswith("not ready: ")
    assert len(done.stderr.splitlines()) == 1


def test_program_does_not_print_the_key(engine, program):
    engine.answers["/v1/chat/completions"] = lambda _: (401, {"key": "canary"})
    done = program(engine.settings(bearer_env="KEY"), "KEY=canary\n")
    assert done.returncode == 1 and "canary" not in done.stdout + done.stderr and "401" in done.stderr


def test_program_without_its_key_or_settings(engine, program, tmp_path):
    done = program(engine.settings(bearer_env="KEY"), "A=1\n")
    assert done.returncode == 1 and "must set KEY" in done.stderr
    assert readiness.main([str(tmp_path / "none.json")]) == 1
    assert readiness.main([]) == 1


def test_program_watches_the_main_process(engine, program):
    engine.answers["/health"] = (503, {})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = program(engine.settings(timeout_seconds=60), MAINPID=str(gone.pid))
    assert done.returncode == 1 and "ended before it was ready" in done.stderr
