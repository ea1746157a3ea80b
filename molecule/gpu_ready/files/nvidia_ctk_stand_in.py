#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `nvidia-ctk cdi generate`: a specification of the GPUs in the stand-in nvidia-smi's file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

STATE = Path(os.environ.get("NVIDIA_SMI_STAND_IN", "/srv/stand-in/gpus.json"))


def main(arguments: list[str]) -> int:
    """Write the specification to --output, for the driver that is loaded below the file's folder."""
    output = next(Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("--output="))
    version = (STATE.parent / "sys/module/nvidia/version").read_text().strip()
    lines = ["---", "cdiVersion: 0.5.0", "devices:"]
    for index, gpu in enumerate(json.loads(STATE.read_text())):
        names = (
            [f"MIG-{gpu['uuid'][4:]}-{number}" for number in range(len(gpu["instances"]))]
            if gpu["mig"]
            else [gpu["uuid"]]
        )
        for name in names:
            lines += [f"- name: {name}", "  containerEdits:", "    deviceNodes:", f"    - path: /dev/nvidia{index}"]
    library = f"/usr/lib/x86_64-linux-gnu/libcuda.so.{version}"
    lines += ["containerEdits:", "  mounts:", f"  - hostPath: {library}", f"    containerPath: {library}"]
    output.write_text("\n".join([*lines, "kind: nvidia.com/gpu", ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
