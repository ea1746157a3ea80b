# SPDX-License-Identifier: Apache-2.0
"""What the node boots, and which GPU modules each of its kernels would load: what decides whether a reboot helps."""

from __future__ import annotations

import os
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Command, Host
from ansible_collections.fleet.inference.plugins.module_utils.hardware.runtime import MASKED, SECRET_OPTION, masked

EFIVARS = "sys/firmware/efi/efivars"
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
# An EFI variable's file is four bytes of attributes and the value (the kernel's efivarfs documentation).
EFI_ATTRIBUTES_BYTES = 4
MODULES = "lib/modules"
# Folders of `kernel` keep what came with the kernel, but also Ubuntu's signed NVIDIA modules.
INBOX = "kernel/drivers/"
# Drivers that keep NVIDIA's from a GPU until the machine boots without them.
FREE_DRIVERS = ("nouveau", "nova_core")
GPU_MODULES = (
    "nvidia",
    "nvidia_uvm",
    "nvidia_modeset",
    "nvidia_drm",
    "nouveau",
    "nova_core",
    "amdgpu",
    "radeon",
    "i915",
    "xe",
)
# Earlier folders hide files of the same name in later ones: modprobe.d(5).
MODPROBE_FOLDERS = ("etc/modprobe.d", "run/modprobe.d", "usr/local/lib/modprobe.d", "usr/lib/modprobe.d")
INITRAMFS = ("boot/initrd.img-{}", "boot/initramfs-{}.img", "boot/initrd-{}")
INITRAMFS_SETTINGS = ("etc/modprobe.d", "etc/initramfs-tools", "etc/dracut.conf.d")
FILE_SYSTEMS = ("/", "/boot", "/var")
UNKNOWN: Dict[str, Any] = {
    "secure_boot": None,
    "running_kernel": None,
    "next_kernel": None,
    "kernels": [],
    "command_line": [],
    "loaded": [],
    "blacklisted": [],
    "free_bytes": dict.fromkeys(FILE_SYSTEMS),
    "iommu": None,
    "numa_balancing": None,
}

# GRUB leaves out the same leftovers of packages; 0-rescue is RHEL's image for emergencies.
_IMAGE = re.compile(r"^(?:vmlinuz|vmlinux)-(?!0-rescue)([0-9].*?)$")
_LEFTOVER = re.compile(r"\.(?:dpkg-\w+|rpm\w+|old|bak|efi\.signed)$|~$")
# Debian's files carry the package's name, nvidia-current-open.ko, and what modprobe calls nvidia is an `install` line.
_NVIDIA_FILE = r"nvidia(?:[_-](?:current|tesla|legacy)(?:[_-](?!drm|modeset|uvm|peermem)[a-z0-9]+)*)?"
_FILES = {"nvidia": _NVIDIA_FILE, "amdgpu": "amdgpu"}
_NOTHING = re.compile(r"^(?:/usr)?/bin/(?:false|true)$")


class Pending(NamedTuple):
    """What was read, and the `modinfo` that runs for the modules that do not belong to their kernel."""

    facts: Dict[str, Any]
    files: Dict[str, Dict[str, Any]]
    command: Optional[Command]


def start(host: Host) -> Pending:
    """Read all but what modules say of themselves, which is asked of `modinfo` meanwhile."""
    running = host.text("proc/sys/kernel/osrelease") or None
    images = _images(host)
    settings = [line.split("#", 1)[0].split() for line in _modprobe_lines(host)]
    latest_setting = _latest(host, INITRAMFS_SETTINGS)
    folders = [name for name in host.names(MODULES) if name[:1].isdigit()]
    releases = sorted({*images, *folders, *([running] if running else [])}, key=version_key)
    files: Dict[str, Dict[str, Any]] = {}
    kernels = []
    for release in releases:
        modules = {}
        for name in _FILES:
            path = _module_file(host, release, name, settings)
            if path is not None:
                modules[name] = _module(host, release, name, path, files)
        initramfs = _initramfs(host, release)
        kernels.append(
            {
                "release": release,
                "image": release in images,
                "headers": _headers(host, release),
                "initramfs": initramfs is not None,
                "initramfs_stale": initramfs is not None
                and initramfs < max(latest_setting, *(_changed(host, entry["path"]) for entry in modules.values()), 0),
                "modules": {name: entry["known"] for name, entry in modules.items()},
            }
        )
    words = [_masked(word) for word in (host.text("proc/cmdline") or "").split()]
    facts = {
        "secure_boot": secure_boot(host),
        "running_kernel": running,
        "next_kernel": max(images, key=version_key, default=running),
        "kernels": kernels,
        "command_line": words,
        "loaded": [name for name in GPU_MODULES if host.exists("sys/module", name)],
        "blacklisted": _blacklisted(settings),
        "free_bytes": {path: _free(host, path) for path in FILE_SYSTEMS},
        "iommu": _iommu(host, words),
        "numa_balancing": _flag(host.integer("proc/sys/kernel/numa_balancing")),
    }
    command = host.start("modinfo", *files) if files else None
    return Pending(facts, files, command)


def finish(pending: Pending, host: Host) -> Dict[str, Any]:
    """Return the facts, with what the modules outside their kernels say of themselves."""
    if pending.command is None:
        host.report.probe("modinfo", "absent", "no GPU module outside a kernel")
        return pending.facts
    outcome = pending.command.finish()
    # A module that is taken away in this moment costs the answers on no other.
    answered = outcome.status == "error" and "filename:" in outcome.stdout
    host.report.probe("modinfo", "ok" if answered else outcome.status, outcome.message, outcome.ms)
    for block in re.split(r"^(?=filename:)", outcome.stdout, flags=re.MULTILINE):
        values = dict(re.findall(r"^([a-z_]+):[ \t]*(.*)$", block, re.MULTILINE))
        known = pending.files.get(values.get("filename", ""))
        if known is None:
            continue
        known["version"] = values.get("version") or None
        known["signed"] = bool(values.get("sig_id") or values.get("signer") or values.get("sig_key"))
        if os.path.basename(values["filename"]).startswith("nvidia") and values.get("license"):
            # NVIDIA's open modules are "Dual MIT/GPL", the others "NVIDIA".
            known["flavour"] = "open" if "GPL" in values["license"] else "proprietary"
    return pending.facts


def reboot_reason(boot: Dict[str, Any], bound: Dict[str, List[str]], loaded: Dict[str, Optional[str]]) -> Optional[str]:
    """Return why GPUs wait for a reboot, as far as kernels and modules tell, None when they do not.

    `bound` are the drivers bound to the node's GPUs by the module that they should have (`nvidia`, `amdgpu`), so that
    only modules of GPUs that are there count; `loaded` are the versions of the loaded modules, where they have one.
    """
    running, following = boot["running_kernel"], boot["next_kernel"]
    modules = {kernel["release"]: kernel["modules"] for kernel in boot["kernels"]}
    for name, drivers in bound.items():
        here, later = modules.get(running, {}).get(name), modules.get(following, {}).get(name)
        # Only the kernel's own amdgpu has no version; of any other one without, the version is not known.
        known = here is not None and (here["version"] is not None or (name == "amdgpu" and not here["dkms"]))
        if here and known and name in boot["loaded"] and here["version"] != loaded.get(name):
            old, new = loaded.get(name) or "of the kernel itself", here["version"] or "that of the kernel itself"
            return f"the kernel module {name} {old} is loaded and {new} is installed"
        for driver in (driver for driver in drivers if driver in FREE_DRIVERS):
            if name not in boot["loaded"] and (here or later):
                return f"{driver} is bound to a GPU and the kernel module {name} is installed"
        if later and not here:
            return f"the kernel module {name} is installed for kernel {following}, and {running} runs"
    return None


def version_key(release: str) -> Tuple[Tuple[int, int, str], ...]:
    """Sort kernels as Debian's linux-version does: numbers as numbers, a release candidate before its release."""
    text = release.lower().replace("-rc", "~rc")
    key: List[Tuple[int, int, str]] = []
    for part in re.findall(r"[0-9]+|~|[a-z]+", text):
        if part == "~":
            key.append((-1, 0, ""))
        else:
            key.append((2, int(part), "") if part.isdigit() else (1, 0, part))
    return (*key, (0, 0, ""))


def secure_boot(host: Host) -> Optional[bool]:
    """Say whether the kernel refuses modules without a known signature; None when the firmware cannot be asked.

    The rule is the kernel's own (drivers/firmware/efi/libstub/secureboot.c): the firmware's switch, unless it is in
    setup mode or the machine's shim was told not to validate. Shim hands that on as MokSBStateRT.
    """
    if not host.exists("sys/firmware/efi"):
        return False
    names = host.names(EFIVARS)
    if not names:
        return None
    if f"SecureBoot-{EFI_GLOBAL}" not in names:
        return False
    enabled = _efi_flag(host, f"SecureBoot-{EFI_GLOBAL}")
    if not enabled:
        return enabled
    return not (_efi_flag(host, f"SetupMode-{EFI_GLOBAL}") or _efi_flag(host, f"MokSBStateRT-{SHIM}"))


def _efi_flag(host: Host, name: str) -> Optional[bool]:
    try:
        with open(host.path(EFIVARS, name), "rb") as stream:
            data = stream.read()
    except OSError:
        return None
    return data[EFI_ATTRIBUTES_BYTES] == 1 if len(data) > EFI_ATTRIBUTES_BYTES else None


def _images(host: Host) -> List[str]:
    matches = (_IMAGE.match(name) for name in host.names("boot") if not _LEFTOVER.search(name))
    return [match.group(1) for match in matches if match]


def _headers(host: Host, release: str) -> bool:
    """Say whether modules can be built for the kernel: the package of its headers has the link's target."""
    folder = f"{MODULES}/{release}/build"
    try:
        target = os.readlink(host.path(folder))
    except OSError:
        target = folder
    # An absolute link means a folder below the root.
    place = target if target == folder or target.startswith("/") else f"{MODULES}/{release}/{target}"
    return host.exists(place, "Makefile")


def _initramfs(host: Host, release: str) -> Optional[int]:
    """Return when the kernel's initramfs was made, in nanoseconds."""
    times = (_changed(host, pattern.format(release)) for pattern in INITRAMFS)
    return next((time for time in times if time), None)


def _changed(host: Host, path: str) -> int:
    try:
        return os.stat(host.path(path)).st_mtime_ns
    except OSError:
        return 0


def _latest(host: Host, folders: Iterable[str]) -> int:
    """Return when something in the folders changed last, in nanoseconds; a folder changes when a file goes away."""
    latest = 0
    for folder in folders:
        for place, _, names in os.walk(host.path(folder)):
            for path in (place, *(os.path.join(place, name) for name in names)):
                try:
                    latest = max(latest, os.lstat(path).st_mtime_ns)
                except OSError:
                    continue
    return latest


def _modprobe_lines(host: Host) -> List[str]:
    """Return the lines of modprobe's settings in the order in which it reads them."""
    files: Dict[str, str] = {}
    for folder in MODPROBE_FOLDERS:
        for name in host.names(folder):
            if name.endswith(".conf"):
                files.setdefault(name, f"{folder}/{name}")
    return [
        line.strip()
        for name in sorted(files)
        for line in (host.text(files[name]) or "").replace("\\\n", " ").splitlines()
    ]


def _blacklisted(settings: List[List[str]]) -> List[str]:
    found = set()
    for words in settings:
        off = words[:1] == ["blacklist"] or (words[:1] == ["install"] and len(words) > 2 and _NOTHING.match(words[2]))
        if off and len(words) > 1:
            found.add(words[1].replace("-", "_"))
    return [name for name in GPU_MODULES if name in found]


def _module_file(host: Host, release: str, name: str, settings: List[List[str]]) -> Optional[str]:
    """Return the file that `modprobe` would load, relative to the kernel's folder, None when there is none.

    depmod has decided between folders (updates before extra before the kernel's own) when it wrote modules.dep.
    """
    text = "\n" + (host.text(MODULES, release, "modules.dep") or "")
    found = {}
    # The file is large, and beginning with the name is what makes the search fast.
    for match in re.finditer(rf"({_FILES[name]})\.ko(?:\.(?:xz|gz|zst))?:", text):
        start = text.rfind("\n", 0, match.start()) + 1
        if text[match.start() - 1] in "/\n":
            found[match.group(1).replace("-", "_")] = text[start : match.end() - 1]
    # `install nvidia modprobe -i nvidia-current-open $CMDLINE_OPTS`, which Debian's alternatives choose.
    chosen = [
        word.replace("-", "_")
        for words in settings
        if words[:2] == ["install", name] and len(words) > 2 and not _NOTHING.match(words[2])
        for word in words[3:]
    ]
    order = [*chosen, name, *sorted(found, reverse=True)]
    path = next((found[word] for word in order if word in found), None)
    if path is None or not host.exists(MODULES, release, path):
        return None
    return path


def _module(host: Host, release: str, name: str, path: str, files: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    """Return the module's facts and its path, and list it in `files` when modinfo has to be asked.

    What came with the kernel has no version, and its packages are signed where the kernel is.
    """
    known: Dict[str, Any] = {"version": None, "flavour": None, "dkms": False, "signed": None}
    place = f"{MODULES}/{release}/{path}"
    if not path.startswith(INBOX):
        known["dkms"] = path.startswith("updates/dkms/") or _built_by_dkms(host, release, name)
        files["/" + place] = known
    return {"known": known, "path": place}


def _built_by_dkms(host: Host, release: str, name: str) -> bool:
    """Elsewhere than on Debian, DKMS installs into `extra`; what it installed it remembers by a link."""
    for package in host.names("var/lib/dkms"):
        if package.startswith(name):
            links = host.names("var/lib/dkms", package)
            if any(link.startswith(f"kernel-{release}-") for link in links):
                return True
    return False


def _masked(word: str) -> str:
    """Return a kernel parameter without what must not get into a cache: rd.iscsi.password=…, a URL's password."""
    key, found, _ = word.partition("=")
    return f"{key}={MASKED}" if found and SECRET_OPTION.search(key) else masked(word)


def _free(host: Host, path: str) -> Optional[int]:
    if not host.live:
        return None
    try:
        found = os.statvfs(host.path(path))
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _iommu(host: Host, words: List[str]) -> Optional[str]:
    """Return `off` without an IOMMU, `pt` where devices of the host go through it untranslated, else `on`."""
    if not host.exists("sys/class"):
        return None
    if not host.names("sys/class/iommu"):
        return "off"
    return "pt" if {"iommu=pt", "iommu.passthrough=1"} & set(words) else "on"


def _flag(value: Optional[int]) -> Optional[bool]:
    return None if value is None else value != 0
