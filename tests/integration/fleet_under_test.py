# SPDX-License-Identifier: Apache-2.0
"""The fleet of the integration tests, and what tests do with it: run playbooks, look into nodes, ask the gateway."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import yaml
from local_nodes import host, nodes

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
SET = "integration"
ADDRESSES = {"gateway-01": "10.214.77.20", "gpu-01": "10.214.77.21", "gpu-02": "10.214.77.22"}
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclasses.dataclass
class Run:
    """One ansible-playbook run: exit code, all output, what was on standard output, and each host's recap."""

    rc: int
    output: str
    seconds: float
    stdout: str = ""

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        names = ("ok", "changed", "unreachable", "failed")
        return {host: dict(zip(names, map(int, counts), strict=True)) for host, *counts in RECAP.findall(self.output)}

    @property
    def changed(self) -> dict[str, int]:
        return {host: counts["changed"] for host, counts in self.recap.items()}


@dataclasses.dataclass
class Load:
    """Requests sent to the gateway while something happened."""

    answered: int
    failures: list[str]


class Fleet:
    """The fleet under test, its inventory (a copy that tests may edit) and its gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inventory = folder / "hosts.yml"
        shutil.copy(ROOT / "tests" / "integration" / "hosts.yml", self.inventory)
        (folder / "group_vars").symlink_to(ROOT / "group_vars")
        (folder / "host_vars").mkdir()

    def play(self, *arguments: str, playbook: str = "site.yml", env: dict[str, str] | None = None) -> Run:
        """Run a playbook against the fleet."""
        start = time.monotonic()
        settings = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.folder / "facts"),
            "ANSIBLE_NOCOLOR": "1",
        }
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.inventory), playbook, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
            env={**os.environ, **settings, **(env or {})},
        )
        return Run(done.returncode, done.stdout + done.stderr, time.monotonic() - start, done.stdout)

    def converge(self, *arguments: str) -> Run:
        """Run site.yml and insist on success."""
        run = self.play(*arguments)
        assert run.rc == 0, run.output[-6000:]
        return run

    def set_host_vars(self, name: str, variables: dict[str, Any] | None) -> None:
        """Write host_vars/<name>.yml; None removes it."""
        file = self.folder / "host_vars" / f"{name}.yml"
        if variables is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(yaml.safe_dump(variables))

    def shell(self, node: str, script: str, *, check: bool = True) -> str:
        """Run a script on a node's console as root and return what it printed."""
        done = host.podman("exec", f"inference-fleet-{SET}-{node}", "sh", "-c", script, check=check)
        return done.stdout

    def recreate(self, node: str) -> None:
        """Replace a node by a new one of the same name and address, as after a disk was lost."""
        container = f"inference-fleet-{SET}-{node}"
        host.podman("kill", container)
        host.podman("rm", "--force", container)
        host.podman("volume", "rm", "--force", f"{container}-docker")
        nodes.up(SET, nodes.nodes_of_inventory(self.inventory))

    def container_started(self, node: str, service: str = "llamacpp") -> str:
        """Container id and start time: differs after any restart."""
        script = f"docker inspect --format '{{{{.Id}}}} {{{{.State.StartedAt}}}}' inference-{service}"
        return self.shell(node, script).strip()

    def fragments(self) -> dict[str, dict[str, Any]]:
        """Node → what the gateway's service registry says of it."""
        text = self.shell(
            "gateway-01",
            "cat /var/lib/inference-fleet/registry/*.json | python3 -c '"
            "import json,sys; d=json.JSONDecoder(); s=sys.stdin.read().strip(); o=[]\n"
            "while s:\n v,i=d.raw_decode(s); o.append(v); s=s[i:].strip()\n"
            "print(json.dumps(o))'",
        )
        return {fragment["node"]: fragment for fragment in json.loads(text)}

    @property
    def key_file(self) -> Path:
        return self.folder / ".secrets" / "gateway_master_key"

    @property
    def url(self) -> str:
        return f"http://{ADDRESSES['gateway-01']}:4000/v1"

    def client(self) -> openai.OpenAI:
        """The OpenAI client as a user would make it, without retries of its own."""
        return openai.OpenAI(base_url=self.url, api_key=self.key_file.read_text().strip(), timeout=120, max_retries=0)

    def ask(self, *, tokens: int = 4, model: str = MODEL, client: openai.OpenAI | None = None) -> str:
        """One chat question; returns the words."""
        answer = (client or self.client()).chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=tokens
        )
        return answer.choices[0].message.content or ""

    def ask_streaming(self, *, tokens: int = 4, model: str = MODEL, client: openai.OpenAI | None = None) -> int:
        """One streamed chat question; returns the number of pieces of an answer that came to its end."""
        pieces = 0
        reason = None
        for chunk in (client or self.client()).chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=tokens, stream=True
        ):
            pieces += 1
            reason = chunk.choices[0].finish_reason if chunk.choices else reason
        if reason not in ("stop", "length"):
            raise openai.OpenAIError(f"a stream ended after {pieces} pieces without its end")
        return pieces

    def ask_while(
        self,
        happening: Callable[[], object],
        *,
        clients: int = 3,
        more: int = 25,
        streaming: int = 0,
        pause: float = 0,
    ) -> Load:
        """Send requests from some clients, do something in the middle, and go on until ``more`` were answered after it.

        The last ``streaming`` clients have longer answers streamed; a ``pause`` (seconds) after each answer leaves the
        machine time for what happens. The end is a number of answers and not a time, because the machine may be slow;
        90 s without them are a failure.
        """
        stop = threading.Event()
        load = Load(0, [])
        lock = threading.Lock()
        client = self.client()

        def worker(number: int) -> None:
            while not stop.is_set():
                try:
                    if number < clients - streaming:
                        self.ask(client=client)
                    else:
                        self.ask_streaming(client=client, tokens=40)
                except Exception as error:
                    with lock:
                        load.failures.append(f"{type(error).__name__}: {error}")
                else:
                    with lock:
                        load.answered += 1
                stop.wait(pause)

        def wait_for(answers: int) -> None:
            deadline = time.monotonic() + 90
            while load.answered < answers and not load.failures:
                assert time.monotonic() < deadline, f"only {load.answered} of {answers} answers in time"
                time.sleep(0.05)

        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(worker, number) for number in range(clients)]
            try:
                wait_for(2 * clients)
                happening()
                wait_for(load.answered + more)
            finally:
                stop.set()
            for each in running:
                each.result()
        return load

    @contextlib.contextmanager
    def reboots(self, names: Sequence[str]) -> Iterator[None]:
        """Start nodes again that reboot: a container ends where a machine would boot."""
        stop = threading.Event()

        def watch(container: str) -> None:
            while not stop.wait(0.5):
                shown = host.podman("container", "inspect", "--format", "{{.State.Running}}", container, check=False)
                if shown.stdout.strip() == "false":
                    host.podman("start", container)

        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            watching = [pool.submit(watch, f"inference-fleet-{SET}-{name}") for name in names]
            try:
                yield
            finally:
                stop.set()
            for each in watching:
                each.result()

    def wait_active(self, node: str, service: str = "llamacpp", seconds: float = 60) -> None:
        """Wait until a service's unit is active, which it is only when its model answers."""
        deadline = time.monotonic() + seconds
        state = ""
        while time.monotonic() < deadline:
            state = self.shell(node, f"systemctl is-active inference-{service}", check=False).strip()
            if state == "active":
                return
            time.sleep(0.5)
        raise AssertionError(f"{node}: inference-{service} is {state!r} after {seconds} s")
