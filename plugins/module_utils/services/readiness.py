# SPDX-License-Identifier: Apache-2.0
"""Wait until an inference service really answers; a program of its own, standard library only, Python 3.8 or later.

Called as `inference-ready /path/to/readiness.json` by the service's unit. Three questions, asked in this order until
all are answered or the deadline is over: does the health path answer with the wanted status; does the list of models
have the model; does a request for one token bring one. An engine may say yes to one and no to the next while it loads,
so each round asks from the start. An engine that says how much of the model is in GPU memory is asked that last: what
runs on the CPU and was meant for a GPU is never ready. Of several models that stay in memory each is asked. Ends with
0, or with 1 and one sentence: the last reason.

Services that share a GPU start one after the other, because each takes what it finds free. The program holds a lock
(flock) for each of the service's GPUs until the service is ready; `inference-ready --when-open GATE COMMAND…`, as which
the service's main process begins, becomes the command once the locks are held. The gate is a file with the invocation
id that systemd gives to all processes of one start (systemd.exec(5)), so one left over from before opens nothing.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

ENV_FILE = "service.env"
REASON_CHARACTERS = 300
WHEN_OPEN = "--when-open"
INVOCATION = "INVOCATION_ID"
POLL_SECONDS = 0.1
#: What Ollama adds to the name of a model that is asked for without a tag.
DEFAULT_TAG = ":latest"


class NotYet(Exception):
    """A question that is not answered yet, in words."""


class Never(Exception):
    """An answer that will not become right by waiting, in words."""


def read_env(path: str, name: str) -> str:
    """The value of one variable in an env file; raises `KeyError` when it is not there and `OSError`."""
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            key, sign, value = line.rstrip("\n").partition("=")
            if sign and key == name:
                return value
    raise KeyError(name)


class Probe:
    """Asks one service; `settings` is the content of readiness.json, `bearer` the key or None."""

    def __init__(self, settings: Dict[str, Any], bearer: Optional[str] = None) -> None:
        self.settings = settings
        self.bearer = bearer

    def _request(self, method: str, path: str, body: Optional[bytes], timeout: float) -> Tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.settings.get("scheme") == "https" else http.client.HTTPConnection
        connection = kind(self.settings["host"], int(self.settings["port"]), timeout=max(timeout, 0.05))
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self.bearer:
            headers["Authorization"] = "Bearer " + self.bearer
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise NotYet(f"{method} {path} got no answer ({error or type(error).__name__})") from error
        finally:
            connection.close()

    def _json(self, method: str, path: str, body: Optional[bytes], timeout: float) -> Any:
        status, content = self._request(method, path, body, timeout)
        if status != 200:
            excerpt = " ".join(content.decode("utf-8", "replace").split())[:REASON_CHARACTERS]
            raise NotYet(f"{method} {path} answered {status} instead of 200" + (f": {excerpt}" if excerpt else ""))
        try:
            return json.loads(content.decode("utf-8"))
        except ValueError as error:
            raise NotYet(f"{method} {path} answered with something that is not JSON") from error

    def check_health(self, timeout: float) -> None:
        path = self.settings.get("health_path") or "/health"
        wanted = int(self.settings.get("health_status") or 200)
        status, _ = self._request("GET", path, None, timeout)
        if status != wanted:
            raise NotYet(f"GET {path} answered {status} instead of {wanted}")

    def check_models(self, timeout: float) -> None:
        path = self.settings.get("models_path")
        if not path:
            return
        names = model_names(self._json("GET", path, None, timeout))
        for model in self.models():
            if plain_name(model) not in map(plain_name, names):
                listed = ", ".join(names[:5]) or "nothing"
                raise NotYet(f"GET {path} lists {listed} and not the model {model}")
        if not names:
            raise NotYet(f"GET {path} lists no model")

    def models(self) -> List[str]:
        """The models that must be listed, the service's own first; none where any will do."""
        own = self.settings.get("model")
        return [str(own), *(self.settings.get("further_models") or [])] if own else []

    def check_token(self, timeout: float, model: Optional[str] = None) -> None:
        """Ask for one token, of a further model when one is named."""
        path = self.settings.get("generate_path")
        if not path:
            return
        content = dict(self.settings.get("generate_body") or {})
        if model is not None:
            content["model"] = model
        if not has_token(self._json("POST", path, json.dumps(content).encode("utf-8"), timeout)):
            of_model = f" of {model}" if model else ""
            raise NotYet(f"POST {path} answered 200 without a generated token{of_model}")

    def check_gpu(self, timeout: float, model: str) -> None:
        """Compare size and size_vram of a loaded model (Ollama's /api/ps: equal when all layers are on GPUs)."""
        path = self.settings.get("gpu_path")
        if not path:
            return
        answer = self._json("GET", path, None, timeout)
        for entry in (answer.get("models") or []) if isinstance(answer, dict) else []:
            if not isinstance(entry, dict) or plain_name(str(entry.get("name") or "")) != plain_name(model):
                continue
            size, on_gpu = entry.get("size"), entry.get("size_vram")
            if not isinstance(size, int) or not isinstance(on_gpu, int) or size <= 0:
                raise NotYet(f"GET {path} does not say how much of {model} is in GPU memory")
            if on_gpu <= 0:
                raise Never(f"{model} runs on the CPU and is planned on a GPU: see in the log why no GPU was found")
            if on_gpu < size and self.settings.get("gpu_whole") is not False:
                raise Never(
                    f"only {100 * on_gpu // size} % of {model} is in GPU memory and the plan has all of it there: "
                    "something else takes that memory, or the engine needs more than planned"
                )
            return
        raise NotYet(f"GET {path} does not list {model} as loaded")

    def ask(self, timeout: Callable[[], float]) -> None:
        """All questions in their order; `timeout` gives the seconds that the next may take.

        Raises `NotYet`, and `Never` when more waiting can't help.
        """
        self.check_health(timeout())
        self.check_models(timeout())
        self.check_token(timeout())
        self.check_gpu(timeout(), str(self.settings.get("model") or ""))
        if self.settings.get("further_answer"):
            for model in self.models()[1:]:
                self.check_token(timeout(), model)
                self.check_gpu(timeout(), model)


def plain_name(model: str) -> str:
    """A model's name without the tag that Ollama adds to it."""
    return model[: -len(DEFAULT_TAG)] if model.endswith(DEFAULT_TAG) else model


def model_names(answer: Any) -> List[str]:
    """The models in an OpenAI list (`data`, by id) or an Ollama list (`models`, by name)."""
    if not isinstance(answer, dict):
        return []
    names = []
    for key in ("data", "models"):
        for entry in answer.get(key) or []:
            if isinstance(entry, dict):
                names += [entry[word] for word in ("id", "name", "model") if isinstance(entry.get(word), str)]
    return list(dict.fromkeys(names))


def has_token(answer: Any) -> bool:
    """Whether an answer carries generated text or counts a generated token (OpenAI, Ollama, llama.cpp, SGLang)."""
    if isinstance(answer, list):
        return bool(answer) and has_token(answer[0])
    if not isinstance(answer, dict) or answer.get("error"):
        return False
    usage = answer.get("usage")
    counts = [usage.get("completion_tokens")] if isinstance(usage, dict) else []
    counts.append(answer.get("eval_count"))
    entries = [answer]
    choices = answer.get("choices")
    if choices is not None:
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return False
        entries = [choices[0]]
    for entry in list(entries):
        if isinstance(entry.get("message"), dict):
            entries.append(entry["message"])
    words = ("text", "content", "response", "reasoning", "reasoning_content", "tool_calls")
    if any(entry.get(word) for entry in entries for word in words):
        return True
    # One token may decode to no text at all (half of a character), yet it was generated.
    return any(isinstance(count, int) and count > 0 for count in counts)


def process_ended(pid: Optional[int]) -> bool:
    """Whether the service's main process is gone; systemd does not end this program when that happens."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def wait(settings: Dict[str, Any], bearer: Optional[str] = None, main_pid: Optional[int] = None) -> Tuple[bool, str]:
    """Ask until the service is ready (True), or its deadline or its main process ended (False); with a sentence."""
    probe = Probe(settings, bearer)
    began = time.monotonic()
    limit = float(settings["timeout_seconds"])
    interval = float(settings.get("interval_seconds") or 0.5)
    request_limit = float(settings.get("request_timeout_seconds") or 30.0)
    where = f"{settings['host']}:{settings['port']}"

    def left() -> float:
        return limit - (time.monotonic() - began)

    def timeout() -> float:
        seconds = left()
        if seconds <= 0:
            raise NotYet("the deadline passed between two questions")
        return min(seconds, request_limit)

    reason = "nothing was asked"
    while True:
        if process_ended(main_pid):
            return False, "the container ended before it was ready"
        try:
            probe.ask(timeout)
        except NotYet as error:
            if left() > 0 or reason == "nothing was asked":
                reason = str(error)
        except Never as error:
            return False, str(error)
        else:
            return True, f"ready after {time.monotonic() - began:.1f} s"
        if left() <= interval:
            return False, f"{where} did not answer as it should within {limit:g} s: {reason}"
        time.sleep(interval)


def take_locks(paths: List[str], limit: float, main_pid: Optional[int] = None) -> Tuple[List[int], str]:
    """Take all locks, waiting at most `limit` seconds.

    Returns their descriptors, which hold them until this process ends, and why there are none, in words. Everybody
    takes them in the same order, so nobody waits for somebody who waits for him.
    """
    held: List[int] = []
    began = time.monotonic()
    for path in sorted(paths):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held.append(descriptor)
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                reason = f"another service was still starting on the same GPU after {limit:g} s ({path})"
                if process_ended(main_pid):
                    reason = "the container ended before it was ready"
                elif time.monotonic() - began < limit:
                    if not told:
                        print(f"waits for the service that is starting on the same GPU ({path})", flush=True)
                    told = True
                    time.sleep(POLL_SECONDS)
                    continue
                for taken in held:
                    os.close(taken)
                return [], reason
    return held, ""


def open_gate(path: str) -> None:
    """Let the main process of this start go on."""
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(os.environ.get(INVOCATION, ""))
    os.replace(temporary, path)


def wait_for_gate(path: str) -> bool:
    """Return when the gate was opened for this start; False when there is no start of a unit to open it for."""
    mine = os.environ.get(INVOCATION)
    while mine:
        try:
            with open(path, encoding="utf-8") as stream:
                if stream.read() == mine:
                    return True
        except OSError:
            pass
        time.sleep(POLL_SECONDS)
    return False


def main(arguments: List[str]) -> int:
    """Run as a program: one argument, the path of readiness.json, with service.env beside it; or `--when-open`."""
    if arguments[:1] == [WHEN_OPEN] and len(arguments) > 2:
        if wait_for_gate(arguments[1]):
            os.execv(arguments[2], arguments[2:])  # noqa: S606
        print(f"not ready: {WHEN_OPEN} is for a unit of systemd, which sets {INVOCATION}", file=sys.stderr)
        return 1
    if len(arguments) != 1:
        print("not ready: give the path of one readiness.json", file=sys.stderr)
        return 1
    path = arguments[0]
    try:
        with open(path, encoding="utf-8") as stream:
            settings = json.load(stream)
        name = settings.get("bearer_env")
        bearer = read_env(os.path.join(os.path.dirname(os.path.abspath(path)), ENV_FILE), name) if name else None
    except KeyError as error:
        print(f"not ready: {ENV_FILE} beside {path} must set {error.args[0]}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"not ready: {path} cannot be read ({error})", file=sys.stderr)
        return 1
    pid = os.environ.get("MAINPID", "")
    main_pid = int(pid) if pid.isdigit() else None
    locks = settings.get("locks") or []
    try:
        # They are held as long as this process lives.
        _held, sentence = take_locks(locks, float(settings.get("lock_timeout_seconds") or 0), main_pid)
        if locks and not sentence:
            print(f"starts alone on its GPUs ({', '.join(locks)})", flush=True)
            open_gate(settings["gate"])
    except OSError as error:
        sentence = f"{error.filename} cannot be used ({error.strerror})"
    if sentence:
        print(f"not ready: {sentence}", file=sys.stderr, flush=True)
        return 1
    ready, sentence = wait(settings, bearer, main_pid)
    if bearer:
        sentence = sentence.replace(bearer, "********")
    print(sentence if ready else f"not ready: {sentence}", file=sys.stdout if ready else sys.stderr, flush=True)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
