# SPDX-License-Identifier: Apache-2.0
"""LiteLLM's proxy from its wheels, started as the official image starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..node_images import mmdebstrap
from .base import IMAGES_FOLDER, Recipe, import_image, unpack_wheels

LOCK = IMAGES_FOLDER / "litellm" / "requirements.txt"
#: The Python of Debian 13, which the lock file is resolved for.
PYTHON = "313"
ENTRYPOINT_SCRIPT = """\
#!/bin/sh
exec python3 -c 'from litellm import run_server; run_server()' "$@"
"""


def build(image: str, folder: Path) -> None:
    """Make the image."""
    archive, payload = folder / "litellm.tar", folder / "app"
    site, script = payload / "site", payload / "docker" / "prod_entrypoint.sh"
    script.parent.mkdir(parents=True)
    script.write_text(ENTRYPOINT_SCRIPT)
    script.chmod(0o755)
    unpack_wheels(LOCK, PYTHON, folder / "wheels", site)
    # Importing once writes the byte code of what is used; the image runs read-only and could not keep it.
    warm = (
        "cd / && PYTHONPATH=/app/site LITELLM_LOCAL_MODEL_COST_MAP=True python3 -c 'import litellm.proxy.proxy_server'"
    )
    hooks = [
        f'--customize-hook=cp -a --no-preserve=ownership {payload} "$1/app"',
        f'--customize-hook=env -u PYTHONDONTWRITEBYTECODE chroot "$1" sh -c "{warm}"',
    ]
    packages = ["python3", "libstdc++6", "ca-certificates"]
    mmdebstrap("trixie", packages, archive, "--variant=essential", *hooks)
    changes = ["ENV PYTHONPATH=/app/site", "ENV PYTHONUNBUFFERED=1", "WORKDIR /app", "EXPOSE 4000"]
    changes += ['ENTRYPOINT ["/app/docker/prod_entrypoint.sh"]', 'CMD ["--port", "4000"]']
    import_image(archive, image, changes)


def recipes(engines: dict[str, Any]) -> list[Recipe]:
    """The image of LiteLLM."""
    table = engines["litellm"]
    return [Recipe("litellm", table["repository"], table["tag"], build, (Path(__file__), LOCK))]
