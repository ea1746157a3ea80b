# SPDX-License-Identifier: Apache-2.0
"""NVIDIA: what each recorded machine shows.

The tables fill their lines (`fmt: off`): a recording is read at a glance.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .adapters import (
    detector_nvidia,
    gb10_root,
    hwloc,
    nvml_model,
    nvml_words,
    proc_information,
    smi_capture,
    smi_document,
    smi_table,
    sysfs_tree,
)
from .expected import MIB, Gpus, Has, OneOf, Row, Values, maybe, nvidia

HOST_MEMORY = 64 << 30
ZEROS = "00000000-0000-0000-0000-000000000000"
NO_FABRIC = OneOf((None, "not_supported"))


def driver(version: str | None, cuda: str | None) -> Values:
    """The driver's facts."""
    return {"driver.version": version, "driver.cuda_version": cuda}


def fabric(clique: int = 0, cluster: Any = None, healthy: bool | None = None) -> Values:
    """A GPU that is registered with its fabric; all-zero cluster UUIDs may be told as they are."""
    return {
        "fabric__state": "completed",
        "fabric__clique_id": clique,
        "fabric__cluster_uuid": maybe(ZEROS) if cluster is None else cluster,
        "fabric__healthy": healthy,
    }


def mig_instance(slot: int, group: int, mib: int, processors: int, *named: Any) -> Values:
    """One MIG instance whose memory is its own; `named` is its profile and its UUID."""
    profile, uuid = (*named, None)[:2]
    return {
        "index": slot,
        "uuid": uuid,
        "profile": profile,
        "gpu_instance_id": group,
        "compute_instance_id": 0,
        "memory_total_bytes": mib * MIB,
        "memory_shared": False,
        "multiprocessors": processors,
    }


def parent(*instances: Values) -> Values:
    """A GPU that is used through its MIG instances only."""
    found: Values = {"usable": False, "unusable_reason": Has("MIG"), "mig__mode": True, "mig__pending_mode": True}
    for position, instance in enumerate(instances):
        found.update({f"mig__instances__{position}__{key}": value for key, value in instance.items()})
    return found


UNIFIED: Values = {"unified_memory": True, "memory_bar_bytes": None, "pcie__generation_max": None}

# nvidia-smi prints the compute mode in every recording.
printed = partial(nvidia, compute_mode="default")

XML = "nvidia/smi-xml/"
# fmt: off
DOCUMENTS = (
    Row(
        XML + "k8sti-a100.xml", smi_document,
        printed(
            "6", "NVIDIA A100-SXM4-40GB", "8.0", "ampere", 40960, uuids="GPU-00000000", ids="10de:20b0 10de:134f",
            reserved=518, bar=65536, power=(400, 400, 100, 400), pcie=(4, 16, 16), ecc=True, ecc__uncorrected=0,
            ecc__remap_pending=False, ecc__remap_failure=False, virtualization="passthrough", persistence=True,
            mig=False, fabric__state=NO_FABRIC,
        ),
        1, driver("570.148.08", "12.8"),
    ),
    Row(
        XML + "k8sti-gb200.xml", smi_document,
        printed(
            "29 3f 9c b2", "NVIDIA GB200", "10.0", "blackwell", 189471,
            uuids="GPU-00000000 GPU-00000001 GPU-00000002 GPU-00000003", ids="10de:2941 10de:2046", reserved=742,
            bar=262144, power=(1200, 1200, 200, 1200), pcie=(5, 16, 16), ecc=True, virtualization="passthrough",
            persistence=True, mig=False, links=Has({"type": "c2c", "peer_bus_id": None}),
            **fabric(2, "00000001-0000-0000-0000-000000000001", healthy=True),
        ),
        4, driver("580.173.02", "13.0"), note="addressing mode ATS beside memory of its own: not unified",
    ),
    Row(
        XML + "k8sti-h100.xml", smi_document,
        printed(
            "53 64 75 86 97 a8 b9 ca", "NVIDIA H100 80GB HBM3", "9.0", "hopper", 81559,
            uuids=" ".join(f"GPU-{index:08x}" for index in range(8)), ids="10de:2330 10de:16c1", reserved=480,
            bar=131072, power=(700, 700, 200, 700), pcie=(5, 16, 16), ecc=True, virtualization="passthrough",
            persistence=True, mig=False, **fabric(),
        ),
        8, driver("580.105.08", "13.0"),
    ),
    Row(
        XML + "k8sti-l40s.xml", smi_document,
        printed(
            "30", "NVIDIA L40S", "8.9", "ada", 46068, ids="10de:26b9 10de:1851", reserved=609, bar=65536,
            power=(350, 350, 100, 350), pcie=(4, 16, 8), ecc=True, virtualization="passthrough", persistence=True,
        ),
        1, driver("595.91.07", "13.2"),
    ),
    Row(
        XML + "k8sti-t4.xml", smi_document,
        printed(
            "0:1e", "Tesla T4", "7.5", "turing", 15360, ids="10de:1eb8 10de:12a2", reserved=448, bar=256,
            power=(70, 70, 60, 70), pcie=(3, 16, 8), ecc=True, ecc__remap_pending=None,
            virtualization="passthrough", persistence=True,
        ),
        1, driver("595.91.07", "13.2"),
    ),
    Row(
        XML + "telegraf-3090-v13.xml", smi_document,
        printed(
            "9", "NVIDIA GeForce RTX 3090", "8.6", "ampere", 24576, ids="10de:2204 1043:87ad", reserved=450,
            bar=256, power=(350, 350, 100, 480), pcie=(4, 16, 16), virtualization="none", persistence=True,
        ),
        1, driver("590.44.01", "13.1"),
    ),
    Row(
        XML + "telegraf-a100-sxm4-v12.xml", smi_document,
        printed(
            "1", "NVIDIA A100-SXM4-80GB", "8.0", "ampere", 81920, uuids="GPU-513536b6", ids="10de:20b2 10de:147f",
            reserved=869, bar=131072, power=(500, 500, 100, 500), pcie=(4, 16, 16), ecc=True,
            virtualization="none", persistence=False,
            **parent(*(mig_instance(slot, slot + 3, 19968, 14, maybe("1g.20gb")) for slot in range(4))),
        ),
        4, driver("535.54.03", "12.2"),
        note="nvidia-smi counts four GPUs, the document holds one of them; it prints neither profiles nor MIG UUIDs",
    ),
    Row(
        XML + "telegraf-a10g.xml", smi_document,
        printed(
            "0:1e", "NVIDIA A10G", maybe("8.6"), "ampere", 23028, uuids="GPU-9a9a6c50", reserved=435, bar=32768,
            power=(300, 300, 100, 300), pcie=(4, 16, 8), ecc=True, virtualization="passthrough", persistence=False,
        ),
        1, driver("515.105.01", "11.7"), note="its device id is scrubbed to 0000",
    ),
    Row(
        XML + "telegraf-dual_2070-v13.xml", smi_document,
        printed(
            "1 2", "NVIDIA GeForce RTX 2070", "7.5", "turing", 8192,
            uuids="GPU-12345678-aaaa-bbbb-cccc-0123456789ab GPU-12345678-aaaa-bbbb-cccc-0123456789cd",
            ids="10de:1f02 19da:2516", reserved=406, bar=256, power=(175, 175, 125, 200), pcie=(3, 16, 8),
            virtualization="none", persistence=True,
        ),
        2, driver("590.44.01", "13.1"),
    ),
    Row(
        XML + "telegraf-dual_a5000-v13.xml", smi_document,
        printed(
            "81 c1", "NVIDIA RTX A5000", "8.6", "ampere", 24564,
            uuids="GPU-12345678-aaaa-bbbb-cccc-0123456789ab GPU-12345678-aaaa-bbbb-cccc-0123456789cd",
            ids="10de:2231 10de:147e", reserved=450, bar=256, power=(230, 230, 100, 230), pcie=(4, 16, 16),
            ecc=False, virtualization="none", persistence=True,
        ),
        2, driver("590.44.01", "13.1"), note="minor numbers run against the order of the bus",
    ),
    Row(
        XML + "telegraf-gt-1030.xml", smi_document,
        printed(
            "2d", "NVIDIA GeForce GT 1030", "6.1", "pascal", 1998, uuids="GPU-857c6374", ids="10de:1d01 1462:8c98",
            bar=256, power=(30, 30, 25.5, 30), pcie=(3, 4, 4), virtualization="none", persistence=False,
            memory_used_bytes=875 * MIB,
        ),
        1, driver("470.74", "11.4"),
    ),
    Row(
        XML + "telegraf-gtx-1070-ti.xml", smi_document,
        printed(
            "1", "GeForce GTX 1070 Ti", maybe("6.1"), maybe("pascal"), 4096, uuids="GPU-f9ba66fc",
            memory_used_bytes=42 * MIB, memory_bar_bytes=None, power__limit_watts=None, pcie__generation_max=None,
        ),
        1, driver(None, None), note="a part of a document: no driver version, no PCI ids",
    ),
    Row(
        XML + "telegraf-gtx-1660-ti.xml", smi_document,
        printed(
            "43", None, "7.5", "turing", 5912, uuids="GPU-304a277d", ids="10de:2184 1458:3fc8", bar=256,
            power=(130, 130, 70, 130), pcie=(3, 16, 16), virtualization="none", persistence=False,
        ),
        1, driver("418.43", "10.1"), note="the driver is older than the card and calls it Graphics Device",
    ),
    Row(
        XML + "telegraf-pro-6000-maxq-blackwell-v13.xml", smi_document,
        printed(
            "61", "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "12.0", "blackwell", 97887,
            ids="10de:2bb4 10de:204c", reserved=637, bar=131072, power=(300, 300, 250, 325), pcie=(4, 16, 16),
            ecc=False, virtualization="none", persistence=True, memory_used_bytes=65720 * MIB,
        ),
        1, driver("590.44.01", "13.1"),
    ),
    Row(
        XML + "telegraf-quadro-p2000-v12.xml", smi_document,
        printed(
            "17", "Quadro P2000", "6.1", "pascal", 5120, uuids="GPU-396caaed", ids="10de:1c30 1028:11b3",
            reserved=66, bar=256, power=(75, 75, 75, 75), pcie=(3, 16, 8), virtualization="none", persistence=True,
        ),
        1, driver("525.125.06", "12.0"),
    ),
    Row(
        XML + "telegraf-rtx-3080-v12.xml", smi_document,
        printed(
            "4", "NVIDIA GeForce RTX 3080", "8.6", "ampere", 10240, uuids="GPU-19d6d965",
            ids="10de:2216 19da:1612", reserved=173, bar=16384, power=(336, 320, 100, 336), pcie=(4, 16, 16),
            virtualization="passthrough",
        ),
        1, driver("536.40", "12.2"), note="Windows",
    ),
    Row(
        XML + "telegraf-rtx-3080-v13.xml", smi_document,
        printed(
            "c", "NVIDIA GeForce RTX 3080", "8.6", "ampere", 10240, uuids="GPU-19d6d965",
            ids="10de:2216 19da:1612", reserved=397, bar=16384, power=(320, 320, 100, 336), pcie=(4, 16, 16),
            virtualization="none", persistence=False,
        ),
        1, driver("595.58.03", "13.2"),
    ),
    Row(
        XML + "telegraf-rtx-3090-v12.xml", smi_document,
        printed(
            "0:10", "NVIDIA GeForce RTX 3090", maybe("8.6"), "ampere", 24576, reserved=316, bar=32768,
            power=(200, 350, 100, 375), pcie=(4, 16, 16), virtualization="passthrough", persistence=True,
        ),
        1, driver("525.147.05", "12.0"), note="its PCI ids are redacted",
    ),
    Row(
        XML + "telegraf-tesla-t4.xml", smi_document,
        printed(
            "0:1e", "Tesla T4", "7.5", "turing", 15360, uuids="GPU-d37e67a5", ids="10de:1eb8 10de:12a2",
            reserved=388, bar=256, power=(70, 70, 60, 70), pcie=(3, 16, 8), ecc=True, ecc__uncorrected=0,
            virtualization="passthrough", persistence=False, memory_used_bytes=1032 * MIB,
        ),
        1, driver("515.105.01", "11.7"),
    ),
)
# fmt: on


def mock_gb200(at: str, uuid: str, **more: Any) -> Gpus:
    """A GPU of the mock's GB200; its device id is no real one, its architecture is printed."""
    return printed(
        at,
        "NVIDIA GB200",
        maybe("10.0"),
        "blackwell",
        more.pop("mib", 196608),
        uuids=uuid,
        ids="10de:2341 10de:1817",
        bar=524288,
        power=(1000, 1000, 400, 1200),
        pcie=(6, 16, 16),
        ecc=True,
        virtualization=more.pop("virtualization", None),
        persistence=True,
        mig=False,
        **more,
    )


CLUSTER = "00000000-0000-0000-0000-000000000001"
FIRST, SECOND = f"GPU-b200b200-{ZEROS[9:]}", f"GPU-b200b200-{ZEROS[9:-1]}1"
MOCK = "nvidia/smi-xml-mock/"
# fmt: off
MOCKS = (
    Row(
        MOCK + "qx-a100-healthy.xml", smi_document,
        printed(
            "7 f", "NVIDIA A100-SXM4-40GB", "8.0", "ampere", 40960, ids="10de:20b0 10de:1347", reserved=583,
            bar=65536, power=(400, 400, 100, 400), pcie=(4, 16, 16), ecc=True, persistence=True, mig=False,
        ),
        2, driver("550.163.01", "12.4"),
    ),
    Row(
        MOCK + "qx-gb200-healthy.xml", smi_document,
        (mock_gb200("a", FIRST, **fabric(0, CLUSTER)), mock_gb200("b", SECOND, **fabric(0, CLUSTER))), 2,
        driver("580.65.06", "13.0"),
    ),
    Row(
        MOCK + "qx-gb200-fabric-degraded.xml", smi_document,
        (
            mock_gb200("a", FIRST, virtualization="none", **fabric(0, CLUSTER, healthy=True)),
            mock_gb200("b", SECOND, virtualization="none", **fabric(0, CLUSTER, healthy=False)),
        ),
        2, driver("580.65.06", "13.0"),
    ),
    Row(
        MOCK + "qx-gb200-lost.xml", smi_document,
        (
            mock_gb200("a", FIRST, ecc__uncorrected=5, ecc__remap_failure=True, **fabric(0, CLUSTER)),
            mock_gb200(
                "b", SECOND, mib=None, memory_used_bytes=None, memory_reserved_bytes=None, usable=False,
                unusable_reason=Has("lost"), health="lost",
            ),
        ),
        1, driver("580.65.06", "13.0"),
    ),
)
# fmt: on

TEXT = "nvidia/smi-text/"


def tool_texts(machine: str) -> tuple[str, str]:
    """The table of nvidia-smi and CUDA's deviceQuery on the same machine."""
    return (f"{TEXT}{machine}_smi.txt", f"{TEXT}{machine}_deviceQuery.txt")


# fmt: off
TEXTS = (
    Row(
        TEXT + "A100SXMx4_smi_-a.txt", smi_document,
        tuple(
            printed(
                at, "NVIDIA A100-SXM4-80GB", "8.0", "ampere", 81920, uuids=uuid, ids="10de:20b2 10de:147f",
                reserved=763, bar=131072, power=(500, 500, 100, 500), pcie=(4, 16, 16), ecc=True, ecc__uncorrected=0,
                ecc__remap_pending=pending, ecc__remap_failure=False, virtualization="none", persistence=True,
                mig=False, fabric__state=NO_FABRIC,
            )
            for at, uuid, pending in (
                ("68", "GPU-31515c3d", False), ("9e", "GPU-72d87681", True), ("c2", "GPU-62989189", False),
                ("d4", "GPU-011b2cfe", False),
            )
        ),
        4, driver("555.42.02", "12.5"), tool_texts("A100SXMx4"),
    ),
    Row(
        TEXT + "A40x10_smi_-a.txt", smi_document,
        printed(
            "4f 52 53 56 57 ce d1 d2 d5 d6", "NVIDIA A40", "8.6", "ampere", 46068,
            uuids="GPU-4e65de01 GPU-8c45994a GPU-0434566c GPU-b60642c3 GPU-2b37f9cd "
            "GPU-1003dfb9 GPU-f3b9d97b GPU-87b8a4d2 GPU-915ea693 GPU-c373ab5a", ids="10de:2235 10de:145a",
            reserved=665, bar=65536, power=(300, 300, 100, 300), pcie=(4, 16, 16), ecc=True, virtualization="none",
            persistence=True,
        ),
        10, driver("550.127.05", "12.4"), tool_texts("A40x10"),
    ),
    Row(
        TEXT + "H100NVLx2_smi_-a.txt", smi_document,
        printed(
            "ad ae", "NVIDIA H100 NVL", "9.0", "hopper", 95830, uuids="GPU-806f8ea2 GPU-db6d02a2",
            ids="10de:2321 10de:1839", reserved=594, bar=131072, power=(310, 310, 200, 400), pcie=(5, 16, 16),
            ecc=True, virtualization="none", persistence=True, mig=False,
        ),
        2, driver("550.54.14", "12.4"), tool_texts("H100NVLx2"),
    ),
    Row(
        TEXT + "H100SXMx8_smi_-a.txt", smi_document,
        printed(
            "18 2a 3a 5d 9a ab ba db", "NVIDIA H100 80GB HBM3", "9.0", "hopper", 81559,
            uuids="GPU-b42dd28e GPU-7c3cadbd GPU-2d50cdf6 GPU-d1838e76 "
            "GPU-72be6e5d GPU-52378fbc GPU-83a5aebb GPU-33135771", ids="10de:2330 10de:16c1", reserved=454,
            bar=131072, power=(700, 700, 200, 700), pcie=(5, 16, 16), ecc=True, virtualization="none",
            persistence=True, mig=False, **fabric(),
        ),
        8, driver("565.57.01", "12.7"), tool_texts("H100SXMx8"),
    ),
    Row(
        TEXT + "L40S_smi_-a.txt", smi_document,
        printed(
            "a1", "NVIDIA L40S", "8.9", "ada", 46068, uuids="GPU-1db6b1cf", ids="10de:26b9 10de:1851",
            reserved=479, bar=65536, power=(350, 350, 100, 350), pcie=(4, 16, 16), ecc=True, virtualization="none",
            persistence=True,
        ),
        1, driver("550.127.05", "12.4"), tool_texts("L40S"),
    ),
    Row(
        TEXT + "L4_smi_-a.txt", smi_document,
        printed(
            "1", "NVIDIA L4", "8.9", "ada", 23034, uuids="GPU-453f8851", ids="10de:27b8 10de:16ca", reserved=556,
            bar=32768, power=(72, 72, 40, 72), pcie=(4, 16, 8), ecc=True, virtualization="none", persistence=True,
        ),
        1, driver("550.90.07", "12.4"), tool_texts("L4"), note="minor number 8, index 0",
    ),
    Row(
        TEXT + "RTX2000Ada_smi_-a.txt", smi_document,
        printed(
            "2", "NVIDIA RTX 2000 Ada Generation", "8.9", "ada", 16380, uuids="GPU-c6b48bc3",
            ids="10de:28b0 10de:1870", reserved=304, bar=256, power=(70, 70, 30, 70), pcie=(4, 8, 8), ecc=False,
            virtualization="none", persistence=True,
        ),
        1, driver("550.54.15", "12.4"), tool_texts("RTX2000Ada"),
    ),
    Row(
        TEXT + "RTX3090_smi_-a.txt", smi_document,
        printed(
            "41 81", "NVIDIA GeForce RTX 3090", "8.6", "ampere", 24576, uuids="GPU-4aba3cfa GPU-74e6e433",
            ids="10de:2204 1458:403b", reserved=422, bar=256, power=(350, 350, 100, 350), pcie=(4, 16, 16),
            virtualization="none", persistence=True,
        ),
        2, driver("560.35.03", "12.6"), tool_texts("RTX3090"),
    ),
    Row(
        TEXT + "RTX4000Ada_smi_-a.txt", smi_document,
        printed(
            "81", "NVIDIA RTX 4000 Ada Generation", "8.9", "ada", 20475, uuids="GPU-4e0cc503",
            ids="10de:27b2 10de:181b", reserved=329, bar=256, power=(130, 130, 30, 130), pcie=(4, 16, 16),
            ecc=False, virtualization="none", persistence=True,
        ),
        1, driver("550.90.07", "12.4"), tool_texts("RTX4000Ada"),
    ),
    Row(
        TEXT + "RTX4060Ti_smi_-a.txt", smi_document,
        tuple(
            printed(
                at, "NVIDIA GeForce RTX 4060 Ti", "8.9", "ada", 16380, uuids=uuid, ids="10de:2803 1462:5174",
                reserved=303, bar=16384, power=(165, 165, 100, 165), pcie=(4, 8, lanes), virtualization="none",
                persistence=False,
            )
            for at, uuid, lanes in (("3", "GPU-5fd2f5bb", 4), ("9", "GPU-064b552e", 8))
        ),
        2, driver("550.54.14", "12.4"), tool_texts("RTX4060Ti"),
    ),
    Row(
        TEXT + "RTX4090_smi_-a.txt", smi_document,
        printed(
            "1 25 41 61 81 a1 c1 e1", "NVIDIA GeForce RTX 4090", "8.9", "ada", 24564,
            uuids="GPU-8ee5f1e0 GPU-a4ac0a07 GPU-6a54aeb0 GPU-28895719 "
            "GPU-74e37e99 GPU-0097a8d1 GPU-13f50fdd GPU-78ae265e", ids="10de:2684 10b0:f297", reserved=354,
            bar=256, power=(450, 450, 150, 450), pcie=(4, 16, 16), ecc=False, virtualization="none",
            persistence=True,
        ),
        8, driver("550.127.05", "12.4"), tool_texts("RTX4090"), note="index 0 has minor number 3",
    ),
    Row(
        TEXT + "RTX6000Ada_x8_smi_-a.txt", smi_document,
        printed(
            "1 25 41 61 81 a1 c1 e1", "NVIDIA RTX 6000 Ada Generation", "8.9", "ada", 49140,
            uuids="GPU-6130ccb8 GPU-0914e825 GPU-87528235 GPU-8f83d358 "
            "GPU-dac548a9 GPU-e5f9fdf4 GPU-18895fa1 GPU-16791b1a", ids="10de:26b1 10de:16a1", reserved=500,
            bar=256, power=(300, 300, 100, 300), pcie=(4, 16, 16), ecc=False, virtualization="none",
            persistence=True,
        ),
        8, driver("550.127.05", "12.4"), tool_texts("RTX6000Ada_x8"),
    ),
)
# fmt: on


def rtx_2080_super(reserved: int, persistence: bool | None) -> Gpus:
    """The GPU of four captures: two systems, two drivers each."""
    return printed(
        "c",
        "NVIDIA GeForce RTX 2080 SUPER",
        "7.5",
        "turing",
        8192,
        uuids="GPU-00000000",
        ids="10de:1e81 1458:4005",
        reserved=reserved,
        bar=256,
        power=(250, 250, 105, 350),
        pcie=(3, 16, 16),
        virtualization="none",
        persistence=persistence,
    )


def capture_h100(**more: Any) -> Gpus:
    """The GPU of two captures in a virtual machine, whole and divided."""
    return printed(
        "0:9",
        "NVIDIA H100 80GB HBM3",
        "9.0",
        "hopper",
        81559,
        uuids="GPU-00000000",
        ids="10de:2330 10de:16c1",
        reserved=479,
        bar=131072,
        power=(700, 700, 200, 700),
        pcie=(5, 16, 16),
        ecc=True,
        virtualization="passthrough",
        persistence=True,
        **fabric(),
        **more,
    )


CAPTURE = "nvidia/captures/"
# fmt: off
CAPTURES = (
    Row(
        CAPTURE + "linux-x86_64__nvidia-geforce-rtx-2080-super__595.71.05.txt", smi_capture,
        rtx_2080_super(408, False), 1, driver("595.71.05", "13.2"),
    ),
    Row(
        CAPTURE + "linux-x86_64__nvidia-geforce-rtx-2080-super__610.57.04.txt", smi_capture,
        rtx_2080_super(400, False), 1, driver("610.57.04", "13.3"),
        note="the versions' old lines end in a bracketed notice of deprecation",
    ),
    Row(
        CAPTURE + "windows-x86_64__nvidia-geforce-rtx-2080-super__591.86.txt", smi_capture,
        rtx_2080_super(205, None), 1, driver("591.86", "13.1"),
    ),
    Row(
        CAPTURE + "windows-x86_64__nvidia-geforce-rtx-2080-super__610.62.txt", smi_capture,
        rtx_2080_super(205, None), 1, driver("610.62", "13.3"),
    ),
    Row(
        CAPTURE + "linux-x86_64__nvidia-geforce-rtx-4080-super__595.71.05.txt", smi_capture,
        printed(
            "1", "NVIDIA GeForce RTX 4080 SUPER", "8.9", "ada", 16376, ids="10de:2702 1462:5110", reserved=434,
            bar=16384, power=(320, 320, 150, 400), pcie=(4, 16, 16), virtualization="none", persistence=False,
            memory_used_bytes=596 * MIB,
        ),
        1, driver("595.71.05", "13.2"),
    ),
    Row(
        CAPTURE + "linux-x86_64__nvidia-h100-80gb-hbm3__590.48.01.txt", smi_capture, (capture_h100(mig=False),), 1,
        driver("590.48.01", "13.1"),
    ),
    Row(
        CAPTURE + "linux-x86_64__nvidia-h100-mig__590.48.01.txt", smi_capture,
        (
            capture_h100(
                **parent(
                    mig_instance(0, 2, 40448, 60, maybe("3g.40gb")), mig_instance(1, 3, 20096, 32, maybe("2g.20gb")),
                    mig_instance(2, 9, 9984, 16, maybe("1g.10gb")), mig_instance(3, 10, 9984, 16, maybe("1g.10gb")),
                )
            ),
        ),
        4, driver("590.48.01", "13.1"), note="-q prints neither profiles nor MIG UUIDs, -L does",
    ),
    Row(
        CAPTURE + "linux-x86_64__nvidia-l40s__595.80.txt", smi_capture,
        printed(
            "1", "NVIDIA L40S", "8.9", "ada", 46068, ids="10de:26b9 10de:1851", reserved=609, bar=65536,
            power=(350, 350, 100, 350), pcie=(4, 16, 16), ecc=True, virtualization="passthrough",
            persistence=False,
        ),
        1, driver("595.80", "13.2"),
    ),
)
# fmt: on

MODEL = "nvidia/nvml-profiles/"
# Eight GPUs that reach each other through NVSwitches.
SWITCHED: Values = {
    "link_groups": {"nvlink": [[0, 1, 2, 3, 4, 5, 6, 7]]},
    "matrix": {(0, 1): ("NVLINK",), (0, 7): ("NVLINK",)},
}


def model(at: str, name: str, chip: tuple[str, str], gib: int, watts: tuple[int, ...], **more: Any) -> Gpus:
    """The GPUs of a machine model: `chip` is architecture and generation; memory in whole GiB."""
    limit, least, most = watts
    capability, generation = chip
    return nvidia(
        at,
        name,
        capability,
        generation,
        gib << 10,
        ecc=True,
        virtualization="none",
        persistence=True,
        mig=False,
        power=(limit, limit, least, most),
        **more,
    )


# fmt: off
MODELS = (
    Row(
        MODEL + "a100.yaml", nvml_model,
        model(
            "7 f 47 4e 87 90 b7 bd", "NVIDIA A100-SXM4-40GB", ("8.0", "ampere"), 40, (400, 100, 400),
            uuids=" ".join(f"GPU-12345678-1234-1234-1234-12345678000{index}" for index in range(8)),
            ids="10de:20b0 10de:1347", bar=65536, pcie=(4, 16, 16), memory_reserved_bytes=611319808,
            fabric__state=NO_FABRIC, link_count=("nvlink", "switch", 12),
        ),
        8, {**driver("550.163.01", "12.4"), **SWITCHED, "numa_of": "00001111", "nvswitch_count": 6},
    ),
    Row(
        MODEL + "b200.yaml", nvml_model,
        model(
            "1a 1b 4a 4b 8a 8b ca cb", "NVIDIA B200", ("10.0", "blackwell"), 192, (1000, 400, 1200),
            ids="10de:2340 10de:1818", bar=262144, pcie=(6, 16, 16), reserved=1024,
        ),
        8, {**driver("560.35.03", "12.6"), "numa_of": "00001111", "nvswitch_count": 0},
        note="its links lead nowhere: it has no NVSwitch; so the stand-in has none of them",
    ),
    Row(
        MODEL + "gb200.yaml", nvml_model,
        model(
            "a b 4a 4b 8a 8b ca cb", "NVIDIA GB200", ("10.0", "blackwell"), 192, (1000, 400, 1200),
            ids="10de:2341 10de:1817", bar=524288, pcie=(6, 16, 16), reserved=1024,
            link_count=("nvlink", "switch", 18),
            links=Has({"type": "c2c", "peer_bus_id": None, "peer_type": "cpu"}),
            **fabric(0, CLUSTER, healthy=True),
        ),
        8, {**driver("580.65.06", "13.0"), **SWITCHED, "numa_of": "00112233", "nvswitch_count": 4},
    ),
    Row(
        MODEL + "h100.yaml", nvml_model,
        model(
            "1a 1b 4a 4b 8a 8b ca cb", "NVIDIA H100 80GB HBM3", ("9.0", "hopper"), 80, (700, 200, 700),
            ids="10de:2330 10de:1658", bar=262144, pcie=(5, 16, 16), reserved=1024,
            link_count=("nvlink", "switch", 18), compute_units=132, **fabric(0, CLUSTER, healthy=True),
        ),
        8, {**driver("550.163.01", "12.4"), **SWITCHED, "numa_of": "00001111", "nvswitch_count": 4},
    ),
    Row(
        MODEL + "t4.yaml", nvml_model,
        model(
            "3b 86 af d8", "NVIDIA T4", ("7.5", "turing"), 16, (70, 60, 70), ids="10de:1eb8 10de:12a2", bar=262144,
            pcie=(3, 16, 16), reserved=300, links=[],
        ),
        4, {**driver("550.163.01", "12.4"), "numa_of": "0000", "nvswitch_count": 0},
    ),
)
# fmt: on

DETECTED = "nvidia/gpustack-detect/detect_output_nvidia_"
TOPOLOGY = "nvidia/gpustack-detect/topology_output_nvidia_"
HAND_ALIGNED = "hand-aligned by its authors, not measured"


def shared(slot: int, compute: int, processors: int, uuid: str) -> Values:
    """A compute instance beside another one in the GPU instance 2, whose memory both of them print."""
    instance = mig_instance(slot, 2, 40448, processors, "1c.3g.40gb", uuid)
    return {**instance, "compute_instance_id": compute, "memory_shared": True}


def detected_h100(at: str, uuids: str, **more: Any) -> Gpus:
    """A whole H100 of the divided machine."""
    return nvidia(at, "NVIDIA H100 80GB HBM3", "9.0", "hopper", 81559, uuids=uuids, power__limit_watts=700, **more)


# fmt: off
DETECTIONS = (
    Row(
        DETECTED + "gb10.json", detector_nvidia,
        nvidia(
            "ca", "NVIDIA GB10", "12.1", "blackwell", HOST_MEMORY // MIB, uuids="GPU-35fa9bdb", numa_node=0,
            compute_units=48, **UNIFIED,
        ),
        1, driver("580.95.05", "13.0"),
        note=HAND_ALIGNED + "; its 138932 MiB are no GB10's, whose memory is the host's",
    ),
    Row(
        DETECTED + "h100.json", detector_nvidia,
        tuple(
            detected_h100(at, uuids, numa_node=node, cpu_affinity=cpus, mig=False, compute_units=132, **fabric())
            for at, uuids, node, cpus in (
                ("e 15 1b 67", "GPU-78073210 GPU-7e1bf4b9 GPU-1a70343b GPU-27a0c272", 0, "0-51,104-155"),
                ("9a ab ba db", "GPU-e2c5cc46 GPU-f21a2cc2 GPU-b73b7579 GPU-55e40ce4", 1, "52-103,156-207"),
            )
        ),
        8, {**driver("570.195.03", "12.8"), **SWITCHED}, (TOPOLOGY + "h100.json",), note=HAND_ALIGNED,
    ),
    Row(
        DETECTED + "h100_mig.json", detector_nvidia,
        (
            detected_h100(
                "0:a", "",
                **parent(
                    mig_instance(0, 6, 20096, 26, "1g.20gb", "MIG-667481b3-d832-5bc3-81ee-2f27a4f6cdf2"),
                    mig_instance(1, 11, 9984, 16, "1g.10gb", "MIG-30be8fbd-3a0a-59e7-ab47-88215d1c7022"),
                    mig_instance(2, 12, 9984, 16, "1g.10gb", "MIG-2808b45e-8825-5a89-8210-4f096cb502fe"),
                ),
            ),
            detected_h100("0:b 0:c", "GPU-912151ec GPU-3f3f8e12", mig=False),
            detected_h100(
                "0:d", "",
                **parent(
                    shared(0, 0, 16, "MIG-a72639ea-72c4-5068-adaa-30ed6ec08a86"),
                    shared(1, 1, 26, "MIG-cc07225c-ed33-5047-aff0-83a245a0c73a"),
                ),
            ),
            detected_h100(
                "0:e 0:f 0:10 0:11", "GPU-12326cd1 GPU-1e292743 GPU-d0bf4dff GPU-738a4f51", mig=False, **fabric()
            ),
        ),
        11, {**driver("575.57.08", "12.9"), "matrix": {(1, 2): ("NVLINK",), (4, 7): ("NVLINK",)}},
        (TOPOLOGY + "h100_mig.json",),
        note=HAND_ALIGNED + "; six whole GPUs and five instances, two of which share one memory",
    ),
    Row(
        DETECTED + "h200.json", detector_nvidia,
        tuple(
            nvidia(
                at, "NVIDIA H200", "9.0", "hopper", 143771, uuids=uuids, numa_node=node, cpu_affinity=cpus, mig=False,
                memory_used_bytes=140165 * MIB, compute_units=132, power__limit_watts=700, **fabric(),
            )
            for at, uuids, node, cpus in (
                ("18 29 3a 4b", "GPU-d0b737ba GPU-dd618a30 GPU-27160e5c GPU-a9e99f6f", 0, "0-47,96-143"),
                ("9a aa ba ca", "GPU-1a8a68a7 GPU-8492f058 GPU-b3b1c2df GPU-07eaf04c", 1, "48-95,144-191"),
            )
        ),
        8, {**driver("570.124.06", "12.8"), **SWITCHED}, (TOPOLOGY + "h200.json",), note=HAND_ALIGNED,
    ),
    Row(
        DETECTED + "rtx4080super.json", detector_nvidia,
        nvidia(
            "1 72", "NVIDIA GeForce RTX 4080 SUPER", "8.9", "ada", 16376, uuids="GPU-e41f9601 GPU-a8b7ce35",
            power__limit_watts=320, compute_units=80, numa_node=0, cpu_affinity="0-19",
        ),
        2, {**driver("570.195.03", "12.8"), "matrix": {(0, 1): ("PHB",)}}, (TOPOLOGY + "rtx4080super.json",),
        note=HAND_ALIGNED,
    ),
    Row(
        DETECTED + "rtx4090_48g.json", detector_nvidia,
        nvidia(
            "2 3", "NVIDIA GeForce RTX 4090", "8.9", "ada", 49140, uuids="GPU-bbc521eb GPU-1068d7f6",
            power__limit_watts=450, compute_units=128, numa_node=0, cpu_affinity="0-13",
        ),
        2, {**driver("610.43.02", "13.3"), "matrix": {(0, 1): ("PHB",)}}, (TOPOLOGY + "rtx4090_48g.json",),
        note="a 4090 with twice the memory of the product: the name says nothing of the size",
    ),
    Row(
        DETECTED + "rtx4090d.json", detector_nvidia,
        nvidia(
            "4", "NVIDIA GeForce RTX 4090 D", "8.9", "ada", 24564, uuids="GPU-a88a65e8", power__limit_watts=425,
            compute_units=114, numa_node=0, cpu_affinity="0-19",
        ),
        1, driver("575.57.08", "12.9"), (TOPOLOGY + "rtx4090d.json",), note=HAND_ALIGNED,
    ),
    Row(
        DETECTED + "rtx5090d.json", detector_nvidia,
        nvidia(
            "1", "NVIDIA GeForce RTX 5090 D", "12.0", "blackwell", 32607, uuids="GPU-31b58f27",
            power__limit_watts=575, compute_units=170, numa_node=0, cpu_affinity="0-19",
        ),
        1, driver("595.84", "13.2"), (TOPOLOGY + "rtx5090d.json",),
    ),
)
# fmt: on

GB10_MEMORY = 125508468 << 10
# fmt: off
OTHERS = (
    Row(
        "nvidia/unified/gb10-nvidia-smi.txt", smi_table,
        nvidia(
            "000f:01:0", "NVIDIA GB10", maybe("12.1"), maybe("blackwell"), HOST_MEMORY // MIB, persistence=True,
            power__limit_watts=None, **UNIFIED,
        ),
        1, driver("580.126.09", "13.0"),
    ),
    Row(
        "nvidia/unified/gb10-raw-nvml.txt", nvml_words,
        nvidia(
            1, "NVIDIA GB10", maybe("12.1"), maybe("blackwell"), None,
            **{**UNIFIED, "memory_total_bytes": 127600748 << 10},
        ),
        1, {"driver.version": "580.173.02", "memory_total_bytes": 127600748 << 10},
        note="NVML calls the size not supported; the memory is the host's",
    ),
    Row(
        "nvidia/unified/gb10-query-gpu.csv", smi_table,
        nvidia(1, "NVIDIA GB10", maybe("12.1"), maybe("blackwell"), HOST_MEMORY // MIB, **UNIFIED), 1,
        note="the sizes are [N/A]; the name is from the recording's title",
    ),
    Row(
        "nvidia/unified/jetson-orin-agx-540.4.0.txt", smi_table,
        nvidia(1, "Orin (nvgpu)", maybe("8.7"), maybe("ampere"), HOST_MEMORY // MIB, **UNIFIED), 1,
        driver("540.4.0", None),
    ),
    Row(
        "nvidia/unified/jetson-orin-jp6-540.3.0.txt", smi_table,
        nvidia(1, "Orin (nvgpu)", maybe("8.7"), maybe("ampere"), HOST_MEMORY // MIB, **UNIFIED), 1,
        driver(None, "12.2"),
    ),
    Row(
        "nvidia/hwloc/nvidia-dgx-gb10.tar.bz2", gb10_root,
        nvidia(
            "000f:01:0", "NVIDIA GB10", maybe("12.1"), maybe("blackwell"), None, persistence=True,
            **{**UNIFIED, "memory_total_bytes": GB10_MEMORY},
        ),
        1,
        {
            "memory_total_bytes": GB10_MEMORY, "memory_available_bytes": 121737812 << 10,
            "cpu.cores": 20, "cpu.threads": 20,
            "numa.0.node": 0, "numa.0.cpus": "0-19", "numa.0.memory_total_bytes": GB10_MEMORY,
            "numa.0.distances": [10],
        },
        note="the root has no PCI tree; with the document that the GB10's nvidia-smi table says",
    ),
    Row(
        "nvidia/hwloc/power8gpudistances.xml", hwloc,
        tuple(
            Gpus(
                at,
                {
                    "name": "Tesla P100-SXM2-16GB", "architecture": "6.0", "generation": "pascal",
                    "memory_total_bytes": 16671616 << 10, "compute_units": 56, "numa_node": node, "cpu_affinity": cpus,
                    "pci.vendor_id": "10de", "pci.device_id": "15f9", "pci.subsystem_vendor_id": "10de",
                    "pci.subsystem_device_id": "116b", "pci.class": "030200", "pci.revision": "a1", "usable": True,
                    "links": Has({"type": "nvlink", "peer_type": "gpu", "count": 2}),
                },
                uuids,
            )
            for at, uuids, node, cpus in (
                ("0002:01:0 0003:01:0", "GPU-77bf6b9a GPU-00fc8f7f", 0, "0-1,8-9,16-17,24-25"),
                ("000a:01:0 000b:01:0", "GPU-ea919830 GPU-93f5db36", 1, "80-81,88-89,96-97,104-105"),
            )
        ),
        4,
        {
            "numa.0.memory_total_bytes": 68556816384, "numa.1.memory_total_bytes": 68450713600,
            "numa.0.distances": [10, 40], "memory_total_bytes": OneOf((68556816384 + 68450713600, HOST_MEMORY)),
            "link_groups": {"nvlink": [[0, 1], [2, 3]]},
            "matrix": {(0, 1): ("NVLINK",), (0, 2): ("SYS",), (2, 3): ("NVLINK",)},
        },
        note="two links of 20 GB/s each to the neighbour, two to the CPU",
    ),
    Row(
        "nvidia/hwloc/32em64t-2n8c2t-pci-normalio.xml", hwloc,
        (
            *(
                Gpus(
                    at,
                    {
                        "architecture": maybe("2.0"), "memory_total_bytes": None, "numa_node": node,
                        "pci.vendor_id": "10de", "pci.device_id": "1094", "pci.subsystem_vendor_id": "00de",
                        "pci.subsystem_device_id": "0088", "pci.class": "030200", "pci.revision": "a1",
                        "usable": False, "unusable_reason": Has("no driver"),
                    },
                )
                for at, node in (("3", 0), ("83 84", 1))
            ),
            Gpus(
                "84:0.1",
                {
                    "architecture": maybe("gfx600"), "numa_node": 1, "pci.device_id": "6798", "pci.class": "030000",
                    "integrated": False, "usable": False, "unusable_reason": Has("no driver"),
                },
                vendor="amd",
            ),
        ),
        0, {"numa.0.memory_total_bytes": 34330173440, "numa.1.memory_total_bytes": 34359738368, "tier": "cpu"},
        note="a node of two vendors beside a Matrox BMC; the title's K40m is a CUDA name on an M2075's address",
    ),
    Row(
        "nvidia/proc/l4-information.txt", proc_information,
        (
            Gpus(
                "70", {"name": "NVIDIA L4", "architecture": maybe("8.9"), "memory_total_bytes": None, "usable": False},
                "GPU-3291dfa4",
            ),
        ),
        0, note="the kernel module's own list, in a root without a PCI tree and without NVML",
    ),
    Row(
        "nvidia/sysfs-lact/rtx4080/", sysfs_tree,
        (
            Gpus(
                "9",
                {
                    "architecture": "8.9", "generation": "ada", "memory_total_bytes": None, "driver_bound": "nvidia",
                    "pci.vendor_id": "10de", "pci.device_id": "2704", "usable": False,
                },
            ),
        ),
        0, note="a recorded tree has no NVML: what the GPU is good for stays open",
    ),
)
# fmt: on

ROWS = (*DOCUMENTS, *MOCKS, *TEXTS, *CAPTURES, *MODELS, *DETECTIONS, *OTHERS)
