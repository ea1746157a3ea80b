# SPDX-License-Identifier: Apache-2.0
"""Engine images for the local registry: official ones where they can be reached, else built here.

A locally built image carries the official repository name, a version tag, and the official image's entry point, port
and environment, so that roles and plans treat both alike. Which versions are wanted is read from the project's own
version table, ``group_vars/all/engines.yml``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from . import registry
from .host import podman
from .recipes import DEFAULT, recipes
from .recipes.base import Recipe
from .settings import PREFIX, PROJECT_ROOT, cache_dir, registry_address
from .shell import LocalNodesError, alone, run, step


def all_recipes() -> dict[str, Recipe]:
    """Name → recipe of every image that local nodes may pull."""
    loaded = yaml.safe_load((PROJECT_ROOT / "group_vars" / "all" / "engines.yml").read_text())
    return recipes(dict(loaded["inference_engines"]))


def images_of_inventory(file: Path) -> list[str]:
    """Names of the images that an inventory's nodes pull: ``local_node_images`` of ``all``, or the default ones."""
    variables = (yaml.safe_load(file.read_text()).get("all") or {}).get("vars") or {}
    return [str(name) for name in variables.get("local_node_images", DEFAULT)]


def _copy_official(reference: str, target: str) -> bool:
    """Copy from the official registry; false when it can't be reached or has no such tag."""
    probe = ["skopeo", "--command-timeout", "15s", "inspect", "--raw", f"docker://{reference}"]
    if run(probe, check=False, timeout=30).returncode != 0:
        return False
    with step(f"image {reference} from its official registry"):
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"docker://{reference}", f"docker://{target}"]
        run(copy, timeout=1800)
    return True


def ensure_engine_images(names: Iterable[str] = DEFAULT) -> None:
    """Have the named images in the local registry; raises LocalNodesError for a name that is none."""
    known = all_recipes()
    wanted = set(names)
    if unknown := sorted(wanted - set(known)):
        raise LocalNodesError(f"no engine image {unknown[0]!r}; there are {', '.join(known)}")
    with alone(cache_dir()):
        registry.ensure_registry()
        for name, recipe in known.items():
            if name in wanted:
                _ensure(recipe)


def _ensure(recipe: Recipe) -> None:
    record = cache_dir() / "engine-images.json"
    known: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    image = f"{recipe.local_path}:{recipe.tag}"
    key = recipe.key()
    if registry.has(recipe.local_path, recipe.tag) and known.get(image) in ("official", key):
        return
    target = f"{registry_address()}/{image}"
    # An official copy once made is kept; where there was none, it is not asked for again on every change here.
    if recipe.official and image not in known and _copy_official(recipe.reference, target):
        known[image] = "official"
    else:
        with step(f"image {image}, built here"), tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
            local = f"localhost/{PREFIX}/{recipe.name}:{recipe.tag}"
            recipe.build(local, Path(folder))
            podman("push", "--quiet", "--tls-verify=false", local, f"docker://{target}", timeout=1800)
            podman("rmi", local, check=False)
        known[image] = key
    record.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def remove_engine_images() -> None:
    """Forget and delete all engine images of the local registry."""
    registry.stop_registry()
    # The registry's container wrote them as root.
    run(["rm", "-rf", cache_dir() / "registry"], root=True)
    (cache_dir() / "engine-images.json").unlink(missing_ok=True)
