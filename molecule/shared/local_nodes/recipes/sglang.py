# SPDX-License-Identifier: Apache-2.0
"""SGLang for the CPU from its wheels; like the official image, it has no entry point.

What it imports of kernels for GPUs is left out or stood in for: on a processor without AMX it computes with torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from . import vllm
from .base import IMAGES_FOLDER, Recipe

LOCK = IMAGES_FOLDER / "sglang" / "requirements.txt"
KERNELS = IMAGES_FOLDER / "sglang" / "sgl_kernel"
#: It declares operators for GPUs, which this torch does not have.
DECLARATIONS = "torchvision/_meta_registrations.py"


def build(image: str, folder: Path) -> None:
    """Make the image for the CPU."""
    root = folder / "sglang"
    site = root / vllm.SITE
    vllm.unpack(LOCK, folder, site)
    (site / DECLARATIONS).write_text("")
    shutil.copytree(KERNELS, site / KERNELS.name, ignore=shutil.ignore_patterns("__pycache__"))
    changes = [f"ENV LD_PRELOAD={vllm.MALLOC}", "WORKDIR /sgl-workspace/sglang", 'CMD ["/bin/bash"]']
    vllm.make(image, root, changes)


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """The image of SGLang for the CPU."""
    cpu = engines["sglang"]["variants"]["cpu"]
    inputs = (Path(__file__), Path(vllm.__file__), LOCK, KERNELS / "__init__.py")
    return [Recipe("sglang", cpu["repository"], cpu["tag"], build, inputs)]
