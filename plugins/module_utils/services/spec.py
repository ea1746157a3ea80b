# SPDX-License-Identifier: Apache-2.0
"""The wanted service as typed values, checked once."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
UNIT_NAME = re.compile(r"[A-Za-z0-9:_.@\\-]+\.[a-z]+")
MODE = re.compile(r"0?[0-7]{3}")
OWNER = re.compile(r"[0-9]+:[0-9]+")
PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/-]+")
RESERVED_FILES = frozenset({"service.json", "service.env", "readiness.json", "applied.json"})
# docker reads an env file with Go's bufio.Scanner, whose longest line is 64 KiB.
ENV_LINE_BYTES = 64 * 1024 - 1
#: Where services that share a GPU wait for each other; emptied by a restart of the node.
RUN_ROOT = "/run/inference-fleet"
#: How long a service may wait until no other one starts on its GPUs, in seconds.
LOCK_WAIT_SECONDS = 3600
#: The unit that says whether the node's GPUs can be used; the role gpu_ready installs it.
GPU_READY_UNIT = "gpu-ready.service"
#: The unit that groups the services of a machine: what is done to it is done to all of them.
TARGET_UNIT = "inference-fleet.target"
#: Devices that CUDA and ROCm need; what has only /dev/dri uses Vulkan.
COMPUTE_DEVICES = ("nvidia.com/", "amd.com/", "/dev/nvidia", "/dev/kfd")
# A shorter secret would be found in a unit by chance.
SECRET_SEARCH_CHARACTERS = 8


class SpecError(ValueError):
    """The wanted service cannot be: one clause that names the option and says what would be right."""


@dataclass(frozen=True)
class ConfigFile:
    """A file that the service reads, mounted read-only at `target`; `mode` is the permission bits."""

    name: str
    content: str
    target: str
    mode: int = 0o640
    owner_uid: Optional[int] = None
    secret: bool = False


@dataclass(frozen=True)
class Mount:
    """A path of the node inside the container; with an owner (`uid:gid`) a folder that is made and given to it."""

    source: str
    target: str
    read_only: bool = True
    owner: Optional[str] = None

    def owner_ids(self) -> Tuple[int, int]:
        """The owner's user and group id."""
        uid, _, gid = (self.owner or "").partition(":")
        return int(uid), int(gid)


@dataclass(frozen=True)
class Volume:
    """A named volume of the engine inside the container."""

    name: str
    target: str


@dataclass(frozen=True)
class Port:
    """A published TCP port; an empty address means every address of the node."""

    address: str
    host_port: int
    container_port: int

    def published(self) -> str:
        """`address:host:container` as `docker create --publish` reads it."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        prefix = f"{address}:" if address else ""
        return f"{prefix}{self.host_port}:{self.container_port}"


@dataclass(frozen=True)
class Readiness:
    """When the service counts as serving; the readiness program says in which order it asks. Times in seconds."""

    host: str
    port: int
    timeout_seconds: float
    scheme: str = "http"
    health_path: str = "/health"
    health_status: int = 200
    models_path: Optional[str] = None
    model: Optional[str] = None
    further_models: Sequence[str] = ()
    further_answer: bool = False
    generate_path: Optional[str] = None
    generate_body: Optional[Dict[str, Any]] = None
    gpu_path: Optional[str] = None
    gpu_whole: bool = True
    bearer_env: Optional[str] = None
    interval_seconds: float = 0.5
    request_timeout_seconds: float = 30.0


@dataclass(frozen=True)
class Paths:
    """Where the service's things lie on the node."""

    config_root: str = "/etc/inference-fleet"
    state_root: str = "/var/lib/inference-fleet"
    unit_dir: str = "/etc/systemd/system"


@dataclass(frozen=True)
class ServiceSpec:
    """One service, every setting resolved; without an image, only the running state of an installed one is managed."""

    name: str
    state: str = "started"
    description: str = ""
    backend: str = ""
    model: str = ""
    models: Tuple[str, ...] = ()
    units: Optional[Tuple[str, ...]] = None
    image: Optional[str] = None
    pull: str = "missing"
    command: Tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str] = field(default_factory=dict)
    files: Tuple[ConfigFile, ...] = ()
    mounts: Tuple[Mount, ...] = ()
    volumes: Tuple[Volume, ...] = ()
    tmpfs: Tuple[str, ...] = ()
    ports: Tuple[Port, ...] = ()
    devices: Tuple[str, ...] = ()
    groups: Tuple[int, ...] = ()
    user: Optional[str] = None
    read_only: bool = True
    network: Optional[str] = None
    extra_hosts: Tuple[str, ...] = ()
    shm_size_bytes: Optional[int] = None
    memory_limit_bytes: Optional[int] = None
    pids_limit: Optional[int] = None
    stop_timeout_seconds: int = 30
    idle_timeout_seconds: int = 0
    after: Tuple[str, ...] = ()
    requires: Tuple[str, ...] = ()
    start_after: Tuple[str, ...] = ()
    readiness: Optional[Readiness] = None
    paths: Paths = field(default_factory=Paths)

    @property
    def unit_name(self) -> str:
        return f"inference-{self.name}.service"

    @property
    def container_name(self) -> str:
        return f"inference-{self.name}"

    @property
    def unit_path(self) -> str:
        return os.path.join(self.paths.unit_dir, self.unit_name)

    @property
    def wants_path(self) -> str:
        """The link by which systemd knows the unit as enabled."""
        return os.path.join(self.paths.unit_dir, f"{TARGET_UNIT}.wants", self.unit_name)

    @property
    def lone_wants_path(self) -> str:
        """The same link for a unit that starts by itself and not with the target: as the unit says without drop-ins."""
        return os.path.join(self.paths.unit_dir, "multi-user.target.wants", self.unit_name)

    @property
    def target_path(self) -> str:
        """The target that groups this service with the others of the machine."""
        return os.path.join(self.paths.unit_dir, TARGET_UNIT)

    @property
    def target_wants_path(self) -> str:
        """The link by which systemd knows the target as enabled."""
        return os.path.join(self.paths.unit_dir, "multi-user.target.wants", TARGET_UNIT)

    @property
    def order_path(self) -> str:
        """The drop-in with the order of starts: a file of its own, so that a new neighbour restarts nobody."""
        return os.path.join(self.paths.unit_dir, f"{self.unit_name}.d", "start-order.conf")

    @property
    def gpu_ready_path(self) -> str:
        """The drop-in of the unit that makes it wait for the GPUs."""
        return os.path.join(self.paths.unit_dir, f"{self.unit_name}.d", "gpu-ready.conf")

    @property
    def lifecycle_path(self) -> str:
        """The drop-in of the unit that says with whom it starts and stops, and how soon it starts again."""
        return os.path.join(self.paths.unit_dir, f"{self.unit_name}.d", "lifecycle.conf")

    @property
    def drop_ins(self) -> Tuple[str, ...]:
        """Every drop-in that the unit may have."""
        return (self.order_path, self.gpu_ready_path, self.lifecycle_path)

    @property
    def uses_gpus(self) -> bool:
        """Whether the container gets a GPU for CUDA or ROCm."""
        return any(device.startswith(COMPUTE_DEVICES) for device in self.devices)

    @property
    def start_locks(self) -> Tuple[str, ...]:
        """The locks that the service holds while it starts, one for each of its units, in the order of taking them."""
        if self.readiness is None:
            return ()
        names = sorted({re.sub(r"[^A-Za-z0-9.-]", "_", unit) for unit in self.units or ()})
        return tuple(os.path.join(RUN_ROOT, f"start-on-{name}.lock") for name in names)

    @property
    def gate_path(self) -> str:
        """The file that says which start of the service holds its locks."""
        return os.path.join(RUN_ROOT, f"{self.name}.start")

    @property
    def directory(self) -> str:
        return os.path.join(self.paths.config_root, "services", self.name)

    @property
    def program_path(self) -> str:
        return os.path.join(self.paths.state_root, "bin", "inference-ready")

    @property
    def idle_program_path(self) -> str:
        return os.path.join(self.paths.state_root, "bin", "inference-idle")

    @property
    def programs(self) -> Tuple[str, ...]:
        """The programs that the unit uses; they are shared with other services."""
        return (self.program_path, *((self.idle_program_path,) if self.idle_timeout_seconds else ()))

    @property
    def lock_path(self) -> str:
        return os.path.join(self.paths.state_root, "locks", f"{self.name}.lock")

    def file_path(self, name: str) -> str:
        """The path of a file in the service's own directory."""
        return os.path.join(self.directory, name)

    def readiness_json(self) -> str:
        """The text of readiness.json; it names the variable that holds a key, never the key."""
        settings = dict(self.readiness.__dict__) if self.readiness else {}
        if not settings.get("further_models"):
            settings.pop("further_models", None)
            settings.pop("further_answer", None)
        if self.start_locks:
            settings["locks"] = list(self.start_locks)
            settings["lock_timeout_seconds"] = LOCK_WAIT_SECONDS
            settings["gate"] = self.gate_path
        return json.dumps(settings, indent=2, sort_keys=True) + "\n"

    def secrets(self) -> List[str]:
        """Every value that no output may show, longest first."""
        values = set(self.secret_env.values())
        values.update(config.content for config in self.files if config.secret)
        return sorted((value for value in values if value.strip()), key=lambda value: (-len(value), value))

    def masked(self, text: str) -> str:
        """`text` without any secret value."""
        for value in self.secrets():
            text = text.replace(value, "********")
        return text

    def to_json(self, image_id: Optional[str]) -> str:
        """The text of service.json: what runs here, for the facts and for people; no secrets."""
        port = self.ports[0] if self.ports else None
        record: Dict[str, Any] = {
            "schema_version": 1,
            "name": self.name,
            "backend": self.backend or None,
            "model": self.model or None,
            "address": port.address if port else (self.readiness.host if self.readiness else None),
            "port": port.host_port if port else (self.readiness.port if self.readiness else None),
            "container_port": port.container_port if port else None,
            "image": self.image,
            "image_id": image_id,
            "unit": self.unit_name,
            "container": self.container_name,
        }
        if self.units is not None:
            record["units"] = list(self.units)
        if self.models:
            record["models"] = list(self.models)
        return json.dumps(record, indent=2) + "\n"

    def env_text(self) -> str:
        """The text of service.env in docker's env-file format; diffs mask what stands below the line `# secret`."""
        lines = ["# Written by fleet.inference.container_service"]
        lines += [f"{name}={self.env[name]}" for name in sorted(self.env)]
        if self.secret_env:
            lines.append(SECRET_LINE)
            lines += [f"{name}={self.secret_env[name]}" for name in sorted(self.secret_env)]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> ServiceSpec:
        """Build and check a spec from the module's options; raises `SpecError`."""

        def strings(key: str) -> Tuple[str, ...]:
            return tuple(str(item) for item in params.get(key) or ())

        def given(entry: Mapping[str, Any]) -> Dict[str, Any]:
            return {key: value for key, value in entry.items() if value is not None}

        readiness = params.get("readiness")
        spec = cls(
            name=params["name"],
            state=params.get("state") or "started",
            description=params.get("description") or "",
            backend=params.get("backend") or "",
            model=params.get("model") or "",
            models=strings("models"),
            units=None if params.get("units") is None else strings("units"),
            image=params.get("image") or None,
            pull=params.get("pull") or "missing",
            command=strings("command"),
            env=_environment("env", params.get("env")),
            secret_env=_environment("secret_env", params.get("secret_env")),
            files=tuple(_config_file(entry) for entry in params.get("files") or ()),
            mounts=tuple(Mount(**given(entry)) for entry in params.get("mounts") or ()),
            volumes=tuple(Volume(**given(entry)) for entry in params.get("volumes") or ()),
            tmpfs=strings("tmpfs"),
            ports=tuple(
                Port(entry.get("address") or "", entry["host_port"], entry["container_port"])
                for entry in params.get("ports") or ()
            ),
            devices=strings("devices"),
            groups=tuple(int(item) for item in params.get("groups") or ()),
            user=params.get("user") or None,
            read_only=params.get("read_only") is not False,
            network=params.get("network") or None,
            extra_hosts=strings("extra_hosts"),
            shm_size_bytes=params.get("shm_size_bytes"),
            memory_limit_bytes=params.get("memory_limit_bytes"),
            pids_limit=params.get("pids_limit"),
            stop_timeout_seconds=30 if params.get("stop_timeout_seconds") is None else params["stop_timeout_seconds"],
            idle_timeout_seconds=params.get("idle_timeout_seconds") or 0,
            after=strings("after"),
            requires=strings("requires"),
            start_after=strings("start_after"),
            readiness=Readiness(**given(readiness)) if readiness else None,
            paths=Paths(**{key: params[key] for key in ("config_root", "state_root", "unit_dir") if params.get(key)}),
        )
        spec.check()
        return spec

    def check(self) -> None:
        """Refuse what could not work or would not be safe; raises `SpecError`."""
        if not NAME.fullmatch(self.name) or len(self.name) > 200:
            raise SpecError(
                f"name {self.name!r} must be lower-case letters, digits and hyphens, not beginning with a hyphen"
            )
        if self.image is not None and (not self.image.isprintable() or " " in self.image or self.image.startswith("-")):
            raise SpecError(f"image {self.image!r} must be [registry/]repository[:tag][@digest]")
        for option, text in (("description", self.description), ("user", self.user), ("network", self.network)):
            _one_line(option, text or "")
        if "\\" in self.description:
            raise SpecError(f"description is {self.description!r}, which must have no backslash")
        for option, values in (
            ("command", self.command),
            ("tmpfs", self.tmpfs),
            ("devices", self.devices),
            ("extra_hosts", self.extra_hosts),
        ):
            for value in values:
                _encodable(option, value)
        for option, units in (("after", self.after), ("requires", self.requires), ("start_after", self.start_after)):
            for unit in units:
                if not UNIT_NAME.fullmatch(unit):
                    raise SpecError(
                        f"{option} has {unit!r}, which must be the full name of a unit, as in gpu-ready.service"
                    )
        self._check_paths()
        for port in self.ports:
            for number in (port.host_port, port.container_port):
                if not 1 <= number <= 65535:
                    raise SpecError(f"ports has {number}, which must be from 1 to 65535")
            _one_line("ports.address", port.address)
        for limit in ("shm_size_bytes", "memory_limit_bytes", "pids_limit"):
            value = getattr(self, limit)
            if value is not None and value <= 0:
                raise SpecError(f"{limit} is {value}, which must be above 0 (leave it out for no limit)")
        for limit in ("stop_timeout_seconds", "idle_timeout_seconds"):
            if getattr(self, limit) < 0:
                raise SpecError(f"{limit} is {getattr(self, limit)}, which must be 0 or more")
        both = sorted(set(self.env) & set(self.secret_env))
        if both:
            raise SpecError(f"env and secret_env both set {both[0]}, which must stand in one of them")
        if self.readiness:
            self._check_readiness(self.readiness)

    def _check_paths(self) -> None:
        for option in ("config_root", "state_root", "unit_dir"):
            path = getattr(self.paths, option)
            if not PLAIN_PATH.fullmatch(path):
                raise SpecError(f"{option} is {path!r}, which must be an absolute path of letters, digits and ._/-")
        seen: Dict[str, str] = {}
        targets = [("files", item.target) for item in self.files]
        targets += [("mounts", item.target) for item in self.mounts]
        targets += [("volumes", item.target) for item in self.volumes]
        targets += [("tmpfs", item.split(":", 1)[0]) for item in self.tmpfs]
        for option, target in targets:
            _absolute(option, target)
            if target in seen:
                raise SpecError(
                    f"{option} and {seen[target]} both use {target} in the container, which must be used once"
                )
            seen[target] = option
        for mount in self.mounts:
            _absolute("mounts", mount.source)
            if os.path.basename(os.path.normpath(mount.source)) in ("docker.sock", "podman.sock", "containerd.sock"):
                raise SpecError(
                    f"mounts has {mount.source}, but a service must never get the engine's socket: leave it out"
                )
            if mount.owner is not None and (not OWNER.fullmatch(mount.owner) or mount.read_only):
                raise SpecError(
                    f"mounts has the owner {mount.owner!r} for {mount.source}, which must be numbers, as in "
                    "10001:10001, and read_only must be false"
                )
        for volume in self.volumes:
            if not FILE_NAME.fullmatch(volume.name):
                raise SpecError(f"volumes has the name {volume.name!r}, which must be letters, digits and ._-")
        names = [item.name for item in self.files]
        for name in names:
            if not FILE_NAME.fullmatch(name) or name in RESERVED_FILES or names.count(name) > 1:
                raise SpecError(f"files has the name {name!r}, which must be a plain file name that nothing else has")

    def _check_readiness(self, readiness: Readiness) -> None:
        if readiness.timeout_seconds <= 0 or readiness.interval_seconds <= 0 or readiness.request_timeout_seconds <= 0:
            raise SpecError("readiness has a time that is not above 0 seconds, which must be a positive number")
        for option in ("health_path", "models_path", "generate_path", "gpu_path"):
            path = getattr(readiness, option)
            if path is not None and not path.startswith("/"):
                raise SpecError(f"readiness.{option} is {path!r}, which must begin with a slash")
        if readiness.further_models and not (readiness.model and readiness.models_path):
            raise SpecError("readiness.further_models must come with readiness.model and readiness.models_path")
        if readiness.gpu_path is not None and not (readiness.model and readiness.generate_path):
            raise SpecError("readiness.gpu_path must come with readiness.model and readiness.generate_path")
        known = set(self.env) | set(self.secret_env)
        if self.image and readiness.bearer_env is not None and readiness.bearer_env not in known:
            raise SpecError(
                f"readiness.bearer_env names {readiness.bearer_env}, which must be a variable of env or secret_env"
            )


SECRET_LINE = "# secret"  # noqa: S105


def _environment(option: str, values: Optional[Mapping[str, Any]]) -> Dict[str, str]:
    result: Dict[str, str] = {}
    for name, value in (values or {}).items():
        text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, bool) else str(value)
        if not ENV_NAME.fullmatch(str(name)):
            raise SpecError(f"{option} has the name {name!r}, which must be letters, digits and underscores")
        if any(sign in text for sign in "\n\r\0"):
            raise SpecError(
                f"{option}.{name} has a line break or NUL, which an environment file cannot hold: use `files`"
            )
        _encodable(f"{option}.{name}", text, show=False)
        if len(f"{name}={text}".encode("utf-8")) > ENV_LINE_BYTES:
            raise SpecError(f"{option}.{name} is longer than 64 KiB, which docker cannot read: use `files`")
        result[str(name)] = text
    return result


def _config_file(entry: Mapping[str, Any]) -> ConfigFile:
    mode = str(entry.get("mode") or "0640")
    if not MODE.fullmatch(mode):
        raise SpecError(
            f"files has mode {mode!r} for {entry['name']}, which must be octal digits in quotes, as in '0640'"
        )
    if entry.get("secret") and int(mode, 8) & 0o007:
        raise SpecError(
            f"files has mode {mode!r} for the secret {entry['name']}, which others must not read: use '0640' or less"
        )
    return ConfigFile(
        name=entry["name"],
        content=entry["content"],
        target=entry["target"],
        mode=int(mode, 8),
        owner_uid=entry.get("owner_uid"),
        secret=bool(entry.get("secret")),
    )


def _absolute(option: str, path: str) -> None:
    if not path.startswith("/") or not path.isprintable():
        raise SpecError(f"{option} has {path!r}, which must be an absolute path")


def _one_line(option: str, text: str) -> None:
    if text and not text.isprintable():
        raise SpecError(f"{option} is {text!r}, which must be one line of printable text")


def _encodable(option: str, text: str, show: bool = True) -> None:
    # systemd drops a line with such a character, even in a comment (unichar_is_valid in its utf8.c).
    for sign in text:
        code = ord(sign)
        if code == 0 or 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
            where = f" ({text!r})" if show else ""
            raise SpecError(f"{option}{where} has the character U+{code:04X}, which systemd cannot carry: leave it out")
