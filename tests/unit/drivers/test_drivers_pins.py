# SPDX-License-Identifier: Apache-2.0
"""The packages that apt's preferences name are the ones that the driver table calls the driver."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_nodes.vendor_packages import NVIDIA_VERSIONS, nvidia_packages

ROOT = Path(__file__).resolve().parents[3]
OTHERS = [
    "nvidia-container-toolkit",
    "nvidia-container-toolkit-base",
    "libnvidia-container1",
    "libnvidia-container-tools",
]
OTHERS += ["nvidia-cuda-toolkit", "nvidia-cudnn", "cuda-toolkit-13-0", "cuda-compat-13-0", "libcudart12", "dkms"]


@pytest.fixture(scope="module")
def nvidia() -> dict[str, Any]:
    table = yaml.safe_load((ROOT / "group_vars" / "all" / "drivers.yml").read_text())["inference_drivers"]["nvidia"]
    return dict(table)


def known(nvidia: dict[str, Any]) -> set[str]:
    """Every package that the table or a stand-in repository names."""
    names = {package.name for driver in NVIDIA_VERSIONS for package in nvidia_packages(driver)}
    for systems in nvidia["sources"].values():
        for system, entry in systems.items():
            if system.startswith("rhel"):
                continue
            for group in entry["packages"]:
                listed = [name for value in group.values() for name in (value if isinstance(value, list) else [value])]
                names |= {
                    str(name).format(branch="580", kernel="generic") for name in listed if not str(name).isdigit()
                }
    return names


def test_both_kinds_of_patterns_mean_the_same(nvidia: dict[str, Any]) -> None:
    names = known(nvidia)
    assert {"nvidia-driver-cuda", "libnvidia-compute-580", "nvidia-compute-utils-580-server", "libnvidia-cfg1"} <= names
    for name in sorted({*names, *OTHERS}):
        as_regex = any(re.fullmatch(pattern, name) for pattern in nvidia["driver_packages"])
        as_glob = any(fnmatch.fnmatchcase(name, pattern) for pattern in nvidia["driver_globs"])
        assert as_glob == as_regex == (name not in OTHERS), name
