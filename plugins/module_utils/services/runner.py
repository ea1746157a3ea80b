# SPDX-License-Identifier: Apache-2.0
"""The one place from which this package starts other programs."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import List, Optional, Sequence

TIMED_OUT = 124


@dataclass(frozen=True)
class Completed:
    """What a program left behind: exit status (124 when it ran past its limit), standard output and standard error."""

    rc: int
    stdout: str = ""
    stderr: str = ""

    @property
    def first_line(self) -> str:
        """The first line that says something, standard error before standard output; empty when there is none."""
        return next(iter(self._lines()), "")

    @property
    def last_line(self) -> str:
        """The last line that says something, standard error before standard output; empty when there is none."""
        return next(reversed(self._lines()), "")

    def _lines(self) -> List[str]:
        for text in (self.stderr, self.stdout):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return lines
        return []


class CommandNotFound(Exception):
    """The program is not installed on this node."""


class Runner:
    """Starts programs without a shell; unit tests put a stand-in with the same `run` in its place."""

    def run(self, argv: Sequence[str], timeout: Optional[float] = 60.0) -> Completed:
        """Run `argv` and wait at most `timeout` seconds; raises `CommandNotFound` when the program is not there."""
        environment = dict(os.environ, LC_ALL="C", SYSTEMD_COLORS="0")
        try:
            done = subprocess.run(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                timeout=timeout,
                env=environment,
                check=False,
            )
        except FileNotFoundError as error:
            raise CommandNotFound(argv[0]) from error
        except subprocess.TimeoutExpired:
            return Completed(TIMED_OUT, "", f"{argv[0]} {argv[1]} ran longer than {timeout:g} s")
        return Completed(
            done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        )
