# SPDX-License-Identifier: Apache-2.0
"""The readiness program against a real HTTP server on the loopback address."""

from __future__ import annotations

import fcntl
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
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import program_text

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


def several(engine, **changes):
    """Settings for a service of three models, as Ollama names them."""
    models = ["one", "two:latest", "three"]
    engine.answers["/v1/models"] = (200, {"models": [{"name": name} for name in models]})
    return engine.settings(model="one", further_models=["two", "three"], **changes)


def asked_for(engine):
    return [json.loads(body)["model"] for method, _path, body in engine.seen if method == "POST"]


def test_all_models_are_listed_and_each_that_stays_in_memory_answers(engine):
    body = {"model": "one", "max_tokens": 1}
    assert readiness.wait(several(engine, further_answer=True, generate_body=body))[0]
    assert asked_for(engine) == ["one", "two", "three"]
    engine.seen.clear()
    assert readiness.wait(several(engine, further_answer=False, generate_body=body))[0]
    assert asked_for(engine) == ["one"]


def test_a_further_model_that_is_not_there_is_told(engine):
    settings = several(engine)
    engine.answers["/v1/models"] = (200, {"models": [{"name": "one"}, {"name": "two"}]})
    ready, sentence = readiness.wait(settings)
    assert not ready and sentence.endswith("GET /v1/models lists one, two and not the model three")


def test_a_further_model_on_the_cpu_is_not_what_was_planned(engine):
    rows = [{"name": name, "size": 100, "size_vram": there} for name, there in (("one", 100), ("two", 0))]
    engine.answers["/api/ps"] = (200, {"models": rows})
    settings = several(engine, further_answer=True, gpu_path="/api/ps", timeout_seconds=5)
    ready, sentence = readiness.wait(settings)
    assert not ready and sentence.startswith("two runs on the CPU and is planned on a GPU")


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
    script.write_text(program_text(readiness))

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


def loaded(name: str, size: int, on_gpu: int) -> Tuple[int, Any]:
    return 200, {
        "models": [
            {"name": "other:latest", "size": 1, "size_vram": 1},
            {"name": name, "size": size, "size_vram": on_gpu},
        ]
    }


def test_ollama_names_a_model_with_its_default_tag(engine):
    engine.answers["/api/tags"] = (200, {"models": [{"name": "smollm2:latest", "model": "smollm2:latest"}]})
    assert readiness.wait(engine.settings(models_path="/api/tags"))[0]
    assert not readiness.wait(engine.settings(models_path="/api/tags", model="smollm2:8b"))[0]


@pytest.mark.parametrize(
    ("entry", "whole", "sentence"),
    [
        (("smollm2:latest", 100, 100), True, "ready after"),
        (("smollm2:latest", 100, 40), False, "ready after"),
        (("smollm2:latest", 100, 40), True, "only 40 % of smollm2 is in GPU memory and the plan has all of it there"),
        (("smollm2:latest", 100, 0), False, "smollm2 runs on the CPU and is planned on a GPU"),
    ],
)
def test_a_model_on_the_cpu_is_not_what_was_planned(engine, entry, whole, sentence):
    engine.answers["/api/ps"] = loaded(*entry)
    began = time.monotonic()
    ready, said = readiness.wait(engine.settings(gpu_path="/api/ps", gpu_whole=whole, timeout_seconds=30))
    assert said.startswith(sentence) and ready is sentence.startswith("ready")
    # Waiting would not change it.
    assert time.monotonic() - began < 5
    assert [path for _, path, _ in engine.seen][-2:] == ["/v1/chat/completions", "/api/ps"]


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        ((200, {"models": []}), "does not list smollm2 as loaded"),
        ((200, {"models": [{"name": "smollm2", "size": 5}]}), "does not say how much of smollm2 is in GPU memory"),
        ((200, []), "does not list smollm2 as loaded"),
    ],
)
def test_a_model_that_is_not_loaded_yet_is_waited_for(engine, answer, word):
    engine.answers["/api/ps"] = answer
    ready, sentence = readiness.wait(engine.settings(gpu_path="/api/ps"))
    assert not ready and word in sentence


class Start:
    """One start of a unit as systemd makes it: main process and readiness program with one invocation id."""

    def __init__(self, folder: Path, name: str, settings: Dict[str, Any], invocation: str) -> None:
        self.script = folder / "inference-ready"
        self.script.write_text(program_text(readiness))
        self.gate = folder / f"{name}.start"
        self.log = folder / f"{name}.log"
        own = folder / name
        own.mkdir(exist_ok=True)
        (own / "readiness.json").write_text(json.dumps({**settings, "gate": str(self.gate)}))
        self.environment = {"INVOCATION_ID": invocation}
        command = f"import time; open({str(self.log)!r}, 'a').write(f'{{time.time()}}'); time.sleep(60)"
        words = ["--when-open", str(self.gate), sys.executable, "-c", command]
        self.main = self.run(words)
        self.environment["MAINPID"] = str(self.main.pid)
        self.ready = self.run([str(own / "readiness.json")])

    def run(self, words: List[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", str(self.script), *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def began(self) -> float:
        return float(self.log.read_text())

    def end(self) -> None:
        for process in (self.main, self.ready):
            process.kill()
            process.communicate()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_services_on_one_gpu_start_one_after_the_other(engine, tmp_path):
    slow = Engine()
    slow.answers["/health"] = (503, {})
    locks = [str(tmp_path / "run" / f"{name}.lock") for name in ("gpu-2", "gpu-1")]
    common = {"timeout_seconds": 60, "lock_timeout_seconds": 60}
    first = Start(tmp_path, "first", slow.settings(**common, locks=locks[:1]), "a1")
    starts = [first]
    try:
        until(first.log.exists)
        second = Start(tmp_path, "second", engine.settings(**common, locks=locks), "b1")
        starts.append(second)
        time.sleep(1)
        assert not second.log.exists(), "the second began while the first was not ready"
        assert engine.seen == []
        slow.answers["/health"] = (200, {})
        assert first.ready.wait(20) == 0
        free = time.time()
        assert second.ready.wait(20) == 0
        until(second.log.exists)
        assert second.began() > free - 0.5
        said = second.ready.stdout.read() if second.ready.stdout else ""
        assert f"waits for the service that is starting on the same GPU ({locks[0]})" in said
        assert "starts alone on its GPUs" in said and "ready after" in said
    finally:
        for start in starts:
            start.end()
        slow.server.shutdown()
        slow.server.server_close()


def test_a_start_that_fails_lets_the_next_one_in(engine, tmp_path):
    slow = Engine()
    slow.answers["/health"] = (503, {})
    lock = str(tmp_path / "gpu.lock")
    common = {"timeout_seconds": 60, "lock_timeout_seconds": 60, "locks": [lock]}
    first = Start(tmp_path, "first", slow.settings(**common), "a1")
    starts = [first]
    try:
        until(first.log.exists)
        starts.append(Start(tmp_path, "second", engine.settings(**common), "b1"))
        first.end()
        assert starts[1].ready.wait(20) == 0
    finally:
        for start in starts:
            start.end()
        slow.server.shutdown()
        slow.server.server_close()


def test_a_gate_of_an_earlier_start_opens_nothing(engine, tmp_path):
    lock = tmp_path / "gpu.lock"
    (tmp_path / "one.start").write_text("earlier")
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        settings = engine.settings(locks=[str(lock)], lock_timeout_seconds=1, timeout_seconds=5)
        start = Start(tmp_path, "one", settings, "now")
        try:
            assert start.ready.wait(20) == 1
            assert not start.log.exists() and start.main.poll() is None
            said = start.ready.stderr.read() if start.ready.stderr else ""
            assert said == f"not ready: another service was still starting on the same GPU after 1 s ({lock})\n"
        finally:
            start.end()


def test_the_gate_is_for_units_of_systemd(tmp_path):
    (tmp_path / "gate").write_text("")
    script = tmp_path / "inference-ready"
    script.write_text(program_text(readiness))
    words = [sys.executable, "-I", str(script), "--when-open", str(tmp_path / "gate"), "/bin/true"]
    done = subprocess.run(words, env={}, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1 and done.stderr.startswith("not ready: --when-open is for a unit")
