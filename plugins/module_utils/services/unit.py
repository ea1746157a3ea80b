# SPDX-License-Identifier: Apache-2.0
"""The systemd unit of a service: one text for every backend, a pure function of the spec."""

from __future__ import annotations

import hashlib
import re
from typing import FrozenSet, Iterable, List

from ansible_collections.fleet.inference.plugins.module_utils.services.readiness import WHEN_OPEN
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import (
    GPU_READY_UNIT,
    LOCK_WAIT_SECONDS,
    RUN_ROOT,
    SECRET_SEARCH_CHARACTERS,
    TARGET_UNIT,
    ServiceSpec,
    SpecError,
)

DOCKER = "/usr/bin/docker"
PYTHON = "/usr/bin/python3"
START_LIMIT_BURST = 5
# What pulling up a container costs beyond the readiness deadline: removing a leftover, create, start.
START_MARGIN_SECONDS = 60
STOP_MARGIN_SECONDS = 30
#: The first systemd that lets the pause before a restart grow (its NEWS file; RestartSteps= in systemd.service(5)).
GROWING_PAUSES = 254
SHORT_LINE_WORDS = 6

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def quote(argument: str) -> str:
    """One argument of an Exec line, so that systemd passes exactly `argument`.

    Source: systemd.syntax(7) "Quoting", systemd.service(5) "Command lines" (`$$`), systemd.unit(5) "Specifiers" (`%%`).
    """
    if _PLAIN.fullmatch(argument):
        return argument
    signs = []
    for sign in argument:
        if sign in _ESCAPES:
            signs.append(_ESCAPES[sign])
        elif ord(sign) < 0x20 or ord(sign) == 0x7F:
            signs.append(f"\\x{ord(sign):02x}")
        else:
            signs.append(sign)
    return '"' + "".join(signs) + '"'


def csv_fields(fields: Iterable[str]) -> str:
    """The fields of a `--mount` value; docker reads them as one line of CSV (RFC 4180)."""
    return ",".join('"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text for text in fields)


def create_arguments(spec: ServiceSpec, controllers: FrozenSet[str]) -> List[str]:
    """The options, image and command of `docker create`; limits only where their cgroup controller exists."""
    options: List[str] = [
        f"--name={spec.container_name}",
        "--pull=never",
        "--init",
        "--restart=no",
        "--log-driver=none",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges:true",
    ]
    if spec.read_only:
        options.append("--read-only")
    if spec.user:
        options.append(f"--user={spec.user}")
    options += [f"--group-add={group}" for group in spec.groups]
    if spec.pids_limit is not None and "pids" in controllers:
        options.append(f"--pids-limit={spec.pids_limit}")
    if spec.memory_limit_bytes is not None and "memory" in controllers:
        options.append(f"--memory={spec.memory_limit_bytes}")
    if spec.shm_size_bytes is not None:
        options.append(f"--shm-size={spec.shm_size_bytes}")
    options.append(f"--stop-timeout={spec.stop_timeout_seconds}")
    options.append(f"--env-file={spec.file_path('service.env')}")
    if spec.network:
        options.append(f"--network={spec.network}")
    options += [f"--add-host={host}" for host in spec.extra_hosts]
    options += [f"--publish={port.published()}" for port in spec.ports]
    options += [f"--device={device}" for device in spec.devices]
    options += [f"--tmpfs={path}" for path in spec.tmpfs]
    for config in spec.files:
        source = spec.file_path(config.name)
        options.append(
            "--mount=" + csv_fields(["type=bind", f"source={source}", f"target={config.target}", "readonly"])
        )
    for mount in spec.mounts:
        fields = ["type=bind", f"source={mount.source}", f"target={mount.target}"]
        options.append("--mount=" + csv_fields([*fields, "readonly"] if mount.read_only else fields))
    for volume in spec.volumes:
        options.append("--mount=" + csv_fields(["type=volume", f"source={volume.name}", f"target={volume.target}"]))
    options.append(f"--label=inference-fleet.service={spec.name}")
    tail = [spec.image or "", *spec.command]
    digest = hashlib.sha256("\0".join([*options, *tail]).encode("utf-8")).hexdigest()
    return [*options, f"--label=inference-fleet.spec={digest[:16]}", *tail]


def exec_line(key: str, words: Iterable[str], prefix: str = "") -> str:
    """`Key=word word …`; a long one has a line a word from the third on, so that a person and a diff can read it."""
    quoted = [quote(word) for word in words]
    if len(quoted) <= SHORT_LINE_WORDS:
        return f"{key}={prefix}{' '.join(quoted)}"
    head = " ".join(quoted[:2])
    return f"{key}={prefix}" + " \\\n    ".join([head, *quoted[2:]])


def stop_limit(spec: ServiceSpec) -> int:
    """Seconds after which systemd ends a stop, whatever still runs."""
    return spec.idle_timeout_seconds + spec.stop_timeout_seconds + STOP_MARGIN_SECONDS


def render_unit(spec: ServiceSpec, controllers: FrozenSet[str]) -> str:
    """The text of `inference-<name>.service`; raises `SpecError` when a secret would stand in it."""
    ready = spec.readiness
    deadline = ready.timeout_seconds if ready else 0
    longest_start = int(deadline) + START_MARGIN_SECONDS
    start_timeout = longest_start + (LOCK_WAIT_SECONDS if spec.start_locks else 0)
    start = [DOCKER, "start", "--attach", spec.container_name]
    if spec.start_locks:
        start = [PYTHON, "-I", spec.program_path, WHEN_OPEN, spec.gate_path, *start]
    requires = _unique(spec.requires)
    after = _unique(["docker.service", "network-online.target", *spec.after, *requires])
    wants = [unit for unit in ("docker.service", "network-online.target") if unit not in requires]
    description = spec.description or f"Inference service {spec.name}"
    container = spec.container_name
    lines = [
        "# Written by fleet.inference.container_service; changes made here are put back by the next run.",
        "[Unit]",
        f"Description={description.replace('%', '%%')}",
        f"Wants={' '.join(wants)}",
        f"After={' '.join(after)}",
        *([f"Requires={' '.join(requires)}"] if requires else []),
        f"StartLimitIntervalSec={max(600, START_LIMIT_BURST * longest_start)}",
        f"StartLimitBurst={START_LIMIT_BURST}",
        "",
        "[Service]",
        "Type=exec",
        f"SyslogIdentifier={container}",
        # ProtectHome hides root's docker configuration, which is not needed; an empty place avoids a warning.
        f"Environment=DOCKER_CONFIG={spec.paths.config_root}/docker",
        exec_line("ExecStartPre", [DOCKER, "rm", "--force", "--volumes", container], "-"),
        exec_line("ExecStartPre", [DOCKER, "create", *create_arguments(spec, controllers)]),
        exec_line("ExecStart", start),
    ]
    if ready:
        lines.append(exec_line("ExecStartPost", [PYTHON, "-I", spec.program_path, spec.file_path("readiness.json")]))
    if spec.idle_timeout_seconds:
        waiting = [spec.idle_program_path, spec.paths.config_root, spec.name, str(spec.idle_timeout_seconds)]
        lines.append(exec_line("ExecStop", [PYTHON, "-I", *waiting], "-"))
    lines += [
        exec_line("ExecStop", [DOCKER, "stop", "-t", str(spec.stop_timeout_seconds), container], "-"),
        exec_line("ExecStopPost", [DOCKER, "rm", "--force", "--volumes", container], "-"),
        "Restart=always",
        # An engine that ends by the signal of `docker stop` exits with 128 + SIGTERM.
        "SuccessExitStatus=143",
        "RestartSec=2",
        f"TimeoutStartSec={start_timeout}",
        f"TimeoutStopSec={stop_limit(spec)}",
        *(_runtime_directory() if spec.start_locks else []),
        "",
        "# For the docker client and the readiness program only; the container's own limits are the options above.",
        "CapabilityBoundingSet=",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "MemoryDenyWriteExecute=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
        "UMask=0077",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
        "",
    ]
    text = "\n".join(lines)
    _refuse_secrets(spec, text)
    return text


def render_order(spec: ServiceSpec) -> str:
    """The text of the drop-in by which a service starts after others that are to start too (`start_after`)."""
    return "\n".join(
        [
            "# Written by fleet.inference.container_service: the order in which services of this node start.",
            "[Unit]",
            f"After={' '.join(_unique(spec.start_after))}",
            "",
        ]
    )


def render_gpu_ready() -> str:
    """The text of the drop-in by which a service with GPUs waits for them: a file of its own, so no restart."""
    return "\n".join(
        [
            "# Written by fleet.inference.container_service: this service has GPUs.",
            "[Unit]",
            f"Requires={GPU_READY_UNIT}",
            f"After={GPU_READY_UNIT}",
            "",
        ]
    )


def render_lifecycle(systemd_version: int) -> str:
    """The text of the drop-in that joins a service to the fleet's target and says how soon it is restarted.

    A file of its own, so that another systemd or another pause restarts nothing. A service that ends is back soon the
    first time; one that goes on ending gives the GPU, or whatever it lacks, a little more time at each attempt: 2, 4, 8
    and 15 seconds until the start limit ends it. An older systemd pauses 5 seconds each time.
    """
    growing = ["RestartSec=2", "RestartSteps=4", "RestartMaxDelaySec=30"]
    return "\n".join(
        [
            "# Written by fleet.inference.container_service: with whom the service starts and stops, how it restarts.",
            "[Unit]",
            f"PartOf={TARGET_UNIT}",
            "",
            "[Service]",
            *(growing if systemd_version >= GROWING_PAUSES else ["RestartSec=5"]),
            "",
            "[Install]",
            "# In place of what the unit says: the target starts it.",
            "WantedBy=",
            f"WantedBy={TARGET_UNIT}",
            "",
        ]
    )


def render_target() -> str:
    """The text of the target that groups all services of a machine."""
    return "\n".join(
        [
            "# Written by fleet.inference.container_service: start, stop and restart reach all services that it wants.",
            "[Unit]",
            "Description=Inference services of this machine",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _runtime_directory() -> List[str]:
    # Kept when the service stops: the locks of other services lie in it.
    return [f"RuntimeDirectory={RUN_ROOT[len('/run/') :]}", "RuntimeDirectoryPreserve=yes"]


def _refuse_secrets(spec: ServiceSpec, text: str) -> None:
    plain = "\n".join([text, spec.description, *spec.command])
    for name, value in spec.secret_env.items():
        if len(value) >= SECRET_SEARCH_CHARACTERS and value in plain:
            raise SpecError(
                f"the value of secret_env.{name} also stands in an option that is not secret: leave it out there"
            )


def _unique(units: Iterable[str]) -> List[str]:
    return list(dict.fromkeys(units))
