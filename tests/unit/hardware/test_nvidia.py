# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import nvidia
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import HealthCheck, given, settings
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


@pytest.fixture
def stand_in_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put an `nvidia-smi` of our own on PATH; it notes its arguments in the file that is returned."""

    def put(script: str) -> Path:
        folder, asked = tmp_path / "bin", tmp_path / "asked"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return asked

    return put


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
        "mismatch": False,
        "amdgpu_version": None,
        "rocm_version": None,
        "reboot_required": False,
        "reboot_reason": None,
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
    assert [row["memory_shared"] for row in device["mig"]["instances"]] == [True, True]
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
    assert driver["mismatch"] is True and driver["reboot_required"] is True
    sentence = "NVIDIA's kernel module 570.124.06 is loaded and its library 570.133.20 is installed"
    assert driver["reboot_reason"] == sentence
    assert (driver["module_flavour"], driver["library_version"]) == ("proprietary", "570.133.20")


def test_nouveau_with_installed_driver_wants_a_reboot(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nouveau")
    machine.nvidia_driver()
    (machine.root / "proc/driver/nvidia/version").unlink()
    driver = machine.facts()["driver"]
    assert driver["reboot_reason"] == "nouveau is bound to a GPU and NVIDIA's driver 570.124.06 is installed"
    assert driver["version"] is None and driver["mismatch"] is False


def test_text_in_the_place_of_a_document(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.gpu("0000:02:00.0", NVIDIA, driver="nvidia")
    text = "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the system\n"
    facts = read(machine, text)
    assert facts["errors"][0]["source"] == "nvidia_smi"
    first, second = facts["devices"]
    assert (first["health"], second["health"]) == (None, "lost")
    assert "GPU is lost" in first["unusable_reason"] and "does not list it" in first["unusable_reason"]
    assert second["unusable_reason"].startswith("the GPU is lost and comes back with a reboot")


@pytest.mark.usefixtures("without_pynvml")
def test_hanging_nvidia_smi_costs_its_deadline_only(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.nvidia_driver()
    stand_in_smi("sleep 60 & sleep 60")
    started = time.monotonic()
    facts = machine.facts(live=True, timeout=1)
    assert time.monotonic() - started < 2
    assert facts["probes"]["nvidia_smi"]["status"] == "timeout"
    (error,) = facts["errors"]
    assert error["source"] == "nvidia_smi" and error["message"].startswith("nvidia-smi -q -x did not end within 0.")
    assert facts["devices"][0]["pci_bus_id"] == "0000:01:00.0"
    assert "did not end within 0." in facts["devices"][0]["unusable_reason"]


@pytest.mark.usefixtures("without_pynvml")
def test_nvidia_smi_is_asked_without_nvml(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    xml = machine.write("smi.xml", document(gpu()))
    stand_in_smi(f'case "$1" in -q) cat {xml} ;; *) echo "00000000:01:00.0, 8.0" ;; esac')
    facts = machine.facts(live=True)
    assert facts["tier"] == "cuda"
    assert facts["devices"][0]["architecture"] == "8.0"
    assert facts["probes"]["nvml"]["status"] == "absent"


@pytest.mark.usefixtures("without_pynvml")
def test_mismatch_text(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu\n")
    text = "Failed to initialize NVML: Driver/library version mismatch\\nNVML library version: 535.161\\n"
    stand_in_smi(f"printf '{text}'; exit 18")
    facts = machine.facts(live=True)
    assert facts["driver"]["library_version"] == "535.161"
    assert facts["driver"]["mismatch"] is True
    assert "535.129.03" in facts["driver"]["reboot_reason"] and "535.161" in facts["driver"]["reboot_reason"]
    assert "mismatch" in facts["devices"][0]["unusable_reason"]


@pytest.mark.usefixtures("without_pynvml")
def test_mig_devices_of_nvidia_smi_have_uuids(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    mode = "<current_mig>Enabled</current_mig>"
    xml = machine.write("smi.xml", document(gpu(mig_mode=mode, mig_devices=mig(1, 0, "9728 MiB"))))
    listing = "GPU 0: NVIDIA A100 (UUID: GPU-1)\\n  MIG 1g.10gb     Device  0: (UUID: MIG-2)\\n"
    asked = stand_in_smi(f"case \"$1\" in -q) cat {xml} ;; -L) printf '{listing}' ;; *) exit 2 ;; esac")
    (instance,) = machine.facts(live=True)["devices"][0]["mig"]["instances"]
    assert (instance["uuid"], instance["profile"]) == ("MIG-2", "1g.10gb")
    assert sorted(asked.read_text().splitlines()) == [
        "--query-gpu=pci.bus_id,compute_cap --format=csv,noheader",
        "-L",
        "-q -x",
    ]


@pytest.mark.usefixtures("without_pynvml")
def test_architecture_without_a_compute_capability(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    """nvidia-smi older than 510 does not know the field."""
    machine.gpu("0000:01:00.0", NVIDIA, 0x20B0, driver="nvidia")
    xml = machine.write("smi.xml", document(gpu(pci="<pci_device_id>20B010DE</pci_device_id>")))
    stand_in_smi(f'case "$1" in -q) cat {xml} ;; *) echo \'Field "compute_cap" is not a valid field\'; exit 2 ;; esac')
    (device,) = machine.facts(live=True)["devices"]
    assert (device["architecture"], device["generation"], device["usable"]) == ("8.0", "ampere", True)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("NVIDIA H200", "Hopper", ("9.0", "hopper")),
        ("NVIDIA A100-PCIE-40GB", None, ("8.0", "ampere")),
        ("NVIDIA A10G", "Ampere", ("8.6", "ampere")),
        ("NVIDIA RTX 6000 Ada Generation", "Ada Lovelace", ("8.9", "ada")),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None, ("12.0", "blackwell")),
        ("NVIDIA GB300", "Blackwell", ("10.3", "blackwell")),
        ("NVIDIA GB10", "Blackwell", ("12.1", "blackwell")),
        ("Tesla V100-SXM2-16GB", None, ("7.0", "volta")),
        ("GeForce GTX 1070 Ti", None, ("6.1", "pascal")),
        ("Quadro RTX 6000", "Turing", ("7.5", "turing")),
        ("Graphics Device", "Turing", ("7.5", "turing")),
        ("Graphics Device", "Blackwell", (None, "blackwell")),
        ("Graphics Device", None, (None, None)),
        # What the driver says of the chip goes before what the name looks like.
        ("NVIDIA T4", "Hopper", ("9.0", "hopper")),
    ],
)
def test_chip_without_a_pci_id(
    machine: Any, name: str, text: str | None, expected: tuple[str | None, str | None]
) -> None:
    extra = {"product_name": name, **({"product_architecture": text} if text else {})}
    (device,) = read(machine, document(gpu(**extra)))["devices"]
    assert (device["architecture"], device["generation"]) == expected


@pytest.mark.parametrize(
    ("element", "value", "health", "reason"),
    [
        ("compute_mode", "Prohibited", "ok", "its compute mode is prohibited"),
        ("gpu_recovery_action", "Reset", "reset_required", "the GPU requires a reset"),
        ("gpu_recovery_action", "Reboot", "error", "the driver wants the node rebooted to recover the GPU"),
        ("remapped_rows", "GPU requires reset", "reset_required", "the GPU requires a reset"),
    ],
)
def test_gpus_that_nothing_can_be_put_on(machine: Any, element: str, value: str, health: str, reason: str) -> None:
    facts = read(machine, document(gpu(), gpu("00000000:02:00.0", **{element: value})))
    device = facts["devices"][1]
    assert (device["health"], device["usable"], device["unusable_reason"]) == (health, False, reason)
    assert facts["usable_count"] == 1
    needed = None if health == "ok" else f"GPU 0000:02:00.0: {reason}"
    assert facts["driver"]["reboot_reason"] == needed


def test_the_distribution_asks_for_a_reboot(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.nvidia_driver()
    machine.write("run/reboot-required.pkgs", "linux-image-6.8.0-60-generic\nnvidia-dkms-570-open\n")
    reason = "the distribution asks for it because of nvidia-dkms-570-open"
    assert machine.facts()["driver"]["reboot_reason"] == reason
    machine.write("run/reboot-required.pkgs", "linux-image-6.8.0-60-generic\n")
    assert machine.facts()["driver"]["reboot_required"] is False


@pytest.mark.parametrize(("taint", "flavour"), [("OE", "open"), ("POE", "proprietary"), (None, None)])
def test_module_without_its_version_file(machine: Any, taint: str | None, flavour: str | None) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.write("sys/module/nvidia/version", "550.54.15\n")
    if taint:
        machine.write("sys/module/nvidia/taint", f"{taint}\n")
    driver = machine.facts()["driver"]
    assert (driver["kernel_module_version"], driver["module_flavour"]) == ("550.54.15", flavour)


def test_library_behind_absolute_links(machine: Any) -> None:
    """As Debian installs it; the links lead to files of the same root."""
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    name = "libnvidia-ml.so.1"
    machine.link(f"usr/lib/x86_64-linux-gnu/{name}", f"/etc/alternatives/nvidia--{name}-x86_64-linux-gnu")
    machine.link(
        f"etc/alternatives/nvidia--{name}-x86_64-linux-gnu", f"/usr/lib/x86_64-linux-gnu/nvidia/current/{name}"
    )
    machine.link(f"usr/lib/x86_64-linux-gnu/nvidia/current/{name}", "libnvidia-ml.so.535.247.01")
    assert machine.facts()["driver"]["library_version"] == "535.247.01"
    machine.link(f"usr/lib64/{name}", name)
    (machine.root / f"usr/lib/x86_64-linux-gnu/{name}").unlink()
    assert machine.facts()["driver"]["library_version"] is None


INFORMATION = """Model: \t\t NVIDIA L4
IRQ:   \t\t 16
GPU UUID: \t GPU-3291dfa4-fcc4-0110-615b-c894a0d7c689
Video BIOS: \t 95.04.65.00.13
Bus Location: \t 0000:70:00.0
Device Minor: \t 2
GPU Excluded:\t No
"""


def test_what_the_module_says_of_a_gpu(machine: Any) -> None:
    machine.gpu("0000:70:00.0", NVIDIA, 0x27B8, driver="nvidia")
    machine.write("proc/driver/nvidia/gpus/0000:70:00.0/information", INFORMATION)
    machine.write(
        "proc/driver/nvidia/gpus/0000:71:00.0/information",
        INFORMATION.replace("70:00", "71:00")
        .replace("3291dfa4-fcc4-0110-615b-c894a0d7c689", "????????-????-????-????-????????????")
        .replace("No", "Yes"),
    )
    first, second = machine.facts()["devices"]
    assert (first["name"], first["uuid"]) == ("NVIDIA L4", "GPU-3291dfa4-fcc4-0110-615b-c894a0d7c689")
    assert (first["device_node"], first["generation"]) == ("/dev/nvidia2", "ada")
    assert first["unusable_reason"].startswith("the NVIDIA driver does not list it")
    assert (second["pci_bus_id"], second["uuid"], second["architecture"]) == ("0000:71:00.0", None, "8.9")
    assert second["unusable_reason"] == "the driver is told to leave it out (excluded)"


def test_only_the_module_knows_the_gpu(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    stand_in_smi("exit 9")
    machine.gpu("0000:70:00.0", NVIDIA, 0x27B8, driver="nvidia")
    machine.write("proc/driver/nvidia/gpus/0000:70:00.0/information", INFORMATION)
    (device,) = machine.facts(live=True, pynvml=OLD_NVML.format(init="raise NVMLError(999, 'Unknown Error')"))[
        "devices"
    ]
    assert (device["name"], device["device_node"]) == ("NVIDIA L4", "/dev/nvidia2")


def test_nothing_is_read_of_a_gpu_that_sleeps(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    asked = stand_in_smi("exit 9")
    files = {"power/runtime_status": "suspended"}
    machine.gpu("0000:70:00.0", NVIDIA, 0x27B8, driver="nvidia", files=files)
    # The module wakes a GPU to answer this.
    machine.write("proc/driver/nvidia/gpus/0000:70:00.0/information", INFORMATION)
    facts = machine.facts(live=True, pynvml="raise SystemExit")
    (device,) = facts["devices"]
    assert device["unusable_reason"] == "it is asleep; gather the facts with wake: true to wake it"
    assert (device["name"], device["uuid"], device["generation"]) == ("nvidia 10de:27b8", None, "ada")
    assert not asked.exists() and facts["errors"] == []
    for source in ("nvml", "nvidia_smi"):
        assert facts["probes"][source] == {"status": "absent", "message": "every NVIDIA GPU is asleep", "ms": 0}


@pytest.mark.usefixtures("without_pynvml")
def test_nvidia_smi_would_wake_the_one_that_sleeps(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    asked = stand_in_smi("exit 9")
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.gpu("0000:02:00.0", NVIDIA, driver="nvidia", files={"power/runtime_status": "suspended"})
    facts = machine.facts(live=True)
    assert not asked.exists() and facts["usable_count"] == 0
    assert "would wake" in facts["probes"]["nvidia_smi"]["message"]
    assert all(device["unusable_reason"] for device in facts["devices"])


def test_a_sleeping_gpu_of_another_driver_is_bound_to_that(machine: Any) -> None:
    machine.gpu("0000:02:00.0", NVIDIA, driver="vfio-pci", files={"power/runtime_status": "suspended"})
    assert machine.facts()["devices"][0]["unusable_reason"] == "bound to vfio-pci"


# NVML as an nvidia-ml-py of long ago has it: bytes in the place of text, and few functions. The machine has GPU 0, a
# lost GPU 1, and GPU 2 without memory of its own.
OLD_NVML = """
class NVMLError(Exception):
    def __init__(self, value, text):
        self.value, self.text = value, text
    def __str__(self):
        return self.text
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
def nvmlDeviceGetHandleByPciBusId(address):
    raise NVMLError(6, "Not Found")
def nvmlDeviceGetPciInfo(handle): return Object(busId=b"00000000:0%d:00.0" % (handle + 1))
def nvmlDeviceGetUUID(handle): return b"GPU-%d" % handle
def nvmlDeviceGetName(handle): return "NVIDIA H100 80GB HBM3" if handle == 0 else "NVIDIA GB10"
def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)
def nvmlDeviceGetMemoryInfo(handle):
    if handle == 2:
        raise NVMLError(3, "Not Supported")
    return Object(total=81559 << 20, used=1 << 20)
def nvmlDeviceGetNvLinkState(handle, link):
    if link > 4:
        raise NVMLError(2, "Invalid Argument")
    return link != 3
def nvmlDeviceGetNvLinkRemotePciInfo(handle, link):
    return Object(busId="FFFFFFFF:FF:1F.7" if link == 4 else "00000000:03:00.0")
"""


def test_nvml_of_long_ago(machine: Any) -> None:
    for number in (1, 2, 3):
        machine.gpu(f"0000:0{number}:00.0", NVIDIA, driver="nvidia")
    facts = machine.facts(live=True, pynvml=OLD_NVML.format(init="pass"))
    first, second, third = facts["devices"]
    assert (first["architecture"], first["memory_total_bytes"], first["usable"]) == ("9.0", 81559 * MIB, True)
    assert (first["uuid"], first["memory_reserved_bytes"], first["health"]) == ("GPU-0", None, "ok")
    assert first["links"] == [
        {"type": "nvlink", "peer_bus_id": "0000:03:00.0", "peer_type": "gpu", "count": 3, "weight": None},
        # A switch that the guest does not see.
        {"type": "nvlink", "peer_bus_id": None, "peer_type": "switch", "count": 1, "weight": None},
    ]
    # The one that is left over: no other device could be it.
    assert (second["health"], second["index"], second["pci_bus_id"]) == ("lost", 1, "0000:02:00.0")
    assert not second["usable"] and "GPU is lost" in second["unusable_reason"]
    assert third["unified_memory"] and third["memory_total_bytes"] == 64 << 30
    assert [device["index"] for device in facts["devices"]] == [0, 1, 2]
    assert (facts["driver"]["library_version"], facts["driver"]["cuda_version"]) == ("570.124.06", "12.8")
    assert facts["errors"] == [{"source": "nvml", "message": "GPU 1: GPU is lost"}]


def test_one_gpu_that_hangs_costs_that_gpu_only(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    asked = stand_in_smi("exit 9")
    for number in (1, 2, 3):
        machine.gpu(f"0000:0{number}:00.0", NVIDIA, driver="nvidia")
    hang = "__import__('time').sleep(60) if handle == 0 else b'GPU-%d' % handle"
    source = OLD_NVML.format(init="pass").replace('b"GPU-%d" % handle', hang).replace("if index == 1", "if index == 9")
    started = time.monotonic()
    facts = machine.facts(live=True, timeout=3, pynvml=source)
    assert time.monotonic() - started < 3
    first, *others = facts["devices"]
    assert [device["usable"] for device in others] == [True, True]
    assert (first["pci_bus_id"], first["index"], first["health"], first["usable"]) == (
        "0000:01:00.0",
        0,
        "error",
        False,
    )
    assert first["unusable_reason"].startswith("the GPU does not answer: NVML gave no answer within")
    assert facts["probes"]["nvml"]["status"] == "ok" and "GPU 0: NVML gave no answer" in facts["errors"][0]["message"]
    assert not asked.exists()


def test_lost_gpu_that_may_be_either_of_two(machine: Any) -> None:
    for number in (1, 2, 3, 4):
        machine.gpu(f"0000:0{number}:00.0", NVIDIA, driver="nvidia")
    facts = machine.facts(live=True, pynvml=OLD_NVML.format(init="pass"))
    assert facts["physical_count"] == 4
    unsure = [device for device in facts["devices"] if device["pci_bus_id"] in ("0000:02:00.0", "0000:04:00.0")]
    assert [device["health"] for device in unsure] == [None, None]
    assert all("GPU 1: GPU is lost" in device["unusable_reason"] for device in unsure)


def test_gpus_that_nvml_does_not_list(machine: Any) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    source = OLD_NVML.format(init="pass").replace("nvmlDeviceGetCount(): return 3", "nvmlDeviceGetCount(): return 0")
    (device,) = machine.facts(live=True, pynvml=source)["devices"]
    assert device["unusable_reason"] == "the NVIDIA driver does not list it: NVML lists no GPU"


def test_lost_gpu_without_a_pci_bus(machine: Any) -> None:
    """As in WSL, where the bus shows nothing."""
    machine.write("dev/dxg", "")
    facts = machine.facts(live=True, pynvml=OLD_NVML.format(init="pass"))
    assert (facts["physical_count"], facts["usable_count"]) == (3, 2)
    (lost,) = [device for device in facts["devices"] if not device["usable"]]
    assert (lost["index"], lost["health"], lost["pci_bus_id"]) == (1, "lost", None)


def test_library_of_wsl_is_taken_before_the_one_of_the_distribution(machine: Any) -> None:
    machine.write("dev/dxg", "")
    machine.write("usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/libnvidia-ml.so.1", "no library")
    path = machine.write("usr/lib/wsl/lib/libnvidia-ml.so.1", "no library either")
    found = nvidia._wsl_libraries(Host(str(machine.root)))
    assert found == [str(path), str(machine.root / "usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/libnvidia-ml.so.1")]
    facts = machine.facts(live=True, pynvml=OLD_NVML.format(init="pass"))
    assert facts["probes"]["nvml"]["status"] == "ok"


@pytest.mark.parametrize(
    ("code", "status", "asked_too"),
    [
        (9, "error", False),
        (18, "error", False),
        (12, "absent", True),
        (999, "error", True),
    ],
)
def test_when_nvidia_smi_is_asked_after_nvml(
    machine: Any, stand_in_smi: Callable[[str], Path], code: int, status: str, asked_too: bool
) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    machine.nvidia_driver()
    asked = stand_in_smi(f"cat {machine.write('smi.xml', document(gpu()))}")
    facts = machine.facts(live=True, pynvml=OLD_NVML.format(init=f"raise NVMLError({code}, 'it failed')"))
    assert facts["probes"]["nvml"]["status"] == status
    assert asked.exists() is asked_too
    assert facts["devices"][0]["usable"] is asked_too
    assert facts["driver"]["mismatch"] is (code == 18)


@pytest.mark.parametrize(
    "source", ["raise ImportError('no ctypes')", "this is no Python", "import nothing_of_that_name"]
)
def test_nvidia_ml_py_that_cannot_be_loaded(machine: Any, stand_in_smi: Callable[[str], Path], source: str) -> None:
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    stand_in_smi(f"cat {machine.write('smi.xml', document(gpu()))}")
    facts = machine.facts(live=True, pynvml=source)
    assert facts["probes"]["nvml"]["status"] == "error" and facts["usable_count"] == 1


def test_real_nvidia_ml_py_without_the_library(machine: Any, stand_in_smi: Callable[[str], Path]) -> None:
    stand_in_smi("exit 9")
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    source = Path(str(pynvml.__file__)).read_text()
    # Whatever the machine has installed.
    source = source.replace('"libnvidia-ml.so.1"', '"libnvidia-ml-that-is-not-there.so.1"')
    probe = machine.facts(live=True, pynvml=source)["probes"]["nvml"]
    assert (probe["status"], probe["message"]) == (
        "absent",
        "NVMLError_LibraryNotFound: NVML Shared Library Not Found",
    )


@pytest.mark.parametrize(
    ("init", "status"),
    [("__import__('time').sleep(60)", "timeout"), ("__import__('os').kill(__import__('os').getpid(), 11)", "error")],
)
def test_nvml_that_hangs_or_crashes(machine: Any, stand_in_smi: Callable[[str], Path], init: str, status: str) -> None:
    asked = stand_in_smi("exit 9")
    machine.gpu("0000:01:00.0", NVIDIA, driver="nvidia")
    facts = machine.facts(live=True, timeout=1, pynvml=OLD_NVML.format(init=init))
    assert facts["probes"]["nvml"]["status"] == status
    assert any(error["source"] == "nvml" for error in facts["errors"])
    assert facts["devices"][0]["usable"] is False
    # What keeps NVML keeps nvidia-smi as well.
    assert asked.exists() is (status == "error")


WHOLE = document(
    gpu(), gpu("00000000:02:00.0", mig_mode="<current_mig>Enabled</current_mig>", mig_devices=mig(1, 0, "9 MiB"))
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(WHOLE)), st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.characters()), max_size=10))
def test_facts_of_a_damaged_document(machine: Any, length: int, changes: list[tuple[int, str]]) -> None:
    text = list(WHOLE)
    for position, character in changes:
        text[position] = character
    path = machine.write("smi.xml", "")
    path.write_bytes("".join(text)[:length].encode("utf-8", "surrogatepass"))
    facts = machine.facts(nvidia_smi_xml=str(path))
    assert facts["physical_count"] == len(facts["devices"])
    assert facts["devices"] or facts["errors"]
