# SPDX-License-Identifier: Apache-2.0
"""Wait until an inference service really answers; a program of its own, standard library only, Python 3.8 or later.

Called as `inference-ready /path/to/readiness.json` by the service's unit. Three questions, asked in this order until
all are answered or the deadline is over: does the health path answer with the wanted status; does the list of models
have the model; does a request for one token bring one. An engine may say yes to one and no to the next while it loads,
so each round asks from the start. Ends with 0, or with 1 and one sentence: the last reason.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

ENV_FILE = "service.env"
REASON_CHARACTERS = 300


class NotYet(Exception):
    """A question that is not answered yet, in words."""


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
        model = self.settings.get("model")
        if model and model not in names:
            listed = ", ".join(names[:5]) or "nothing"
            raise NotYet(f"GET {path} lists {listed} and not the model {model}")
        if not names:
            raise NotYet(f"GET {path} lists no model")

    def check_token(self, timeout: float) -> None:
        path = self.settings.get("generate_path")
        if not path:
            return
        body = json.dumps(self.settings.get("generate_body") or {}).encode("utf-8")
        if not has_token(self._json("POST", path, body, timeout)):
            raise NotYet(f"POST {path} answered 200 without a generated token")

    def ask(self, timeout: Callable[[], float]) -> None:
        """All questions in their order; `timeout` gives the seconds that the next may take. Raises `NotYet`."""
        self.check_health(timeout())
        self.check_models(timeout())
        self.check_token(timeout())


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
        else:
            return True, f"ready after {time.monotonic() - began:.1f} s"
        if left() <= interval:
            return False, f"{where} did not answer as it should within {limit:g} s: {reason}"
        time.sleep(interval)


def main(arguments: List[str]) -> int:
    """Run as a program: one argument, the path of readiness.json, with service.env beside it."""
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
    ready, sentence = wait(settings, bearer, int(pid) if pid.isdigit() else None)
    if bearer:
        sentence = sentence.replace(bearer, "********")
    print(sentence if ready else f"not ready: {sentence}", file=sys.stdout if ready else sys.stderr, flush=True)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
