# SPDX-License-Identifier: Apache-2.0
"""A stand-in of SGLang's kernels, whose build for CPUs no package index has.

SGLang imports their names, and computes with torch where the processor has no AMX. A kernel that is called says so.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError(f"the kernel {name} is not in this image, which has a stand-in of sgl_kernel")

    return missing
