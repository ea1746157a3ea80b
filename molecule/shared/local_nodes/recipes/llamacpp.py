# SPDX-License-Identifier: Apache-2.0
"""llama.cpp: llama-server from Debian's package, started as the official server image starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..node_images import mmdebstrap
from .base import Recipe, import_image


def build(image: str, folder: Path) -> None:
    """Make the image for the CPU."""
    archive = folder / "llamacpp.tar"
    hook = '--customize-hook=mkdir -p "$1/app" && ln -s /usr/bin/llama-server "$1/app/llama-server"'
    mmdebstrap("forky", ["llama.cpp-tools", "ca-certificates", "curl"], archive, "--variant=essential", hook)
    # The official image sets the host; the port is upstream's default, which Debian's build changes.
    changes = ["ENV LLAMA_ARG_HOST=0.0.0.0", "ENV LLAMA_ARG_PORT=8080", "WORKDIR /app", "EXPOSE 8080"]
    import_image(archive, image, [*changes, 'ENTRYPOINT ["/app/llama-server"]'])


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """The images of llama.cpp."""
    cpu = engines["llamacpp"]["variants"]["cpu"]
    return [Recipe("llamacpp", cpu["repository"], cpu["tag"], build, (Path(__file__),))]
