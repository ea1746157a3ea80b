# SPDX-License-Identifier: Apache-2.0
"""Running commands, and saying what takes long while it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path


class LocalNodesError(Exception):
    """A local node, image or tool could not be had; the message says which, why and what helps."""


def say(text: str) -> None:
    """Print one progress line at once, also through a pipe."""
    print(text, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what starts, and how many seconds it took."""
    say(f"  .. {text}")
    start = time.monotonic()
    yield
    say(f"  ok {text} ({time.monotonic() - start:.0f} s)")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process makes images or nodes, and keep others waiting meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("  .. waiting for another run that makes images or nodes")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    text_input: str | None = None,
    timeout: float = 900,
    env: dict[str, str] | None = None,
    root: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it with its output as text; ``root`` puts sudo in front when this user is not root.

    Raises:
        LocalNodesError: it failed (with its last lines), was not found, or took longer than ``timeout`` seconds.
    """
    words = [str(word) for word in argv]
    if root and os.geteuid() != 0:
        # sudo passes no environment on by itself.
        words = ["sudo", "env", *(f"{name}={value}" for name, value in (env or {}).items()), *words]
    try:
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            text=True,
            input=text_input,
            timeout=timeout,
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError as error:
        if words[0] == "sudo":
            raise LocalNodesError("local nodes need root: run this as root, or install sudo") from error
        raise LocalNodesError(f"{words[0]} is not installed; run `make host-setup`") from error
    except subprocess.TimeoutExpired as error:
        raise LocalNodesError(f"`{' '.join(words[:6])} …` did not end within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise LocalNodesError(f"`{' '.join(words)}` failed with exit code {done.returncode}:\n{tail}")
    return done
