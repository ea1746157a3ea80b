# SPDX-License-Identifier: Apache-2.0
"""Where services go: the node's address and tier, GPUs, image variants and ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning import sizing
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import TIERS, Engine, Variant
from ansible_collections.fleet.inference.plugins.module_utils.planning.compatibility import (
    Refusal,
    device_title,
    first_variant,
    nearest,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import ServiceWish, Wishes, is_address

HOST_POOL = "host"
_VENDORS = {"cuda": ("nvidia", "NVIDIA GPU"), "rocm": ("amd", "AMD GPU"), "vulkan": (None, "GPU")}
_WILDCARDS = ("0.0.0.0", "::", "*", "")  # noqa: S104 - the addresses of other programs' sockets


@dataclass
class Pool:
    """Memory that services share: the host's, or one GPU's. ``taken`` is what the services' smallest settings need."""

    name: str
    title: str
    budget: int
    taken: int = 0
    services: list[str] = field(default_factory=list)


def node_tier(wishes: Wishes, facts: Mapping[str, Any]) -> str:
    """Return the node's tier: the wished one, else what the facts say."""
    tier = wishes.tier or facts.get("tier")
    if tier not in TIERS:
        raise PlanError(
            f"{wishes.host}: tier of the hardware facts is {tier!r}; gather them again with fleet.inference.gpu_facts"
        )
    return str(tier)


def node_address(wishes: Wishes, facts: Mapping[str, Any]) -> str:
    """Return the address that services listen on: the wished one, else the one Ansible uses, else the first IPv4."""
    network = facts.get("network")
    addresses = [str(item) for item in network.get("addresses") or []] if isinstance(network, Mapping) else []
    if wishes.address is not None:
        if addresses and wishes.address not in addresses and wishes.address not in _WILDCARDS:
            raise PlanError(
                f"{wishes.host}: inference_address is {wishes.address}, which this node does not have; "
                f"give one of {', '.join(addresses)}"
            )
        return wishes.address
    if wishes.ansible_host in addresses:
        return str(wishes.ansible_host)
    for text in addresses:
        if is_address(text):
            address = ipaddress.ip_address(text)
            if address.version == 4 and not address.is_loopback and not address.is_link_local:
                return text
    raise PlanError(
        f"{wishes.host}: no IPv4 address was found on this node; set inference_address to the address that the "
        "gateways reach it by"
    )


def device_pool(device: Mapping[str, Any]) -> str:
    """Return the name of a GPU's memory: its UUID (else its PCI address), or the host's for unified memory."""
    if device.get("unified_memory"):
        return HOST_POOL
    return str(device.get("uuid") or device.get("pci_bus_id"))


def usable_devices(host: str, tier: str, facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the GPUs of a tier that services may use, most memory first, then by PCI address.

    Raises:
        PlanError: There is none.
    """
    vendor, title = _VENDORS[tier]
    devices = [item for item in facts.get("devices") or [] if vendor is None or item.get("vendor") == vendor]
    usable = [item for item in devices if item.get("usable") and not _is_partitioned(item)]
    known = [item for item in usable if item.get("memory_total_bytes") or item.get("unified_memory")]
    if known:
        return sorted(known, key=lambda item: (-(item.get("memory_total_bytes") or 0), str(item.get("pci_bus_id"))))
    if usable:
        raise PlanError(
            f"{host}: the memory of {device_title(usable[0])} is unknown; install its driver and gather the facts "
            "again, or set inference_tier: cpu"
        )
    reasons = "; ".join(f"{device_title(item)}: {_unusable_reason(item)}" for item in devices)
    raise PlanError(
        f"{host}: tier is {tier} but no {title} is usable{f' ({reasons})' if reasons else ''}; "
        "repair it, or set inference_tier: cpu"
    )


def _is_partitioned(device: Mapping[str, Any]) -> bool:
    """A card in several partitions shows its whole memory, of which one process has a part."""
    return ((device.get("partition") or {}).get("count") or 1) > 1


def _unusable_reason(device: Mapping[str, Any], unknown: str = "unknown reason") -> str:
    if _is_partitioned(device):
        return f"it is partitioned ({device['partition'].get('compute')}), and one whole card is needed; set it to SPX"
    return str(device.get("unusable_reason") or unknown)


def pinned_device(
    host: str, wish: ServiceWish, usable: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the GPU that a service is pinned to.

    Raises:
        PlanError: The node has no such GPU, it is not usable, or several are pinned.
    """
    assert wish.gpus is not None
    where = wish.place("gpus")
    if len(wish.gpus) != 1:
        raise PlanError(
            f"{host}: {where} names {len(wish.gpus)} GPUs, and {wish.backend} uses one GPU in this version; name one"
        )
    pin = wish.gpus[0]
    key = "index" if isinstance(pin, int) else "uuid"
    for device in usable:
        if device.get(key) == pin:
            return device
    listed = ", ".join(f"{item.get('index')} ({item.get('uuid')})" for item in usable)
    for device in facts.get("devices") or []:
        if device.get(key) == pin:
            reason = _unusable_reason(device, "it does not belong to the node's tier")
            raise PlanError(
                f"{host}: {where} names {device_title(device)}, which is not usable: {reason}; use {listed}"
            )
    raise PlanError(f"{host}: {where} names {pin}, which this node does not have; use {listed}")


def choose_variant(
    host: str,
    engine: Engine,
    tier: str,
    device: Mapping[str, Any] | None,
    facts: Mapping[str, Any],
    *,
    others: Sequence[Engine] = (),
) -> Variant:
    """Return the first image of an engine that runs on this node and GPU.

    Args:
        host: The host's name.
        engine: The wished backend.
        tier: The node's tier.
        device: The GPU, None on tier ``cpu``.
        facts: Hardware facts of the node.
        others: Engines that the text may name when this one does not run.

    Raises:
        PlanError: None does; the text says why for the image that comes closest, and what would.
    """
    found = first_variant(engine, tier, device, facts)
    if isinstance(found, Refusal):
        near = nearest(others, engine.name, tier, device, facts)
        raise PlanError(f"{host}: {found.sentence(near)}")
    return found


def make_pools(host: str, facts: Mapping[str, Any], devices: Sequence[Mapping[str, Any]]) -> dict[str, Pool]:
    """Return the memory that services may take: the host's, and that of every GPU with memory of its own."""
    total = facts.get("memory_total_bytes")
    if isinstance(total, bool) or not isinstance(total, int) or total < 1:
        raise PlanError(
            f"{host}: memory_total_bytes of the hardware facts is {total!r}; gather them again with "
            "fleet.inference.gpu_facts"
        )
    pools = {HOST_POOL: Pool(HOST_POOL, "host memory", int(total * sizing.HOST_SHARE))}
    for device in devices:
        name = device_pool(device)
        if name != HOST_POOL:
            budget = int(device["memory_total_bytes"] * sizing.GPU_SHARE)
            pools[name] = Pool(name, f"memory on {device_title(device)}", budget)
    return pools


def assign_ports(
    wishes: Wishes, engines: Mapping[str, Engine], address: str, facts: Mapping[str, Any]
) -> dict[str, int]:
    """Give every service its port: the wished one, else the backend's default and the next free ones after it.

    Raises:
        PlanError: Two services wish one port, or something that is no service of ours listens on a port.
    """
    ports: dict[str, int] = {}
    owners: dict[int, str] = {}
    for wish in wishes.services:
        if wish.port is not None:
            if wish.port in owners:
                raise PlanError(
                    f"{wishes.host}: services {owners[wish.port]} and {wish.name} both have port {wish.port} in "
                    "inference_services; give each its own port"
                )
            ports[wish.name], owners[wish.port] = wish.port, wish.name
    for wish in wishes.services:
        if wish.name not in ports:
            port = wish.default_port or engines[wish.backend].port
            while port in owners:
                port += 1
            if port > 65535:
                raise PlanError(
                    f"{wishes.host}: no port is left for service {wish.name}; set a lower {wish.backend}_port"
                )
            ports[wish.name], owners[port] = port, wish.name
    foreign = _foreign_listeners(address, facts)
    for wish in wishes.services:
        port = ports[wish.name]
        if port in foreign:
            free = port
            while free in owners or free in foreign:
                free += 1
            raise PlanError(
                f"{wishes.host}: port {port} of service {wish.name} is taken by {foreign[port]}; free it or "
                + wish.remedy("port", free)
            )
    return ports


def _foreign_listeners(address: str, facts: Mapping[str, Any]) -> dict[int, str]:
    """Return the ports that other programs listen on where a service would, and the programs' names."""
    own = {item.get("port") for item in facts.get("services") or []}
    foreign: dict[int, str] = {}
    for item in facts.get("listening") or []:
        port, at = item.get("port"), str(item.get("address") or "").removeprefix("::ffff:")
        if port in own or (at != address and at not in _WILDCARDS and address not in _WILDCARDS):
            continue
        foreign.setdefault(int(port), str(item.get("process") or "another program"))
    return foreign
