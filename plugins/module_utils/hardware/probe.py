# SPDX-License-Identifier: Apache-2.0
"""How a node is looked at: files below one root, programs and libraries with a deadline, and how each of them went."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, cast

T = TypeVar("T")

OUTPUT_LIMIT_BYTES = 32 * 1024 * 1024
# A process in uninterruptible sleep does not die of SIGKILL; nobody may wait for it longer than this.
REAP_SECONDS = 0.05
# Of the module's time, what no probe gets: at most so many seconds, and at most this share.
MARGIN_SECONDS = 1.0
MARGIN_SHARE = 0.2
# sudo and cron hand down a short PATH; the last one is where WSL keeps nvidia-smi.
EXTRA_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/lib/wsl/lib")
# The node's own daemon is meant, wherever the login user's tools point to.
DROPPED_ENVIRONMENT = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "CONTAINER_HOST", "CONTAINER_CONNECTION")


class Report:
    """The state of every source that was asked (`probes`) and what went wrong (`errors`)."""

    def __init__(self) -> None:
        self.errors: List[Dict[str, str]] = []
        self.probes: Dict[str, Dict[str, Any]] = {}

    def error(self, source: str, message: str) -> None:
        """Add one sentence about what `source` could not tell."""
        entry = {"source": source, "message": " ".join(message.split())[:500]}
        if entry not in self.errors:
            self.errors.append(entry)

    def probe(self, source: str, status: str, message: Optional[str] = None, ms: int = 0) -> None:
        """Record that `source` answered `ok`, is `absent`, or ended in `timeout` or `error` after `ms` milliseconds.

        A timeout or an error gets an entry in `errors` as well.
        """
        self.probes[source] = {"status": status, "message": message, "ms": ms}
        if status in ("timeout", "error"):
            self.error(source, message or status)

    def guard(self, source: str, function: Callable[[], T], default: Any) -> T:
        """Return `function()`, or `default` and an entry in `errors` when it raises."""
        try:
            return function()
        except Exception as problem:
            self.error(source, f"{type(problem).__name__}: {problem}")
            return cast(T, default)


class Outcome:
    """How a program or a child process ended: `status` is `ok`, `absent`, `timeout` or `error`, `ms` milliseconds."""

    def __init__(
        self,
        status: str,
        message: Optional[str] = None,
        ms: int = 0,
        *,
        returncode: Optional[int] = None,
        stdout: str = "",
        stderr: str = "",
        value: Any = None,
    ) -> None:
        self.status = status
        self.message = message
        self.ms = ms
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.value = value


def _drain(descriptors: Sequence[int], deadline: float) -> Tuple[List[bytes], bool]:
    """Read all `descriptors` to their end; the flag is False when the deadline or the size limit came first."""
    chunks: Dict[int, List[bytes]] = {fd: [] for fd in descriptors}
    left = list(descriptors)
    size = 0
    while left:
        # What was written in time is read, even by a caller that comes after the deadline.
        ready = select.select(left, [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready or size > OUTPUT_LIMIT_BYTES:
            break
        for fd in ready:
            data = os.read(fd, 65536)
            size += len(data)
            if data:
                chunks[fd].append(data)
            else:
                left.remove(fd)
    return [b"".join(chunks[fd]) for fd in descriptors], not left


def _kill_group(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)


def _reap(pid: int, seconds: float) -> Optional[int]:
    """Return the wait status of `pid` once it has ended, None when it has not within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        if done:
            return status
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


class Command:
    """A program that runs while other things are read. `finish()` collects it, at the latest at its deadline."""

    def __init__(self, argv: Sequence[str], timeout: float, allowed: bool = True) -> None:
        self.argv = list(argv)
        self.timeout = timeout
        self.started = time.monotonic()
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.failure: Optional[Outcome] = None
        if not allowed:
            self.failure = Outcome("absent", "a recorded tree has no programs")
            return
        path = os.pathsep.join([os.environ.get("PATH", ""), *EXTRA_PATH])
        executable = shutil.which(self.argv[0], path=path)
        if executable is None:
            self.failure = Outcome("absent", f"{self.argv[0]} is not installed")
            return
        environment = {key: value for key, value in os.environ.items() if key not in DROPPED_ENVIRONMENT}
        environment.update(LC_ALL="C", PATH=path)
        try:
            self.process = subprocess.Popen(
                [executable, *self.argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env=environment,
            )
        except OSError as problem:
            self.failure = Outcome("error", f"{executable} cannot be run: {problem.strerror}")

    def finish(self) -> Outcome:
        """Return how the program ended; at the deadline its whole process group is killed and not waited for."""
        if self.failure is not None or self.process is None:
            return self.failure or Outcome("absent")
        process = self.process
        assert process.stdout is not None and process.stderr is not None
        deadline = self.started + self.timeout
        (stdout, stderr), complete = _drain([process.stdout.fileno(), process.stderr.fileno()], deadline)
        process.stdout.close()
        process.stderr.close()
        while complete and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None:
            _kill_group(process.pid)
            limit = time.monotonic() + REAP_SECONDS
            while process.poll() is None and time.monotonic() < limit:
                time.sleep(0.002)
            complete = False
        ms = int((time.monotonic() - self.started) * 1000)
        out, err = stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")
        if not complete:
            message = f"{' '.join(self.argv)} did not end within {self.timeout:.3g} s"
            return Outcome("timeout", message, ms, stdout=out, stderr=err)
        if process.returncode != 0:
            first = next((line.strip() for line in (err + "\n" + out).splitlines() if line.strip()), "no output")
            message = f"{' '.join(self.argv)} ended with status {process.returncode}: {first}"
            return Outcome("error", message, ms, returncode=process.returncode, stdout=out, stderr=err)
        return Outcome("ok", None, ms, returncode=0, stdout=out, stderr=err)


class Child:
    """A function that runs in a child process while other things are read. `finish()` collects its JSON value.

    For libraries that may crash and reads that may never return: the child has no descriptor of this process but one
    pipe, so that even a child that cannot be killed keeps nobody waiting.
    """

    def __init__(self, function: Callable[[], Any], timeout: float, name: str) -> None:
        self.name = name
        self.timeout = timeout
        self.started = time.monotonic()
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, writer)
        os.close(writer)

    def _run(self, function: Callable[[], Any], writer: int) -> None:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.closerange(3, writer)
            os.closerange(writer + 1, 4096)
            try:
                answer = {"value": function()}
            except BaseException as problem:
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            data = json.dumps(answer).encode()
            while data:
                data = data[os.write(writer, data) :]
            # A thread that cannot be killed would keep the pipe open.
            os.close(writer)
        finally:
            os._exit(0)

    def finish(self) -> Outcome:
        """Return how the function ended; at the deadline the child is killed and not waited for."""
        try:
            (data,), complete = _drain([self.reader], self.started + self.timeout)
        finally:
            os.close(self.reader)
        if not complete:
            _kill_group(self.pid)
        status = _reap(self.pid, REAP_SECONDS)
        ms = int((time.monotonic() - self.started) * 1000)
        if not complete:
            return Outcome("timeout", f"{self.name} did not answer within {self.timeout:.3g} s", ms)
        try:
            answer = json.loads(data.decode())
        except ValueError:
            cause = f"signal {os.WTERMSIG(status)}" if status and os.WIFSIGNALED(status) else "no answer"
            return Outcome("error", f"{self.name} ended with {cause}", ms)
        if "error" in answer:
            return Outcome("error", answer["error"], ms)
        return Outcome("ok", None, ms, value=answer["value"])


class Host:
    """A node: its files below `root`, its programs when `live`, one report, and one deadline for all probes.

    Paths are given relative to the root (`proc/meminfo`). Nothing here raises for what is missing or unreadable.
    A recorded tree is not live: programs, libraries and sockets belong to the machine that reads it.
    `timeout` is how long all of it may take, in seconds; `wake` asks GPUs that sleep, `integrated` makes integrated
    GPUs usable.
    """

    def __init__(
        self,
        root: str = "/",
        timeout: float = 10,
        live: Optional[bool] = None,
        *,
        wake: bool = False,
        integrated: bool = False,
    ) -> None:
        self.root = root
        self.live = os.path.realpath(root) == "/" if live is None else live
        self.wake = wake
        self.integrated = integrated
        # Killing what is stuck and printing the facts has to fit in as well.
        self.deadline = time.monotonic() + timeout - min(MARGIN_SECONDS, timeout * MARGIN_SHARE)
        self.report = Report()

    def remaining(self) -> float:
        """Return the seconds that a probe may still take."""
        return max(0.0, self.deadline - time.monotonic())

    def path(self, *parts: str) -> str:
        """Return where the given path lies on this machine."""
        return os.path.join(self.root, *(part.lstrip("/") for part in parts))

    def text(self, *parts: str) -> Optional[str]:
        """Return a file's text without surrounding blanks and NUL bytes, None when it cannot be read."""
        try:
            with open(self.path(*parts), "rb") as stream:
                return stream.read().decode("utf-8", "replace").replace("\0", "").strip()
        except OSError:
            return None

    def integer(self, *parts: str) -> Optional[int]:
        """Return a file's number (decimal, or hexadecimal after 0x), None when there is none."""
        return to_int(self.text(*parts))

    def names(self, *parts: str) -> List[str]:
        """Return a directory's entries, sorted; none when it cannot be read."""
        try:
            return sorted(os.listdir(self.path(*parts)))
        except OSError:
            return []

    def link(self, *parts: str) -> Optional[str]:
        """Return the last part of a symbolic link's target, None when it is not a link."""
        try:
            return os.path.basename(os.readlink(self.path(*parts)))
        except OSError:
            return None

    def exists(self, *parts: str) -> bool:
        """Say whether the path is there."""
        return os.path.exists(self.path(*parts))

    def start(self, *argv: str) -> Command:
        """Start a program of the node; on a recorded tree every program is absent."""
        return Command(argv, self.remaining(), allowed=self.live)

    def child(self, function: Callable[[], Any], name: str) -> Child:
        """Start `function` in a child process; `name` is what messages call it."""
        return Child(function, self.remaining(), name)


def to_int(text: Optional[str]) -> Optional[int]:
    """Return the number that `text` spells (decimal, or hexadecimal after 0x), None when it spells none."""
    try:
        return int(text or "", 0) if (text or "").lower().startswith("0x") else int(text or "")
    except ValueError:
        return None
