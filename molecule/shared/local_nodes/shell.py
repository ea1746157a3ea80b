# SPDX-License-Identifier: Apache-2.0
"""Running commands, and saying what takes long while it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
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
) -> subprocess.CompletedProcess[str]:
    """Run a command and return it with its output as text.

    Raises:
        LocalNodesError: it failed (with its last lines), was not found, or took longer than ``timeout`` seconds.
    """
    words = [str(word) for word in argv]
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
        raise LocalNodesError(f"{words[0]} is not installed; run `make host-setup`") from error
    except subprocess.TimeoutExpired as error:
        raise LocalNodesError(f"`{' '.join(words[:6])} …` did not end within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise LocalNodesError(f"`{' '.join(words)}` failed with exit code {done.returncode}:\n{tail}")
    return done


def become_root(module: str) -> None:
    """Run this program again as root when it is not; podman's system containers and file systems need it."""
    if os.geteuid() == 0:
        return
    words = ["sudo", "env", f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", f"HOME={Path.home()}"]
    words += [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("INFERENCE_FLEET_", "XDG_"))]
    words += [sys.executable, "-m", module, *sys.argv[1:]]
    try:
        os.execvp("sudo", words)
    except FileNotFoundError:
        raise LocalNodesError("local nodes need root: run this as root, or install sudo") from None
