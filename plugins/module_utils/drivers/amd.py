# SPDX-License-Identifier: Apache-2.0
"""Decide what a node with AMD GPUs needs of the amdgpu driver: the kernel's own, or AMD's ``amdgpu-dkms``.

Containers bring ROCm with them and need the kernel's driver and its firmware alone, so nothing else is put on a node
unless it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.drivers import common
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import Facts, Refusals
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import choices_text

#: The role's variables that decide.
VARIABLES = (
    "rocm_state",
    "rocm_source",
    "rocm_line",
    "rocm_user_space",
    "rocm_kernel_parameters",
    "rocm_instinct_tuning",
    "rocm_repository_url",
    "rocm_repository_key_url",
    "rocm_repository_key_fingerprint",
)

#: AMD's driver as a package; its firmware and headers are named after it.
DKMS = "amdgpu-dkms"
_VENDOR = (r"amdgpu-(?:dkms|dkms-firmware|dkms-headers|core|install)",)

KEY = "/etc/apt/keyrings/inference-fleet-amdgpu.asc"
APT_SOURCE = "/etc/apt/sources.list.d/inference-fleet-amdgpu.sources"
APT_PIN = "/etc/apt/preferences.d/inference-fleet-amdgpu"
COMPONENTS = "/etc/apt/sources.list.d/inference-fleet-amdgpu-components.sources"
DNF_SOURCE = "/etc/yum.repos.d/inference-fleet-amdgpu.repo"
#: RHEL's package versions are not in the facts: what was installed last is written down after it.
DNF_RECORD = "/etc/inference-fleet/inference-fleet-amdgpu.conf"
GRUB = "/etc/default/grub.d/inference-fleet-rocm.cfg"
#: Grubby changes the boot entries themselves, so what it was told last is written down after it.
GRUBBY_RECORD = "/etc/inference-fleet/inference-fleet-rocm-parameters.conf"
FILES = (KEY, APT_SOURCE, APT_PIN, DNF_SOURCE, DNF_RECORD)

#: AMD Instinct MI300X tuning guide (amdgpu-docs, system-optimization/mi300x): no reallocation of PCI resources, an
#: IOMMU that lets the host through, no NUMA balancing.
INSTINCT_PARAMETERS = ("pci=realloc=off", "iommu=pt", "numa_balancing=disable")
_PARAMETER = re.compile(r"[A-Za-z0-9_.,:=/+-]+")


def plan(host: str, facts: Facts, variables: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the node needs and which steps are left to do.

    Args:
        host: Name of the host, for the messages.
        facts: The ``gpu`` facts of the host.
        variables: Values of VARIABLES.
        table: ``inference_drivers``.

    Raises:
        DriverError: What is wanted can't be had on this host; a sentence for each reason.
    """
    common.require_facts(facts, host, "rocm_facts")
    return _Planner(host, facts, variables, table["amd"]).plan()


def package_release(driver: str) -> str:
    """Return how AMD's package versions spell a release: ``31500000`` for ``31.50``.

    ``amdgpu-dkms`` of 30.30.1 is ``1:6.16.13.30300100-2303411.24.04``, and its firmware
    ``30.30.1.0.30300100-2303411.24.04``.
    """
    parts = [*driver.split("."), "0", "0"][:4]
    return "".join(f"{int(part):02d}" for part in parts)


def is_release(version: str | None, driver: str) -> bool:
    """Tell whether a package version belongs to a release of AMD's driver."""
    return version is not None and re.search(rf"\.{package_release(driver)}-", version) is not None


def kernel_number(release: str) -> tuple[int, int]:
    """Return the version that a kernel's release begins with: ``(6, 12)`` for ``6.12.57+deb13-amd64``."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def rocm_devices(facts: Facts, table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the AMD GPUs that an engine's ROCm image has code for, and that no virtual machine was given."""
    return [
        device
        for device in common.devices_of(facts, "amd")
        if device.get("architecture") in table["rocm_architectures"] and device.get("driver_bound") != "vfio-pci"
    ]


class _Planner:
    """One host's decision."""

    def __init__(self, host: str, facts: Facts, variables: Mapping[str, Any], table: Mapping[str, Any]) -> None:
        self.facts = facts
        self.wish = variables
        self.table = table
        self.refusals = Refusals(host)
        self.devices = rocm_devices(facts, table)
        self.debian = facts["os"].get("family") == "debian"
        self.next = common.next_kernel(facts)
        self.module = common.module_of(facts, self.next, "amdgpu")
        self.decisions: list[str] = []
        self.source = self._source()

    def plan(self) -> dict[str, Any]:
        absent = self.wish["rocm_state"] == "absent"
        parameters = [] if absent else self._parameters()
        if not absent and not self.devices:
            self.decisions.append(self._why_not_needed())
            self.refusals.tell()
            return self._result(needed=False)
        if absent:
            result = self._removal()
        elif self.source == "vendor":
            result = self._vendor()
        elif self.source is None:
            result = self._left_alone()
        else:
            result = self._inbox()
        self._kernel_parameters(result, parameters)
        self._finish(result)
        self.refusals.tell()
        return result

    # What is there, and what is wanted

    def _source(self) -> str | None:
        """Return whose amdgpu is wanted, None where AMD's is there and works, and nobody asks for one."""
        wished = str(self.wish["rocm_source"])
        if wished != "auto":
            return wished
        works = (self.facts.get("driver") or {}).get("amdgpu_version") is not None
        return None if works and self._vendor_packages() else "inbox"

    def _left_alone(self) -> dict[str, Any]:
        result = self._result(needed=False)
        loaded = self.facts["driver"]["amdgpu_version"]
        self.decisions.append(
            f"AMD's amdgpu {loaded} is installed and works, so it stays as it is; set rocm_source to have it managed"
        )
        return result

    def _why_not_needed(self) -> str:
        others = sorted({str(device.get("architecture")) for device in common.devices_of(self.facts, "amd")})
        if others:
            return (
                f"no AMD GPU here can be served with ROCm ({', '.join(others)}); the role vulkan makes such GPUs usable"
            )
        return "there is no AMD GPU"

    def _parameters(self) -> list[str]:
        wanted = [str(word) for word in self.wish["rocm_kernel_parameters"] or []]
        for word in wanted:
            if not _PARAMETER.fullmatch(word):
                self.refusals.add(
                    f"rocm_kernel_parameters has {word!r}, which is no kernel parameter; give each as one word without "
                    "quotes, such as iommu=pt"
                )
        instinct = any(device.get("generation") in self.table["instinct_generations"] for device in self.devices)
        if self.wish["rocm_instinct_tuning"] and instinct:
            wanted += [word for word in INSTINCT_PARAMETERS if word not in wanted]
        elif instinct:
            self._report_tuning()
        return wanted

    def _report_tuning(self) -> None:
        boot = self.facts["boot"]
        if boot.get("numa_balancing"):
            self.decisions.append("NUMA balancing is on; AMD advises to turn it off: rocm_instinct_tuning does")
        if boot.get("iommu") not in ("pt", None):
            self.decisions.append(f"the IOMMU is {boot['iommu']}; AMD advises iommu=pt: rocm_instinct_tuning sets it")

    def _result(self, needed: bool) -> dict[str, Any]:
        return {
            "needed": needed,
            "state": self.wish["rocm_state"],
            "source": self.source,
            "line": None,
            "driver_release": None,
            "kernel": self.next,
            "headers": None,
            "packages": {"install": [], "remove": [], "hold": [], "owned": list(_VENDOR)},
            "version": None,
            "record": None,
            "initramfs": None,
            "package_files": [],
            "obsolete_files": [],
            "components": [],
            "repository": None,
            "groups": [],
            "parameters": {"wanted": [], "path": None},
            "space_mib": {},
            "steps": dict.fromkeys(
                (
                    "repair",
                    "repository",
                    "install",
                    "remove",
                    "hold",
                    "dkms",
                    "initramfs",
                    "groups",
                    "parameters",
                ),
                False,
            ),
            "reboot": {"required": False, "reason": None},
            "decisions": self.decisions,
        }

    # The three answers

    def _inbox(self) -> dict[str, Any]:
        result = self._result(needed=True)
        self.decisions.append(f"the kernel's own amdgpu drives {self._names()}")
        entry = self._system("inbox")
        result["packages"]["install"] = [
            *(name for name in entry.get("firmware", []) if not self._there(name)),
            *self._user_space(),
        ]
        result["packages"]["install"] += self._inbox_module(entry)
        result["components"] = list(entry.get("components") or [])
        self._check_inbox_kernel()
        if result["packages"]["install"]:
            result["space_mib"] = self.table["inbox"]["space_mib"]
        self._leave_vendor(result)
        return result

    def _inbox_module(self, entry: Mapping[str, Any]) -> list[str]:
        """Return the package with the next kernel's amdgpu where it has none; refuse a kernel that comes without it."""
        known = bool(common.kernel(self.facts, self.next))
        if self.module is not None or not known:
            return []
        extra = entry.get("module_package")
        if extra:
            return [extra.format(release=self.next)]
        instead = entry.get("kernel_package")
        self.refusals.add(
            f"rocm_source is {self.wish['rocm_source']!r} but the kernel {self.next} has no amdgpu driver; install "
            + (f"{instead} and remove the kernel without it" if instead else "a kernel that has one")
        )
        return []

    def _check_inbox_kernel(self) -> None:
        # RHEL's kernel has the drivers of a much newer one than its number says, and what works needs no table.
        if not self.debian or all(device.get("usable") for device in self.devices):
            return
        there = kernel_number(self.next)
        least: dict[str, str] = self.table["inbox"]["minimum_kernel"]
        for target in sorted({str(device["architecture"]) for device in self.devices}):
            needed = least.get(target)
            if needed and there < kernel_number(needed):
                self.refusals.add(
                    f"rocm_source is {self.wish['rocm_source']!r} but amdgpu of the kernel {self.next} does not know "
                    f"{target}, which needs {needed} or later; install a newer kernel of the distribution, or set "
                    "rocm_source to 'vendor'"
                )

    def _leave_vendor(self, result: dict[str, Any]) -> None:
        """Take AMD's driver away, which would be loaded in the place of the kernel's own."""
        result["packages"]["remove"] = self._vendor_packages()
        result["obsolete_files"] = [path for path in FILES if path in (self.facts.get("files") or {})]
        loaded = (self.facts.get("driver") or {}).get("amdgpu_version")
        if loaded is not None:
            self._restart(result, f"AMD's amdgpu {loaded} is loaded until then")

    def _removal(self) -> dict[str, Any]:
        result = self._result(needed=False)
        self.decisions.append("the kernel's own amdgpu and its firmware stay: they are the distribution's")
        self._leave_vendor(result)
        files = self.facts.get("files") or {}
        result["obsolete_files"] += [path for path in (COMPONENTS,) if path in files]
        user_space = [name for names in self.table["user_space"].values() for name in names]
        result["packages"]["remove"] += sorted({name for name in user_space if self._there(name)})
        result["needed"] = bool(result["packages"]["remove"] or result["obsolete_files"])
        return result

    def _vendor(self) -> dict[str, Any]:
        result = self._result(needed=True)
        vendor = self.table["vendor"]
        line = str(self.wish["rocm_line"] or vendor["default_line"])
        if line not in vendor["lines"]:
            self.refusals.add(
                f"rocm_line is {line!r}, which is no line of ROCm in inference_drivers; give one of "
                f"{choices_text(vendor['lines'])}"
            )
            return result
        release = str(vendor["lines"][line]["driver"])
        # Apt takes a star at the end for the end of a prefix, which has no stars of its own.
        version = f"*.{package_release(release)}-*[0-9]"
        result |= {"line": line, "driver_release": release, "version": version}
        self._check_vendor(line, vendor["lines"][line])
        self.refusals.tell()
        entry = self._system("vendor")
        self.decisions.append(f"AMD's amdgpu {release} of ROCm {line} drives {self._names()}")
        if self.debian and any(
            device.get("generation") not in self.table["instinct_generations"] for device in self.devices
        ):
            self.decisions.append("AMD tests Radeon GPUs with Ubuntu and RHEL alone, Debian only with Instinct")
        self._repository(result, release, entry)
        self._vendor_packages_step(result, release)
        self._vendor_restart(result, release)
        return result

    def _check_vendor(self, line: str, entry: Mapping[str, Any]) -> None:
        key = common.os_key(self.facts)
        versions = entry["systems"].get(key)
        title = common.os_title(self.facts)
        if versions is None:
            self.refusals.add(
                f"rocm_source is 'vendor' but AMD has no amdgpu of ROCm {line} for {title}; set rocm_source to "
                f"'inbox', or use one of {choices_text(entry['systems'])}"
            )
        elif versions and str(self.facts["os"].get("version_id")) not in versions:
            self.refusals.add(
                f"rocm_source is 'vendor' but AMD's amdgpu of ROCm {line} is for {key} in the versions "
                f"{', '.join(versions)} and this is {title}; set rocm_line to another line or rocm_source to 'inbox'"
            )
        architecture = (self.facts.get("cpu") or {}).get("architecture")
        if architecture not in ("x86_64", None):
            self.refusals.add(
                f"rocm_source is 'vendor' but AMD's amdgpu is for x86_64 and this is {architecture}; set rocm_source "
                "to 'inbox'"
            )
        integrated = [device for device in self.devices if device.get("integrated")]
        if integrated:
            self.refusals.add(
                f"rocm_source is 'vendor' but {integrated[0].get('name')} ({integrated[0]['architecture']}) is part of "
                "its processor, for which AMD wants the kernel's own driver; set rocm_source to 'inbox'"
            )
        if self.debian and kernel_number(self.next) > kernel_number(entry["newest_kernel"]):
            self.refusals.add(
                f"rocm_source is 'vendor' but amdgpu {entry['driver']} can't be built for kernels after "
                f"{entry['newest_kernel']} and the next one is {self.next}; set rocm_line to a newer line or "
                "rocm_source to 'inbox'"
            )
        # DKMS signs with a key of its own, which a machine trusts when somebody enrolled it: a loaded module tells.
        trusted = (self.facts.get("driver") or {}).get("amdgpu_version") is not None
        if self.facts["boot"].get("secure_boot") and not trusted:
            self.refusals.add(
                "rocm_source is 'vendor' but Secure Boot is on and would refuse amdgpu-dkms, which is built here; "
                "set rocm_source to 'inbox', whose driver is signed, or turn Secure Boot off in the firmware"
            )

    def _repository(self, result: dict[str, Any], release: str, entry: Mapping[str, Any]) -> None:
        vendor = self.table["vendor"]
        url = str(self.wish["rocm_repository_url"] or vendor["repository_url"]).rstrip("/")
        key_url = str(self.wish["rocm_repository_key_url"] or vendor["repository_key_url"])
        fingerprint = str(self.wish["rocm_repository_key_fingerprint"] or vendor["repository_key_fingerprint"])
        fingerprint = fingerprint.replace(" ", "").upper()
        if self.debian:
            # AMD has no repository of Debian's own: Debian takes the Ubuntu release of its age.
            address, suite, path = f"{url}/{release}/ubuntu", entry["suite"], APT_SOURCE
            # The fingerprint is part of the file so that another key is another file.
            content = (
                f"# {common.HEAD}\n# Key: {fingerprint}\nTypes: deb\nURIs: {address}\nSuites: {suite}\n"
                f"Components: main\nArchitectures: amd64\nSigned-By: {KEY}\n"
            )
            pin = (
                f"# {common.HEAD}\nPackage: {DKMS} {DKMS}-firmware {DKMS}-headers\nPin: version {result['version']}\n"
                "Pin-Priority: 1001\n"
            )
            result["package_files"] = [common.file_entry(APT_PIN, pin)]
        else:
            minor = str(self.facts["os"].get("version_id"))
            folder = minor.split(".", maxsplit=1)[0] if entry.get("major_only") else minor
            address, suite, path = f"{url}/{release}/el/{folder}/main/x86_64", None, DNF_SOURCE
            content = (
                f"# {common.HEAD}\n# Key: {fingerprint}\n[inference-fleet-amdgpu]\nname=AMD amdgpu {release}\n"
                f"baseurl={address}\nenabled=1\npriority=50\ngpgcheck=1\ngpgkey={key_url}\n"
            )
        result["package_files"].append(common.file_entry(path, content))
        result["repository"] = {
            "url": address,
            "suite": suite,
            "key_url": key_url,
            "key_fingerprint": fingerprint,
            "key_path": KEY if self.debian else None,
        }
        files = self.facts.get("files") or {}
        agree = all(common.file_agrees(self.facts, written) for written in result["package_files"])
        result["steps"]["repository"] = not agree or (self.debian and KEY not in files)

    def _vendor_packages_step(self, result: dict[str, Any], release: str) -> None:
        packages = result["packages"]
        result["headers"] = common.headers_package(self.facts)
        if self.debian:
            there = is_release(common.installed_version(self.facts, DKMS), release)
            packages["hold"] = [DKMS, f"{DKMS}-firmware"]
            packages["install"] = common.missing_headers(self.facts)
        else:
            record = common.file_entry(DNF_RECORD, f"# {common.HEAD}\n{release}\n")
            there = bool((self.module or {}).get("dkms")) and common.file_agrees(self.facts, record)
            result["record"] = record
            # The facts do not have RHEL's packages; the build folder of the next kernel tells of its headers.
            lacks = not common.kernel(self.facts, self.next).get("headers")
            packages["install"] = common.missing_headers(self.facts) if lacks else []
        if not there:
            # Apt moves no held package for another's sake; dnf takes the pattern for driver and firmware.
            both = [f"{name}={result['version']}" for name in packages["hold"]]
            packages["install"] += both if self.debian else [f"{DKMS}-{result['version']}*"]
        packages["install"] += self._user_space()
        if packages["install"]:
            result["space_mib"] = self.table["vendor"]["space_mib"]
        built = self.module is not None and bool(self.module.get("dkms"))
        result["steps"]["dkms"] = not there or not built
        if there and not built:
            self.decisions.append(f"amdgpu is not built for the next kernel, {self.next}")

    def _vendor_restart(self, result: dict[str, Any], release: str) -> None:
        loaded = (self.facts.get("driver") or {}).get("amdgpu_version")
        on_disk = (self.module or {}).get("version")
        if self._brings_driver(result):
            self._restart(result, f"AMD's amdgpu {release} is loaded at the next start")
        elif loaded is None or (on_disk is not None and loaded != on_disk):
            now = "the kernel's own amdgpu" if loaded is None else f"AMD's amdgpu {loaded}"
            self._restart(result, f"{now} is loaded and AMD's {on_disk or release} is installed")

    # What both sources share

    def _kernel_parameters(self, result: dict[str, Any], wanted: list[str]) -> None:
        path = GRUB if self.debian else GRUBBY_RECORD
        there = (self.facts.get("files") or {}).get(path)
        if not wanted and there is None:
            return
        value = " ".join(wanted)
        line = f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {value}"\n' if self.debian and wanted else f"# {value}\n"
        entry = common.file_entry(path, f"# {common.HEAD}\n{line}")
        result["parameters"] = {"wanted": wanted, **entry}
        # An interrupted run leaves this content, which never agrees: the boot loader may not have heard of it.
        result["parameters"]["unfinished"] = f"# Not yet given to the boot loader.\n{entry['content']}"
        result["parameters"]["commands"] = [["update-grub"]] if self.debian else self._grubby(wanted)
        result["steps"]["parameters"] = not wanted or not common.file_agrees(self.facts, entry)
        words = self.facts["boot"].get("command_line") or []
        missing = [word for word in wanted if word not in words]
        if missing:
            self._restart(result, f"the kernel runs without {' '.join(missing)}")
        elif not wanted:
            self.decisions.append("the kernel's parameters that this role set go at the next start")
            result["needed"] = True

    def _grubby(self, wanted: list[str]) -> list[list[str]]:
        known = " ".join([*INSTINCT_PARAMETERS, *(word for word in wanted if word not in INSTINCT_PARAMETERS)])
        program = ["grubby", "--update-kernel=ALL"]
        return [[*program, f"--remove-args={known}"], *([[*program, f"--args={' '.join(wanted)}"]] if wanted else [])]

    def _finish(self, result: dict[str, Any]) -> None:
        packages, steps = result["packages"], result["steps"]
        broken = common.broken_packages(self.facts)
        steps["repair"] = bool(broken) and result["needed"]
        if steps["repair"]:
            self.decisions.append(f"an earlier run left {', '.join(broken)} half-done")
        there = self.facts.get("packages") or {}
        groups = self.facts.get("groups") or {}
        if result["state"] == "present":
            result["groups"] = ["render", "video"]
            steps["groups"] = any(groups.get(name) is None for name in result["groups"])
        steps["install"] = bool(packages["install"])
        steps["remove"] = bool(packages["remove"])
        packages["owned"] += [re.escape(name.split("=")[0]) for name in packages["install"]]
        steps["hold"] = any(name in there and not there[name].get("held") for name in packages["hold"])
        steps["repository"] = steps["repository"] or bool(result["obsolete_files"])
        changed = steps["remove"] or self._brings_driver(result) or steps["dkms"]
        stale = common.kernel(self.facts, self.next).get("initramfs_stale")
        # Only what amdgpu changed is this role's; another driver's stale image is that driver's.
        ours = changed or (stale and self.devices and result["source"] == "vendor")
        result["initramfs"] = self._initramfs()
        steps["initramfs"] = bool(ours and result["initramfs"])
        for problem in common.disk_problems(self.facts, result["space_mib"]):
            self.refusals.add(problem)
        if result["state"] == "present":
            self._restart_for_devices(result)

    def _brings_driver(self, result: Mapping[str, Any]) -> bool:
        return any(name.startswith(DKMS) for name in result["packages"]["install"])

    def _initramfs(self) -> list[str] | None:
        """Return the command that makes the next kernel's initramfs anew, None where kernels have none."""
        if self.debian and common.installed(self.facts, "initramfs-tools"):
            return ["update-initramfs", "-u", "-k", self.next]
        if not self.debian or common.installed(self.facts, "dracut"):
            return ["dracut", "--force", "--kver", self.next]
        return None

    def _restart_for_devices(self, result: dict[str, Any]) -> None:
        running = self.facts["boot"].get("running_kernel")
        unbound = [device for device in self.devices if device.get("driver_bound") is None]
        if unbound and running != self.next and self.module is not None:
            self._restart(result, f"the running kernel {running} drives no AMD GPU and the next one, {self.next}, does")
        elif unbound:
            self._restart(result, f"no driver has {unbound[0].get('name') or unbound[0]['pci_bus_id']}")

    def _restart(self, result: dict[str, Any], reason: str) -> None:
        if not result["reboot"]["required"]:
            result["reboot"] = {"required": True, "reason": reason}

    def _system(self, source: str) -> Mapping[str, Any]:
        """Return the table's entry for this operating system; an empty one where it needs nothing."""
        systems: Mapping[str, Mapping[str, Any]] = self.table[source]["systems"]
        key = common.os_key(self.facts)
        if key not in systems:
            self.refusals.add(
                f"rocm can't set up amdgpu on {common.os_title(self.facts)}; use one of {choices_text(systems)}"
            )
            return {}
        return systems[key]

    def _user_space(self) -> list[str]:
        if not self.wish["rocm_user_space"]:
            return []
        names = self.table["user_space"].get(common.os_key(self.facts))
        if names is None:
            self.refusals.add(
                f"rocm_user_space is true but {common.os_title(self.facts)} has no ROCm tools of its own; set "
                "rocm_user_space to false, or install AMD's packages by hand"
            )
        return [name for name in names or [] if not self._there(name)]

    def _vendor_packages(self) -> list[str]:
        present = [
            name
            for name, package in (self.facts.get("packages") or {}).items()
            if package.get("state") != "config-files"
        ]
        names = common.matching(present, _VENDOR)
        if self.facts.get("packages") is None and (self.module or {}).get("dkms"):
            names = [DKMS]
        return names

    def _there(self, name: str) -> bool:
        # Without dpkg nobody knows; what the distribution needs there is always installed with its kernel.
        return self.facts.get("packages") is None or common.installed(self.facts, name)

    def _names(self) -> str:
        return ", ".join(sorted({str(device.get("name") or device["architecture"]) for device in self.devices}))
