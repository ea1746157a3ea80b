# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import time
from pathlib import Path

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Child, Command, Host, Report


def test_command_ends() -> None:
    outcome = Command(["sh", "-c", "echo out; echo err >&2; echo $LC_ALL"], 5).finish()
    assert (outcome.status, outcome.returncode, outcome.stdout, outcome.stderr) == ("ok", 0, "out\nC\n", "err\n")


def test_command_fails_or_is_absent() -> None:
    outcome = Command(["sh", "-c", "echo sorry >&2; exit 9"], 5).finish()
    assert (outcome.status, outcome.returncode) == ("error", 9)
    assert outcome.message == "sh -c echo sorry >&2; exit 9 ended with status 9: sorry"
    assert Command(["no-such-program-here"], 5).finish().status == "absent"


def test_deadline_kills_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    outcome = Command(["sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"], 0.3).finish()
    assert outcome.status == "timeout" and time.monotonic() - started < 2
    time.sleep(0.2)
    status = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    assert not status.exists() or status.read_text().rpartition(") ")[2].startswith("Z")


def test_what_was_written_in_time_counts_after_the_deadline() -> None:
    command = Command(["echo", "early"], 0.2)
    time.sleep(0.4)
    outcome = command.finish()
    assert (outcome.status, outcome.stdout) == ("ok", "early\n")


def test_endless_output_is_stopped() -> None:
    started = time.monotonic()
    assert Command(["cat", "/dev/zero"], 5).finish().status == "timeout"
    assert time.monotonic() - started < 5


def test_docker_host_of_the_user_is_not_followed(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert Command(["sh", "-c", "echo [$DOCKER_HOST]"], 5).finish().stdout == "[]\n"


def test_child() -> None:
    assert Child(lambda: {"pid": 1}, 5, "probe").finish().value == {"pid": 1}
    assert Child(lambda: "x" * 1_000_000, 5, "probe").finish().value == "x" * 1_000_000
    failed = Child(lambda: {}["missing"], 5, "probe").finish()
    assert (failed.status, failed.message) == ("error", "KeyError: 'missing'")
    crashed = Child(os.abort, 5, "probe").finish()
    assert (crashed.status, crashed.message) == ("error", "probe ended with signal 6")
    started = time.monotonic()
    assert Child(lambda: time.sleep(60), 0.3, "probe").finish().message == "probe did not answer within 0.3 s"
    assert time.monotonic() - started < 2


def test_children_run_at_the_same_time() -> None:
    started = time.monotonic()
    children = [Child(lambda: time.sleep(0.5), 5, "probe") for _ in range(4)]
    assert [child.finish().status for child in children] == ["ok"] * 4
    assert time.monotonic() - started < 1.5


def test_all_probes_share_one_deadline(tmp_path: Path) -> None:
    started = time.monotonic()
    host = Host(str(tmp_path), 1, live=True)
    child, command = host.child(lambda: time.sleep(60), "probe"), host.start("sleep", "60")
    assert [child.finish().status, command.finish().status] == ["timeout", "timeout"]
    assert host.start("sleep", "60").finish().status == "timeout"
    assert time.monotonic() - started < 1


def test_report_guard_and_errors() -> None:
    report = Report()
    assert report.guard("x", lambda: 1 // 0, "default") == "default"
    report.error("x", "ZeroDivisionError: integer division\nor modulo by zero")
    assert len(report.errors) == 1
    report.probe("y", "timeout", "too slow", 7)
    report.probe("z", "absent", "not there")
    assert [error["source"] for error in report.errors] == ["x", "y"]
    assert report.probes["y"] == {"status": "timeout", "message": "too slow", "ms": 7}


def test_host_reads_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xff 12\0\0\n")
    (tmp_path / "number").write_text("0x10de\n")
    host = Host(str(tmp_path))
    assert not host.live and Host("/").live
    assert host.integer("number") == 0x10DE
    assert host.text("file") == "\ufffd 12"
    assert (host.text("none"), host.integer("file"), host.names("none"), host.link("file")) == (None, None, [], None)
    assert host.start("true").finish().status == "absent"
