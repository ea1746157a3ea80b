# SPDX-License-Identifier: Apache-2.0
"""What the scenarios' tests share. ``host`` is testinfra's: commands run on the node over SSH, as root."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def variables(host: Any) -> dict[str, Any]:
    """The node's variables, as the inventory and group_vars have them."""
    return dict(host.ansible.get_variables())


@pytest.fixture
def address(variables: dict[str, Any]) -> str:
    """The node's address on the nodes' network."""
    return str(variables["ansible_host"])


@pytest.fixture
def image(variables: dict[str, Any]) -> str:
    """The llama.cpp image of a CPU node, in the registry that the nodes pull from."""
    variant = variables["inference_engines"]["llamacpp"]["variants"]["cpu"]
    registry, _, path = variant["repository"].partition("/")
    return f"{variables['inference_image_registries'][registry]}/{path}:{variant['tag']}"


@pytest.fixture
def inspect(host: Any) -> Callable[[str], dict[str, Any]]:
    """What Docker on the node says of a container."""

    def of(container: str) -> dict[str, Any]:
        return dict(json.loads(host.check_output("docker container inspect %s", container))[0])

    return of


@pytest.fixture
def ask() -> Ask:
    """An HTTP request from this machine: status and text of the answer, whatever the status is."""

    def send(url: str, *, key: str | None = None, body: Any = None) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return send


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a condition holds; fails after some seconds."""

    def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.3)

    return wait
