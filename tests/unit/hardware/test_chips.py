# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import chips
from hypothesis import given
from hypothesis import strategies as st

ARCHITECTURES = {
    "nvidia": r"^[0-9]{1,2}\.[0-9]$",
    "amd": r"^gfx[0-9]{1,2}[0-9a-f]{2}$",
    "intel": r"^(gen(9|10|11)|xe-(lp|lpg|hp|hpg|hpc)|xe2|xe3p?)$",
}


@pytest.mark.parametrize("vendor", sorted(chips.TABLES))
def test_tables_are_sorted_without_overlaps(vendor: str) -> None:
    rows = chips.TABLES[vendor]
    for first, last, chip in rows:
        assert 0 < first <= last <= 0xFFFF
        assert re.match(ARCHITECTURES[vendor], chip.architecture), chip
        assert re.match(r"^[a-z][a-z0-9.-]+$", chip.generation), chip
    for (_, last, _), (first, _, _) in itertools.pairwise(rows):
        assert last < first, f"{last:04x} and {first:04x}"


@pytest.mark.parametrize(
    ("vendor", "number", "architecture", "generation", "integrated"),
    [
        ("nvidia", 0x102D, "3.7", "kepler", False),  # Tesla K80
        ("nvidia", 0x13C2, "5.2", "maxwell", False),  # GTX 970
        ("nvidia", 0x15F8, "6.0", "pascal", False),  # Tesla P100
        ("nvidia", 0x1B38, "6.1", "pascal", False),  # Tesla P40
        ("nvidia", 0x1DB6, "7.0", "volta", False),  # V100
        ("nvidia", 0x1EB8, "7.5", "turing", False),  # T4
        ("nvidia", 0x2184, "7.5", "turing", False),  # GTX 1660
        ("nvidia", 0x20B5, "8.0", "ampere", False),  # A100
        ("nvidia", 0x2204, "8.6", "ampere", False),  # RTX 3090
        ("nvidia", 0x2330, "9.0", "hopper", False),  # H100
        ("nvidia", 0x26B9, "8.9", "ada", False),  # L40S
        ("nvidia", 0x27B8, "8.9", "ada", False),  # L4
        ("nvidia", 0x2941, "10.0", "blackwell", False),  # GB200
        ("nvidia", 0x3182, "10.3", "blackwell", False),  # B300
        ("nvidia", 0x31C2, "10.3", "blackwell", False),  # GB300
        ("nvidia", 0x2BB4, "12.0", "blackwell", False),  # RTX PRO 6000
        ("nvidia", 0x2F04, "12.0", "blackwell", False),  # RTX 5070
        ("nvidia", 0x2E12, "12.1", "blackwell", True),  # GB10
        ("nvidia", 0x2B00, "11.0", "blackwell", True),  # Jetson Thor
        ("amd", 0x738C, "gfx908", "cdna1", False),  # MI100
        ("amd", 0x740F, "gfx90a", "cdna2", False),  # MI210
        ("amd", 0x74A1, "gfx942", "cdna3", False),  # MI300X
        ("amd", 0x74B5, "gfx942", "cdna3", False),  # MI300X, a virtual function
        ("amd", 0x74A0, "gfx942", "cdna3", False),  # MI300A
        ("amd", 0x75A0, "gfx950", "cdna4", False),  # MI350X
        ("amd", 0x66A1, "gfx906", "gcn5", False),  # MI50
        ("amd", 0x73FF, "gfx1032", "rdna2", False),  # RX 6600
        ("amd", 0x744C, "gfx1100", "rdna3", False),  # RX 7900 XTX
        ("amd", 0x7550, "gfx1201", "rdna4", False),  # RX 9070
        ("amd", 0x15BF, "gfx1103", "rdna3", True),  # Phoenix
        ("amd", 0x1586, "gfx1151", "rdna3.5", True),  # Strix Halo
        ("intel", 0x56A0, "xe-hpg", "alchemist", False),  # Arc A770
        ("intel", 0x56C0, "xe-hpg", "alchemist", False),  # Flex 170
        ("intel", 0xE20B, "xe2", "battlemage", False),  # Arc B580
        ("intel", 0xE211, "xe2", "battlemage", False),  # Arc Pro B60
        ("intel", 0x0BD5, "xe-hpc", "ponte-vecchio", False),  # Max 1550
        ("intel", 0x4905, "xe-lp", "dg1", False),
        ("intel", 0x9B41, "gen9", "comet-lake", True),
        ("intel", 0x46A6, "xe-lp", "alder-lake", True),
        ("intel", 0x7D55, "xe-lpg", "meteor-lake", True),
        ("intel", 0x64A0, "xe2", "lunar-lake", True),
        ("intel", 0xB080, "xe3", "panther-lake", True),
    ],
)
def test_known_chips(vendor: str, number: int, architecture: str, generation: str, integrated: bool) -> None:
    assert chips.identify(vendor, number) == (architecture, generation, integrated)


@pytest.mark.parametrize(
    ("vendor", "number"),
    [("nvidia", 0), ("nvidia", 0x0FBF), ("nvidia", 0x1AF1), ("amd", 0xFFFF), ("intel", 0x643E), ("qualcomm", 0x2330)],
)
def test_unknown_chips(vendor: str, number: int) -> None:
    assert chips.identify(vendor, number) is None


@given(st.sampled_from(sorted(chips.TABLES)), st.integers())
def test_any_number(vendor: str, number: int) -> None:
    expected = [chip for first, last, chip in chips.TABLES[vendor] if first <= number <= last]
    assert chips.identify(vendor, number) == (expected[0] if expected else None)


def test_recorded_cards_are_known(recorded: Path) -> None:
    """Every GPU whose PCI id a recording of a driver's files or of nvidia-smi has."""
    found = set()
    for place in recorded.rglob("device/uevent"):
        for vendor, number in re.findall(r"^PCI_ID=(1002|10DE|8086):([0-9A-F]{4})$", place.read_text("latin-1"), re.M):
            found.add(({"1002": "amd", "10DE": "nvidia", "8086": "intel"}[vendor], int(number, 16)))
    for place in recorded.rglob("nvidia/smi-xml/*.xml"):
        numbers = re.findall(r"<pci_device_id>([0-9A-F]{4})10DE<", place.read_text("latin-1"))
        found.update(("nvidia", int(number, 16)) for number in numbers)
    assert len(found) > 25
    assert [one for one in sorted(found) if chips.identify(*one) is None] == []
