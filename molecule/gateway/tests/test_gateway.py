# SPDX-License-Identifier: Apache-2.0
"""A gateway on a machine that came without anything: it asks for the key, keeps it secret, and reloads in flight."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["gateways"]

PORT = 4000
POOL_PORT = 4001
# The controller keeps the key beside the inventory.
KEY_FILE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory" / ".secrets" / "gateway_master_key"


@pytest.fixture
def key() -> str:
    """The key that clients use."""
    return KEY_FILE.read_text().strip()


@pytest.fixture
def url(address: str) -> str:
    """The gateway's address for clients."""
    return f"http://{address}:{PORT}"


@pytest.fixture
def replicas(variables: dict[str, Any]) -> list[str]:
    """Units of the LiteLLM replicas that this gateway is to have."""
    return [f"inference-litellm-{number + 1}" for number in range(variables["gateway_litellm_replicas"])]


def test_services_run_and_start_at_boot(host: Any, replicas: list[str]) -> None:
    for name in ["docker", "haproxy", *replicas]:
        service = host.service(name)
        assert service.is_running, name
        assert service.is_enabled, name
    units = host.check_output("systemctl list-units --no-legend --plain 'inference-*'").splitlines()
    assert [unit.split()[0] for unit in units] == [*(f"{name}.service" for name in replicas), "inference-fleet.target"]


def test_haproxy_takes_its_configuration(host: Any) -> None:
    checked = host.run("haproxy -c -f /etc/haproxy/haproxy.cfg")
    assert checked.rc == 0
    assert "WARNING" not in checked.stderr, checked.stderr


def test_healthz(ask: Any, url: str) -> None:
    assert ask(f"{url}/healthz")[0] == 200


def test_without_the_key_nothing_is_told(ask: Any, url: str) -> None:
    assert ask(f"{url}/v1/models")[0] == 401
    assert ask(f"{url}/v1/models", key="sk-" + "x" * 48)[0] in (400, 401)
    assert ask(f"{url}/v1/chat/completions", body={"model": "any", "messages": []})[0] == 401


def test_with_the_key_there_are_no_models_yet(ask: Any, url: str, key: str) -> None:
    status, text = ask(f"{url}/v1/models", key=key)
    assert status == 200
    assert json.loads(text)["data"] == []


def test_key_file_is_the_controllers_own() -> None:
    assert KEY_FILE.stat().st_mode & 0o777 == 0o600
    assert KEY_FILE.parent.stat().st_mode & 0o077 == 0


def test_key_is_in_roots_files_only(host: Any, key: str, replicas: list[str]) -> None:
    assert key.startswith("sk-")
    assert len(key) > 19
    files = [f"/etc/inference-fleet/services/{name.removeprefix('inference-')}/service.env" for name in replicas]
    for path in files:
        file = host.file(path)
        assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
        assert f"LITELLM_MASTER_KEY={key}\n" in file.content_string
    # The node takes the key out of its own file, so that this search is in no argument and no log either.
    key_of_node = f"sed -n s/^LITELLM_MASTER_KEY=//p {files[0]}"
    search = "grep --recursive --files-with-matches --fixed-strings --file=-"
    kept = host.run(f"{key_of_node} | {search} /etc /var/lib/inference-fleet /var/log /root /home /tmp /var/tmp")
    assert set(kept.stdout.split()) == set(files)
    readable = host.run(f"{key_of_node} | runuser -u nobody -- {search} /etc /run /var /tmp /home")
    assert readable.stdout == ""
    assert "Permission denied" in readable.stderr


def test_key_is_in_no_unit_argument_or_log(host: Any, key: str, replicas: list[str]) -> None:
    for name in ["haproxy", *replicas]:
        assert key not in host.check_output("systemctl show --all %s", name)
    arguments = host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; true")
    assert "litellm" in arguments
    assert key not in arguments
    assert key not in host.check_output("journalctl --quiet --no-pager --output cat")


def test_pools_are_closed_to_strangers(host: Any, address: str) -> None:
    answer = b""
    # A port that nobody listens on would refuse; this one accepts and hangs up.
    with (
        contextlib.suppress(ConnectionResetError, BrokenPipeError),
        socket.create_connection((address, POOL_PORT), timeout=10) as stranger,
    ):
        stranger.sendall(b"GET /pool/any/v1/models HTTP/1.0\r\n\r\n")
        answer = stranger.recv(1000)
    assert answer == b""
    own = host.check_output(
        "python3 -c %s",
        "import urllib.request as u, urllib.error as e\n"
        "try: u.urlopen('http://127.0.0.1:4001/pool/any/v1/models')\n"
        "except e.HTTPError as error: print(error.code)",
    )
    assert own == "404"


def test_replicas_and_metrics_listen_on_the_loopback_only(host: Any, replicas: list[str]) -> None:
    wide = host.check_output("ss --no-header --listening --tcp --numeric").splitlines()
    sockets = {line.split()[3] for line in wide}
    assert {entry for entry in sockets if entry.endswith((":8404", ":4011", ":4012"))} == {
        "127.0.0.1:8404",
        *(f"127.0.0.1:{4011 + number}" for number in range(len(replicas))),
    }


def test_reload_loses_no_request(host: Any, ask: Any, url: str, key: str) -> None:
    main = host.check_output("systemctl show --property MainPID haproxy")
    workers = host.check_output("pgrep -u haproxy haproxy").split()
    stop = threading.Event()
    statuses: list[int] = []

    def client() -> None:
        while not stop.is_set():
            try:
                statuses.append(ask(f"{url}/v1/models", key=key)[0])
            except OSError:
                statuses.append(0)

    asking = threading.Thread(target=client)
    asking.start()
    try:
        for _ in range(3):
            host.check_output("systemctl reload haproxy")
    finally:
        stop.set()
        asking.join()
    assert len(statuses) > 3
    assert set(statuses) == {200}
    assert host.check_output("systemctl show --property MainPID haproxy") == main
    assert host.check_output("pgrep -u haproxy haproxy").split() != workers
