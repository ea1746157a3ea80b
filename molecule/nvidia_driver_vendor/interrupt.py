# SPDX-License-Identifier: Apache-2.0
"""Kill runs of a playbook at several points; each time, later runs have to end with the node as wanted.

First every run is killed after its first change, until one gets to its end. Then the driver is removed, and a run is
killed by the clock, in the middle of whatever it does, while what it started on the node goes on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: Runs that are killed until the role is done; its changes are packages, files and the initramfs.
AT_LEAST, AT_MOST = 3, 12
#: By then packages are being installed.
CLOCK_SECONDS = 8
ABSENT = ["-e", '{"wanted": {"state": "absent"}}']


class Failed(Exception):
    """A run did not do what it should; the text has its output."""


class Runs:
    """Runs of one playbook on one host."""

    def __init__(self, host: str, playbook: str) -> None:
        self.host = host
        program = Path(sys.executable).parent / "ansible-playbook"
        inventory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "inventory"
        self.argv = [str(program), "-i", str(inventory), "--limit", host, playbook]

    def start(self, *more: str, seconds: float | None = None, killed_after_change: bool = False) -> tuple[bool, int]:
        """Return whether the run was killed, and how many tasks changed something."""
        environment = {**os.environ, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"}
        if killed_after_change:
            environment["ANSIBLE_CALLBACK_PLUGINS"] = str(HERE / "callback_plugins")
            environment["ANSIBLE_CALLBACKS_ENABLED"] = "killed_after_change"
        argv, pipe = [*self.argv, *more], subprocess.PIPE
        with subprocess.Popen(argv, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
        recap = re.search(rf"^{re.escape(self.host)}\s*: ok=\d+ +changed=(\d+) ", output, re.MULTILINE)
        print(f"{process.returncode}: {recap[0] if recap else 'killed'}", flush=True)
        if process.returncode == -signal.SIGKILL:
            return True, 0
        if process.returncode != 0 or not recap:
            raise Failed(output)
        return False, int(recap[1])


def main(host: str, playbook: str) -> int:
    """Return 0 when the node is as wanted after every interruption."""
    runs = Runs(host, playbook)
    try:
        kills = 0
        while runs.start(killed_after_change=True)[0] and kills < AT_MOST:
            kills += 1
        if not AT_LEAST <= kills < AT_MOST:
            raise Failed(f"{kills} runs were killed")
        runs.start(*ABSENT)
        killed, _ = runs.start(seconds=CLOCK_SECONDS)
        runs.start()
        _, changes = runs.start()
        if not killed or changes:
            raise Failed(f"killed by the clock: {killed}; {changes} changes in the last run")
    except Failed as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
