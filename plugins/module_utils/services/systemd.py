# SPDX-License-Identifier: Apache-2.0
"""systemd and the journal, through their command lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

from ansible_collections.fleet.inference.plugins.module_utils.services.runner import CommandNotFound, Runner

# Engines of several processes say the cause first, and then how each of the others ended because of it.
JOURNAL_LINES = 100


class SystemdError(Exception):
    """systemctl failed; its last line."""


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit (the words of `systemctl show`)."""

    load: str = "not-found"
    active: str = "inactive"
    needs_reload: bool = False

    @property
    def running(self) -> bool:
        """Started, or on its way there."""
        return self.active in ("active", "activating", "reloading", "refreshing")


class Systemd:
    """The calls that a service needs."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def _systemctl(self, *arguments: str, timeout: float = 90.0) -> None:
        try:
            done = self._runner.run(["systemctl", *arguments], timeout=timeout)
        except CommandNotFound as error:
            raise SystemdError("systemd is not installed on the node, which must run it as PID 1") from error
        if done.rc != 0:
            raise SystemdError(done.first_line or f"systemctl {arguments[0]} ended with {done.rc}")

    def state(self, unit: str) -> UnitState:
        """The unit's state now; an unknown unit, or a node without systemd, gives not-found and inactive."""
        try:
            done = self._runner.run(["systemctl", "show", "--property=LoadState,ActiveState,NeedDaemonReload", unit])
        except CommandNotFound:
            return UnitState()
        values = dict(line.partition("=")[::2] for line in done.stdout.splitlines() if "=" in line)
        return UnitState(
            load=values.get("LoadState") or "not-found",
            active=values.get("ActiveState") or "inactive",
            needs_reload=values.get("NeedDaemonReload") == "yes",
        )

    def daemon_reload(self) -> None:
        self._systemctl("daemon-reload")

    def version(self) -> int:
        """The number of systemd's release; 0 on a node without systemd."""
        try:
            words = self._runner.run(["systemctl", "--version"]).stdout.split()
        except CommandNotFound:
            return 0
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0

    def enable(self, unit: str) -> None:
        """Enable the unit as its files say now, and in no other way than that."""
        # `reenable` does not read drop-ins (systemd 252).
        self.disable(unit)
        # A reload takes GPUs away from containers with some runtimes, so none happens that is not needed.
        self._systemctl("enable", "--quiet", "--no-reload", unit)

    def disable(self, unit: str) -> None:
        self._systemctl("disable", "--quiet", "--no-reload", unit)

    def reset_failed(self, unit: str) -> None:
        """Forget earlier failures, so that the start limit counts from now; a unit without any is no error."""
        try:
            self._systemctl("reset-failed", unit)
        except SystemdError:
            return

    def start(self, unit: str, timeout: float) -> None:
        """Start and wait until systemd counts the unit as started, so until it is ready; `timeout` in seconds."""
        self._systemctl("start", unit, timeout=timeout)

    def activate(self, unit: str) -> None:
        """Start a target alone, without what it wants."""
        self._systemctl("start", "--job-mode=ignore-dependencies", unit)

    def restart(self, unit: str, timeout: float) -> None:
        self._systemctl("restart", unit, timeout=timeout)

    def stop(self, unit: str, timeout: float) -> None:
        self._systemctl("stop", unit, timeout=timeout)

    def journal(self, unit: str, since: float) -> List[str]:
        """The unit's last lines since `since` (seconds since 1970), without time and host.

        Left out is what docker says of every start, when the container that may be left over from before is not there.
        """
        try:
            self._runner.run(["journalctl", "--sync"], timeout=10.0)
            done = self._runner.run(
                [
                    "journalctl",
                    f"--unit={unit}",
                    f"--lines={JOURNAL_LINES}",
                    f"--since=@{int(since)}",
                    "--output=cat",
                    "--no-pager",
                    "--quiet",
                ],
                timeout=20.0,
            )
        except CommandNotFound:
            return []
        lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
        return [line for line in lines if "No such container:" not in line]
