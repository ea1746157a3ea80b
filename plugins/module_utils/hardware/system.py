# SPDX-License-Identifier: Apache-2.0
"""The operating system around the GPUs, from its release to storage; this fleet's services on it and their results."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from typing import Any, Dict, List, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Child, Host, to_int

FAMILIES = {"debian": "debian", "ubuntu": "debian", "rhel": "redhat", "fedora": "redhat", "centos": "redhat"}
SYSTEMD_LIBRARY = re.compile(r"libsystemd-shared-([0-9]{1,6})\b")
SYSTEMD_FOLDERS = (
    "usr/lib/systemd",
    "lib/systemd",
    "usr/lib/x86_64-linux-gnu/systemd",
    "usr/lib/aarch64-linux-gnu/systemd",
)
OS_KEYS = ("id", "version_id", "codename", "family", "kernel", "systemd_version", "hostname", "container", "wsl")
CONTAINERS = ("docker", "podman", "lxc", "systemd-nspawn")
MEASUREMENTS_SCHEMA_VERSION = 1
MEASUREMENT_TEXTS = ("backend", "model", "measured_at")
MEASUREMENT_NUMBERS = ("requests_per_second", "tokens_per_second", "time_to_first_token_ms")
MEASUREMENT_LIMIT = 10**12
STORAGE_KEYS = ("free_bytes", "total_bytes", "filesystem", "mount_point", "rotational")
# A file system whose server is dead never answers; it gets so long, in a child process that can be left behind.
STORAGE_SECONDS = 2
REMOTE = re.compile(r"nfs|cifs|smb|ceph|9p|fuse|autofs|afs|lustre|gpfs|beegfs|gluster|ocfs2|gfs2|orangefs")
# A container's own /proc is served by lxcfs, a desktop's portals are below /run; no storage is there.
NO_STORAGE = re.compile(r"/(proc|sys|dev|run)(/|$)")
# Mount point, type, device number, source.
Mount = Tuple[str, str, Optional[str], str]
TCP_LISTEN = "0A"
IPV6_SCOPE_LINK = 0x20
IPV6_FLAG_DUPLICATE = 0x08


def os_release(host: Host) -> Dict[str, Any]:
    """Return distribution, kernel, systemd version, host name, and what container the node is, if it is one."""
    text = host.text("etc/os-release") or host.text("usr/lib/os-release") or ""
    values = {}
    for line in text.splitlines():
        key, found, value = line.partition("=")
        if found:
            values[key.strip()] = value.strip().strip("\"'")
    kernel = host.text("proc/sys/kernel/osrelease") or None
    ids = [values.get("ID", ""), *values.get("ID_LIKE", "").split()]
    return {
        "id": values.get("ID") or None,
        "version_id": values.get("VERSION_ID") or None,
        "codename": values.get("VERSION_CODENAME") or None,
        "family": next((FAMILIES[name] for name in ids if name in FAMILIES), "other"),
        "kernel": kernel,
        "systemd_version": _systemd_version(host),
        "hostname": host.text("proc/sys/kernel/hostname") or host.text("etc/hostname") or None,
        "container": _container(host),
        # Microsoft's kernel says so: 5.15.90.1-microsoft-standard-WSL2.
        "wsl": re.search("microsoft|wsl", kernel or "", re.IGNORECASE) is not None,
    }


def _container(host: Host) -> Optional[str]:
    """Ask systemd, then what the engines leave behind, then process 1; WSL calls itself a container and is none."""
    named = host.text("run/systemd/container")
    if not named and host.exists("run/.containerenv"):
        named = "podman"
    if not named and host.exists(".dockerenv"):
        named = "docker"
    if not named:
        try:
            with open(host.path("proc/1/environ"), "rb") as stream:
                words = stream.read().decode("utf-8", "replace").split("\0")
        except OSError:
            words = []
        named = next((word[10:] for word in words if word.startswith("container=")), None)
    if not named or named == "wsl":
        return None
    return named if named in CONTAINERS else "other"


def _systemd_version(host: Host) -> Optional[int]:
    """Return the number in the name of systemd's own library (libsystemd-shared-257.so), else ask systemctl."""
    names = [name for folder in SYSTEMD_FOLDERS for name in host.names(folder)]
    numbers = {match.group(1) for match in map(SYSTEMD_LIBRARY.match, names) if match}
    if len(numbers) == 1:
        host.report.probe("systemd", "ok")
        return int(numbers.pop())
    outcome = host.start("systemctl", "--version").finish()
    match = re.match(r"systemd ([0-9]{1,6})", outcome.stdout)
    host.report.probe("systemd", "ok" if match else outcome.status, None if match else outcome.message, outcome.ms)
    return int(match.group(1)) if match else None


def memory(host: Host, nodes: List[Dict[str, Any]]) -> Tuple[Optional[int], Optional[int]]:
    """Return the host's memory and what of it is available, in bytes.

    MemTotal and MemAvailable hold a GPU's memory too where the kernel has it online as a NUMA node without processors
    (POWER9, Grace Hopper). That of such `nodes` (see `numa.collect`) is left out.
    """
    text = host.text("proc/meminfo") or ""
    found = {key: int(kib) * 1024 for key, kib in re.findall(r"^(\w+):\s+([0-9]{1,15}) kB$", text, re.MULTILINE)}
    total, available = found.get("MemTotal") or None, found.get("MemAvailable")
    foreign = [node for node in nodes if node["cpus"] is None]
    other_total = sum(node["memory_total_bytes"] or 0 for node in foreign)
    # Node files and meminfo of different machines (a container's meminfo is its own) cannot be set off.
    if total is None or len(foreign) == len(nodes) or other_total >= total:
        return total, available
    if available is not None:
        available = max(0, available - sum(node["memory_free_bytes"] or 0 for node in foreign))
    return total - other_total, available


def cgroup(host: Host) -> Dict[str, Any]:
    """Return the hierarchy that limits are set in, and its controllers.

    On a hybrid machine the controllers are in version 1, and that is where container engines look for them.
    """
    mounts = [line.split() for line in (host.text("proc/self/mounts") or host.text("proc/mounts") or "").splitlines()]
    roots = {fields[1]: fields[2] for fields in mounts if len(fields) > 3 and fields[2] in ("cgroup", "cgroup2")}
    unified = host.text("sys/fs/cgroup/cgroup.controllers")
    if roots.get("/sys/fs/cgroup") == "cgroup2" or (unified is not None and "cgroup" not in roots.values()):
        return {"version": 2, "controllers": sorted((unified or "").split())}
    if "cgroup" not in roots.values():
        return {"version": None, "controllers": []}
    rows = [line.split() for line in (host.text("proc/cgroups") or "").splitlines() if not line.startswith("#")]
    enabled = {row[0] for row in rows if len(row) == 4 and row[3] == "1"}
    options = {option for fields in mounts if fields[2:3] == ["cgroup"] for option in fields[3].split(",")}
    return {"version": 1, "controllers": sorted(enabled & options)}


def addresses(host: Host) -> List[str]:
    """Return the node's own addresses, IPv4 first, without loopback and link-local ones."""
    found: List[str] = []
    candidate = ""
    for line in (host.text("proc/net/fib_trie") or "").splitlines():
        match = re.search(r"\|-- ([0-9.]+)$", line)
        if match:
            candidate = match.group(1)
        elif "/32 host LOCAL" in line and candidate not in found:
            found.append(candidate)
    for line in (host.text("proc/net/if_inet6") or "").splitlines():
        fields = line.split()
        if (
            len(fields) == 6
            and not int(fields[3], 16) & IPV6_SCOPE_LINK
            and not int(fields[4], 16) & IPV6_FLAG_DUPLICATE
        ):
            found.append(str(ipaddress.IPv6Address(bytes.fromhex(fields[0]))))
    return [address for address in found if not ipaddress.ip_address(address).is_loopback]


def listening(host: Host) -> List[Dict[str, Any]]:
    """Return every listening TCP socket, with the name of its process where this user may see it."""
    sockets: List[Tuple[str, int, str]] = []
    for table in ("proc/net/tcp", "proc/net/tcp6"):
        for line in (host.text(table) or "").splitlines():
            fields = line.split()
            if len(fields) > 9 and fields[3] == TCP_LISTEN:
                address, _, port = fields[1].partition(":")
                sockets.append((_socket_address(address), int(port, 16), fields[9]))
    owners = _owners(host, {inode for _, _, inode in sockets})
    rows = {(address, port): owners.get(inode) for address, port, inode in sockets}
    return [
        {"address": address, "port": port, "process": process}
        for (address, port), process in sorted(rows.items(), key=lambda row: (row[0][1], row[0][0]))
    ]


def _socket_address(text: str) -> str:
    """The kernel prints addresses as 32-bit words in its own byte order."""
    data = bytes.fromhex(text)
    if sys.byteorder == "little":
        data = b"".join(data[start : start + 4][::-1] for start in range(0, len(data), 4))
    if len(data) == 4:
        return str(ipaddress.IPv4Address(data))
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)


def _owners(host: Host, inodes: Set[str]) -> Dict[str, str]:
    """Return the process behind each socket. systemd holds the sockets that it hands on, so it is asked last."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode != "0"}
    owners: Dict[str, str] = {}
    pids = sorted((int(name) for name in host.names("proc") if name.isdigit()), reverse=True)
    for pid in pids:
        if len(owners) == len(wanted):
            break
        folder = host.path("proc", str(pid), "fd")
        try:
            descriptors = os.listdir(folder)
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                inode = wanted.get(os.readlink(f"{folder}/{descriptor}"))
            except OSError:
                continue
            if inode is not None and inode not in owners:
                owners[inode] = host.text("proc", str(pid), "comm") or str(pid)
    return owners


def group_ids(host: Host) -> Dict[str, Optional[int]]:
    """Return the numbers of the groups that own GPU devices."""
    rows = [line.split(":") for line in (host.text("etc/group") or "").splitlines()]
    numbers = {row[0]: to_int(row[2]) for row in rows if len(row) >= 3}
    return {"render": numbers.get("render"), "video": numbers.get("video")}


def storage(host: Host, path: str) -> Dict[str, Any]:
    """Return what is free (for an ordinary user) and in all, in bytes, where `path` is or would be.

    Also the file system (`ext4`), its `mount_point`, and whether its disk rotates: what the kernel says, which takes
    many a virtual disk for a rotating one; null without a disk.
    """
    if not host.live:
        return no_storage(path)
    mounts = _mounts(host)
    if not any(REMOTE.search(mount[1]) and not NO_STORAGE.match(mount[0]) for mount in mounts):
        return _storage(host, path, mounts)
    seconds = min(host.remaining(), STORAGE_SECONDS)
    outcome = Child(lambda: _storage(host, path, mounts), seconds, f"the file system of {path}").finish()
    if outcome.status != "ok":
        host.report.error("storage", outcome.message or outcome.status)
    return outcome.value or no_storage(path)


def no_storage(path: str) -> Dict[str, Any]:
    """Return what is said of a storage path that cannot be looked at."""
    return {"path": path, **dict.fromkeys(STORAGE_KEYS)}


def _storage(host: Host, path: str, mounts: List[Mount]) -> Dict[str, Any]:
    place = host.path(path)
    while not os.path.isdir(place):
        parent = os.path.dirname(place)
        if parent == place:
            return no_storage(path)
        place = parent
    found = os.statvfs(place)
    size = {"free_bytes": found.f_bavail * found.f_frsize, "total_bytes": found.f_blocks * found.f_frsize}
    inside = os.path.relpath(os.path.realpath(place), os.path.realpath(host.root))
    mount = _mount(os.path.normpath("/" + inside), mounts)
    known = {} if mount is None else {"filesystem": mount[1], "mount_point": mount[0]}
    rotational = None if mount is None else _rotational(host, mount[2], mount[3])
    return {**no_storage(path), **size, **known, "rotational": rotational}


def _mounts(host: Host) -> List[Mount]:
    mounts: List[Mount] = []
    for line in (host.text("proc/self/mountinfo") or "").splitlines():
        fields = line.split(" ")
        end = fields.index("-") if "-" in fields else len(fields)
        if end > 4 and len(fields) > end + 2:
            mounts.append((_unescape(fields[4]), fields[end + 1], fields[2], _unescape(fields[end + 2])))
    if not mounts:
        for line in (host.text("proc/self/mounts") or host.text("proc/mounts") or "").splitlines():
            fields = line.split(" ")
            if len(fields) > 3:
                mounts.append((_unescape(fields[1]), fields[2], None, _unescape(fields[0])))
    return [mount for mount in mounts if mount[0].startswith("/") and mount[1]]


def _mount(path: str, mounts: List[Mount]) -> Optional[Mount]:
    """Return what `path` is on: the longest mount point; the last of equal ones hides the others."""
    found = None
    for mount in mounts:
        above = mount[0].rstrip("/")
        if (path == mount[0] or path.startswith(above + "/")) and (found is None or len(mount[0]) >= len(found[0])):
            found = mount
    return found


def _unescape(text: str) -> str:
    r"""The kernel writes blanks as \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)


def _rotational(host: Host, number: Optional[str], source: str) -> Optional[bool]:
    """Ask the block device, or the disk that the partition is on.

    btrfs mounts have a device number of their own (0:42); there the source is asked.
    """
    if number and re.fullmatch(r"[1-9][0-9]*:[0-9]+", number):
        folder = f"sys/dev/block/{number}"
    elif source.startswith("/dev/"):
        # /dev/mapper/vg-data is a link to /dev/dm-0.
        folder = f"sys/class/block/{os.path.basename(os.path.realpath(host.path(source)))}"
    else:
        return None
    flag = host.integer(folder, "queue/rotational")
    if flag is None:
        flag = host.integer(folder, "../queue/rotational")
    return bool(flag) if flag in (0, 1) else None


def services(host: Host, state_path: str) -> List[Dict[str, Any]]:
    """Return what this fleet runs here already, as each service's own service.json says."""
    found = []
    for name in host.names(state_path, "services"):
        text = host.text(state_path, "services", name, "service.json")
        if text is None:
            continue
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            host.report.error("services", f"{state_path}/services/{name}/service.json is no JSON object")
            continue
        row = {key: _text(content.get(key)) for key in ("name", "backend", "model", "address")}
        port, units = content.get("port"), content.get("units")
        known = isinstance(port, int) and not isinstance(port, bool)
        told = isinstance(units, list) and all(_text(unit) for unit in units)
        models = content.get("models")
        several = isinstance(models, list) and bool(models) and all(_text(model) for model in models)
        found.append(
            {
                **row,
                "name": row["name"] or name,
                "models": models if several else [row["model"]] if row["model"] else [],
                "port": port if known else None,
                "units": units if told else None,
            }
        )
    return found


def measurements(host: Host, path: str) -> List[Dict[str, Any]]:
    """Return the results of this node's benchmarks from the file `path`; none of them when any is wrong."""
    text = host.text(path)
    if text is None:
        if host.exists(path):
            host.report.error("measurements", f"{path} cannot be read")
        return []
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    problem = _measurements_problem(content)
    if problem is not None:
        host.report.error("measurements", f"{path} {problem}; run the benchmark again, or remove the file")
        return []
    keys = (*MEASUREMENT_TEXTS, "concurrency", *MEASUREMENT_NUMBERS)
    return [{key: result.get(key) for key in keys} for result in content["results"]]


def _measurements_problem(content: Any) -> Optional[str]:
    """Return what is wrong in a file of measurements, None when nothing is."""
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        return "is no JSON object with a list of results"
    if content.get("schema_version") != MEASUREMENTS_SCHEMA_VERSION:
        return f"has schema version {content.get('schema_version')}, and {MEASUREMENTS_SCHEMA_VERSION} is read"
    for position, result in enumerate(content["results"]):
        if not isinstance(result, dict):
            return f"has a result {position} that is no JSON object"
        for key in MEASUREMENT_TEXTS:
            if _text(result.get(key)) is None:
                return f"has a result {position} whose {key} is no text"
        if not _measured(result.get("concurrency"), whole=True):
            return f"has a result {position} whose concurrency is no whole number above 0"
        for key in MEASUREMENT_NUMBERS:
            if not _measured(result.get(key)):
                return f"has a result {position} whose {key} is no number above 0"
    return None


def _measured(value: Any, *, whole: bool = False) -> bool:
    """Say whether a value is a number that can have been measured, or is left out."""
    if value is None:
        return True
    # Neither NaN nor Infinity, which Python's JSON reads, is above 0 and below a bound.
    number = isinstance(value, int) or (isinstance(value, float) and not whole)
    return number and not isinstance(value, bool) and 0 < value < MEASUREMENT_LIMIT


def _text(value: Any) -> Optional[str]:
    return value if isinstance(value, str) and value else None
