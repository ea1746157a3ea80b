# SPDX-License-Identifier: Apache-2.0
"""Ollama on the CPU: the real server of a Python package, started as the official image starts it.

The package's build is for Intel GPUs. Its server is linked with a library for them, which ends the process where there
is none; one that names no device stands in for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..node_images import mmdebstrap
from ..shell import run
from .base import IMAGES_FOLDER, Recipe, import_image, unpack_wheels

LOCK = IMAGES_FOLDER / "ollama" / "requirements.txt"
#: The Python that the lock file is resolved for; none is in the image.
PYTHON = "313"
LIBRARIES = (
    "libimf.so",
    "libintlc.so.5",
    "libiomp5.so",
    "libirng.so",
    "libollama-ggml-base.so",
    "libollama-ggml-cpu.so",
    "libollama_ggml.so",
    "libollama_llama.so",
    "libollama_llava_shared.so",
    "libsample.so",
    "libsvml.so",
)
NO_DEVICES = """\
void *ggml_backend_sycl_reg(void) { return 0; }
void *ggml_backend_sycl_init(int device) { (void)device; return 0; }
void ggml_backend_sycl_get_device_name(int device, char *name, unsigned long size) {
    (void)device;
    if (size) *name = 0;
}
"""
SYSTEM = """\
echo /usr/lib/ollama >/etc/ld.so.conf.d/ollama.conf
ldconfig
"""


def build(image: str, folder: Path) -> None:
    """Make the image."""
    archive, site = folder / "ollama.tar", folder / "site"
    unpack_wheels(LOCK, PYTHON, folder / "wheels", site)
    files = {file.name: file for file in site.rglob("*") if file.name in (*LIBRARIES, "ollama-lib")}
    stand_in = folder / "libollama-ggml-sycl.so"
    run(["cc", "-shared", "-fPIC", "-x", "c", "-o", stand_in, "-"], text_input=NO_DEVICES)
    libraries = " ".join(str(file) for file in (*(files[name] for name in LIBRARIES), stand_in))
    hooks = [
        f'--customize-hook=install -D -m 0644 -t "$1/usr/lib/ollama" {libraries}',
        # The package's own `ollama` starts this one as a child, which it leaves behind when it is told to end.
        f'--customize-hook=install -m 0755 {files["ollama-lib"]} "$1/usr/bin/ollama"',
        f'--customize-hook=chroot "$1" sh -euc "{SYSTEM}"',
    ]
    mmdebstrap("trixie", ["libstdc++6", "ca-certificates"], archive, "--variant=essential", *hooks)
    changes = [
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
        "ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "ENV NVIDIA_VISIBLE_DEVICES=all",
        "ENV OLLAMA_HOST=0.0.0.0:11434",
        "EXPOSE 11434",
    ]
    import_image(archive, image, [*changes, 'ENTRYPOINT ["/bin/ollama"]', 'CMD ["serve"]'])


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """The image of Ollama."""
    cpu = engines["ollama"]["variants"]["cpu"]
    return [Recipe("ollama", cpu["repository"], cpu["tag"], build, (Path(__file__), LOCK))]
