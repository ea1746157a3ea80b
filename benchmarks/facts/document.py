# SPDX-License-Identifier: Apache-2.0
"""A document as long and as deep as what `nvidia-smi -q -x` prints of an eight-GPU machine: about 26 KB a GPU."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from nvml_stand_in import MIB, NvmlMachine

BYTES_PER_GPU = 26_000
# Elements that a real document has and the facts do not read, by section.
UNREAD = {
    "clocks_event_reasons": ("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost"),
    "utilization": ("gpu_util", "memory_util", "encoder_util", "decoder_util", "jpeg_util", "ofa_util"),
    "temperature": ("gpu_temp", "gpu_temp_tlimit", "gpu_temp_max_tlimit_threshold", "memory_temp"),
    "clocks": ("graphics_clock", "sm_clock", "mem_clock", "video_clock"),
    "max_clocks": ("graphics_clock", "sm_clock", "mem_clock", "video_clock"),
    "encoder_stats": ("session_count", "average_fps", "average_latency"),
    "inforom_version": ("img_version", "oem_object", "ecc_object", "pwr_object"),
}


def nvidia_smi_document(machine: NvmlMachine) -> str:
    """Return the document of `machine`."""
    gpus = "".join(_gpu(gpu) for gpu in machine.gpus)
    version = int(str(machine.cuda_version))
    return (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
        "\t<timestamp>Mon Nov 23 12:00:00 2026</timestamp>\n"
        f"\t<driver_version>{machine.driver_version}</driver_version>\n"
        f"\t<cuda_version>{version // 1000}.{version % 1000 // 10}</cuda_version>\n"
        f"\t<attached_gpus>{len(machine.gpus)}</attached_gpus>\n{gpus}</nvidia_smi_log>\n"
    )


def _element(tag: str, content: Any, depth: int) -> str:
    """One element; a dict holds further ones, a list of texts repeats the element."""
    indent = "\t" * depth
    if isinstance(content, dict):
        inner = "".join(_element(child, value, depth + 1) for child, value in content.items())
        return f"{indent}<{tag}>\n{inner}{indent}</{tag}>\n"
    if isinstance(content, list):
        return "".join(_element(tag, item, depth) for item in content)
    return f"{indent}<{tag}>{escape(str(content))}</{tag}>\n"


def _mib(size: int) -> str:
    return f"{size // MIB} MiB"


def _gpu(gpu: Any) -> str:
    domain, bus, slot = gpu.bus_id.split(":")
    address = f"{int(domain, 16):08X}:{bus}:{slot}".upper()
    total, reserved, used = gpu.memory
    counters = dict.fromkeys(("sram_correctable", "sram_uncorrectable_parity", "dram_uncorrectable"), "0")
    fields: dict[str, Any] = {
        "product_name": gpu.name,
        "product_brand": "NVIDIA",
        "product_architecture": "Hopper",
        "persistence_mode": "Enabled",
        "addressing_mode": "HMM",
        "mig_mode": {"current_mig": "Disabled", "pending_mig": "Disabled"},
        "mig_devices": "None",
        "uuid": gpu.uuid,
        "minor_number": gpu.minor,
        "gpu_virtualization_mode": {"virtualization_mode": "None", "host_vgpu_mode": "N/A"},
        "pci": {
            "pci_bus_id": address,
            "pci_device_id": str(gpu.pci_ids[0])[2:],
            "pci_sub_system_id": str(gpu.pci_ids[1])[2:],
            "pci_gpu_link_info": {
                "pcie_gen": {"max_link_gen": "5", "current_link_gen": "5"},
                "link_widths": {"max_link_width": "16x", "current_link_width": "16x"},
            },
        },
        "fb_memory_usage": {"total": _mib(total), "reserved": _mib(reserved), "used": _mib(used)},
        "bar1_memory_usage": {"total": _mib(gpu.bar1[0]), "used": _mib(gpu.bar1[1])},
        "compute_mode": "Default",
        "ecc_mode": {"current_ecc": "Enabled", "pending_ecc": "Enabled"},
        "ecc_errors": {"volatile": counters, "aggregate": counters},
        "remapped_rows": {"remapped_row_corr": "0", "remapped_row_pending": "No", "remapped_row_failure": "No"},
        "gpu_power_readings": {
            "current_power_limit": "700.00 W",
            "default_power_limit": "700.00 W",
            "min_power_limit": "200.00 W",
            "max_power_limit": "700.00 W",
        },
        "fabric": {"state": "Completed", "status": "Success"},
        **{section: dict.fromkeys(tags, "N/A") for section, tags in UNREAD.items()},
    }
    # The clocks that a GPU supports are most of a real document, too.
    body = "".join(_element(tag, content, 2) for tag, content in fields.items())
    clock = len(_element("supported_graphics_clock", "1980 MHz", 4))
    clocks = [f"{1980 - 5 * step} MHz" for step in range((BYTES_PER_GPU - len(body)) // clock)]
    supported = {"supported_mem_clock": {"value": "2619 MHz", "supported_graphics_clock": clocks}}
    body += _element("supported_clocks", supported, 2)
    return f'\t<gpu id="{address}">\n{body}\t</gpu>\n'
