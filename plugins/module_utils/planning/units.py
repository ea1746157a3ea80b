# SPDX-License-Identifier: Apache-2.0
"""What of a node's hardware facts one process of an engine can run on: GPUs, MIG instances, partitions of AMD cards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import bus_id
from ansible_collections.fleet.inference.plugins.module_utils.planning.compatibility import device_title
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import Unit
from ansible_collections.fleet.inference.plugins.module_utils.text import ranges

#: Vendor whose devices a tier uses, and what people call them; None for every vendor.
_VENDORS = {"cuda": ("nvidia", "NVIDIA GPU"), "rocm": ("amd", "AMD GPU"), "vulkan": (None, "GPU")}
#: Titles of units: ``GPU 0 (NVIDIA L4)``, or ``MIG 1g.10gb 3 of`` such a GPU, or a partition of it.
_TITLE = re.compile(r"(?:(?P<part>.+) (?P<number>\d+) of )?GPU (?P<gpu>\d+) \((?P<product>.*)\)")
#: How many units a sentence lists.
_LISTED = 8
_UNKNOWN_MEMORY = "its memory is unknown; install its driver and gather the facts again"


@dataclass
class _Surveyed:
    """A device with the units on it, and why it, or something on it, is none."""

    position: int
    device: Mapping[str, Any]
    units: list[Unit] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def units(facts: Mapping[str, Any], tier: str) -> tuple[Unit, ...]:
    """Return what services of a tier can be put on, by vendor, PCI address and number of the instance.

    Link domains are numbered in that order. Where the facts tell of none, the alike GPUs of a vendor are one of type
    ``pcie``. Compute instances that share the memory of a MIG instance get equal parts of it.

    Args:
        facts: Hardware facts of the node.
        tier: Tier that the node is used as; on ``cpu`` there are no units.
    """
    domains = _link_domains(facts)
    numbers: dict[tuple[Any, ...], int] = {}
    found: list[Unit] = []
    for item in _survey(facts, tier):
        if [unit.kind for unit in item.units] == ["gpu"]:
            unit = item.units[0]
            alike = (unit.vendor, unit.architecture or item.device.get("name"))
            key, link = domains.get(item.position, (alike, "pcie"))
            found.append(_whole(item.device, unit.identity, numbers.setdefault(key, len(numbers)), link))
        else:
            found += item.units
    return tuple(found)


def unusable(facts: Mapping[str, Any], tier: str) -> list[str]:
    """Return why every other device of the node is no unit of the tier, each as ``GPU 0 (NVIDIA H100): reason``.

    On tier ``cpu`` no device is asked for, and the list is empty.
    """
    return [reason for item in _survey(facts, tier) for reason in item.reasons]


def names(titles: Iterable[str], short: bool = False) -> str:
    """Return the names of units by their titles, alike ones by their numbers: ``MIG 1g.10gb 2-5 of GPU 0 (NVIDIA L4)``.

    Args:
        titles: Titles of units; other words stay as they are.
        short: Whether to leave out the names of the products.
    """
    parts: dict[tuple[str | None, str, str], list[str]] = {}
    others: list[str] = []
    for text in titles:
        title = _TITLE.fullmatch(text)
        if title is None:
            others.append(text)
        else:
            key = (title["part"], "" if short else f" ({title['product']})", title["gpu"])
            parts.setdefault(key, []).extend([title["number"]] if title["number"] else [])
    gpus: dict[tuple[str, str], list[str]] = {}
    for (part, product, gpu), numbers in parts.items():
        gpus.setdefault((f"{part} {ranges(numbers)} of " if part else "", product), []).append(gpu)
    found = [f"{head}GPU {ranges(of)}{product}" for (head, product), of in gpus.items()]
    return ", ".join([*found, *others])


def sort_key(unit: Unit) -> tuple[str, str, int, str]:
    """Return what units are sorted by: vendor, PCI address, number of the instance on its GPU, identity."""
    number = int((unit.instance or {}).get("index") or 0)
    if unit.kind == "partition":
        number = int(unit.identity.rpartition("#")[2])
    return unit.vendor, _address(unit.device), number, unit.identity


def find(units: Sequence[Unit], pin: str | int, facts: Mapping[str, Any] | None = None) -> Unit | str:
    """Return the unit that a pin means: a UUID (GPU-…, MIG-…), a PCI address, or the index of a GPU.

    Args:
        units: Units of the node.
        pin: What the user wrote; case and the digits of a PCI domain do not matter.
        facts: Hardware facts, for the reason why a device that is named cannot be used.

    Returns:
        The unit; else what is wrong and what to write instead, to follow the words ``… names``.
    """
    wanted = str(pin).strip().lower()
    wanted = bus_id(wanted) or wanted
    for unit in units:
        if unit.identity.lower() == wanted:
            return unit
    named: dict[str, list[Unit]] = {}
    for unit in units:
        if wanted in _names(unit.device):
            named.setdefault(device_title(unit.device) + _address(unit.device), []).append(unit)
    if len(named) > 1:
        return f"{pin}, which several GPUs are: {_listed([unit for group in named.values() for unit in group])}"
    for group in named.values():
        if group[0].kind == "gpu":
            return group[0]
        state = "is in MIG mode; name one of its instances" if group[0].kind == "mig" else "is partitioned; name a part"
        return f"{device_title(group[0].device)}, which {state}: {_listed(group)}"
    use = f"; use {_listed(units)}" if units else ""
    for device in (facts or {}).get("devices") or []:
        if wanted in _names(device):
            reason = "it does not belong to the node's tier"
            if not device.get("usable"):
                reason = _reason(device)
            elif not _size(device.get("memory_total_bytes")) and not device.get("unified_memory"):
                reason = _UNKNOWN_MEMORY
            return f"{device_title(device)}, which is not usable: {reason}{use}"
    return f"{pin}, which this node does not have{use}"


def _survey(facts: Mapping[str, Any], tier: str) -> Iterator[_Surveyed]:
    if tier not in _VENDORS:
        return
    vendor, title = _VENDORS[tier]
    devices = list(facts.get("devices") or [])
    uuids = [device.get("uuid") for device in devices]
    for position, device in sorted(enumerate(devices), key=lambda pair: _device_key(pair[1])):
        item = _Surveyed(position, device)
        if vendor is not None and device.get("vendor") != vendor:
            item.reasons.append(f"{device_title(device)}: it is no {title}, which tier {tier} needs")
        else:
            # Two devices with one UUID would share one account of their memory.
            unique = device.get("uuid") and uuids.count(device.get("uuid")) == 1
            _add_units(item, str(device["uuid"]) if unique else _place(device))
        yield item


def _add_units(item: _Surveyed, identity: str) -> None:
    device = item.device
    instances = (device.get("mig") or {}).get("instances") or []
    if instances and device.get("health") in (None, "ok") and device.get("virtualization") != "vgpu_host":
        # Its GPU is not usable as a whole, they are in its place; those of a vGPU host are for its virtual machines.
        _add_instances(item, instances)
    elif not device.get("usable"):
        item.reasons.append(f"{device_title(device)}: {_reason(device)}")
    elif (device.get("mig") or {}).get("mode"):
        item.reasons.append(f"{device_title(device)}: MIG is enabled and has no instances")
    elif _is_partitioned(device):
        _add_partitions(item)
    elif not device.get("unified_memory") and not _size(device.get("memory_total_bytes")):
        item.reasons.append(f"{device_title(device)}: {_UNKNOWN_MEMORY}")
    else:
        item.units.append(_whole(device, identity, None, None))


def _whole(device: Mapping[str, Any], identity: str, domain: int | None, link: str | None) -> Unit:
    memory = _size(device.get("memory_total_bytes"))
    return _unit(device, identity, "gpu", device_title(device), memory, domain=domain, link=link)


def _add_instances(item: _Surveyed, instances: Sequence[Mapping[str, Any]]) -> None:
    device = item.device
    owners = [instance.get("gpu_instance_id") for instance in instances]
    for instance in sorted(instances, key=lambda instance: instance.get("index") or 0):
        owner, number = instance.get("gpu_instance_id"), instance.get("index")
        profile = f" {instance['profile']}" if instance.get("profile") else ""
        title = f"MIG{profile} {number} of {device_title(device)}"
        memory = _size(instance.get("memory_total_bytes"))
        if memory is not None and owner is not None:
            memory //= owners.count(owner)
        if memory is None and not device.get("unified_memory"):
            item.reasons.append(f"{title}: {_UNKNOWN_MEMORY}")
        else:
            identity = str(instance.get("uuid") or f"{_place(device)}#{number}")
            item.units.append(_unit(device, identity, "mig", title, memory, instance=instance))


def _add_partitions(item: _Surveyed) -> None:
    device = item.device
    partition = device["partition"]
    instances = partition.get("instances") or []
    mode = partition.get("compute")
    if not instances:
        words = f"it is partitioned ({mode})" if mode else "it is partitioned"
        item.reasons.append(f"{device_title(device)}: {words} and its partitions are unknown; load amdgpu, or set SPX")
    whole = _size(device.get("memory_total_bytes"))
    for number, instance in enumerate(instances):
        title = f"{f'{mode} ' if mode else ''}partition {number} of {device_title(device)}"
        part = whole // max(len(instances), partition.get("count") or 0) if whole else None
        memory = _size(instance.get("memory_total_bytes")) or part
        if memory is None and not device.get("unified_memory"):
            item.reasons.append(f"{title}: {_UNKNOWN_MEMORY}")
        else:
            item.units.append(
                _unit(device, f"{_place(device)}#{number}", "partition", title, memory, instance=instance)
            )


def _unit(
    device: Mapping[str, Any],
    identity: str,
    kind: str,
    title: str,
    memory: int | None,
    *,
    instance: Mapping[str, Any] | None = None,
    domain: int | None = None,
    link: str | None = None,
) -> Unit:
    unified = bool(device.get("unified_memory"))
    return Unit(
        identity=identity,
        kind=kind,
        title=title,
        index=device.get("index"),
        vendor=str(device.get("vendor")),
        architecture=(instance or {}).get("architecture") or device.get("architecture"),
        memory_bytes=None if unified else memory,
        unified=unified,
        numa_node=device.get("numa_node"),
        domain=domain,
        link=link,
        device=device,
        instance=instance,
    )


def _link_domains(facts: Mapping[str, Any]) -> dict[int, tuple[tuple[Any, ...], str]]:
    """Return, for positions of devices, a key of the link domain and its type."""
    domains = (facts.get("topology") or {}).get("link_domains") or []
    return {
        position: (("domain", number), str(domain.get("type") or "pcie"))
        for number, domain in enumerate(domains)
        for position in domain.get("devices") or []
    }


def _is_partitioned(device: Mapping[str, Any]) -> bool:
    partition = device.get("partition") or {}
    return (partition.get("count") or 1) > 1 or partition.get("compute") not in (None, "SPX")


def _reason(device: Mapping[str, Any]) -> str:
    return str(device.get("unusable_reason") or "the facts do not say why")


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _address(device: Mapping[str, Any]) -> str:
    """Return the PCI address; what is not on the bus comes after all that is, as in the facts."""
    return str(device.get("pci_bus_id") or "~")


def _place(device: Mapping[str, Any]) -> str:
    """Return the PCI address, else vendor and index, which are unique in the facts."""
    return str(device.get("pci_bus_id") or f"{device.get('vendor')}-{device.get('index')}")


def _device_key(device: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return str(device.get("vendor")), _address(device), str(device.get("uuid") or ""), device.get("index") or 0


def _names(device: Mapping[str, Any]) -> set[str]:
    """Return, in lower case, what a device may be called."""
    return {str(device[key]).lower() for key in ("uuid", "pci_bus_id", "index") if device.get(key) is not None}


def _listed(units: Sequence[Unit]) -> str:
    shown = [f"{unit.identity} ({unit.title})" for unit in units[:_LISTED]]
    more = len(units) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
