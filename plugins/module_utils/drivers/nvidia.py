# SPDX-License-Identifier: Apache-2.0
"""What of NVIDIA's driver a node needs: the branch and kernel module for its GPUs, packages, files, and a restart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.drivers import common
from ansible_collections.fleet.inference.plugins.module_utils.drivers import nvidia_packages as packaging
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import DriverError, Facts, Refusals
from ansible_collections.fleet.inference.plugins.module_utils.drivers.nvidia_choice import (
    Case,
    Wish,
    choose,
    is_somebody_elses,
)

#: The role's variables that decide.
VARIABLES = (
    "nvidia_driver_branch",
    "nvidia_driver_compute_only",
    "nvidia_driver_flavour",
    "nvidia_driver_hold",
    "nvidia_driver_mig",
    "nvidia_driver_power_limits",
    "nvidia_driver_reboot",
    "nvidia_driver_repository_key_fingerprint",
    "nvidia_driver_repository_key_url",
    "nvidia_driver_repository_url",
    "nvidia_driver_secure_boot_ready",
    "nvidia_driver_source",
    "nvidia_driver_state",
    "nvidia_driver_version",
)

MODPROBE_PATH = "/etc/modprobe.d/inference-fleet-nvidia.conf"
#: Every path that the role may write.
OWN_PATHS = (
    MODPROBE_PATH,
    packaging.COMPONENTS_PATH,
    packaging.KEY_PATH,
    packaging.PREFERENCES_PATH,
    packaging.SOURCES_PATH,
    packaging.UPGRADES_PATH,
    packaging.YUM_KEY_PATH,
    packaging.YUM_PATH,
)
PERSISTENCE_UNIT = "nvidia-persistenced.service"
FABRIC_UNIT = "nvidia-fabricmanager.service"
#: nouveau, and the kernel's new driver for NVIDIA GPUs, which take a GPU before NVIDIA's own does.
FREE_DRIVERS = ("nouveau", "nova_core")

_STEPS = ("repair", "repository", "install", "remove", "hold", "files", "initramfs", "dkms", "load", "units")


def plan(host: str, facts: Facts, variables: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the role has to do.

    Args:
        host: Host that messages name.
        facts: Facts of ``fleet.inference.gpu_facts``.
        variables: The role's variables by name, see ``VARIABLES``.
        table: The driver table, ``inference_drivers``.

    Raises:
        DriverError: It can't be done; a sentence for every problem.
    """
    common.require_facts(facts, host, "nvidia_driver_facts")
    if "nvidia" not in table:
        raise DriverError(f"{host}: inference_drivers has no nvidia; take group_vars/all/drivers.yml of this version")
    gpus = [gpu for gpu in common.devices_of(facts, "nvidia") if gpu.get("driver_bound") != "vfio-pci"]
    case = Case(facts, variables, table["nvidia"], gpus, Refusals(host))
    if variables["nvidia_driver_state"] == "absent":
        return _absent(case)
    if not gpus:
        return _result(case, needed=False, decisions=["nothing is done: this host has no NVIDIA GPU to drive"])
    if is_somebody_elses(case):
        return _left_alone(case)
    wish = choose(case)
    return _present(case, wish)


def _result(case: Case, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "needed": True,
        "state": case.variables["nvidia_driver_state"],
        "source": case.variables["nvidia_driver_source"],
        "branch": None,
        "flavour": None,
        "version": None,
        "headers": None,
        "kernel": case.release,
        "prebuilt": False,
        "packages": {"install": [], "remove": [], "hold": [], "held": [], "same_version": []},
        "pins": [],
        "fabric_manager": False,
        "files": [],
        "package_files": [],
        "obsolete_files": [],
        "components": [],
        "repository": None,
        "stream": None,
        "units": [],
        "steps": dict.fromkeys(_STEPS, False),
        "reboot": {"required": False, "reason": None},
        "decisions": [],
    }
    return {**base, **changes}


def _left_alone(case: Case) -> dict[str, Any]:
    """Return what is done for a driver that works and is not this role's: its packages, if it has any, are held."""
    held: dict[str, list[str]] = {"patterns": [], "missing": []}
    if case.variables["nvidia_driver_hold"]:
        held = packaging.held(case.facts, case.nvidia["driver_packages"])
    version = case.facts["driver"]["kernel_module_version"]
    return _result(
        case,
        needed=bool(held["missing"]),
        version=version,
        packages={"install": [], "remove": [], "hold": held["missing"], "held": held["patterns"], "same_version": []},
        steps={**dict.fromkeys(_STEPS, False), "hold": bool(held["missing"])},
        decisions=[
            f"the driver {version} works and was not installed by this role, so it stays as it is; set "
            "nvidia_driver_source to have it managed"
        ],
    )


def _absent(case: Case) -> dict[str, Any]:
    """Return what takes the driver away, with everything that the role ever wrote."""
    facts = case.facts
    obsolete = [path for path in OWN_PATHS if path in facts["files"]]
    if facts["packages"] is None:
        there = facts["driver"].get("library_version") or common.module_of(facts, case.release, "nvidia")
        remove = ["*nvidia*"] if there and obsolete else []
    else:
        remove = common.matching(facts["packages"], case.nvidia["driver_packages"])
    loaded = "nvidia" in facts["boot"]["loaded"]
    reason = "the driver is removed and its kernel module is still loaded" if loaded else None
    steps = {
        "repair": bool(set(common.broken_packages(facts)) & set(remove)),
        "remove": bool(remove),
        "files": bool(obsolete),
        "initramfs": _stale_initramfs(case),
    }
    return _result(
        case,
        needed=bool(remove or obsolete),
        packages={"install": [], "remove": remove, "hold": [], "held": [], "same_version": []},
        obsolete_files=obsolete,
        steps={**dict.fromkeys(_STEPS, False), **steps},
        reboot=common.restart(case.variables["nvidia_driver_reboot"], reason),
        decisions=[f"{len(remove)} packages of the driver and {len(obsolete)} files of this role go"],
    )


def _present(case: Case, wish: Wish) -> dict[str, Any]:
    facts = case.facts
    names = packaging.wanted(case, wish)
    pending = packaging.pending(case, wish, names["driver"])
    repository = packaging.repository(case, wish)
    pins = packaging.pins(case, wish)
    package_files = packaging.package_files(case, repository, pins)
    if pending["install"] or pending["build"]:
        packaging.refuse_conditions(case, wish)
    case.refusals.tell()
    files = [common.file_entry(MODPROBE_PATH, _modprobe())]
    keys = [repository["key_path"]] if repository else []
    components = list(wish.entry.get("components") or [])
    own = {*(entry["path"] for entry in (*files, *package_files)), *keys}
    own |= {packaging.COMPONENTS_PATH} if components else set()
    obsolete = [path for path in OWN_PATHS if path in facts["files"] and path not in own]
    hold = packaging.hold(case, wish)
    units = [PERSISTENCE_UNIT] if wish.entry["persistence"] else []
    units += [FABRIC_UNIT] if names["fabric"] else []
    steps = {
        "repair": bool(common.matching(common.broken_packages(facts), case.nvidia["driver_packages"])),
        "repository": not _agree(facts, package_files) or any(path not in facts["files"] for path in keys),
        "install": bool(pending["install"]),
        "remove": bool(pending["remove"]),
        "hold": bool(hold["missing"]),
        "files": not _agree(facts, files) or bool(obsolete),
        "initramfs": _stale_initramfs(case),
        "dkms": pending["build"],
        "load": _can_load(case),
        "units": any(not _unit_agrees(facts, unit) for unit in units),
    }
    fabric = "Fabric Manager" if names["fabric"] else "no Fabric Manager"
    switches = "NVSwitches" if names["fabric"] else "no NVSwitch"
    return _result(
        case,
        source=wish.source,
        branch=wish.branch,
        flavour=wish.flavour,
        version=wish.version,
        headers=None if wish.entry["prebuilt"] else common.headers_package(facts, case.release),
        prebuilt=bool(wish.entry["prebuilt"]),
        packages={
            "install": pending["install"],
            "remove": pending["remove"],
            "hold": hold["missing"],
            "held": hold["patterns"],
            "same_version": names["same_version"],
        },
        pins=pins,
        fabric_manager=names["fabric"],
        files=files,
        package_files=package_files,
        obsolete_files=obsolete,
        components=components,
        repository=repository,
        stream=_stream(wish),
        units=units,
        steps=steps,
        reboot=common.restart(case.variables["nvidia_driver_reboot"], _restart_reason(case, wish, steps)),
        decisions=[*wish.decisions, f"{fabric}: the machine has {switches}"],
    )


def _modprobe() -> str:
    lines = [f"# {common.HEAD}", "# These would take the GPUs before NVIDIA's driver does."]
    lines += [f"blacklist {name}" for name in FREE_DRIVERS]
    return "\n".join([*lines, "options nouveau modeset=0"]) + "\n"


def _stream(wish: Wish) -> str | None:
    streams = wish.entry.get("streams")
    return None if streams is None else str(streams[wish.flavour]).format(branch=wish.branch)


def _agree(facts: Facts, entries: Sequence[Mapping[str, str]]) -> bool:
    return all(common.file_agrees(facts, entry) for entry in entries)


def _stale_initramfs(case: Case) -> bool:
    """Tell whether the next kernel would start with an initramfs that knows nothing of the latest settings."""
    there = common.kernel(case.facts, case.release)
    return bool(there.get("initramfs") and there.get("initramfs_stale"))


def _held_by(case: Case) -> str | None:
    """Return the free driver that has a GPU, None where none has."""
    return next((str(gpu["driver_bound"]) for gpu in case.gpus if gpu.get("driver_bound") in FREE_DRIVERS), None)


def _can_load(case: Case) -> bool:
    """Tell whether the running kernel has the module, it is not loaded, and nothing else has the GPUs."""
    running = case.facts["boot"].get("running_kernel")
    return (
        common.module_of(case.facts, running, "nvidia") is not None
        and "nvidia" not in case.facts["boot"]["loaded"]
        and _held_by(case) is None
    )


def _unit_agrees(facts: Facts, name: str) -> bool:
    """Tell whether a unit is enabled, and runs where the driver is loaded: without it, it can't."""
    unit = facts["units"].get(name)
    if unit is None or not unit["enabled"]:
        return False
    return "nvidia" not in facts["boot"]["loaded"] or unit["active"] is not False


def _restart_reason(case: Case, wish: Wish, steps: Mapping[str, bool]) -> str | None:
    """Return why the machine has to restart before its GPUs serve, None when it need not."""
    driver = case.facts["driver"]
    if driver.get("reboot_required"):
        return str(driver.get("reboot_reason") or "the driver needs it")
    loaded, flavour = driver.get("kernel_module_version"), driver.get("module_flavour")
    if steps["install"] and loaded:
        return f"the kernel module {loaded} stays loaded until then"
    if _held_by(case):
        return f"{_held_by(case)} has the GPUs until then"
    if loaded and flavour and flavour != wish.flavour:
        return f"the {flavour} kernel module is loaded and the {wish.flavour} one is wanted"
    running = case.facts["boot"].get("running_kernel")
    if common.module_of(case.facts, case.release, "nvidia") and not common.module_of(case.facts, running, "nvidia"):
        return f"the running kernel {running} has no module of the driver, and {case.release} has"
    return None
