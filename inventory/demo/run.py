#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo: a gateway and two nodes on this machine, converged with site.yml, answering a question.

Run through ``make demo`` and ``make demo-down``, which set up the virtual environment first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import yaml

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = Path(__file__).resolve().parent / "hosts.yml"
SECRETS = INVENTORY.parent / ".secrets"
KEY_FILE = SECRETS / "gateway_master_key"
MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France? Answer in one sentence."


class DemoError(Exception):
    """A stage failed; its own output above says why."""


def command(*argv: str) -> None:
    """Run a command with its output shown as it comes."""
    if subprocess.run(argv, check=False, cwd=ROOT).returncode != 0:
        raise DemoError(f"`{' '.join(argv)}` failed; its last lines above say why")


@contextlib.contextmanager
def stage(title: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and keep how many seconds it took."""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    seconds[title] = time.monotonic() - start


def address_of(host: str) -> str:
    """The address of a host of the demo's inventory."""
    groups = yaml.safe_load(INVENTORY.read_text())["all"]["children"]
    for group in groups.values():
        if host in group["hosts"]:
            return str(group["hosts"][host]["ansible_host"])
    raise DemoError(f"{INVENTORY}: no host {host}")


def registry_fragments() -> list[dict[str, Any]]:
    """What each node serves, as the gateway's service registry says."""
    done = subprocess.run(
        ["ansible", "-i", str(INVENTORY), "gateway-01", "--become", "-m", "fleet.inference.service_registry"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
    )
    play = json.loads(done.stdout)["plays"][0]
    return list(play["tasks"][0]["hosts"]["gateway-01"]["fragments"])


def ask(url: str) -> openai.types.chat.ChatCompletion:
    """Ask the gateway one question through the OpenAI client."""
    client = openai.OpenAI(base_url=url, api_key=KEY_FILE.read_text().strip(), timeout=120, max_retries=0)
    return client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=48, temperature=0
    )


def up() -> None:
    """Bring everything up, ask, and print what a newcomer wants to know."""
    seconds: dict[str, float] = {}
    url = f"http://{address_of('gateway-01')}:4000/v1"
    with stage("Local nodes: gateway-01, gpu-01, gpu-02", seconds):
        command(sys.executable, "-m", "local_nodes", "up", "demo", "--images", "--inventory", str(INVENTORY))
    with stage("Converge: ansible-playbook -i inventory/demo/hosts.yml site.yml", seconds):
        command("ansible-playbook", "-i", str(INVENTORY), "site.yml")
    with stage("Ask the gateway", seconds):
        answer = ask(url)
        words = (answer.choices[0].message.content or "").strip()
        if not words:
            raise DemoError(f"the gateway answered without a word: {answer.model_dump_json()}")
        print(f"  question   {QUESTION}\n  {MODEL} says   {words}")

    print("\n== What runs where")
    for fragment in registry_fragments():
        for service in fragment["services"]:
            print(
                f"  {fragment['node']:12} {service['name']:12} {service['model']:26} "
                f"http://{fragment['address']}:{service['port']}   {service['parallel']} slots of "
                f"{service['context_length']} tokens"
            )
    print(f"  {'gateway-01':12} {'HAProxy, LiteLLM':39} {url}")
    print(f"\n  The gateway's key is in {KEY_FILE.relative_to(ROOT)} (mode 0600). Ask it yourself:")
    print(f'  curl {url}/chat/completions -H "Authorization: Bearer $(cat {KEY_FILE.relative_to(ROOT)})" \\')
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Say hello."}]}
    print(f"    -H 'Content-Type: application/json' -d '{json.dumps(body)}'")
    print("\n== Seconds")
    for title, taken in seconds.items():
        print(f"  {taken:6.1f}  {title}")
    print(f"  {sum(seconds.values()):6.1f}  in all. `make demo-down` removes all of it.")


def down() -> None:
    """Remove the demo's nodes, the image registry, the network and the demo's key; caches stay for the next time."""
    command(sys.executable, "-m", "local_nodes", "down", "demo")
    shutil.rmtree(SECRETS, ignore_errors=True)
    print("the demo is gone; images and the model stay cached in ~/.cache/inference-fleet (`make clean` removes them)")


def main() -> int:
    """Parse the command line and run; one sentence and exit code 1 on failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down", action="store_true", help="remove the demo instead")
    arguments = parser.parse_args()
    try:
        down() if arguments.down else up()
    except (DemoError, openai.OpenAIError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
