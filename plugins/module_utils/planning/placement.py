# SPDX-License-Identifier: Apache-2.0
"""The node around the services: its tier, its address, their ports, and what a container is given of a unit."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import TIERS, Engine
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Unit
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import (
    ServiceWish,
    Wishes,
    is_address,
)

#: How many ports from a backend's first one on a service keeps, at least.
KEPT_PORTS = 10

_TITLES = {"cuda": "NVIDIA GPU", "rocm": "AMD GPU", "vulkan": "GPU"}
_WILDCARDS = ("0.0.0.0", "::", "*", "")  # noqa: S104 - the addresses of other programs' sockets


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


def tier_title(tier: str) -> str:
    """Return what a tier's units are called: ``NVIDIA GPU``."""
    return _TITLES[tier]


def container_device(unit: Unit, tier: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a unit with what its container is given: a CDI name, else device nodes and the groups that own them."""
    device, instance = unit.device, unit.instance or {}
    runtime = facts.get("runtime") or {}
    known = (runtime.get("cdi") or {}).get("devices") or []
    cdi = None
    if unit.vendor == "nvidia":
        # nvidia-ctk names every GPU by UUID and by index unless told otherwise; the UUID survives a changed order.
        number = unit.index if unit.kind == "gpu" else f"{unit.index}:{instance.get('index')}"
        by_index = f"nvidia.com/gpu={number}"
        uuid = device.get("uuid") if unit.kind == "gpu" else instance.get("uuid")
        cdi = f"nvidia.com/gpu={uuid}" if uuid else by_index
        if known and cdi not in known and by_index in known:
            cdi = by_index
    elif unit.vendor == "amd" and unit.kind == "gpu" and f"amd.com/gpu={unit.index}" in known:
        cdi = f"amd.com/gpu={unit.index}"
    container_devices: list[str] = [] if cdi is None else [cdi]
    groups: list[int] = []
    if cdi is None:
        render = instance.get("render_node") or device.get("render_node")
        container_devices = [*(["/dev/kfd"] if tier == "rocm" else []), *([str(render)] if render else [])]
        # Groups by number: the name render has another number in the image, or none.
        numbers = facts.get("groups") or {}
        groups = [numbers[name] for name in ("render", "video") if numbers.get(name) is not None]
    return {
        "index": unit.index,
        "uuid": instance.get("uuid") or device.get("uuid"),
        "pci_bus_id": device.get("pci_bus_id"),
        "vendor": unit.vendor,
        "container_devices": container_devices,
        "container_groups": groups,
    }


def assign_ports(
    wishes: Wishes, engines: Mapping[str, Engine], address: str, facts: Mapping[str, Any]
) -> dict[str, int]:
    """Give every service its port: the wished one, else the one it has now, else its backend's first free one, by name.

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
    # By name, so that the order of the list changes nothing.
    others = sorted((wish for wish in wishes.services if wish.port is None), key=lambda wish: wish.name)
    for wish in others:
        port = current_port(wish, facts)
        if port is not None and port not in owners and port in _near(wish, others, engines):
            ports[wish.name], owners[port] = port, wish.name
    for wish in others:
        if wish.name not in ports:
            port = first_port(wish, engines)
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


def port_reason(
    wish: ServiceWish, wishes: Wishes, engines: Mapping[str, Engine], port: int, facts: Mapping[str, Any]
) -> str:
    """Return why a service has the port that ``assign_ports`` gave it."""
    if wish.port is not None:
        return "wished"
    current = current_port(wish, facts)
    if port == current:
        return "as it runs now"
    reason = f"the first free one from {first_port(wish, engines)}"
    if current is None:
        return reason
    taker = next((f", which service {other.name} wishes" for other in wishes.services if other.port == current), "")
    return f"{reason}; it moves from {current}{taker}"


def first_port(wish: ServiceWish, engines: Mapping[str, Engine]) -> int:
    """Return the port from which a service of a backend gets its own."""
    return wish.default_port or engines[wish.backend].port


def current_port(wish: ServiceWish, facts: Mapping[str, Any]) -> int | None:
    """Return the port that the service has now, by what the facts say of it; None for a new one."""
    port = current_service(wish, facts).get("port")
    return port if isinstance(port, int) else None


def current_service(wish: ServiceWish, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the facts say of the service as it runs now; nothing for a new one."""
    for item in facts.get("services") or []:
        if item.get("name") == wish.name and item.get("backend") == wish.backend:
            return dict(item)
    return {}


def _near(wish: ServiceWish, others: Sequence[ServiceWish], engines: Mapping[str, Engine]) -> range:
    """Return the ports that a service gets without a wish, also when services before it were removed since.

    A port further from the first one was wished once, in a variable that is not set any more.
    """
    first = first_port(wish, engines)
    alike = sum(1 for other in others if other.backend == wish.backend)
    return range(first, first + max(KEPT_PORTS, 2 * alike))


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
