# SPDX-License-Identifier: Apache-2.0
"""Engine images for the local registry: official ones where they can be reached, else built here.

A locally built image carries the official repository name, a version tag, and the official image's entry point, port
and environment, so that roles and plans treat both alike. Which versions are wanted is read from the project's own
version table, ``group_vars/all/engines.yml``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from . import registry
from .host import podman
from .node_images import mmdebstrap
from .settings import PREFIX, PROJECT_ROOT, cache_dir, registry_address
from .shell import LocalNodesError, alone, run, step

LITELLM_FOLDER = Path(__file__).resolve().parents[1] / "images" / "litellm"
#: The Python of Debian 13, which the lock file in images/litellm is resolved for.
LITELLM_PYTHON = "313"
ENTRYPOINT_SCRIPT = """\
#!/bin/sh
exec python3 -c 'from litellm import run_server; run_server()' "$@"
"""


def _engines() -> dict[str, Any]:
    loaded = yaml.safe_load((PROJECT_ROOT / "group_vars" / "all" / "engines.yml").read_text())
    return dict(loaded["inference_engines"])


def wanted() -> dict[str, tuple[str, str]]:
    """Short name → (repository with its registry, tag) of each image that local nodes pull."""
    engines = _engines()
    llamacpp = engines["llamacpp"]["variants"]["cpu"]
    litellm = engines["litellm"]
    return {
        "llamacpp": (llamacpp["repository"], llamacpp["tag"]),
        "litellm": (litellm["repository"], litellm["tag"]),
    }


def _import(archive: Path, image: str, changes: list[str]) -> None:
    options: list[str] = []
    for change in changes:
        options += ["--change", change]
    podman("import", "--quiet", *options, archive, image)


def build_llamacpp(image: str, folder: Path) -> None:
    """llama-server from Debian's package, started as the official server image starts it."""
    archive = folder / "llamacpp.tar"
    hook = '--customize-hook=mkdir -p "$1/app" && ln -s /usr/bin/llama-server "$1/app/llama-server"'
    mmdebstrap("forky", ["llama.cpp-tools", "ca-certificates", "curl"], archive, "--variant=essential", hook)
    # The official image sets the host; the port is upstream's default, which Debian's build changes.
    changes = ["ENV LLAMA_ARG_HOST=0.0.0.0", "ENV LLAMA_ARG_PORT=8080", "WORKDIR /app", "EXPOSE 8080"]
    _import(archive, image, [*changes, 'ENTRYPOINT ["/app/llama-server"]'])


def _litellm_site(site: Path, wheels: Path) -> None:
    """Unpack LiteLLM and all it needs, by the lock file, for the image's Python whatever this machine's is."""
    platforms = ["manylinux_2_36", "manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_24"]
    platforms = [f"{each}_x86_64" for each in [*platforms, "manylinux_2_17", "manylinux2014", "manylinux2010"]]
    argv = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    argv += ["--python-version", LITELLM_PYTHON, "--implementation", "cp"]
    argv += [word for abi in (f"cp{LITELLM_PYTHON}", "abi3", "none") for word in ("--abi", abi)]
    argv += [word for platform in [*platforms, "manylinux1_x86_64"] for word in ("--platform", platform)]
    run([*argv, "-d", str(wheels), "-r", str(LITELLM_FOLDER / "requirements.txt")])
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def build_litellm(image: str, folder: Path) -> None:
    """LiteLLM's proxy from its wheels, started as the official image starts it."""
    archive, payload = folder / "litellm.tar", folder / "app"
    site, script = payload / "site", payload / "docker" / "prod_entrypoint.sh"
    script.parent.mkdir(parents=True)
    script.write_text(ENTRYPOINT_SCRIPT)
    script.chmod(0o755)
    _litellm_site(site, folder / "wheels")
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
    _import(archive, image, changes)


BUILDERS: dict[str, Callable[[str, Path], None]] = {"llamacpp": build_llamacpp, "litellm": build_litellm}


def _inputs_key(name: str) -> str:
    """Changes when the recipe or the lock file of a locally built image does."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    if name == "litellm":
        digest.update((LITELLM_FOLDER / "requirements.txt").read_bytes())
    return digest.hexdigest()[:16]


def _copy_official(reference: str, target: str) -> bool:
    """Copy from the official registry; false when it can't be reached or has no such tag."""
    probe = ["skopeo", "--command-timeout", "15s", "inspect", "--raw", f"docker://{reference}"]
    if run(probe, check=False, timeout=30).returncode != 0:
        return False
    with step(f"image {reference} from its official registry"):
        copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"docker://{reference}", f"docker://{target}"]
        run(copy, timeout=1800)
    return True


def ensure_engine_images(names: list[str] | None = None) -> None:
    """Have the wanted images in the local registry. ``names`` narrows it; default is all."""
    with alone(cache_dir()):
        _ensure_engine_images(names)


def _ensure_engine_images(names: list[str] | None) -> None:
    registry.ensure_registry()
    record = cache_dir() / "engine-images.json"
    known: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for name, (repository, tag) in wanted().items():
        if names is not None and name not in names:
            continue
        reference, path = f"{repository}:{tag}", repository.partition("/")[2]
        key = _inputs_key(name)
        in_registry = registry.has(path, tag)
        if in_registry and known.get(reference) in ("official", key):
            continue
        target = f"{registry_address()}/{path}:{tag}"
        # An official copy once made is kept; where there was none, it is not asked for again on every change here.
        if reference not in known and _copy_official(reference, target):
            known[reference] = "official"
        else:
            with step(f"image {reference}, built here"), tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
                local = f"localhost/{PREFIX}/{name}:{tag}"
                BUILDERS[name](local, Path(folder))
                podman("push", "--quiet", "--tls-verify=false", local, f"docker://{target}", timeout=1800)
                podman("rmi", local, check=False)
            known[reference] = key
        record.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def remove_engine_images() -> None:
    """Forget and delete all engine images of the local registry."""
    registry.stop_registry()
    # The registry's container wrote them as root.
    run(["rm", "-rf", cache_dir() / "registry"], root=True)
    (cache_dir() / "engine-images.json").unlink(missing_ok=True)


def check_name(name: str) -> str:
    """The name itself when it is one of the engine images."""
    if name not in BUILDERS:
        raise LocalNodesError(f"no engine image {name!r}; there are {', '.join(BUILDERS)}")
    return name
