#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for nvidia-smi: GPUs in a JSON file, and the calls that gpu-ready makes.

The file is that of NVIDIA_SMI_STAND_IN. A GPU is listed unless its `lost` is true; its `mig` is null where it has none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STATE = Path(os.environ.get("NVIDIA_SMI_STAND_IN", "/srv/stand-in/gpus.json"))


def word(value: object) -> str:
    """A value as nvidia-smi prints it."""
    return {None: "[N/A]", True: "Enabled", False: "Disabled"}.get(value, str(value))  # type: ignore[call-overload]


def main(arguments: list[str]) -> int:
    """Do what nvidia-smi would do."""
    gpus = json.loads(STATE.read_text())
    if any(gpu.get("lost") for gpu in gpus):
        print(
            "Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  Reboot the system to recover it"
        )
        return 15
    chosen = [gpu for gpu in gpus if "-i" not in arguments or gpu["address"] == arguments[arguments.index("-i") + 1]]
    query = next((argument.partition("=")[2] for argument in arguments if argument.startswith("--query-gpu=")), None)
    if query:
        for gpu in chosen:
            fields = {
                "pci.bus_id": gpu["address"],
                "uuid": gpu["uuid"],
                "power.limit": f"{gpu['limit']:.2f}",
                "mig.mode.current": word(gpu["mig"]),
                "mig.mode.pending": word(gpu.get("pending", gpu["mig"])),
                "fabric.state": gpu.get("fabric", "[N/A]"),
            }
            print(", ".join(fields[name] for name in query.split(",")))
    elif arguments == ["-L"]:
        for index, gpu in enumerate(gpus):
            print(f"GPU {index}: NVIDIA H100 80GB HBM3 (UUID: {gpu['uuid']})")
            for number, profile in enumerate(gpu["instances"]):
                print(f"  MIG {profile:<12}Device {number:>2}: (UUID: MIG-{gpu['uuid'][4:]}-{number})")
    elif "-pl" in arguments:
        watts = float(arguments[arguments.index("-pl") + 1])
        if not 200 <= watts <= 700:
            print(
                f"Provided power limit {watts:.2f} W is not a valid power limit which should be between "
                "200.00 W and 700.00 W"
            )
            return 2
        chosen[0]["limit"] = watts
    elif "-mig" in arguments:
        wanted = arguments[arguments.index("-mig") + 1] == "1"
        chosen[0]["pending" if chosen[0].get("needs_reset") else "mig"] = wanted
    elif "-dci" in arguments or "-dgi" in arguments:
        if chosen[0].get("busy"):
            print("Unable to destroy compute instance ID  0 from GPU  0: In use by another client")
            return 19
        if "-dgi" in arguments:
            chosen[0]["instances"] = []
    elif "-cgi" in arguments:
        profiles = arguments[arguments.index("-cgi") + 1].split(",")
        if sum(int(profile.partition("g.")[0]) for profile in profiles) > 7:
            print("Unable to create a GPU instance on GPU  0 using profile 9: Insufficient Resources")
            return 19
        chosen[0]["instances"] = profiles
    else:
        print(f"the stand-in knows no {' '.join(arguments)}")
        return 2
    STATE.write_text(json.dumps(gpus))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
