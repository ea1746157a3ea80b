#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for nvidia-smi on a node with one NVIDIA L40S: the document that facts are read from, and queries."""

from __future__ import annotations

import sys

DOCUMENT = """\
<?xml version="1.0" ?>
<nvidia_smi_log>
 <driver_version>580.95.05</driver_version>
 <cuda_version>13.0</cuda_version>
 <attached_gpus>1</attached_gpus>
 <gpu id="00000000:41:00.0">
  <product_name>NVIDIA L40S</product_name>
  <product_architecture>Ada Lovelace</product_architecture>
  <persistence_mode>Enabled</persistence_mode>
  <mig_mode><current_mig>N/A</current_mig><pending_mig>N/A</pending_mig></mig_mode>
  <uuid>GPU-5a6b7c8d-0000-4000-8000-00000000001a</uuid>
  <minor_number>0</minor_number>
  <gpu_virtualization_mode><virtualization_mode>None</virtualization_mode></gpu_virtualization_mode>
  <pci><pci_device_id>26B910DE</pci_device_id><pci_bus_id>00000000:41:00.0</pci_bus_id></pci>
  <fb_memory_usage>
   <total>46068 MiB</total><reserved>597 MiB</reserved><used>0 MiB</used><free>45471 MiB</free>
  </fb_memory_usage>
  <compute_mode>Default</compute_mode>
  <gpu_power_readings>
   <current_power_limit>350.00 W</current_power_limit><default_power_limit>350.00 W</default_power_limit>
   <min_power_limit>100.00 W</min_power_limit><max_power_limit>350.00 W</max_power_limit>
  </gpu_power_readings>
  <processes></processes>
 </gpu>
</nvidia_smi_log>
"""
FIELDS = {
    "pci.bus_id": "00000000:41:00.0",
    "uuid": "GPU-5a6b7c8d-0000-4000-8000-00000000001a",
    "compute_cap": "8.9",
    "power.limit": "350.00",
    "mig.mode.current": "[N/A]",
    "mig.mode.pending": "[N/A]",
    "fabric.state": "[N/A]",
}


def main(arguments: list[str]) -> int:
    """Print what nvidia-smi would print."""
    query = next((each.partition("=")[2] for each in arguments if each.startswith("--query-gpu=")), None)
    if query:
        print(", ".join(FIELDS[name] for name in query.split(",")))
    elif arguments == ["-q", "-x"]:
        print(DOCUMENT)
    elif arguments == ["-L"]:
        print(f"GPU 0: NVIDIA L40S (UUID: {FIELDS['uuid']})")
    else:
        print(f"the stand-in knows no {' '.join(arguments)}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
