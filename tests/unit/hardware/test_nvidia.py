# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import nvidia
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 1 << 20
NVIDIA = 0x10DE

DOCUMENT = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>570.124.06</driver_version>
  <cuda_version>12.8</cuda_version>
  <attached_gpus>2</attached_gpus>
  {gpus}
</nvidia_smi_log>
"""


def gpu(address: str = "00000000:01:00.0", total: str = "40960 MiB", used: str = "512 MiB", **extra: str) -> str:
    """One GPU's element; `extra` are further children."""
    children = {"product_name": "NVIDIA A100-SXM4-40GB", "uuid": f"GPU-{address}", **extra}
    body = "".join(f"<{tag}>{text}</{tag}>" for tag, text in children.items())
    memory = f"<fb_memory_usage><total>{total}</total><used>{used}</used></fb_memory_usage>"
    return f'<gpu id="{address}">{body}{memory}<pci><pci_bus_id>{address}</pci_bus_id></pci></gpu>'


def document(*gpus: str) -> str:
    """A whole document."""
    return DOCUMENT.format(gpus="\n".join(gpus))


def mig(instance: int, compute: int, total: str) -> str:
    """One MIG device's element."""
    return (
        f"<mig_device><index>{compute}</index><gpu_instance_id>{instance}</gpu_instance_id>"
        f"<compute_instance_id>{compute}</compute_instance_id>"
        f"<fb_memory_usage><total>{total}</total></fb_memory_usage></mig_device>"
    )


def read(machine: Any, text: str) -> dict[str, Any]:
    """The facts of a machine whose nvidia-smi printed `text`."""
    return machine.facts(nvidia_smi_xml=str(machine.write("smi.xml", text)))


def stand_in(folder: Path, script: str) -> None:
    """Put an `nvidia-smi` of our own into `folder`."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def without_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.importlib.util, "find_spec", lambda name: None)


def test_pci_and_nvidia_smi_are_one_device(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia", numa=1, render=128)
    machine.nvidia_driver()
    facts = read(machine, document(gpu()))
    (device,) = facts["devices"]
    assert device["pci_bus_id"] == "0000:01:00.0"
    assert (device["numa_node"], device["render_node"], device["driver_bound"]) == (1, "/dev/dri/renderD128", "nvidia")
    assert (device["memory_total_bytes"], device["memory_used_bytes"]) == (40960 * MIB, 512 * MIB)
    assert device["usable"] and device["unusable_reason"] is None
    assert (facts["tier"], facts["vendor"], facts["physical_count"], facts["usable_count"]) == ("cuda", "nvidia", 1, 1)
    assert facts["driver"] == {
        "version": "570.124.06",
        "library_version": "570.124.06",
        "kernel_module_version": "570.124.06",
        "module_flavour": "open",
        "cuda_version": "12.8",
        "rocm_version": None,
        "reboot_required": False,
    }
    assert facts["errors"] == []


@pytest.mark.parametrize(
    ("driver", "reason"),
    [(None, "no driver is bound"), ("nouveau", "bound to nouveau"), ("vfio-pci", "bound to vfio-pci")],
)
def test_device_without_nvidia_driver(machine: Any, driver: str | None, reason: str) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver=driver)
    facts = machine.facts()
    assert facts["devices"][0]["unusable_reason"] == reason
    assert facts["devices"][0]["name"] == "nvidia 10de:2204"
    assert (facts["tier"], facts["vendor"], facts["usable_count"]) == ("cpu", "nvidia", 0)


def test_name_from_pci_ids(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, 0x2204)
    ids = "1002  AMD\n\t2204  wrong\n10de  NVIDIA\n\t2203  other\n\t\t10de 1  sub\n\t2204  GA102 [3090]\n"
    machine.write("usr/share/misc/pci.ids", "# comment\n" + ids)
    assert machine.facts()["devices"][0]["name"] == "GA102 [3090]"


def test_mig_parent_gives_way_to_its_instances(machine: Any) -> None:
    instances = mig(1, 0, "19968 MiB") + mig(1, 1, "19968 MiB")
    facts = read(machine, document(gpu(mig_mode="<current_mig>Enabled</current_mig>", mig_devices=instances)))
    (device,) = facts["devices"]
    assert not device["usable"] and "MIG is enabled" in device["unusable_reason"]
    assert [row["memory_total_bytes"] for row in device["mig"]["instances"]] == [19968 * MIB] * 2
    assert {row["gpu_instance_id"] for row in device["mig"]["instances"]} == {1}
    assert (facts["tier"], facts["usable_count"], facts["physical_count"]) == ("cuda", 2, 1)


def test_mig_parent_without_instances_stays(machine: Any) -> None:
    facts = read(machine, document(gpu(mig_mode="<current_mig>Enabled</current_mig>", mig_devices="None")))
    assert facts["devices"][0]["unusable_reason"] == "MIG is enabled and has no instances"
    assert facts["tier"] == "cpu"


def test_lost_gpu_spares_the_others(machine: Any) -> None:
    facts = read(machine, document(gpu(), gpu("00000000:02:00.0", "GPU is lost", "GPU is lost")))
    assert [device["usable"] for device in facts["devices"]] == [True, False]
    assert "lost" in facts["devices"][1]["unusable_reason"]
    assert facts["devices"][1]["memory_total_bytes"] is None


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "N/A",
        "[N/A]",
        "None",
        "ERR!",
        "[Not Supported]",
        "[Unknown Error]",
        "[GPU is lost]",
        "[GPU requires reset]",
        "Requested functionality has been deprecated",
        "[Requested functionality has been deprecated]",
    ],
)
def test_null_spellings(spelling: str) -> None:
    assert nvidia.value_of(spelling) is None
    assert nvidia.size_of(spelling) is None


@pytest.mark.parametrize(
    ("name", "addressing", "total", "unified"),
    [
        ("NVIDIA GB10", "ATS", "Not Supported", True),
        ("NVIDIA GB10", "", "N/A", True),
        ("Orin (nvgpu)", "", "[N/A]", True),
        ("NVIDIA Something", "ATS", "N/A", True),
        ("NVIDIA GB200", "ATS", "189471 MiB", False),
        ("NVIDIA A100", "None", "N/A", False),
        ("NVIDIA GB10", "ATS", "Unknown Error", False),
        ("NVIDIA GB10", "ATS", "GPU is lost", False),
    ],
)
def test_unified_memory(machine: Any, name: str, addressing: str, total: str, unified: bool) -> None:
    processes = "<process_info><used_memory>100 MiB</used_memory></process_info>" * 2
    text = document(gpu(total=total, used="N/A", product_name=name, addressing_mode=addressing, processes=processes))
    (device,) = read(machine, text)["devices"]
    assert device["unified_memory"] is unified
    if unified:
        assert (device["memory_total_bytes"], device["memory_used_bytes"]) == (64 << 30, 200 * MIB)
    else:
        assert device["memory_total_bytes"] in (None, 189471 * MIB)


def test_module_and_library_differ(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.nvidia_driver("570.124.06", library="570.133.20", flavour="proprietary")
    driver = machine.facts()["driver"]
    assert driver["reboot_required"] is True
    assert (driver["module_flavour"], driver["library_version"]) == ("proprietary", "570.133.20")


def test_nouveau_with_installed_driver_wants_a_reboot(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nouveau")
    machine.nvidia_driver()
    (machine.root / "proc/driver/nvidia/version").unlink()
    driver = machine.facts()["driver"]
    assert driver["reboot_required"] is True
    assert driver["version"] is None


def test_text_in_the_place_of_a_document(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    text = "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the system\n"
    facts = read(machine, text)
    assert facts["errors"][0]["source"] == "nvidia_smi"
    assert "GPU is lost" in facts["devices"][0]["unusable_reason"]


def test_document_that_ends_early_keeps_the_complete_gpus() -> None:
    text = document(gpu(), gpu("00000000:02:00.0"))
    answer = nvidia.parse_document(text[: text.rindex("<fb_memory_usage>")])
    assert [record["pci_bus_id"] for record in answer.records] == ["0000:01:00.0"]
    assert answer.problem is not None and answer.driver_version == "570.124.06"


WHOLE = document(
    gpu(), gpu("00000000:02:00.0", mig_mode="<current_mig>Enabled</current_mig>", mig_devices=mig(1, 0, "9 MiB"))
)


@given(st.integers(0, len(WHOLE)))
def test_truncation_never_raises(length: int) -> None:
    answer = nvidia.parse_document(WHOLE[:length])
    assert len(answer.records) == 2 or answer.problem is not None


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.characters()), min_size=1, max_size=20))
def test_corruption_never_raises(changes: list[tuple[int, str]]) -> None:
    text = list(WHOLE)
    for position, character in changes:
        text[position] = character
    for raw in nvidia.parse_document("".join(text)).records:
        nvidia._device(raw, 1 << 30)


@given(st.text())
def test_any_text_never_raises(text: str) -> None:
    nvidia.parse_document(text)
    nvidia.parse_document("<nvidia_smi_log>" + text)
    nvidia.value_of(text)
    nvidia.size_of(text)


@pytest.mark.usefixtures("without_pynvml")
def test_hanging_nvidia_smi_costs_its_deadline_only(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.nvidia_driver()
    stand_in(tmp_path / "bin", "sleep 60 & sleep 60\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    started = time.monotonic()
    facts = machine.facts(live=True, timeout=1)
    assert time.monotonic() - started < 4
    assert facts["probes"]["nvidia_smi"]["status"] == "timeout"
    assert facts["errors"] == [{"source": "nvidia_smi", "message": "nvidia-smi -q -x did not end within 1 s"}]
    assert facts["devices"][0]["pci_bus_id"] == "0000:01:00.0"
    assert "did not end within 1 s" in facts["devices"][0]["unusable_reason"]


@pytest.mark.usefixtures("without_pynvml")
def test_nvidia_smi_is_asked_without_nvml(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    xml = machine.write("smi.xml", document(gpu()))
    stand_in(tmp_path / "bin", f'case "$1" in -q) cat {xml} ;; *) echo "00000000:01:00.0, 8.0" ;; esac\n')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    facts = machine.facts(live=True)
    assert facts["tier"] == "cuda"
    assert facts["devices"][0]["architecture"] == "8.0"
    assert facts["probes"]["nvml"]["status"] == "absent"


@pytest.mark.usefixtures("without_pynvml")
def test_mismatch_text(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu\n")
    text = "Failed to initialize NVML: Driver/library version mismatch\\nNVML library version: 535.161\\n"
    stand_in(tmp_path / "bin", f"printf '{text}'; exit 18\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    facts = machine.facts(live=True)
    assert facts["driver"]["library_version"] == "535.161"
    assert facts["driver"]["reboot_required"] is True
    assert "mismatch" in facts["devices"][0]["unusable_reason"]


FAKE_NVML = """
class NVMLError(Exception):
    def __init__(self, value, text):
        self.value, self.text = value, text
    def __str__(self):
        return self.text
NVML_ERROR_NOT_SUPPORTED = 3
nvmlMemory_v2 = 2
class Object:
    def __init__(self, **values):
        self.__dict__.update(values)
def nvmlInit(): {init}
def nvmlSystemGetDriverVersion(): return b"570.124.06"
def nvmlSystemGetNVMLVersion(): return "12.570.124.06"
def nvmlSystemGetCudaDriverVersion_v2(): return 12080
def nvmlDeviceGetCount(): return 3
def nvmlDeviceGetHandleByIndex(index):
    if index == 1:
        raise NVMLError(15, "GPU is lost")
    return index
def nvmlDeviceGetPciInfo(handle): return Object(busId=b"00000000:0%d:00.0" % (handle + 1))
def nvmlDeviceGetUUID(handle): return "GPU-%s" % handle
def nvmlDeviceGetName(handle): return "NVIDIA H100 80GB HBM3" if handle == 0 else "NVIDIA GB10"
def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)
def nvmlDeviceGetMemoryInfo(handle, version=None):
    if handle == 2:
        raise NVMLError(3, "Not Supported")
    return Object(total=81559 << 20, used=1 << 20)
def nvmlDeviceGetNvLinkState(handle, link):
    if link > 3:
        raise NVMLError(2, "Invalid Argument")
    return 1
def nvmlDeviceGetNvLinkRemotePciInfo(handle, link): return Object(busId="00000000:C%d:00.0" % (link // 2))
"""


def test_nvml(machine: Any) -> None:
    for number in (1, 2, 3):
        machine.gpu(f"0000:0{number}:00.0", NVIDIA, driver="nvidia")
    carried = machine.write("pynvml.py", FAKE_NVML.format(init="pass"))
    facts = machine.facts(live=True, pynvml=str(carried))
    first, second, third = facts["devices"]
    assert (first["architecture"], first["memory_total_bytes"], first["usable"]) == ("9.0", 81559 * MIB, True)
    assert first["links"] == [
        {"type": "nvlink", "peer_bus_id": "0000:c0:00.0", "count": 2},
        {"type": "nvlink", "peer_bus_id": "0000:c1:00.0", "count": 2},
    ]
    assert not second["usable"] and "GPU is lost" in second["unusable_reason"]
    assert third["unified_memory"] and third["memory_total_bytes"] == 64 << 30
    assert [device["index"] for device in facts["devices"]] == [0, 1, 2]
    assert (facts["driver"]["library_version"], facts["driver"]["cuda_version"]) == ("570.124.06", "12.8")
    assert facts["errors"] == [{"source": "nvml", "message": "GPU 1: GPU is lost"}]


def test_real_nvidia_ml_py_without_the_library(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    spec = importlib.util.find_spec("pynvml")
    assert spec is not None and spec.origin is not None
    probe = machine.facts(live=True, pynvml=spec.origin)["probes"]["nvml"]
    if probe["status"] == "ok":
        pytest.skip("this machine has NVML")
    assert probe["status"] == "absent"
    assert probe["message"] == "NVMLError_LibraryNotFound: NVML Shared Library Not Found"


@pytest.mark.parametrize(
    ("init", "status"),
    [("__import__('time').sleep(60)", "timeout"), ("__import__('os').kill(__import__('os').getpid(), 11)", "error")],
)
def test_nvml_that_hangs_or_crashes(machine: Any, init: str, status: str) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    carried = machine.write("pynvml.py", FAKE_NVML.format(init=init))
    facts = machine.facts(live=True, timeout=1, pynvml=str(carried))
    assert facts["probes"]["nvml"]["status"] == status
    assert any(error["source"] == "nvml" for error in facts["errors"])
    assert facts["devices"][0]["usable"] is False


# file, GPUs, usable, name and MiB of the first one
RECORDED = [
    ("smi-xml/k8sti-a100.xml", 1, 1, "NVIDIA A100-SXM4-40GB", 40960),
    ("smi-xml/k8sti-gb200.xml", 4, 4, "NVIDIA GB200", 189471),
    ("smi-xml/k8sti-h100.xml", 8, 8, "NVIDIA H100 80GB HBM3", 81559),
    ("smi-xml/k8sti-l40s.xml", 1, 1, "NVIDIA L40S", 46068),
    ("smi-xml/telegraf-3090-v13.xml", 1, 1, "NVIDIA GeForce RTX 3090", 24576),
    ("smi-xml/telegraf-a100-sxm4-v12.xml", 1, 4, "NVIDIA A100-SXM4-80GB", 81920),
    ("smi-xml/telegraf-dual_2070-v13.xml", 2, 2, "NVIDIA GeForce RTX 2070", 8192),
    ("smi-xml/telegraf-gt-1030.xml", 1, 1, "NVIDIA GeForce GT 1030", 1998),
    ("smi-xml/telegraf-gtx-1070-ti.xml", 1, 1, "GeForce GTX 1070 Ti", 4096),
    ("smi-xml/telegraf-gtx-1660-ti.xml", 1, 1, "Graphics Device", 5912),
    ("smi-xml/telegraf-rtx-3080-v12.xml", 1, 1, "NVIDIA GeForce RTX 3080", 10240),
    ("smi-xml-mock/qx-gb200-lost.xml", 2, 1, "NVIDIA GB200", 196608),
]


@pytest.mark.parametrize("expected", RECORDED, ids=lambda row: Path(row[0]).stem)
def test_recorded_documents(machine: Any, recorded: Path, expected: tuple[str, int, int, str, int]) -> None:
    path, count, usable, name, mebibytes = expected
    facts = machine.facts(nvidia_smi_xml=str(recorded / "nvidia" / path))
    assert (facts["physical_count"], facts["usable_count"]) == (count, usable)
    assert (facts["devices"][0]["name"], facts["devices"][0]["memory_total_bytes"]) == (name, mebibytes * MIB)
    assert not any(device["unified_memory"] for device in facts["devices"])
    assert (facts["tier"], facts["errors"]) == ("cuda", [])
