# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the engines' images with CUDA and ROCm, which can't run without a GPU: one program, many names."""

from __future__ import annotations

import functools
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

from ..node_images import mmdebstrap
from ..settings import cache_dir
from .base import IMAGES_FOLDER, Recipe, import_image

PROGRAM = IMAGES_FOLDER / "stand_in_gpu" / "stand_in_gpu_engine.py"
#: Below this in the local registry, so that nobody takes a stand-in for the image whose name it has.
FOLDER = "stand-in-gpu"
#: Where the originals have their programs, and how they are started.
_LAUNCH = "usr/lib/python3/dist-packages/sglang/launch_server.py"
_PLACES = {
    "llamacpp": ("app/llama-server", ["ENV LLAMA_ARG_HOST=0.0.0.0", 'ENTRYPOINT ["/app/llama-server"]']),
    "ollama": ("usr/bin/ollama", ["ENV OLLAMA_HOST=0.0.0.0:11434", 'ENTRYPOINT ["/bin/ollama"]', 'CMD ["serve"]']),
    "sglang": (_LAUNCH, ['CMD ["/bin/bash"]']),
    "vllm": ("usr/local/bin/vllm", ['ENTRYPOINT ["vllm", "serve"]']),
}


def _build(engine: str, tier: str, image: str, folder: Path) -> None:
    """Make the image of one engine; all of them begin with the same root file system, made once."""
    base, archive = cache_dir() / "stand-in-gpu" / "trixie.tar", folder / "root.tar"
    if not base.exists():
        base.parent.mkdir(parents=True, exist_ok=True)
        mmdebstrap("trixie", ["python3"], folder / "base.tar", "--variant=essential")
        shutil.move(folder / "base.tar", base)
    place, changes = _PLACES[engine]
    shutil.copy(base, archive)
    # Without their folders, which the archive may have.
    with tarfile.open(archive, "a") as tar:
        for name, content in ((place, PROGRAM.read_bytes()), ("stand-in-gpu", f"{tier}\n".encode())):
            entry = tarfile.TarInfo(f"./{name}")
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    port = {"llamacpp": 8080, "ollama": 11434, "sglang": 30000, "vllm": 8000}[engine]
    import_image(archive, image, [*changes, f"EXPOSE {port}"])


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """A stand-in for each variant with CUDA or ROCm; images of several variants are one."""
    found: dict[tuple[str, str], Recipe] = {}
    for engine, table in engines.items():
        for name, variant in table.get("variants", {}).items():
            if variant["tier"] in ("cuda", "rocm"):
                repository, tag, tier = variant["repository"], variant["tag"], str(variant["tier"])
                found.setdefault(
                    (repository, tag),
                    Recipe(
                        f"stand-in-gpu-{engine}-{name}",
                        repository,
                        tag,
                        functools.partial(_build, engine, tier),
                        (PROGRAM, Path(__file__)),
                        path=f"{FOLDER}/{repository.partition('/')[2]}",
                        official=False,
                    ),
                )
    return list(found.values())
