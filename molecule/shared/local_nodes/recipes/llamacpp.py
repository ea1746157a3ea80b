# SPDX-License-Identifier: Apache-2.0
"""llama.cpp: llama-server from Debian's package, started as the official server images start it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ..node_images import mmdebstrap
from .base import Recipe, import_image

#: What an image has beside the server with its backends for CPUs. That for Vulkan also runs on Mesa's software device.
PACKAGES = {"cpu": (), "vulkan": ("libggml0-backend-vulkan", "mesa-vulkan-drivers")}


def build(variant: str, image: str, folder: Path) -> None:
    """Make the image of a variant of the version table."""
    archive = folder / "llamacpp.tar"
    hook = '--customize-hook=mkdir -p "$1/app" && ln -s /usr/bin/llama-server "$1/app/llama-server"'
    packages = ["llama.cpp-tools", "ca-certificates", "curl", *PACKAGES[variant]]
    mmdebstrap("forky", packages, archive, "--variant=essential", hook)
    # The official image sets the host; the port is upstream's default, which Debian's build changes.
    changes = ["ENV LLAMA_ARG_HOST=0.0.0.0", "ENV LLAMA_ARG_PORT=8080", "WORKDIR /app", "EXPOSE 8080"]
    import_image(archive, image, [*changes, 'ENTRYPOINT ["/app/llama-server"]'])


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """The images of llama.cpp."""
    found = []
    for variant, name in {"cpu": "llamacpp", "vulkan": "llamacpp-vulkan"}.items():
        table = engines["llamacpp"]["variants"][variant]
        made = partial(build, variant)
        found.append(Recipe(name, table["repository"], table["tag"], made, (Path(__file__),)))
    return found
