# SPDX-License-Identifier: Apache-2.0
"""The container engine: what a service needs of it. Docker now; podman becomes a second class here."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import FrozenSet, Optional

from ansible_collections.fleet.inference.plugins.module_utils.services.image import explain_pull
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import CommandNotFound, Completed, Runner
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec
from ansible_collections.fleet.inference.plugins.module_utils.services.unit import DOCKER, render_unit

PULL_TIMEOUT_SECONDS = 4 * 3600.0


class EngineError(Exception):
    """The engine refused or failed; one clause with the remedy."""


class EngineUnavailable(EngineError):
    """The engine is not installed or does not run."""


def cgroup_controllers(root: str = "/sys/fs/cgroup") -> FrozenSet[str]:
    """The controllers by which this node can limit a container: those of the cgroup-v2 root, or the v1 hierarchies."""
    try:
        with open(os.path.join(root, "cgroup.controllers"), encoding="ascii") as stream:
            return frozenset(stream.read().split())
    except OSError:
        pass
    try:
        return frozenset(part for name in os.listdir(root) for part in name.split(","))
    except OSError:
        return frozenset()


class Engine(ABC):
    """What the service manager asks of a container engine. Image ids are opaque strings that change with the image."""

    @abstractmethod
    def image_id(self, image: str) -> Optional[str]:
        """The id of a local image, None when it is not here; raises `EngineUnavailable`."""

    @abstractmethod
    def pull(self, image: str) -> None:
        """Fetch an image from its image registry; raises `EngineError`."""

    @abstractmethod
    def tag(self, image_id: str, image: str) -> None:
        """Let the name `image` mean the local image `image_id`; raises `EngineError`."""

    @abstractmethod
    def container_exists(self, name: str) -> bool:
        """Whether a container of this name exists, running or not; raises `EngineUnavailable`."""

    @abstractmethod
    def container_pid(self, name: str) -> Optional[int]:
        """The process number of a running container's first process, None when it does not run; `EngineUnavailable`."""

    @abstractmethod
    def remove_container(self, name: str) -> None:
        """Remove a container, running or not; raises `EngineError`."""

    @abstractmethod
    def unit(self, spec: ServiceSpec) -> str:
        """The text of the systemd unit that runs `spec` with this engine; raises `SpecError`."""


class DockerEngine(Engine):
    """Docker Engine 20.10 or later, through its command line."""

    def __init__(self, runner: Runner, controllers: FrozenSet[str], command: str = DOCKER) -> None:
        self._runner = runner
        self._controllers = controllers
        self._command = command

    def _docker(self, *arguments: str, timeout: float = 60.0) -> Completed:
        try:
            done = self._runner.run([self._command, *arguments], timeout=timeout)
        except CommandNotFound as error:
            raise EngineUnavailable(
                "docker is not installed on the node: run the role container_runtime first"
            ) from error
        if done.rc != 0 and _is_down(done.stderr):
            raise EngineUnavailable("docker does not run on the node: start it with `systemctl start docker`")
        return done

    def image_id(self, image: str) -> Optional[str]:
        done = self._docker("image", "inspect", "--format={{.Id}}", image)
        if done.rc == 0:
            return done.stdout.strip() or None
        if "no such image" in done.stderr.lower() or "not found" in done.stderr.lower():
            return None
        raise EngineError(f"docker could not inspect the image {image} ({done.last_line}): try the same on the node")

    def pull(self, image: str) -> None:
        done = self._docker("pull", "--quiet", image, timeout=PULL_TIMEOUT_SECONDS)
        if done.rc != 0:
            raise EngineError(explain_pull(image, done.last_line))

    def tag(self, image_id: str, image: str) -> None:
        done = self._docker("tag", image_id, image)
        if done.rc != 0:
            raise EngineError(f"docker could not name {image_id} {image} again ({done.last_line})")

    def container_exists(self, name: str) -> bool:
        return self._docker("container", "inspect", "--format={{.Id}}", name).rc == 0

    def container_pid(self, name: str) -> Optional[int]:
        done = self._docker("container", "inspect", "--format={{.State.Pid}}", name)
        number = done.stdout.strip()
        return int(number) if done.rc == 0 and number.isdigit() and number != "0" else None

    def remove_container(self, name: str) -> None:
        done = self._docker("rm", "--force", "--volumes", name)
        if done.rc != 0 and "no such container" not in done.stderr.lower():
            raise EngineError(f"docker could not remove the container {name} ({done.last_line})")

    def unit(self, spec: ServiceSpec) -> str:
        return render_unit(spec, self._controllers)


def _is_down(message: str) -> bool:
    text = message.lower()
    return "cannot connect to the docker daemon" in text or "failed to connect to the docker api" in text
