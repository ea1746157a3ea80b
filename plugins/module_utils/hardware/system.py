# SPDX-License-Identifier: Apache-2.0
"""The operating system around the GPUs: release, memory, cgroups, addresses, listeners, groups, storage, services."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from typing import Any, Dict, List, Optional, Set, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Command, Host, to_int

FAMILIES = {"debian": "debian", "ubuntu": "debian", "rhel": "redhat", "fedora": "redhat", "centos": "redhat"}
OS_KEYS = ("id", "version_id", "codename", "family", "kernel", "systemd_version", "hostname")
TCP_LISTEN = "0A"
IPV6_SCOPE_LINK = 0x20
IPV6_FLAG_DUPLICATE = 0x08


def os_release(host: Host, systemctl: Command) -> Dict[str, Any]:
    """Return distribution, kernel, systemd version and host name; `systemctl` is a started `systemctl --version`."""
    text = host.text("etc/os-release") or host.text("usr/lib/os-release") or ""
    values = {}
    for line in text.splitlines():
        key, found, value = line.partition("=")
        if found:
            values[key.strip()] = value.strip().strip("\"'")
    ids = [values.get("ID", ""), *values.get("ID_LIKE", "").split()]
    return {
        "id": values.get("ID") or None,
        "version_id": values.get("VERSION_ID") or None,
        "codename": values.get("VERSION_CODENAME") or None,
        "family": next((FAMILIES[name] for name in ids if name in FAMILIES), "other"),
        "kernel": host.text("proc/sys/kernel/osrelease"),
        "systemd_version": _systemd_version(host, systemctl),
        "hostname": host.text("proc/sys/kernel/hostname") or host.text("etc/hostname"),
    }


def _systemd_version(host: Host, systemctl: Command) -> Optional[int]:
    outcome = systemctl.finish()
    match = re.match(r"systemd ([0-9]{1,6})", outcome.stdout)
    host.report.probe("systemd", "ok" if match else outcome.status, None if match else outcome.message, outcome.ms)
    return int(match.group(1)) if match else None


def memory(host: Host) -> Tuple[Optional[int], Optional[int]]:
    """Return MemTotal and MemAvailable in bytes."""
    text = host.text("proc/meminfo") or ""
    found = dict(re.findall(r"^(\w+):\s+([0-9]{1,15}) kB$", text, re.MULTILINE))
    total, available = to_int(found.get("MemTotal")), to_int(found.get("MemAvailable"))
    return (total * 1024 if total else None, available * 1024 if available is not None else None)


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
    """Return what is free (for an ordinary user) and in all, in bytes, where `path` is or would be."""
    if not host.live:
        return no_storage(path)
    place = host.path(path)
    while not os.path.isdir(place):
        parent = os.path.dirname(place)
        if parent == place:
            return no_storage(path)
        place = parent
    found = os.statvfs(place)
    return {"path": path, "free_bytes": found.f_bavail * found.f_frsize, "total_bytes": found.f_blocks * found.f_frsize}


def no_storage(path: str) -> Dict[str, Any]:
    """Return what is said of a storage path that cannot be looked at."""
    return {"path": path, "free_bytes": None, "total_bytes": None}


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
        row = {key: content.get(key) for key in ("name", "backend", "model", "port", "address")}
        row["name"] = row["name"] or name
        found.append(row)
    return found
