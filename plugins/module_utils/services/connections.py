# SPDX-License-Identifier: Apache-2.0
"""Who is connected to a service: a request holds its connection until the last token of its answer is out.

Also a program of its own, standard library only, Python 3.8 or later: `inference-idle CONFIG_ROOT SERVICE SECONDS`,
with which the unit of an engine that cuts its requests when it is told to end waits before it tells it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Callable, Dict, Mapping, Optional, Sequence

#: States in /proc/net/tcp (include/net/tcp_states.h in Linux).
ESTABLISHED = "01"
LISTEN = "0A"
INTERVAL_SECONDS = 0.3


def clients(tables: Sequence[str], port: Optional[int] = None) -> int:
    """Count the connections that clients hold, by the texts of ``/proc/<pid>/net/tcp`` and ``tcp6``.

    A client is connected, from another address than the loopback's, to a port on which somebody listens; engines
    whose processes talk among each other do so over the loopback. ``port`` narrows it to one port, for a service in the
    network of its host.
    """
    rows = [row for table in tables for row in map(str.split, table.splitlines()[1:]) if len(row) > 3]
    listening = {_port(row[1]) for row in rows if row[3] == LISTEN}
    wanted = listening if port is None else listening & {f"{port:04X}"}
    return sum(1 for row in rows if row[3] == ESTABLISHED and _port(row[1]) in wanted and not _loopback(row[2]))


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def _loopback(endpoint: str) -> bool:
    """Tell 127.0.0.0/8, ::1 and ::ffff:127.0.0.0/104; each 32 bits are written in the machine's byte order."""
    address = endpoint.rpartition(":")[0]
    mapped = address.startswith("0000000000000000FFFF0000")
    if len(address) == 8 or mapped:
        return address.endswith("7F")
    return address == "00000000000000000000000001000000"


def wait_until_idle(
    count: Callable[[str], int],
    services: Sequence[str],
    timeout_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Dict[str, int]:
    """Wait until every service was once seen without a connection; return the connections of those that were not.

    Once is enough: whoever is drained gets no new requests, and a health check, which comes and goes within the
    interval, must not look like one.
    """
    deadline = now() + timeout_seconds
    busy: Mapping[str, int] = {name: count(name) for name in services}
    while True:
        busy = {name: number for name, number in busy.items() if number}
        if not busy or now() >= deadline:
            return dict(busy)
        sleep(INTERVAL_SECONDS)
        busy = {name: count(name) for name in busy}


def counter(pid_of: Callable[[str], Optional[int]], config_root: str, proc: str = "/proc") -> Callable[[str], int]:
    """Return what counts the connections of a service's clients; ``pid_of`` knows the process of a container."""

    def count(service: str) -> int:
        pid = pid_of(f"inference-{service}")
        if pid is None:
            return 0
        process = os.path.join(proc, str(pid))
        shared = _network(process) == _network(os.path.join(proc, "self"))
        tables = [_text(os.path.join(process, "net", table)) for table in ("tcp", "tcp6")]
        return clients(tables, _published(config_root, service) if shared else None)

    return count


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except OSError:
        # The service has just ended.
        return ""


def _published(config_root: str, service: str) -> Optional[int]:
    """Return the port on which a service is published, as its service.json says."""
    try:
        port = json.loads(_text(os.path.join(config_root, "services", service, "service.json"))).get("port")
    except (AttributeError, ValueError):
        return None
    return port if isinstance(port, int) else None


def _network(process: str) -> Optional[str]:
    try:
        return os.readlink(os.path.join(process, "ns", "net"))
    except OSError:
        return None


def _docker_pid(container: str) -> Optional[int]:
    words = ["docker", "container", "inspect", "--format={{.State.Pid}}", container]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(done.stdout) or None if done.stdout.strip().isdigit() else None


def main(arguments: Sequence[str], pid_of: Callable[[str], Optional[int]] = _docker_pid) -> int:
    """Wait until the service's requests are answered, and say it when the time was too short."""
    config_root, service, seconds = arguments
    for name, number in wait_until_idle(counter(pid_of, config_root), [service], float(seconds)).items():
        print(f"{number} clients are still connected to {name} after {seconds} s; their requests are cut", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
