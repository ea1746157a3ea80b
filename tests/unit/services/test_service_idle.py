# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services import connections
from ansible_collections.fleet.inference.plugins.module_utils.services.connections import (
    clients,
    counter,
    main,
    wait_until_idle,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import program_text

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
# As Linux writes them: a llama-server that listens on 8080, one client through Docker's bridge (172.17.0.1), one that
# has just left (TIME_WAIT), and the engine's own connection out (to 10.0.0.9:443).
TCP = HEAD + (
    "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 71 1 0 100 0 0 10 0\n"
    "   1: 020011AC:1F90 010011AC:D3A2 01 00000000:00000000 00:00000000 00000000  1000        0 72 1 0 100 0 0 10 0\n"
    "   2: 020011AC:1F90 010011AC:D3A4 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 100 0 0 10 0\n"
    "   3: 020011AC:B2C8 0900000A:01BB 01 00000000:00000000 00:00000000 00000000  1000        0 74 1 0 100 0 0 10 0\n"
)
# vLLM's processes talk among each other over the loopback, for as long as they live.
OWN = HEAD + (
    "   0: 0100007F:7531 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 81 1 0 100 0 0 10 0\n"
    "   1: 0100007F:7531 0100007F:C000 01 00000000:00000000 00:00000000 00000000  1000        0 82 1 0 100 0 0 10 0\n"
)
TCP6 = HEAD + (
    "   0: 00000000000000000000000000000000:2CAA 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 91 1 0\n"
    "   1: 0000000000000000FFFF0000020011AC:2CAA 0000000000000000FFFF0000010011AC:9C40 01 0:0 00:0 0 0 0 92 1 0\n"
    "   2: 0000000000000000FFFF00000100007F:2CAA 0000000000000000FFFF00000100007F:9C42 01 0:0 00:0 0 0 0 93 1 0\n"
    "   3: 00000000000000000000000001000000:2CAA 00000000000000000000000001000000:9C44 01 0:0 00:0 0 0 0 94 1 0\n"
)


@pytest.mark.parametrize(
    ("tables", "count"), [([TCP], 1), ([OWN], 0), ([TCP6], 1), ([TCP, OWN, TCP6], 2), (["", ""], 0), ([HEAD], 0)]
)
def test_only_clients_are_counted(tables: list[str], count: int) -> None:
    assert clients(tables) == count


def test_a_service_in_its_hosts_network_counts_its_own_port() -> None:
    assert clients([TCP, TCP6], port=8080) == 1
    assert clients([TCP, TCP6], port=8081) == 0


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def now(self) -> float:
        return self.seconds


def wait(readings: dict[str, list[int]], timeout: float) -> tuple[dict[str, int], float]:
    clock = Clock()
    left: dict[str, Iterator[int]] = {name: iter(numbers) for name, numbers in readings.items()}
    busy = wait_until_idle(lambda name: next(left[name]), list(readings), timeout, clock.sleep, clock.now)
    return busy, clock.seconds


def test_a_service_that_was_idle_once_is_not_asked_again() -> None:
    # A health check that comes later must not count: asking llamacpp a fourth time would end the test.
    busy, seconds = wait({"llamacpp": [2, 1, 0], "vllm": [1, 1, 1, 1, 0]}, 60)
    assert (busy, round(seconds, 1)) == ({}, 1.2)


def test_who_is_still_busy_is_named() -> None:
    busy, seconds = wait({"llamacpp": [0], "vllm": [3] * 10}, 1)
    assert busy == {"vllm": 3}
    assert 1 <= seconds < 1.5


def test_a_stopped_service_is_idle_and_a_running_one_is_asked_in_its_own_network(tmp_path: Path) -> None:
    for process, network in (("self", "net:[1]"), ("77", "net:[2]")):
        (tmp_path / process / "ns").mkdir(parents=True)
        (tmp_path / process / "ns" / "net").symlink_to(network)
    (tmp_path / "77" / "net").mkdir()
    (tmp_path / "77" / "net" / "tcp").write_text(TCP)
    count = counter({"inference-vllm": 77}.get, str(tmp_path), str(tmp_path))
    assert (count("vllm"), count("ollama")) == (1, 0)

    # In its host's network the port decides, as service.json has it.
    (tmp_path / "self" / "ns" / "net").unlink()
    (tmp_path / "self" / "ns" / "net").symlink_to("net:[2]")
    (tmp_path / "services" / "vllm").mkdir(parents=True)
    (tmp_path / "services" / "vllm" / "service.json").write_text(json.dumps({"port": 8003}))
    assert count("vllm") == 0


def test_the_program_waits_and_says_whose_requests_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/etc/inference-fleet", "chat", "60"], lambda container: None) == 0
    assert capsys.readouterr().out == ""
    # This process is connected to itself only, which is nobody.
    assert main(["/etc/inference-fleet", "chat", "0"], lambda container: os.getpid()) == 0


def test_the_program_runs_alone_and_without_a_container_engine(tmp_path: Path) -> None:
    script = tmp_path / "inference-idle"
    script.write_text(program_text(connections))
    words = [sys.executable, "-I", str(script), str(tmp_path), "chat", "60"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20, env={"PATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
