# SPDX-License-Identifier: Apache-2.0
"""The rows of the tables: one recording, the GPUs it shows, and what the facts must say of them.

The values are written by reading the recordings, never by running the code. What a recording does not show is not in
its row and not checked; a value that must be unknown is None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

MIB = 1 << 20
Values = dict[str, Any]


@dataclass(frozen=True)
class OneOf:
    """Any of these values is right."""

    values: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return other in self.values

    def __hash__(self) -> int:
        return hash(self.values)


@dataclass(frozen=True)
class Has:
    """A text that contains this, whatever its case; or a list that has an element with these values."""

    part: Any

    def __eq__(self, other: object) -> bool:
        if isinstance(other, list):
            return any(isinstance(item, dict) and self.part.items() <= item.items() for item in other)
        return isinstance(other, str) and self.part.lower() in other.lower()

    def __hash__(self) -> int:
        return hash(repr(self.part))


def maybe(value: Any) -> OneOf:
    """A value that follows from the recording only by inference: null or this, nothing else."""
    return OneOf((None, value))


@dataclass(frozen=True)
class Gpus:
    """A row's GPUs that are equal but for address and UUID.

    `at` lists their PCI addresses, shortened to what differs from 0000:..:00.0, or a count where there is no address;
    `uuids` their UUIDs, shortened to the first part; `values` what each of them shows, by dotted path.
    """

    at: str | int
    values: Values
    uuids: str = ""
    vendor: str = "nvidia"

    def expand(self) -> list[Values]:
        """Return the expectations of each device."""
        addresses = [None] * self.at if isinstance(self.at, int) else [address(text) for text in self.at.split()]
        found: list[Values] = [{"vendor": self.vendor, "pci_bus_id": place, **self.values} for place in addresses]
        for device, start in zip(found, self.uuids.split(), strict=bool(self.uuids)):
            device["uuid"] = Has(start)
        return found


@dataclass(frozen=True)
class Row:
    """One recording (with `also`, further files of the same machine) and what the facts must be."""

    path: str
    reach: Callable[..., Values]
    gpus: Gpus | tuple[Gpus, ...]
    usable: int
    facts: Values = field(default_factory=dict)
    also: tuple[str, ...] = ()
    note: str = ""

    @property
    def groups(self) -> tuple[Gpus, ...]:
        """The groups of equal GPUs."""
        return (self.gpus,) if isinstance(self.gpus, Gpus) else self.gpus

    @property
    def devices(self) -> list[Values]:
        """The expectations of each device, in the order of the facts."""
        return [device for group in self.groups for device in group.expand()]

    @property
    def vendors(self) -> list[str]:
        """The vendors in the order of the facts."""
        there = {group.vendor for group in self.groups}
        return [vendor for vendor in ("nvidia", "amd", "intel") if vendor in there]


def address(text: str) -> str:
    """Return the whole PCI address: `18` is 0000:18:00.0, `0:1e` 0000:00:1e.0, `000f:01:0` 000f:01:00.0."""
    parts = text.split(":")
    domain = parts.pop(0) if len(parts[0]) == 4 else "0000"
    bus, slot = [*parts, "0"][:2]
    slot, _, function = slot.partition(".")
    return f"{domain}:{int(bus, 16):02x}:{int(slot, 16):02x}.{function or '0'}"


def pci(identity: str) -> Values:
    """Expect a PCI identity: "vendor:device subsystem_vendor:subsystem_device class revision", as much as is shown."""
    keys = ("vendor_id", "device_id", "subsystem_vendor_id", "subsystem_device_id")
    parts = identity.split()
    numbers = [number for part in parts[:2] for number in part.split(":")]
    found: Values = {f"pci.{key}": number for key, number in zip(keys, numbers, strict=False)}
    found.update({f"pci.{key}": value for key, value in zip(("class", "revision"), parts[2:], strict=False)})
    return found


def nvidia(
    at: str | int,
    name: str | None,
    architecture: Any,
    generation: Any,
    mib: int | None,
    *,
    uuids: str = "",
    ids: str = "",
    reserved: int | None = None,
    bar: int | None = None,
    power: tuple[float, float, float, float] | None = None,
    pcie: tuple[int, int, int] | None = None,
    ecc: bool | None = None,
    virtualization: str | None = None,
    persistence: bool | None = None,
    mig: bool | None = None,
    **more: Any,
) -> Gpus:
    """NVIDIA GPUs as nvidia-smi prints them; sizes in MiB, `power` in watts (limit, default, least, most), `pcie` as
    highest generation, widest width, width now; a mode that nvidia-smi prints as N/A is None. `more` has __ for a dot.
    """
    values: Values = {
        "architecture": architecture,
        "generation": generation,
        "memory_total_bytes": None if mib is None else mib * MIB,
        "ecc.mode": ecc,
        "ecc.pending_mode": ecc,
        "virtualization": virtualization,
        "persistence_mode": persistence,
        "mig.mode": mig,
        "usable": True,
        "unusable_reason": None,
        "unified_memory": False,
        "health": "ok",
        **pci(ids),
    }
    if name is not None:
        values["name"] = name
    if reserved is not None:
        values["memory_reserved_bytes"] = reserved * MIB
    if bar is not None:
        values["memory_bar_bytes"] = bar * MIB
    if power:
        keys = ("limit_watts", "default_limit_watts", "min_limit_watts", "max_limit_watts")
        values.update({f"power.{key}": watts for key, watts in zip(keys, power, strict=True)})
    if pcie:
        lanes = ("generation_max", "width_max", "width_current")
        values.update({f"pcie.{key}": number for key, number in zip(lanes, pcie, strict=True)})
    values.update({key.replace("__", "."): value for key, value in more.items()})
    return Gpus(at, values, uuids)


def amd(at: str | int, architecture: Any, memory: int | None, *, uuids: str = "", ids: str = "", **more: Any) -> Gpus:
    """AMD GPUs; `memory` in bytes, None where the recording has none."""
    values: Values = {"architecture": architecture, "memory_total_bytes": memory, "usable": True, **pci(ids)}
    values.update({key.replace("__", "."): value for key, value in more.items()})
    return Gpus(at, values, uuids, "amd")


def intel(at: str | int, architecture: Any, memory: int | None, *, ids: str = "", **more: Any) -> Gpus:
    """Intel GPUs; `memory` in bytes, None where the recording has none."""
    return replace(amd(at, architecture, memory, ids=ids, **more), vendor="intel")


def differences(expected: Values, found: Any, where: str) -> list[str]:
    """Return a sentence for each dotted path whose value is not the expected one."""
    sentences = []
    for path, wanted in expected.items():
        value = at_path(found, path)
        if isinstance(value, bool) is not isinstance(wanted, bool) and not isinstance(wanted, OneOf | Has):
            equal = False
        else:
            equal = bool(wanted == value)
        if not equal:
            sentences.append(f"{where} {path}: expected {wanted!r}, got {value!r}")
    return sentences


def at_path(value: Any, path: str) -> Any:
    """Follow a dotted path through objects and lists; `MISSING` where a key is not there, None below a null."""
    for key in path.split("."):
        if value is None:
            return None
        if isinstance(value, list) and key.isdigit():
            value = value[int(key)] if int(key) < len(value) else MISSING
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            return MISSING
    return value


class _Missing:
    def __repr__(self) -> str:
        return "<no such key>"


MISSING = _Missing()
