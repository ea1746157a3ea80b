# SPDX-License-Identifier: Apache-2.0
"""AMD: what each recorded machine shows.

The tables fill their lines (`fmt: off`): a recording is read at a glance.
"""

from __future__ import annotations

from typing import Any

from .adapters import (
    amd_smi_text,
    detector_amd,
    kfd_tree,
    partition_ids,
    rccl_topology,
    rocm_texts,
    smi_json,
    sysfs_tree,
)
from .expected import MIB, Gpus, Has, OneOf, Row, Values, amd, maybe

GIB = 1 << 30


def limits(limit: float, default: float, least: float, most: float) -> Values:
    """Power limits in watts, from the driver's hwmon files."""
    return {
        "power__limit_watts": limit,
        "power__default_limit_watts": default,
        "power__min_limit_watts": least,
        "power__max_limit_watts": most,
    }


def card(at: str, device: str, architecture: Any, memory: int | None = None, **more: Any) -> tuple[Gpus, ...]:
    """A card below sys/class/drm that amdgpu drives."""
    values: Values = {"driver_bound": "amdgpu", "integrated": False, "unified_memory": False, **more}
    return (amd(at, architecture, memory, ids=device, **values),)


LACT = "amd/sysfs-lact/"
# fmt: off
TREES = (
    Row(
        LACT + "hd7870/", sysfs_tree,
        card("1", "1002:6818", maybe("gfx601"), driver_bound="radeon", usable=False, unusable_reason=Has("radeon")), 0,
    ),
    Row(
        LACT + "phoenix/", sysfs_tree,
        card(
            "64", "1002:15bf 17aa:50da 030000 dd", "gfx1103", 31433977856, generation="rdna3", compute_units=12,
            integrated=True, unified_memory=True, usable=False, unusable_reason=Has("integrated"),
            carve_out_bytes=4294967296, gtt_bytes=31433977856, uuid=None, numa_node=None, cpu_affinity="0-15",
            render_node="/dev/dri/renderD128", power_state="active",
        ),
        0, note="its unique_id is empty, kfd's bank is the GTT",
    ),
    Row(
        LACT + "r7-240/", sysfs_tree,
        card(
            "1", "1002:6617 1787:012f 030000 87", maybe("gfx602"), 2 * GIB, memory_used_bytes=495321088,
            memory_bar_bytes=256 * MIB, numa_node=None, cpu_affinity="0-3", power_state="active",
        ),
        1, note="amdgpu without kfd",
    ),
    Row(LACT + "r9-280/", sysfs_tree, card("1", "1002:679a", maybe("gfx600")), 1, note="no memory files"),
    Row(
        LACT + "rx5500xt/", sysfs_tree, card("4", "1002:7340", "gfx1012", **limits(130, 130, 65, 156)), 1,
        note="no memory files; the id is in uevent only",
    ),
    Row(
        LACT + "rx5700xt/", sysfs_tree, card("28", "1002:731f", "gfx1010", **limits(220, 220, 110, 330)), 1,
        note="no memory files",
    ),
    Row(
        LACT + "rx580/", sysfs_tree,
        card(
            "9", "1002:67df 1da2:e387", "gfx803", 4 * GIB, memory_used_bytes=536870912, memory_bar_bytes=256 * MIB,
            numa_node=None, cpu_affinity="0-15", pci__revision="e7", **limits(155, 155, 0, 201),
        ),
        1, note="the card's device folder has neither device nor class; strays of it lie beside card0",
    ),
    Row(
        LACT + "rx6600xt/", sysfs_tree,
        card("b", "1002:73ff", "gfx1032", generation="rdna2", **limits(100, 100, 94, 100)), 1, note="no memory files",
    ),
    Row(
        LACT + "rx6900xt/", sysfs_tree,
        card(
            "c", "1002:73bf 1da2:440e 030000 c0", "gfx1030", 17163091968, generation="rdna2",
            uuids="GPU-946d7e1ef9b172dd", memory_used_bytes=668274688, memory_bar_bytes=17163091968, numa_node=None,
            cpu_affinity="0-15", power_state="active", **limits(289, 289, 0, 332),
        ),
        1, note="files padded with NUL",
    ),
    Row(
        LACT + "rx7600s/", sysfs_tree, card("3", "1002:7480", "gfx1102", generation="rdna3", **limits(95, 95, 95, 95)),
        1, note="no memory files",
    ),
    Row(
        LACT + "rx7700s/", sysfs_tree,
        card("3", "1002:7480", "gfx1102", generation="rdna3", **limits(100, 100, 100, 120)), 1, note="no memory files",
    ),
    Row(
        LACT + "rx7800xt/", sysfs_tree,
        card("3", "1002:747e", "gfx1101", generation="rdna3", **limits(236, 236, 212, 280)), 1, note="no memory files",
    ),
    Row(
        LACT + "rx9070/", sysfs_tree,
        card("3", "1002:7550", "gfx1201", generation="rdna4", **limits(200, 220, 0, 245)), 1, note="no memory files",
    ),
    Row(
        LACT + "rx9070xt/", sysfs_tree,
        card("f", "1002:7550", "gfx1201", generation="rdna4", **limits(120, 304, 0, 340)), 1, note="no memory files",
    ),
    Row(
        LACT + "vangogh/", sysfs_tree,
        card(
            "4", "1002:163f", "gfx1033", 8589934592, generation="rdna2", compute_units=8, integrated=True,
            unified_memory=True, uuid=None, usable=False, unusable_reason=Has("integrated"),
            render_node="/dev/dri/renderD128",
        ),
        0,
    ),
)
# fmt: on


def mi210(at: str, uuids: str, renders: str, hive: str) -> tuple[Gpus, ...]:
    """The four cards of one hive; each is linked to the three others."""
    return tuple(
        amd(
            place,
            "gfx90a",
            None,
            uuids=uuid,
            generation="cdna2",
            compute_units=104,
            driver_bound="amdgpu",
            integrated=False,
            render_node=f"/dev/dri/renderD{render}",
            hive_id=Has(hive),
            link_peers=[peer for peer in at.split() if peer != place],
            links=Has({"type": "xgmi", "peer_type": "gpu", "weight": 15}),
        )
        for place, uuid, render in zip(at.split(), uuids.split(), renders.split(), strict=True)
    )


def divided(at: str, uuid: str, first: int, count: int = 8) -> Gpus:
    """An MI300X in as many partitions as kfd lists; `first` is the first one's kfd node."""
    values: Values = {"partition__count": count, "partition__compute": maybe("CPX"), "partition__memory": None}
    for position in range(count):
        instance = f"partition__instances__{position}__"
        values[instance + "kfd_node"] = first + position
        values[instance + "architecture"] = "gfx942"
        values[instance + "render_node"] = f"/dev/dri/renderD{126 + first + position}"
        values[instance + "memory_total_bytes"] = None
    return amd(at, "gfx942", None, uuids=f"GPU-{uuid}", generation="cdna3", hive_id=Has("d2ca1ad46147c377"), **values)


KFD = "amd/kfd/"
# fmt: off
TOPOLOGIES = (
    Row(
        KFD + "mi210-8gpu-2hive/", kfd_tree,
        (
            *mi210(
                "3 26 43 63", "GPU-93bb3629c01aea1c GPU-4344e78b718814cd GPU-51276ac12ce05db3 GPU-1901ead3a2ecd4a6",
                "130 131 129 128", "aefdf8293fefa6b7",
            ),
            *mi210(
                "83 a3 c3 e3", "GPU-f83f06efb714e6cf GPU-c34ec50444dd0a6d GPU-a3781b5a10fcf54a GPU-aea834aa2723eb57",
                "134 135 133 132", "fb11632c00f4d272",
            ),
        ),
        8,
        {
            "tier": "rocm", "link_groups": {"xgmi": [[0, 1, 2, 3], [4, 5, 6, 7]]},
            "matrix": {(0, 1): ("XGMI",), (3, 0): ("XGMI",), (4, 7): ("XGMI",), (0, 4): ("SYS", "UNKNOWN")},
        },
        note="no memory banks; kfd's order is not the bus's",
    ),
    Row(
        KFD + "mi300x-8gpu-cpx-63part/", kfd_tree,
        (
            divided("5", "e3aa140f9a5f9e31", 2), divided("27", "2250f807caf2231a", 10),
            divided("47", "d802d560d4ba851d", 18), divided("65", "a70757a01276547a", 26),
            divided("85", "d465af38bcaa89bd", 34), divided("a7", "bd5b5286da906cea", 42),
            divided("c7", "b8f159dcba049de9", 50), divided("e5", "dd197ad1b50577f6", 58, 7),
        ),
        63, {"tier": "rocm", "matrix": {(0, 1): ("XGMI",), (0, 7): ("XGMI",), (3, 5): ("XGMI",)}},
        note="one hive of eight cards, 63 partitions: the last card's eighth is not listed; no memory banks",
    ),
    Row(
        KFD + "vega20-1gpu-plus-fake-copy/", kfd_tree,
        amd(
            "19", maybe("gfx900"), 17163091968, uuids="GPU-c34ec50444dd0a6", compute_units=64,
            partition=OneOf((None, {"compute": None, "memory": None, "count": 1, "instances": []})),
            render_node=OneOf(("/dev/dri/renderD128", "/dev/dri/renderD129")),
        ),
        1, note="one GPU and a copy of its node at the same address; the device id 6860 is a Vega 10; no gfx target",
    ),
)
# fmt: on


def rccl(at: str, nodes: str, target: str, units: int, device: str = "", **more: Any) -> tuple[Gpus, ...]:
    """The GPUs of an RCCL topology; `nodes` has the NUMA node of each."""
    places = at.split()
    return tuple(
        amd(place, target, None, ids=device, compute_units=units, numa_node=int(node), **more)
        for place, node in zip(places, nodes, strict=True)
    )


def xgmi(*groups: list[int], **pairs: tuple[str, ...]) -> Values:
    """Expect these groups to be linked, and the link classes of pairs (`p0_4` is the pair of devices 0 and 4)."""
    matrix = {tuple(map(int, pair[1:].split("_"))): classes for pair, classes in pairs.items()}
    return {"link_groups": {"xgmi": list(groups)}, "matrix": matrix, "tier": "rocm"}


LINKED, FAR = ("XGMI",), ("SYS",)
BRIDGE, SAME_NODE = ("PIX", "PXB"), ("NODE", "PHB")
ALL8 = list(range(8))
RCCL = "amd/rccl-topo/topo_"
# fmt: off
LINK_MAPS = (
    Row(
        RCCL + "16p1h.xml", rccl_topology,
        rccl(
            "e 11 16 19 4e 51 56 59 8f 92 97 9a cf d2 d7 da", "1111000033332222", "gfx90a", 104, "1002:740c",
            pci__class="038000", generation="cdna2",
        ),
        16, xgmi(list(range(16)), p0_1=LINKED, p0_4=LINKED, p0_12=FAR),
        note="eight cards of two dies each, every die a GPU of its own",
    ),
    Row(
        RCCL + "3p_pcie.xml", rccl_topology,
        rccl("23 83 e4", "011", "gfx90a", 104, "1002:740f", generation="cdna2", links=[]), 3,
        xgmi(p0_1=FAR, p1_2=SAME_NODE),
    ),
    Row(
        RCCL + "4p1h.xml", rccl_topology, rccl("1d 20 23 26", "0000", "gfx906", 64, cpu_affinity="0-13,28-41"), 4,
        xgmi([0, 1, 2, 3], p0_1=LINKED, p0_2=LINKED, p1_3=LINKED, p0_3=("XGMI", *BRIDGE)),
        note="a ring: opposite GPUs have no link of their own",
    ),
    Row(
        RCCL + "4p3l_2h.xml", rccl_topology, rccl("3 23 26 43 83 a3 c3 c6", "11103322", "gfx908", 120), 8,
        xgmi([0, 1, 2, 3], [4, 5, 6, 7], p0_3=LINKED, p4_7=LINKED, p0_4=FAR),
    ),
    Row(
        RCCL + "4p_940.xml", rccl_topology,
        rccl("2 42 82 c2", "0123", "gfx940", 228, "1002:74a0", generation="cdna3", pci__class="120000"), 4,
        xgmi([0, 1, 2, 3], p0_3=LINKED), note="MI300A with the target of its first silicon; whole boards in one hive",
    ),
    Row(
        RCCL + "8p6l.xml", rccl_topology, rccl("3 24 43 63 83 a3 c3 e3", "00001111", "gfx908", 120), 8,
        xgmi(ALL8, p0_1=LINKED, p0_5=("SYS", "XGMI"), p0_4=LINKED),
    ),
    Row(
        RCCL + "8p_90a.xml", rccl_topology,
        rccl("c1 c5 c9 cd d1 d5 d9 dd", "00000000", "gfx90a", 104, generation="cdna2"), 8,
        xgmi(ALL8, p0_1=LINKED, p0_2=LINKED, p0_6=LINKED),
    ),
    Row(
        RCCL + "8p_90a_1.xml", rccl_topology,
        rccl("c1 c6 c9 ce d1 d6 d9 de", "33110000", "gfx90a", 104, "1002:7408", generation="cdna2"), 8,
        xgmi(ALL8, p0_1=LINKED, p4_5=LINKED),
    ),
    Row(
        RCCL + "8p_940.xml", rccl_topology,
        rccl("c 15 1e 69 9f af bf df", "00001111", "gfx942", 304, "1002:74a1", generation="cdna3"), 8,
        xgmi(ALL8, p0_1=LINKED, p0_7=LINKED),
    ),
    Row(
        RCCL + "8p_940vm.xml", rccl_topology,
        rccl(
            " ".join(f"00{domain}1:00:0" for domain in range(1, 9)), "00001111", "gfx942", 304, "1002:74b5",
            generation="cdna3", virtualization="sriov_vf",
        ),
        8, xgmi(ALL8, p0_1=LINKED, p0_7=LINKED), note="virtual functions in a guest, each in a PCI domain of its own",
    ),
    Row(
        RCCL + "8p_pcie.xml", rccl_topology,
        rccl("1d 20 23 26 3f 43 46 49", "00000000", "gfx906", 64, links=[], cpu_affinity="0-7,16-23"), 8,
        xgmi(p0_1=BRIDGE, p0_3=BRIDGE, p4_7=BRIDGE, p0_4=SAME_NODE),
    ),
    Row(
        RCCL + "8p_rome_n4_1.xml", rccl_topology, rccl("3 23 26 43 83 a3 c3 c6", "32217655", "gfx908", 120), 8,
        xgmi([0, 1, 2, 3], [4, 5, 6, 7], p0_1=LINKED, p3_4=FAR),
    ),
    Row(
        RCCL + "8p_ts1_n4.xml", rccl_topology, rccl("3 23 26 43 83 c3 c6 e3", "32217554", "gfx906", 64), 8,
        xgmi([0, 1, 2, 3], [4, 5, 6, 7], p0_3=LINKED, p3_4=FAR),
    ),
)
# fmt: on

ROCM = "amd/rocm-smi-json/"
MI100_MEMORY, NAVI22_MEMORY = 34342961152, 12868124672


def navi22(version: str, architecture: Any, name: Any) -> Row:
    """The RX 6700 XT under one release of ROCm."""
    return Row(
        f"{ROCM}rx6700xt_rocm{version}.json",
        smi_json,
        (
            amd(
                "7",
                architecture,
                NAVI22_MEMORY,
                ids="1002:73df",
                uuid=None,
                name=name,
                generation="rdna2",
                power__limit_watts=211,
                memory_bar_bytes=256 * MIB,
                numa_node=maybe(0),
                integrated=False,
            ),
        ),
        1,
        {"driver.amdgpu_version": "6.3.6"},
    )


# fmt: off
SMI = (
    Row(
        ROCM + "mi100_rocm571.json", smi_json,
        amd(
            "1e 22 3f 43 46 49", "gfx908", MI100_MEMORY, ids="1002:738c", uuid=None, name=Has("MI100"),
            power__limit_watts=290, memory_used_bytes=6782976, memory_bar_bytes=MI100_MEMORY, numa_node=0, links=[],
        ),
        6, {"driver.amdgpu_version": "6.2.4"}, note="all pairs are PCIe",
    ),
    Row(
        ROCM + "mi100_rocm602.json", smi_json,
        amd(
            "83 a3 c3 e3", "gfx908", MI100_MEMORY, ids="1002:738c",
            uuids="GPU-79ccd55167a2124a GPU-04edfb117a17a07d GPU-d4a9ec48d03d261d GPU-1b9dd972253c3736",
            name=Has("MI100"), power__limit_watts=290, memory_bar_bytes=MI100_MEMORY, numa_node=1, links=[],
        ),
        4, {"driver.amdgpu_version": "6.3.6"},
    ),
    Row(
        ROCM + "mi250x_productname_gfx9010bug.json", smi_json,
        amd(1, "gfx90a", None, generation="cdna2", name="AMD INSTINCT MI200 (MCM) OAM LC MBA HPE C2"), 1,
        note="rocm-smi prints gfx9010; no address and no memory",
    ),
    # Its series reads 0x1002.
    navi22("430", "gfx1031", OneOf((None, Has("6700"), Has("73df")))), navi22("571", "gfx1031", Has("6700 XT")),
    navi22("602", "gfx1031", Has("6700 XT")), navi22("612", "gfx1031", Has("6700 XT")),
    Row(
        ROCM + "rx7900xt_productname_meminfo.json", smi_json,
        amd(1, "gfx1100", 21458059264, generation="rdna3", name="Radeon RX 7900 XT", memory_used_bytes=27856896), 1,
        note="no address",
    ),
    Row(
        ROCM + "vega-10-XT.json", smi_json,
        amd(
            "4", "gfx900", 17163091968, uuids="GPU-02150e7d042a1124", ids="1002:6861",
            power__limit_watts=170, memory_bar_bytes=256 * MIB, numa_node=0,
        ),
        1, {"driver.amdgpu_version": "5.9.25"},
    ),
    Row(
        ROCM + "vega-20-WKS-GL-XE.json", smi_json,
        amd(
            "63", "gfx906", 34342961152, uuids="GPU-02f048617326b1ea", ids="1002:66a1",
            power__limit_watts=225, name=Has("MI50"), memory_bar_bytes=34342961152, numa_node=0,
        ),
        1, {"driver.amdgpu_version": "5.9.17"}, note="one card of a machine of eight",
    ),
    Row(
        "amd/amd-smi/mi210-static.json", smi_json,
        amd(
            1, "gfx90a", 65520 * MIB, ids="1002:740f", name="AMD Instinct MI210", generation="cdna2",
            compute_units=104, numa_node=1, pcie__generation_max=4, pcie__width_max=16, power__limit_watts=300,
            power__min_limit_watts=0, power__max_limit_watts=300,
        ),
        1, {"driver.amdgpu_version": None}, note="no address; the driver's version is the kernel's banner",
    ),
    Row(
        "amd/amd-smi/mi350x-static.txt", amd_smi_text,
        amd(
            "5", "gfx950", None, ids="1002:75a0", name=OneOf(("AMD Instinct MI350X", "AMD Instinct MI350 OAM")),
            generation="cdna4", compute_units=128, pcie__generation_max=5, pcie__width_max=16,
        ),
        1, {"driver.amdgpu_version": "6.18.3"}, note="the text as the JSON of the same command",
    ),
    Row(
        "amd/amd-smi/partition-na-unprivileged.txt", amd_smi_text,
        amd(4, None, None, partition__compute=None, partition__memory=maybe("NPS1")), 4,
        note="four GPUs of an unknown model, asked without privileges",
    ),
    Row(
        "amd/amd-smi/mi300x-partitioned-ids.txt", partition_ids,
        amd("5 26", OneOf((None, "gfx942")), None, partition__count=2), 4,
        note="of each card the first two partitions, as functions that PCI does not have",
    ),
    Row(
        "amd/amd-smi/mi300a-tpx-rocm-smi-bus.txt", partition_ids,
        amd("1", OneOf((None, "gfx942")), None, partition__count=3), 3,
    ),
)
# fmt: on

VF_MEMORY = 201310208 << 10
TEXTS = "amd/smi-text/"
# fmt: off
ROCM_TEXTS = (
    Row(
        TEXTS + "MI300X_x4_rocminfo.txt", rocm_texts,
        tuple(
            amd(
                at, "gfx942", VF_MEMORY, uuids=uuid, name=Has("MI300X"), generation="cdna3", compute_units=304,
                virtualization="sriov_vf", power__limit_watts=750, pci__device_id="74a1",
                partition__compute=maybe("SPX"),
                partition__memory=maybe("NPS1"), partition__count=maybe(1),
            )
            for at, uuid in (
                ("26", "GPU-8d1457e2c20f59d2"), ("46", "GPU-b4fa34630e85d42a"), ("65", "GPU-e8986800e182538a"),
                ("85", "GPU-eff71edc82169115"),
            )
        ),
        4, {"tier": "rocm", "together": [0, 1, 2, 3]},
        (TEXTS + "MI300X_x4_smi_-a.txt", TEXTS + "MI300X_x4_smi.txt", TEXTS + "MI300X_x4_deviceQuery.txt"),
        note="rocminfo as the kfd tree it was read from, rocm-smi's text as its JSON",
    ),
    Row(
        TEXTS + "MI300X_deviceQuery.txt", rocm_texts,
        amd("5", "gfx942", 196592 * MIB, generation="cdna3", compute_units=304, name=Has("MI300X")), 1,
        {"tier": "rocm"}, (TEXTS + "MI300X_smi.txt",), note="deviceQuery as the kfd tree it was read from",
    ),
)
# fmt: on

DETECTED = "amd/gpustack-detect/detect_output_amd_"
MAPPED = "amd/gpustack-detect/topology_output_amd_"
HAND_ALIGNED = "hand-aligned by its authors, not measured"
# fmt: off
DETECTIONS = (
    Row(
        DETECTED + "mi300x.json", detector_amd,
        amd(
            "26 46", "gfx942", 196592 * MIB, uuids="GPU-0cee36ddc4255115 GPU-cfb3160d6c053160",
            name="AMD Instinct MI300X OAM", generation="cdna3", compute_units=304, numa_node=0,
            cpu_affinity="0-47,96-143", memory_used_bytes=284 * MIB, links=[],
        ),
        2, {"driver.amdgpu_version": "6.10.5", "driver.rocm_version": "7.0.2", "tier": "rocm"},
        (MAPPED + "mi300x.json",), note=HAND_ALIGNED,
    ),
    Row(
        DETECTED + "mi308x.json", detector_amd,
        tuple(
            amd(
                at, "gfx942", 196592 * MIB, uuids=uuid, name="AMD Instinct MI308X OAM", generation="cdna3",
                compute_units=80, numa_node=node, cpu_affinity=cpus, render_node=f"/dev/dri/renderD{render}",
            )
            for at, uuid, render, node, cpus in (
                ("25", "GPU-c027d079faca2939", 128, 0, "0-95,192-287"),
                ("2a", "GPU-77a05eb626eac067", 136, 0, "0-95,192-287"),
                ("45", "GPU-0af93fcec721eead", 144, 0, "0-95,192-287"),
                ("4a", "GPU-da3e30f479717718", 152, 0, "0-95,192-287"),
                ("a5", "GPU-3ac217e897b247e2", 160, 1, "96-191,288-383"),
                ("a8", "GPU-634d73e36c0e7f31", 168, 1, "96-191,288-383"),
                ("c5", "GPU-959c09b244ce9bfe", 176, 1, "96-191,288-383"),
                ("c8", "GPU-4ae9dfbd3391096e", 184, 1, "96-191,288-383"),
            )
        ),
        8, {**xgmi(ALL8, p0_1=LINKED, p0_7=LINKED), "driver.amdgpu_version": "6.16.6", "driver.rocm_version": "7.1.1"},
        (MAPPED + "mi308x.json",), note=HAND_ALIGNED,
    ),
    Row(
        DETECTED + "rx7800xt.json", detector_amd,
        amd(
            "4 7", "gfx1101", 16368 * MIB, uuids="GPU-5c88007d760374f3 GPU-d99e7fe92c7bdf75",
            name="AMD Radeon RX 7800 XT", generation="rdna3", compute_units=60, integrated=False, numa_node=0,
            links=[],
        ),
        2, {"driver.amdgpu_version": "6.16.13", "driver.rocm_version": "7.2.0", "tier": "rocm"},
        (MAPPED + "rx7800xt.json",),
    ),
)
# fmt: on

ROWS = (*TREES, *TOPOLOGIES, *LINK_MAPS, *SMI, *ROCM_TEXTS, *DETECTIONS)
