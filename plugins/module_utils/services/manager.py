# SPDX-License-Identifier: Apache-2.0
"""One call owns one service: compare the wanted with what is there, apply the difference, or put everything back."""

from __future__ import annotations

import contextlib
import errno
import glob
import inspect
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.services import connections, readiness
from ansible_collections.fleet.inference.plugins.module_utils.services import files as fs
from ansible_collections.fleet.inference.plugins.module_utils.services.applied import (
    Applied,
    installed_contents,
    read_applied,
    read_json,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.diff import describe
from ansible_collections.fleet.inference.plugins.module_utils.services.engine import (
    Engine,
    EngineError,
    EngineUnavailable,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.files import FileState, OwnedFile
from ansible_collections.fleet.inference.plugins.module_utils.services.image import explain_start
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import (
    GPU_READY_UNIT,
    LOCK_WAIT_SECONDS,
    TARGET_UNIT,
    Mount,
    ServiceSpec,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.systemd import Systemd, SystemdError, UnitState
from ansible_collections.fleet.inference.plugins.module_utils.services.unit import (
    START_MARGIN_SECONDS,
    render_gpu_ready,
    render_lifecycle,
    render_order,
    render_target,
    stop_limit,
)

# How long systemctl may take beyond the unit's own limits, which end first.
SYSTEMCTL_MARGIN_SECONDS = 60
LOCK_MARGIN_SECONDS = 300
SHOWN_LINES = 15
GPU_READY_REPORT = "/run/inference-fleet/gpu-ready.json"
PULL_ALWAYS_LATER = "(known after the pull)"


class ServiceError(Exception):
    """The service is not in the wanted state: one sentence, the journal's last lines, what was put back."""

    def __init__(self, sentence: str, journal: Optional[List[str]] = None, restored: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.journal = journal or []
        self.restored = restored


@dataclass
class Result:
    """What was done, or in check mode would be done; `ready_seconds` is None when nothing was started."""

    changed: bool = False
    actions: List[str] = field(default_factory=list)
    image_id: Optional[str] = None
    ready_seconds: Optional[float] = None
    diff: Dict[str, str] = field(default_factory=lambda: {"before": "", "after": ""})


@dataclass
class Observed:
    """The node as it is before anything is done."""

    files: Dict[str, Optional[FileState]]
    unit: UnitState
    enabled: bool
    #: Enabled by the fleet's target and by nothing else.
    grouped: bool
    applied: Optional[Applied]
    image_id: Optional[str]

    @property
    def installed(self) -> bool:
        return self.unit_file is not None

    unit_file: Optional[FileState] = None


@dataclass
class Plan:
    """The difference between a node and a spec."""

    writes: List[OwnedFile] = field(default_factory=list)
    rights: List[OwnedFile] = field(default_factory=list)
    removals: List[str] = field(default_factory=list)
    folders: List[Mount] = field(default_factory=list)
    #: Those of them that are not there yet.
    made: List[str] = field(default_factory=list)
    reload: bool = False
    enable: Optional[bool] = None
    #: The fleet's target is to be enabled.
    group: bool = False
    run: Optional[str] = None
    actions: List[str] = field(default_factory=list)
    #: The unit's running state may no longer be what it was.
    touched: bool = False


def port_problem(address: str, port: int) -> str:
    """Why nothing could listen on this TCP port of this node now, in one clause; empty when it is free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Connections of the previous process that are still closing are no obstacle to Docker either.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                where = f"{address or '*'}:{port}"
                return (
                    f"{where} is already used by something else on the node: choose another port, or stop what uses it"
                )
            if error.errno == errno.EADDRNOTAVAIL:
                return f"the node has no address {address}: set inference_address to one of its own"
    return ""


def program_text(module: ModuleType) -> str:
    """A module as the program that is installed, from this package wherever that was loaded from (a zip file too)."""
    return "#!/usr/bin/python3\n" + inspect.getsource(module)


class ServiceManager:
    """Brings one service to its wanted state. `host` is the word by which messages name the node."""

    def __init__(
        self,
        spec: ServiceSpec,
        engine: Engine,
        systemd: Systemd,
        host: str,
        *,
        check_mode: bool = False,
        port_probe: Callable[[str, int], str] = port_problem,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.spec = spec
        self.engine = engine
        self.systemd = systemd
        self.host = host
        self.check_mode = check_mode
        self.port_probe = port_probe
        self.clock = clock
        self.result = Result()
        self._unit_text = ""
        self._uid = os.geteuid()
        self._gid = os.getegid()

    # -- entry -----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Compare and apply; raises `ServiceError` with all put back, and `SpecError` before anything is done."""
        try:
            if self.check_mode:
                return self._converge()
            with fs.locked(self.spec.lock_path, self._start_timeout(self.spec_deadline()) + LOCK_MARGIN_SECONDS):
                return self._converge()
        except fs.LockTimeout as error:
            raise self._error(f"another run still holds {error}: wait for it, or end it") from error
        except EngineError as error:
            raise self._error(str(error)) from error
        except OSError as error:
            raise self._error(_os_reason(error)) from error
        except SystemdError as error:
            raise self._error(f"systemctl failed ({error})") from error

    def spec_deadline(self) -> float:
        """Seconds that the wanted service may take to become ready."""
        return self.spec.readiness.timeout_seconds if self.spec.readiness else 0.0

    def _converge(self) -> Result:
        if self.spec.state == "absent":
            return self._remove()
        observed = self._observe()
        if self.spec.image is None:
            return self._run_state_only(observed)
        if self.spec.state != "stopped":
            self._check_ports(observed)
        pulled = self._ensure_image(observed)
        desired = self._desired(observed.image_id)
        plan = self._plan(observed, desired)
        self.result.actions = pulled + plan.actions
        self.result.changed = bool(pulled) or any(not action.startswith("wait") for action in plan.actions)
        self.result.image_id = observed.image_id
        self.result.diff = self._diff(observed, desired, plan)
        if not self.check_mode and plan.actions:
            self._apply(plan, observed, desired)
        return self.result

    # -- what is there ---------------------------------------------------------------------------------------------

    def _observe(self) -> Observed:
        spec = self.spec
        paths = {spec.unit_path, *spec.drop_ins, spec.target_path, *spec.programs, *fs.plain_files(spec.directory)}
        names = ("service.env", "readiness.json", "service.json", "applied.json", *(item.name for item in spec.files))
        paths.update(spec.file_path(name) for name in names)
        files = {path: fs.read_file(path) for path in sorted(paths)}
        unit_file = files[spec.unit_path]
        self._unit_text = unit_file.content.decode("utf-8", "replace") if unit_file else ""
        return Observed(
            files=files,
            unit=self.systemd.state(spec.unit_name),
            enabled=os.path.lexists(spec.wants_path) or os.path.lexists(spec.lone_wants_path),
            grouped=os.path.lexists(spec.wants_path) and not os.path.lexists(spec.lone_wants_path),
            applied=read_applied(files[spec.file_path("applied.json")]),
            image_id=None,
            unit_file=unit_file,
        )

    def _ensure_image(self, observed: Observed) -> List[str]:
        """Have the image here and its id in `observed`; gives the action, if one was needed."""
        image = self.spec.image or ""
        wanted = self.spec.state != "stopped"
        try:
            observed.image_id = self.engine.image_id(image)
        except EngineUnavailable:
            # A check on a bare node predicts what happens once the engine is there; a stopped service needs none.
            if not self.check_mode and wanted:
                raise
        if not wanted:
            if observed.applied:
                observed.image_id = observed.applied.image_id
            return []
        if observed.image_id is None and self.spec.pull == "never":
            raise self._error(
                f"image {image} is not on the node and pull is never: load it there, or set pull to missing"
            )
        if self.check_mode:
            return [f"pull {image}"] if observed.image_id is None else []
        if observed.image_id is not None and self.spec.pull != "always":
            return []
        before = observed.image_id
        self.engine.pull(image)
        observed.image_id = self.engine.image_id(image)
        if observed.image_id is None:
            raise self._error(f"image {image} is not on the node after its pull: look at `docker image ls` there")
        return [f"pull {image}"] if observed.image_id != before else []

    # -- what is wanted --------------------------------------------------------------------------------------------

    def _desired(self, image_id: Optional[str]) -> List[OwnedFile]:
        """Every file of the service in the order of writing."""
        spec = self.spec

        def owned(path: str, content: str, mode: int, **flags: bool) -> OwnedFile:
            return OwnedFile(path, FileState(content.encode("utf-8"), mode, self._uid, self._gid), **flags)

        desired = [owned(spec.program_path, program_text(readiness), 0o755)]
        if spec.idle_timeout_seconds:
            desired.append(owned(spec.idle_program_path, program_text(connections), 0o755))
        desired.append(owned(spec.file_path("service.env"), spec.env_text(), 0o600, restarts=True))
        for item in spec.files:
            uid = self._uid if item.owner_uid is None else item.owner_uid
            state = FileState(item.content.encode("utf-8"), item.mode, uid, self._gid)
            desired.append(OwnedFile(spec.file_path(item.name), state, restarts=True, secret=item.secret))
        if spec.readiness:
            desired.append(owned(spec.file_path("readiness.json"), spec.readiness_json(), 0o600))
        desired.append(owned(spec.unit_path, self.engine.unit(spec), 0o644, restarts=True))
        desired.append(owned(spec.target_path, render_target(), 0o644))
        desired.append(owned(spec.lifecycle_path, render_lifecycle(self.systemd.version()), 0o644))
        if spec.start_after:
            desired.append(owned(spec.order_path, render_order(spec), 0o644))
        if spec.uses_gpus and os.path.exists(os.path.join(spec.paths.unit_dir, GPU_READY_UNIT)):
            desired.append(owned(spec.gpu_ready_path, render_gpu_ready(), 0o644))
        desired.append(owned(spec.file_path("service.json"), spec.to_json(image_id), 0o644, late=True))
        return desired

    def _fingerprint(self, desired: List[OwnedFile]) -> str:
        return fs.fingerprint({item.path: item.state.content for item in desired if item.restarts})

    # -- the difference --------------------------------------------------------------------------------------------

    def _plan(self, observed: Observed, desired: List[OwnedFile]) -> Plan:
        spec = self.spec
        plan = Plan()
        if not os.path.isdir(spec.directory):
            plan.actions.append(f"create {spec.directory}")
        self._plan_folders(plan)
        for item in desired:
            found = observed.files[item.path]
            if found is None or found.content != item.state.content:
                plan.writes.append(item)
                plan.actions.append(f"write {item.path}")
            elif not found.same_rights(item.state):
                plan.rights.append(item)
                plan.actions.append(f"set mode and owner of {item.path}")
        kept = {item.path for item in desired} | {spec.file_path("applied.json")}
        plan.removals = [path for path, found in observed.files.items() if found is not None and path not in kept]
        plan.actions += [f"remove {path}" for path in plan.removals]
        wanted = spec.state != "stopped"
        if observed.enabled != wanted or (wanted and not observed.grouped):
            plan.enable = wanted
            plan.actions.append(f"{'enable' if wanted else 'disable'} {spec.unit_name}")
        if not os.path.lexists(spec.target_wants_path):
            plan.group = True
            plan.actions.append(f"enable {TARGET_UNIT}")
        changed = {*(item.path for item in plan.writes), *plan.removals}
        plan.reload = observed.unit.needs_reload or bool(changed & {spec.unit_path, spec.target_path, *spec.drop_ins})
        if plan.reload:
            plan.actions.append("daemon-reload")
        plan.run = self._needed_run(observed, desired, plan)
        if plan.run:
            plan.actions.append(f"{plan.run} {spec.unit_name}")
        return plan

    def _plan_folders(self, plan: Plan) -> None:
        """Note the folders that are to be made, or given to the user of the container."""
        for mount in self.spec.mounts:
            if mount.owner is None:
                continue
            found = fs.folder_owner(mount.source)
            if found == mount.owner_ids():
                continue
            plan.folders.append(mount)
            if found is None:
                plan.made.append(mount.source)
            plan.actions.append(f"create {mount.source}" if found is None else f"give {mount.source} to {mount.owner}")

    def _needed_run(self, observed: Observed, desired: List[OwnedFile], plan: Plan) -> Optional[str]:
        state = self.spec.state
        if state == "stopped":
            return "stop" if observed.unit.running else None
        if not observed.unit.running:
            return "start"
        applied = observed.applied
        stale = (
            applied is None
            or applied.fingerprint != self._fingerprint(desired)
            or applied.image_id != observed.image_id
            or any(item.restarts for item in plan.writes)
        )
        if stale or state == "restarted":
            return "restart"
        # systemd is bringing it up by itself (boot, or after a crash): the run ends when it is ready.
        return "wait for" if observed.unit.active == "activating" else None

    def _check_ports(self, observed: Observed) -> None:
        """Refuse a port that something else holds, before anything is changed; the running version's own are fine."""
        own = (
            observed.unit_file.content.decode("utf-8", "replace")
            if observed.unit_file and observed.unit.running
            else ""
        )
        for port in self.spec.ports:
            if f"--publish={port.published().rpartition(':')[0]}:" in own:
                continue
            problem = self.port_probe(port.address, port.host_port)
            if problem:
                raise self._error(problem)

    # -- applying and putting back ---------------------------------------------------------------------------------

    def _apply(self, plan: Plan, observed: Observed, desired: List[OwnedFile]) -> None:
        spec = self.spec
        parents = (os.path.dirname(spec.directory), os.path.dirname(spec.program_path), spec.paths.unit_dir)
        began = self.clock()
        try:
            for parent in parents:
                fs.make_directory(parent, 0o755)
            fs.make_directory(spec.directory, 0o750)
            for mount in plan.folders:
                fs.give_folder(mount.source, mount.owner_ids())
            for item in plan.writes:
                if item.path in spec.drop_ins:
                    fs.make_directory(os.path.dirname(item.path), 0o755)
                if not item.late:
                    fs.write_file(item.path, item.state)
            for item in plan.rights:
                fs.set_rights(item.path, item.state)
            for path in plan.removals:
                self._remove_file(path)
            self._activate(plan, observed)
            for item in plan.writes:
                if item.late:
                    fs.write_file(item.path, item.state)
            if plan.run in ("start", "restart"):
                self._write_applied(self._fingerprint(desired), observed.image_id)
        except (OSError, SystemdError) as error:
            raise self._failure(error, plan, observed, began) from error

    def _activate(self, plan: Plan, observed: Observed) -> None:
        """Enable or disable the unit, have systemd read it, and run it; the plan notes when running it began."""
        if plan.enable is not None:
            (self.systemd.enable if plan.enable else self.systemd.disable)(self.spec.unit_name)
        if plan.group:
            self.systemd.enable(TARGET_UNIT)
        if plan.reload:
            self.systemd.daemon_reload()
        if (plan.group or plan.run in ("start", "restart")) and os.path.exists(self.spec.target_path):
            self.systemd.activate(TARGET_UNIT)
        plan.touched = plan.run is not None
        self._run_unit(plan.run, observed)

    def _run_unit(self, run: Optional[str], observed: Observed) -> None:
        unit = self.spec.unit_name
        if run == "stop":
            self.systemd.stop(unit, self._stop_timeout())
            # An engine that had to be killed leaves the unit failed, and it is stopped, as was wished.
            self.systemd.reset_failed(unit)
        elif run:
            if run != "wait for":
                self.systemd.reset_failed(unit)
            timeout = self._start_timeout(max(self.spec_deadline(), self._previous_deadline(observed)))
            began = time.monotonic()
            (self.systemd.restart if run == "restart" else self.systemd.start)(unit, timeout)
            self.result.ready_seconds = round(time.monotonic() - began, 1)

    def _write_applied(self, digest: str, image_id: Optional[str]) -> None:
        secret = tuple(item.name for item in self.spec.files if item.secret)
        record = Applied(digest, image_id, secret).to_json().encode("utf-8")
        fs.write_file(self.spec.file_path("applied.json"), FileState(record, 0o600, self._uid, self._gid))

    def _failure(self, error: Exception, plan: Plan, observed: Observed, began: float) -> ServiceError:
        """Put everything back and say what happened."""
        unit = self.spec.unit_name
        lines: List[str] = []
        reason = _os_reason(error) if isinstance(error, OSError) else f"systemctl failed ({error})"
        if plan.touched and isinstance(error, SystemdError):
            lines = [self.spec.masked(line) for line in self.systemd.journal(unit, began)]
            if plan.run == "stop":
                reason = f"it could not be stopped ({error}): see `systemctl status {unit}` on the node"
            else:
                cause = (
                    self._gpu_cause(error)
                    or explain_start(lines)
                    or f"{str(error).rstrip('.')}: see `journalctl -u {unit}` on the node"
                )
                reason = f"it did not become ready: {cause}"
        restored = self._put_back(plan, observed)
        return self._error(f"{reason}; {restored}", lines[-SHOWN_LINES:], restored)

    def _gpu_cause(self, error: SystemdError) -> str:
        """What gpu-ready found missing, when the service was not started because of that; else empty."""
        if "ependency" not in str(error) or not self.spec.uses_gpus:
            return ""
        problems = read_json(fs.read_file(GPU_READY_REPORT)).get("problems")
        told = "; ".join(str(problem) for problem in problems) if isinstance(problems, list) else ""
        return f"the node's GPUs can't be used ({told or f'see `systemctl status {GPU_READY_UNIT}` on the node'})"

    def _put_back(self, plan: Plan, observed: Observed) -> str:
        """Return to the observed files, enablement, image and running state; gives the clause that says how it went."""
        spec = self.spec
        unit = spec.unit_name
        nothing_written = not (plan.writes or plan.rights or plan.removals or plan.folders)
        moved = bool(observed.applied and observed.applied.image_id not in (None, observed.image_id))
        if plan.run == "wait for" and nothing_written:
            return "nothing of it had changed, so there is no earlier version to return to"
        steps: List[Tuple[str, Callable[[], None]]] = []
        if plan.touched and plan.run in ("start", "restart"):
            steps.append(("stop", lambda: self.systemd.stop(unit, self._stop_timeout())))
        if not observed.enabled and plan.enable:
            steps.append(("disable", lambda: self.systemd.disable(unit)))
        if observed.files[spec.target_path] is None and plan.group:
            steps.append(("target", self._disband))
        steps.append(("files", lambda: self._restore_files(observed)))
        steps.append(("folders", lambda: self._remove_empty(plan.made)))
        if observed.enabled and plan.enable is not None:
            steps.append(("enable", lambda: self.systemd.enable(unit)))
        if moved and observed.applied and observed.applied.image_id:
            image, image_id = spec.image or "", observed.applied.image_id
            if self._image_of(observed) == image:
                steps.append(("image", lambda: self.engine.tag(image_id, image)))
        if plan.reload:
            steps.append(("daemon-reload", self.systemd.daemon_reload))
        problems = []
        for name, step in steps:
            try:
                step()
            except (OSError, SystemdError, EngineError) as error:
                problems.append(f"{name}: {error}")
        if not observed.installed:
            with contextlib.suppress(EngineError):
                self.engine.remove_container(spec.container_name)
            self.systemd.reset_failed(unit)
            if problems:
                return f"not all of it could be removed again ({'; '.join(problems)})"
            return "the service is new, so it was removed again"
        if plan.touched and plan.run != "stop" and observed.unit.running:
            self.systemd.reset_failed(unit)
            try:
                self.systemd.start(unit, self._start_timeout(self._previous_deadline(observed)))
            except SystemdError as error:
                problems.append(f"start: {error}")
            if problems:
                return f"the previous version does not serve either ({self.spec.masked('; '.join(problems))})"
            return "the previous version is serving again"
        if problems:
            return f"not all of the previous version could be put back ({'; '.join(problems)})"
        if observed.unit.running:
            return "the previous version was put back and kept serving"
        return (
            "it is stopped, as it was before"
            if nothing_written
            else "the previous version was put back, stopped as before"
        )

    def _restore_files(self, observed: Observed) -> None:
        for path, state in observed.files.items():
            if state is None:
                self._remove_file(path)
            elif fs.read_file(path) != state:
                fs.write_file(path, state)
        if not observed.installed and not any(
            state for path, state in observed.files.items() if os.path.dirname(path) == self.spec.directory
        ):
            with contextlib.suppress(OSError):
                os.rmdir(self.spec.directory)

    def _remove_file(self, path: str) -> None:
        """Remove a file; with the drop-in goes its folder, unless somebody else has one there."""
        fs.remove_file(path)
        if path in self.spec.drop_ins:
            self._remove_empty([os.path.dirname(path)])

    @staticmethod
    def _remove_empty(folders: List[str]) -> None:
        """Remove folders that have nothing in them."""
        for folder in folders:
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    # -- only the running state, and removal -----------------------------------------------------------------------

    def _run_state_only(self, observed: Observed) -> Result:
        """start, stop or restart what is installed, without knowing its settings."""
        spec = self.spec
        if not observed.installed:
            if spec.state == "stopped":
                return self.result
            raise self._error(f"{spec.unit_name} is not installed: give image, or run site.yml first")
        plan = Plan()
        wanted = spec.state != "stopped"
        if observed.enabled != wanted:
            plan.enable = wanted
            plan.actions.append(f"{'enable' if wanted else 'disable'} {spec.unit_name}")
        if observed.unit.needs_reload:
            plan.reload = True
            plan.actions.append("daemon-reload")
        if not wanted:
            plan.run = "stop" if observed.unit.running else None
        elif spec.state == "restarted" or not observed.unit.running:
            plan.run = "restart" if observed.unit.running else "start"
        elif observed.unit.active == "activating":
            plan.run = "wait for"
        if plan.run:
            plan.actions.append(f"{plan.run} {spec.unit_name}")
        image = self._image_of(observed)
        if plan.run in ("start", "restart") and image:
            with contextlib.suppress(EngineUnavailable):
                observed.image_id = self.engine.image_id(image)
        self.result.actions = plan.actions
        self.result.changed = any(not action.startswith("wait") for action in plan.actions)
        self.result.image_id = observed.image_id or (observed.applied.image_id if observed.applied else None)
        after = {"enabled": _yes(wanted), "running": _yes(wanted)}
        before = {"enabled": _yes(observed.enabled), "running": _yes(observed.unit.running)}
        self.result.diff = {side: _lines(state) for side, state in (("before", before), ("after", after))}
        if self.check_mode or not plan.actions:
            return self.result
        began = self.clock()
        try:
            self._activate(plan, observed)
            if plan.run in ("start", "restart"):
                self._note_started(observed)
        except (OSError, SystemdError) as error:
            raise self._failure(error, plan, observed, began) from error
        return self.result

    def _note_started(self, observed: Observed) -> None:
        """Record that the files as they lie on the node are what runs now."""
        contents = installed_contents(observed.files, self.spec.directory, self.spec.unit_path)
        secret = (
            observed.applied.secret_files if observed.applied else tuple(os.path.basename(path) for path in contents)
        )
        record = Applied(fs.fingerprint(contents), observed.image_id, secret).to_json().encode("utf-8")
        fs.write_file(self.spec.file_path("applied.json"), FileState(record, 0o600, self._uid, self._gid))

    def _remove(self) -> Result:
        """state absent: stop, disable, remove the unit, the files and the container; the image and all data stay."""
        spec = self.spec
        observed = self._observe()
        for path in spec.programs:
            observed.files.pop(path)
        last = observed.files.pop(spec.target_path) is not None and not self._has_neighbours()
        container = False
        with contextlib.suppress(EngineUnavailable):
            container = self.engine.container_exists(spec.container_name)
        steps: List[Tuple[str, Callable[[], None]]] = []
        if observed.unit.running:
            steps.append((f"stop {spec.unit_name}", lambda: self.systemd.stop(spec.unit_name, self._stop_timeout())))
        if observed.enabled:
            steps.append((f"disable {spec.unit_name}", lambda: self.systemd.disable(spec.unit_name)))
        for path in spec.drop_ins:
            if observed.files[path] is not None:
                steps.append((f"remove {path}", partial(self._remove_file, path)))
        if observed.installed:
            steps.append((f"remove {spec.unit_path}", lambda: fs.remove_file(spec.unit_path)))
        if last:
            steps.append((f"remove {spec.target_path}", self._remove_target))
        if observed.installed or last:
            steps.append(("daemon-reload", self.systemd.daemon_reload))
        # The unit removes its container when it stops, so a container that is running now is gone by then.
        if container:
            steps.append(
                (f"remove container {spec.container_name}", lambda: self.engine.remove_container(spec.container_name))
            )
        if os.path.isdir(spec.directory):
            steps.append((f"remove {spec.directory}", lambda: shutil.rmtree(spec.directory)))
        self.result.actions = [name for name, _ in steps]
        self.result.changed = bool(steps)
        if steps:
            self.result.diff = {"before": self._before_text(observed), "after": ""}
        if not self.check_mode:
            for _, step in steps:
                step()
            if observed.installed:
                self.systemd.reset_failed(spec.unit_name)
        return self.result

    def _has_neighbours(self) -> bool:
        """Whether other services of the machine belong to the target."""
        mine = self.spec.lifecycle_path
        found = glob.glob(os.path.join(self.spec.paths.unit_dir, "*.service.d", os.path.basename(mine)))
        return any(path != mine for path in found)

    def _disband(self) -> None:
        """Stop and disable the target, to which no service belongs any more."""
        self.systemd.stop(TARGET_UNIT, SYSTEMCTL_MARGIN_SECONDS)
        self.systemd.disable(TARGET_UNIT)

    def _remove_target(self) -> None:
        self._disband()
        fs.remove_file(self.spec.target_path)

    # -- words -----------------------------------------------------------------------------------------------------

    def _diff(self, observed: Observed, desired: List[OwnedFile], plan: Plan) -> Dict[str, str]:
        spec = self.spec
        before = {path: state for path, state in observed.files.items() if path != spec.file_path("applied.json")}
        after: Dict[str, Optional[FileState]] = {item.path: item.state for item in desired}
        wanted = spec.state != "stopped"
        image_id = observed.image_id if observed.image_id or not wanted else PULL_ALWAYS_LATER
        was = observed.applied.image_id if observed.applied else None
        lines = (
            self._state_lines(observed.enabled, observed.unit.running, self._image_of(observed), was),
            self._state_lines(wanted, wanted, spec.image, image_id if wanted else was),
        )
        if not observed.installed and not observed.unit.running:
            lines = ({}, lines[1])
        return describe(
            before=before,
            after=after,
            lines=lines,
            env_path=spec.file_path("service.env"),
            digest_paths=set(spec.programs),
            secret_paths=self._secret_paths(observed),
        )

    def _before_text(self, observed: Observed) -> str:
        files = {path: state for path, state in observed.files.items() if path != self.spec.file_path("applied.json")}
        was = observed.applied.image_id if observed.applied else None
        lines = self._state_lines(observed.enabled, observed.unit.running, self._image_of(observed), was)
        texts = describe(
            before=files,
            after={},
            lines=(lines, {}),
            env_path=self.spec.file_path("service.env"),
            digest_paths=set(),
            secret_paths=self._secret_paths(observed),
        )
        return texts["before"]

    @staticmethod
    def _state_lines(enabled: bool, running: bool, image: Optional[str], image_id: Optional[str]) -> Dict[str, str]:
        return {
            "enabled": _yes(enabled),
            "running": _yes(running),
            "image": image or "none",
            "image id": image_id or "none",
        }

    def _secret_paths(self, observed: Observed) -> Set[str]:
        """Files whose content no diff may show: those that are secret now, and those that were, or may have been."""
        spec = self.spec
        secret = {spec.file_path(item.name) for item in spec.files if item.secret}
        contents = installed_contents(observed.files, spec.directory, spec.unit_path)
        others = set(contents) - {spec.unit_path}
        applied = observed.applied
        if applied is not None and applied.fingerprint == fs.fingerprint(contents):
            return secret | {spec.file_path(name) for name in applied.secret_files}
        # An interrupted run or a hand left files that no record describes.
        shown = {spec.file_path("service.env")}
        if applied is not None:
            secret |= {spec.file_path(name) for name in applied.secret_files}
            shown |= {spec.file_path(item.name) for item in spec.files}
        return secret | (others - shown)

    def _image_of(self, observed: Observed) -> Optional[str]:
        return read_json(observed.files.get(self.spec.file_path("service.json"))).get("image")

    def _previous_deadline(self, observed: Observed) -> float:
        value = read_json(observed.files.get(self.spec.file_path("readiness.json"))).get("timeout_seconds")
        return float(value) if isinstance(value, (int, float)) else self.spec_deadline()

    def _start_timeout(self, deadline: float) -> float:
        """Seconds that systemctl may need to stop the old container and to start one with this readiness deadline."""
        lock = LOCK_WAIT_SECONDS if self.spec.start_locks else 0
        unit = max(lock + deadline + START_MARGIN_SECONDS, self._installed_limit("TimeoutStartSec"))
        return self._stop_timeout() + unit + SYSTEMCTL_MARGIN_SECONDS

    def _stop_timeout(self) -> float:
        unit = max(stop_limit(self.spec), self._installed_limit("TimeoutStopSec"))
        return float(unit + SYSTEMCTL_MARGIN_SECONDS)

    def _installed_limit(self, setting: str) -> int:
        """Seconds that the installed unit gives itself, 0 without one: options may not tell, and it is what stops."""
        found = re.search(rf"^{setting}=(\d+)$", self._unit_text, re.MULTILINE)
        return int(found.group(1)) if found else 0

    def _error(self, clause: str, journal: Optional[List[str]] = None, restored: str = "") -> ServiceError:
        return ServiceError(self.spec.masked(f"{self.host}: service {self.spec.name}: {clause}"), journal, restored)


def _os_reason(error: OSError) -> str:
    where = error.filename or "the node"
    if error.errno == errno.ENOSPC:
        return f"the disk below {where} is full: free space there"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where} cannot be written ({error.strerror}): run the task with become"
    if error.errno == errno.ELOOP:
        return f"{where} is a symbolic link, which must be a plain file or folder: remove the link"
    return f"{where}: {error.strerror or error}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _lines(state: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\n" for name, value in state.items())
