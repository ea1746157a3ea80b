# SPDX-License-Identifier: Apache-2.0
"""Every Molecule scenario, run as a user would run it, and its second check read for changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(file.parent.name for file in (ROOT / "molecule").glob("*/molecule.yml"))
LIMIT_SECONDS = 900
SHOWN_LINES = 150
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
#: Molecule's own line at the beginning of an action: "INFO     [gateway > converge] Executing".
ACTION = re.compile(r"^INFO\s+\[(?P<scenario>[\w-]+) > (?P<action>\w+)\] Executing$")
RECAP = re.compile(
    r"^(?P<host>\S+)\s+: ok=\d+\s+changed=(?P<changed>\d+)\s+unreachable=(?P<unreachable>\d+)\s+failed=(?P<failed>\d+)"
)
BEGINNING = ["destroy", "syntax", "create"]
MIDDLE = ["check", "converge", "idempotence", "check", "verify"]


class Scenario:
    """One run of ``molecule test``: what each action said, and a line of progress for each."""

    def __init__(self, name: str, terminal: pytest.CaptureFixture[str]) -> None:
        self.name = name
        self.terminal = terminal
        self.lines: list[str] = []
        self.actions: list[tuple[str, list[str]]] = []

    def run(self) -> int:
        """Run all actions; returns Molecule's exit code."""
        argv = [str(Path(sys.executable).parent / "molecule"), "test", "--scenario-name", self.name]
        # Plain lines, whatever the terminal is.
        env = {
            **os.environ,
            "NO_COLOR": "1",
            "ANSIBLE_NOCOLOR": "1",
            "MOLECULE_COMMAND_BORDERS": "0",
            "PYTHONUNBUFFERED": "1",
        }
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        env["ANSIBLE_CONFIG"] = str(ROOT / "ansible.cfg")
        start = time.monotonic()
        with subprocess.Popen(
            argv, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            timer = threading.Timer(LIMIT_SECONDS, os.killpg, (process.pid, signal.SIGTERM))
            timer.start()
            try:
                for line in self._read(process):
                    begun = ACTION.match(line)
                    if begun:
                        self._say(f"{time.monotonic() - start:5.0f} s  {self.name}: {begun['action']}")
                        self.actions.append((begun["action"], []))
                    elif self.actions:
                        self.actions[-1][1].append(line)
            except BaseException:
                # Whoever interrupts the test means the whole of it.
                os.killpg(process.pid, signal.SIGTERM)
                raise
            finally:
                timer.cancel()
        return process.returncode

    def changes(self, number: int) -> dict[str, int]:
        """Host → changed tasks of an action, by its position in the sequence."""
        found = (RECAP.match(line) for line in self.actions[number][1])
        return {match["host"]: int(match["changed"]) for match in found if match}

    def _read(self, process: subprocess.Popen[str]) -> Iterator[str]:
        assert process.stdout
        for raw in process.stdout:
            line = ESCAPES.sub("", raw).rstrip()
            self.lines.append(line)
            yield line

    def _say(self, text: str) -> None:
        with self.terminal.disabled():
            print(f"\n  {text}", end="", flush=True)


@pytest.mark.nodes
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = Scenario(name, capsys)
    code = scenario.run()
    with capsys.disabled():
        print(flush=True)
    end = "\n".join(scenario.lines[-SHOWN_LINES:])
    assert code == 0, f"molecule test --scenario-name {name} ended with {code}; its last lines:\n{end}"
    names = [action for action, _ in scenario.actions]
    middle = next(number for number in range(len(names)) if names[number : number + len(MIDDLE)] == MIDDLE)
    assert names[: len(BEGINNING)] == BEGINNING
    assert names[middle + len(MIDDLE) :] in (["destroy"], ["side_effect", "destroy"])
    first_check, converge, again, second_check = (scenario.changes(number) for number in range(middle, middle + 4))
    assert first_check
    assert set(first_check) == set(converge) == set(again) == set(second_check)
    predicted, changed = ({host for host, count in counts.items() if count} for counts in (first_check, converge))
    assert predicted == changed, f"the check on bare nodes predicts changes on {predicted}, the run changed {changed}"
    assert not any(again.values()), f"a second converge changed something: {again}"
    assert not any(second_check.values()), f"the check after converge predicts changes: {second_check}"
