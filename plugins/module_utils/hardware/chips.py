# SPDX-License-Identifier: Apache-2.0
"""What a GPU is by its PCI device id: known before any driver is there, and where a driver does not tell."""

from __future__ import annotations

from bisect import bisect_right
from typing import Dict, List, NamedTuple, Optional, Tuple


class Chip(NamedTuple):
    """A family of GPUs.

    `architecture` is what kernels are compiled for: NVIDIA's compute capability, AMD's gfx target, the name of Intel's
    graphics architecture. `generation` is the product generation that people know. `integrated` GPUs are part of a
    processor and share its memory; AMD's MI300A is not called so, its memory is that of an accelerator.
    """

    architecture: str
    generation: str
    integrated: bool = False


Row = Tuple[int, int, Chip]

# The chips behind the ids are those of the public pci.ids list, compared with the products that NVIDIA's
# open-gpu-kernel-modules lists (Turing and later); the compute capabilities are NVIDIA's table of CUDA GPUs.
_NVIDIA: List[Row] = [
    (0x0FC0, 0x0FFF, Chip("3.0", "kepler")),  # GK107
    (0x1000, 0x102C, Chip("3.5", "kepler")),  # GK110, GK180
    (0x102D, 0x102D, Chip("3.7", "kepler")),  # GK210
    (0x102E, 0x103F, Chip("3.5", "kepler")),  # GK110
    (0x1180, 0x11FF, Chip("3.0", "kepler")),  # GK104, GK106
    (0x1280, 0x12BF, Chip("3.5", "kepler")),  # GK208
    (0x1340, 0x139F, Chip("5.0", "maxwell")),  # GM108, GM107
    (0x13B0, 0x13BD, Chip("5.0", "maxwell")),  # GM107
    (0x13C0, 0x143F, Chip("5.2", "maxwell")),  # GM204, GM206
    (0x15C0, 0x15FF, Chip("6.0", "pascal")),  # GP100
    (0x1600, 0x167F, Chip("5.2", "maxwell")),  # GM204
    (0x1720, 0x172F, Chip("6.0", "pascal")),  # GP100
    (0x1740, 0x179F, Chip("5.0", "maxwell")),  # GM108, GM107
    (0x17C0, 0x17FF, Chip("5.2", "maxwell")),  # GM200
    (0x1B00, 0x1D7F, Chip("6.1", "pascal")),  # GP102, GP104, GP106, GP107, GP108
    (0x1D80, 0x1DFF, Chip("7.0", "volta")),  # GV100
    (0x1E00, 0x1FFF, Chip("7.5", "turing")),  # TU102, TU104, TU106, TU117
    (0x2080, 0x20FF, Chip("8.0", "ampere")),  # GA100
    (0x2180, 0x21FF, Chip("7.5", "turing")),  # TU116
    (0x2200, 0x227F, Chip("8.6", "ampere")),  # GA102
    (0x2300, 0x23FF, Chip("9.0", "hopper")),  # GH100
    (0x2400, 0x25FF, Chip("8.6", "ampere")),  # GA103, GA104, GA106, GA107
    (0x2680, 0x28FF, Chip("8.9", "ada")),  # AD102, AD103, AD104, AD106, AD107
    (0x2900, 0x29FF, Chip("10.0", "blackwell")),  # GB100, GB102
    (0x2B00, 0x2B00, Chip("11.0", "blackwell", True)),  # GB10B (Thor)
    (0x2B80, 0x2DFF, Chip("12.0", "blackwell")),  # GB202, GB203, GB206, GB207
    (0x2E00, 0x2E7F, Chip("12.1", "blackwell", True)),  # GB20B (GB10, N1X)
    (0x2F00, 0x2F80, Chip("12.0", "blackwell")),  # GB205
    (0x3180, 0x323F, Chip("10.3", "blackwell")),  # GB110, GB112
]

# The ids are those of the kernel's amdgpu driver and of libdrm's amdgpu.ids, for the chips that the driver discovers
# by itself those of pci.ids; the targets are those of LLVM's AMDGPU documentation and of the kernel's amdkfd.
# 15d8 is Picasso or Raven2 (gfx909), and the driver counts both as gfx902.
_AMD: List[Row] = [
    (0x1114, 0x1114, Chip("gfx1152", "rdna3.5", True)),  # Krackan
    (0x1304, 0x131D, Chip("gfx700", "gcn2", True)),  # Kaveri
    (0x13C0, 0x13C0, Chip("gfx1036", "rdna2", True)),  # Granite Ridge
    (0x13DB, 0x13DB, Chip("gfx1013", "rdna1", True)),  # Cyan Skillfish
    (0x13F9, 0x13FE, Chip("gfx1013", "rdna1", True)),  # Cyan Skillfish
    (0x1435, 0x1435, Chip("gfx1033", "rdna2", True)),  # Van Gogh (Sephiroth)
    (0x143F, 0x143F, Chip("gfx1013", "rdna1", True)),  # Cyan Skillfish
    (0x1506, 0x1506, Chip("gfx1036", "rdna2", True)),  # Mendocino
    (0x150E, 0x150E, Chip("gfx1150", "rdna3.5", True)),  # Strix Point
    (0x1586, 0x1586, Chip("gfx1151", "rdna3.5", True)),  # Strix Halo
    (0x15BF, 0x15BF, Chip("gfx1103", "rdna3", True)),  # Phoenix
    (0x15C8, 0x15C8, Chip("gfx1103", "rdna3", True)),  # Phoenix 2
    (0x15D8, 0x15D8, Chip("gfx902", "gcn5", True)),  # Picasso
    (0x15DD, 0x15DD, Chip("gfx902", "gcn5", True)),  # Raven Ridge
    (0x15E7, 0x15E7, Chip("gfx90c", "gcn5", True)),  # Barcelo
    (0x1636, 0x1636, Chip("gfx90c", "gcn5", True)),  # Renoir
    (0x1638, 0x1638, Chip("gfx90c", "gcn5", True)),  # Cezanne
    (0x163F, 0x163F, Chip("gfx1033", "rdna2", True)),  # Van Gogh
    (0x164C, 0x164C, Chip("gfx90c", "gcn5", True)),  # Lucienne
    (0x164D, 0x164D, Chip("gfx1035", "rdna2", True)),  # Rembrandt
    (0x164E, 0x164E, Chip("gfx1036", "rdna2", True)),  # Raphael
    (0x164F, 0x164F, Chip("gfx1103", "rdna3", True)),  # Phoenix
    (0x1681, 0x1681, Chip("gfx1035", "rdna2", True)),  # Rembrandt
    (0x1900, 0x1901, Chip("gfx1103", "rdna3", True)),  # Hawk Point
    (0x1902, 0x1902, Chip("gfx1153", "rdna3.5", True)),  # Krackan 2
    (0x6600, 0x6631, Chip("gfx602", "gcn1")),  # Oland
    (0x6640, 0x665F, Chip("gfx704", "gcn2")),  # Bonaire
    (0x6660, 0x666F, Chip("gfx602", "gcn1")),  # Hainan
    (0x66A0, 0x66AF, Chip("gfx906", "gcn5")),  # Vega 20 (MI50, MI60)
    (0x6780, 0x679F, Chip("gfx600", "gcn1")),  # Tahiti
    (0x67A0, 0x67BE, Chip("gfx701", "gcn2")),  # Hawaii
    (0x67C0, 0x67FF, Chip("gfx803", "gcn4")),  # Polaris 10 and 11
    (0x6800, 0x684C, Chip("gfx601", "gcn1")),  # Pitcairn, Verde
    (0x6860, 0x687F, Chip("gfx900", "gcn5")),  # Vega 10
    (0x6900, 0x6907, Chip("gfx802", "gcn3")),  # Iceland
    (0x6920, 0x693B, Chip("gfx802", "gcn3")),  # Tonga
    (0x694C, 0x699F, Chip("gfx803", "gcn4")),  # Polaris 22 and 12
    (0x69A0, 0x69AF, Chip("gfx904", "gcn5")),  # Vega 12
    (0x6FDF, 0x6FDF, Chip("gfx803", "gcn4")),  # Polaris 20
    (0x7300, 0x730F, Chip("gfx803", "gcn3")),  # Fiji
    (0x7310, 0x731F, Chip("gfx1010", "rdna1")),  # Navi 10
    (0x7340, 0x734F, Chip("gfx1012", "rdna1")),  # Navi 14
    (0x7360, 0x7362, Chip("gfx1011", "rdna1")),  # Navi 12
    (0x7388, 0x7390, Chip("gfx908", "cdna1")),  # Arcturus (MI100)
    (0x73A0, 0x73BF, Chip("gfx1030", "rdna2")),  # Navi 21
    (0x73C0, 0x73DF, Chip("gfx1031", "rdna2")),  # Navi 22
    (0x73E0, 0x73EF, Chip("gfx1032", "rdna2")),  # Navi 23
    (0x73F0, 0x73F0, Chip("gfx1102", "rdna3")),  # Navi 33
    (0x73FF, 0x73FF, Chip("gfx1032", "rdna2")),  # Navi 23
    (0x7408, 0x7410, Chip("gfx90a", "cdna2")),  # Aldebaran (MI200)
    (0x7420, 0x743F, Chip("gfx1034", "rdna2")),  # Navi 24
    (0x7448, 0x745E, Chip("gfx1100", "rdna3")),  # Navi 31
    (0x7460, 0x747E, Chip("gfx1101", "rdna3")),  # Navi 32
    (0x7480, 0x749F, Chip("gfx1102", "rdna3")),  # Navi 33
    (0x74A0, 0x74BF, Chip("gfx942", "cdna3")),  # Aqua Vanjaram (MI300)
    (0x7550, 0x7551, Chip("gfx1201", "rdna4")),  # Navi 48
    (0x7590, 0x7590, Chip("gfx1200", "rdna4")),  # Navi 44
    (0x75A0, 0x75BF, Chip("gfx950", "cdna4")),  # MI350
    (0x9830, 0x985F, Chip("gfx703", "gcn2", True)),  # Kabini, Mullins
    (0x9870, 0x9877, Chip("gfx801", "gcn3", True)),  # Carrizo
    (0x98E4, 0x98E4, Chip("gfx810", "gcn3", True)),  # Stoney
]

# The ids are those of the kernel's include/drm/intel/pciids.h (used by i915 and xe), from Skylake on, and Arctic Sound,
# which it does not list. Ponte Vecchio's 0be0 to 0be5 are left out: they are those of old Atoms as well.
_INTEL: List[Row] = [
    (0x0201, 0x020A, Chip("xe-hp", "arctic-sound")),
    (0x0A84, 0x0A84, Chip("gen9", "broxton", True)),
    (0x0B69, 0x0B6E, Chip("xe-hpc", "ponte-vecchio")),
    (0x0BD0, 0x0BDB, Chip("xe-hpc", "ponte-vecchio")),
    (0x1902, 0x193D, Chip("gen9", "skylake", True)),
    (0x1A84, 0x1A85, Chip("gen9", "broxton", True)),
    (0x3184, 0x3185, Chip("gen9", "gemini-lake", True)),
    (0x3E90, 0x3E9C, Chip("gen9", "coffee-lake", True)),
    (0x3EA0, 0x3EA9, Chip("gen9", "coffee-lake", True)),
    (0x4541, 0x4571, Chip("gen11", "elkhart-lake", True)),
    (0x4626, 0x462A, Chip("xe-lp", "alder-lake", True)),
    (0x4680, 0x46D4, Chip("xe-lp", "alder-lake", True)),
    (0x4905, 0x4909, Chip("xe-lp", "dg1")),
    (0x4C80, 0x4C9A, Chip("xe-lp", "rocket-lake", True)),
    (0x4E51, 0x4E71, Chip("gen11", "jasper-lake", True)),
    (0x5690, 0x56C2, Chip("xe-hpg", "alchemist")),  # Arc A, Data Center GPU Flex
    (0x5902, 0x593B, Chip("gen9", "kaby-lake", True)),
    (0x5A40, 0x5A5C, Chip("gen10", "cannon-lake", True)),
    (0x5A84, 0x5A85, Chip("gen9", "broxton", True)),
    (0x6420, 0x6420, Chip("xe2", "lunar-lake", True)),
    (0x64A0, 0x64B0, Chip("xe2", "lunar-lake", True)),
    (0x674C, 0x6750, Chip("xe3p", "crescent-island")),
    (0x7D40, 0x7D40, Chip("xe-lpg", "meteor-lake", True)),
    (0x7D41, 0x7D41, Chip("xe-lpg", "arrow-lake", True)),
    (0x7D45, 0x7D45, Chip("xe-lpg", "meteor-lake", True)),
    (0x7D51, 0x7D51, Chip("xe-lpg", "arrow-lake", True)),
    (0x7D55, 0x7D60, Chip("xe-lpg", "meteor-lake", True)),
    (0x7D67, 0x7D67, Chip("xe-lpg", "arrow-lake", True)),
    (0x7DD1, 0x7DD1, Chip("xe-lpg", "arrow-lake", True)),
    (0x7DD5, 0x7DD5, Chip("xe-lpg", "meteor-lake", True)),
    (0x87C0, 0x87CA, Chip("gen9", "amber-lake", True)),
    (0x8A50, 0x8A71, Chip("gen11", "ice-lake", True)),
    (0x9A40, 0x9AF8, Chip("xe-lp", "tiger-lake", True)),
    (0x9B21, 0x9BF6, Chip("gen9", "comet-lake", True)),
    (0xA720, 0xA721, Chip("xe-lp", "raptor-lake", True)),
    (0xA780, 0xA7AD, Chip("xe-lp", "raptor-lake", True)),
    (0xB080, 0xB0B0, Chip("xe3", "panther-lake", True)),
    (0xB640, 0xB640, Chip("xe-lpg", "arrow-lake", True)),
    (0xD740, 0xD75F, Chip("xe3p", "nova-lake", True)),
    (0xE202, 0xE223, Chip("xe2", "battlemage")),
    (0xFD80, 0xFD81, Chip("xe3", "wildcat-lake", True)),
]

TABLES: Dict[str, List[Row]] = {"nvidia": _NVIDIA, "amd": _AMD, "intel": _INTEL}


def identify(vendor: str, device_id: int) -> Optional[Chip]:
    """Return the chip with this PCI device id, None when the tables do not have it."""
    rows = TABLES.get(vendor, [])
    position = bisect_right([row[0] for row in rows], device_id) - 1
    if position < 0 or device_id > rows[position][1]:
        return None
    return rows[position][2]
