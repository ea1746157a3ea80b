# SPDX-License-Identifier: Apache-2.0
"""What a planned service is as a container: the options of fleet.inference.container_service, for every backend.

The plan decides what the engine is told; here is what its container is given beside that. Times are seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.ollama import parse_name
from ansible_collections.fleet.inference.plugins.module_utils.planning import backend_vllm, tensor_engines
from ansible_collections.fleet.inference.plugins.module_utils.planning.backends import BACKENDS
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError, suggestion_text
from ansible_collections.fleet.inference.plugins.module_utils.planning.llamacpp import MODELS_MOUNT
from ansible_collections.fleet.inference.plugins.module_utils.planning.units import units
from ansible_collections.fleet.inference.plugins.module_utils.services.image import parse_reference

#: Below the model store, and below /models in the containers.
HUB_FOLDER, OLLAMA_FOLDER = posixpath.basename(tensor_engines.HUB_MOUNT), "ollama"
#: Where the driver keeps what it compiled; 4 GiB is the most it takes (CUDA_CACHE_MAXSIZE in the CUDA C++ Programming
#: Guide), and an image with PTX alone needs more than the 1 GiB that it takes unless told.
_CUDA_CACHE = {"CUDA_CACHE_PATH": f"{tensor_engines.CACHE_MOUNT}/cuda", "CUDA_CACHE_MAXSIZE": str(4 * 1024**3)}
#: torch asks for the user's name while it is imported, and a numeric user has none in the image.
_USER_NAME = {"LOGNAME": "inference", "USER": "inference"}


@dataclass(frozen=True)
class Container:
    """What the container of a backend's service is like.

    ``models`` is what it finds below /models: the folder of its ``file``, or a folder of the store. ``keeps`` says
    whether something is worth keeping between starts without a GPU too: what the driver compiles always is.
    ``idle_timeout`` is how long its requests may take to finish before it is told to end, for an engine that cuts them
    then; the others finish them by themselves, within ``stop_timeout``.
    """

    title: str
    models: str
    health_path: str
    stop_timeout: int
    processes: int
    models_path: str = "/v1/models"
    keeps: bool = False
    request_timeout: int = 30
    idle_timeout: int = 0


CONTAINERS = {
    "llamacpp": Container("llama.cpp", "file", "/health", stop_timeout=10, processes=512, idle_timeout=120),
    # / answers before there is a model.
    "ollama": Container(
        "Ollama", OLLAMA_FOLDER, "/", stop_timeout=30, processes=2048, models_path="/api/tags", idle_timeout=120
    ),
    # Finishes all requests however long they take, so this is their limit. The path /ready is not in all releases of
    # the engine table; /health answers 503 until the model has loaded.
    "sglang": Container(
        "SGLang",
        HUB_FOLDER,
        "/health",
        stop_timeout=120,
        processes=8192,
        keeps=True,
        request_timeout=120,
    ),
    # Refuses connections until it has loaded. Its workers need time after the last request.
    "vllm": Container(
        "vLLM",
        HUB_FOLDER,
        "/health",
        stop_timeout=backend_vllm.SHUTDOWN_SECONDS + 30,
        processes=8192,
        keeps=True,
        request_timeout=120,
    ),
}


def service_steps(plan: Mapping[str, Any], running: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what to do on a node, in its order: remove what the plan does not name, then serve.

    Services that run come before new ones, for one of them may give its port or its GPU to a new one; among both the
    order is that of the plan.

    Args:
        plan: The node's plan.
        running: ``services`` of the node's facts.

    Returns:
        A list of steps for one backend each, ``{"backend", "remove": [names], "serve": [names]}``.
    """
    planned = {service["name"]: service["backend"] for service in plan["services"]}
    there = {item.get("name"): item.get("backend") for item in running}
    order = {name: number for number, name in enumerate(plan["start_order"])}
    left = sorted(
        (str(backend), str(name)) for name, backend in there.items() if backend in BACKENDS and name not in planned
    )
    ordered = sorted(planned, key=lambda name: (name not in there, order.get(name, len(order))))
    steps = []
    for backend, group in itertools.groupby(left, key=lambda item: item[0]):
        steps.append({"backend": backend, "remove": [name for _backend, name in group], "serve": []})
    for backend, names in itertools.groupby(ordered, key=lambda name: planned[name]):
        steps.append({"backend": backend, "remove": [], "serve": list(names)})
    return steps


def service_options(
    name: str,
    plan: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    user: str,
    models_path: str,
    state_root: str,
) -> dict[str, Any]:
    """Return the options of fleet.inference.container_service for one service of a plan.

    Args:
        name: The service's name.
        plan: The node's plan.
        facts: ``ansible_facts.gpu`` of the node.
        user: Numeric user and group of the container's process, ``uid:gid``.
        models_path: The model store on the node.
        state_root: Folder of the fleet's state on the node; caches are kept below it.

    Raises:
        PlanError: The plan has no such service.
    """
    services = {service["name"]: service for service in plan["services"]}
    if name not in services:
        raise PlanError(
            f"{plan['node']}: {name!r} is no service of the plan; {suggestion_text(name, sorted(services), 'known')}"
        )
    service = services[name]
    kind = CONTAINERS[service["backend"]]
    models = [model["name"] for model in service["models"]]
    env = {"HOME": "/tmp"}  # noqa: S108 - a tmpfs of the container's own
    mounts = _models_mounts(service, kind, models_path)
    if kind.keeps or service["units"]:
        source = posixpath.join(state_root, "caches", service["backend"], _cache_key(service, facts))
        mounts.append({"source": source, "target": tensor_engines.CACHE_MOUNT, "read_only": False, "owner": user})
        env = {"HOME": tensor_engines.CACHE_MOUNT, "XDG_CACHE_HOME": tensor_engines.CACHE_MOUNT, **_USER_NAME}
        if service["tier"] == "cuda":
            env.update(_CUDA_CACHE)
    if service["backend"] == "ollama":
        # The store is read-only: Ollama would remove from it what no manifest names.
        env.update({"OLLAMA_MODELS": f"{MODELS_MOUNT}/{OLLAMA_FOLDER}", "OLLAMA_NOPRUNE": "1"})
    if service["backend"] == "sglang":
        # Unless told, /health generates a token, for which it sleeps a second at least, and the gateways ask it often.
        env["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "false"
    return {
        "name": name,
        "description": f"{kind.title} serving {', '.join(models)}",
        "backend": service["backend"],
        "model": service["model"],
        "models": models if len(models) > 1 else [],
        "units": [unit["identity"] for unit in service["units"]],
        "image": service["image"],
        "command": list(service["arguments"]),
        "env": {**env, **service["env"]},
        "files": _ollama_models(service, plan["node"]),
        "mounts": mounts,
        # Compilers load what they wrote there.
        "tmpfs": ["/tmp:exec" if kind.keeps else "/tmp"],  # noqa: S108
        "ports": [
            {
                "address": service["address"],
                "host_port": service["port"],
                "container_port": service["container_port"],
            }
        ],
        "devices": [path for device in service["devices"] for path in device["container_devices"]],
        "groups": list(dict.fromkeys(group for device in service["devices"] for group in device["container_groups"])),
        "user": user,
        "shm_size_bytes": service["shared_memory_bytes"] or None,
        "memory_limit_bytes": service["memory_limit_bytes"],
        "pids_limit": kind.processes,
        "stop_timeout_seconds": kind.stop_timeout,
        "idle_timeout_seconds": kind.idle_timeout,
        "start_after": _earlier(service, plan),
        "readiness": _readiness(service, kind),
    }


def _models_mounts(service: Mapping[str, Any], kind: Container, models_path: str) -> list[dict[str, Any]]:
    file = service["model_file"]
    if kind.models == "file":
        return [{"source": posixpath.dirname(file["path"]), "target": MODELS_MOUNT, "read_only": True}]
    target = f"{MODELS_MOUNT}/{kind.models}"
    if file is None:
        return [{"source": posixpath.join(models_path, kind.models), "target": target, "read_only": True}]
    # Two names may be of one file.
    files = {model["model_file"]["sha256"]: model["model_file"]["path"] for model in service["models"]}
    return [
        {"source": path, "target": f"{target}/blobs/sha256-{checksum}", "read_only": True}
        for checksum, path in files.items()
    ]


def _ollama_models(service: Mapping[str, Any], host: str) -> list[dict[str, Any]]:
    """Return the files that make GGUF files models of Ollama's store, in which they lie under their checksums.

    ``ollama create`` would write a second copy of the weights (createModel in Ollama's server/create.go). A manifest
    that names them is enough (manifest/paths.go, types/model/config.go): without a template of its own Ollama takes the
    file's.
    """
    files: dict[str, dict[str, Any]] = {}
    if service["backend"] != "ollama" or service["model_file"] is None:
        return []
    for number, model in enumerate(service["models"], start=1):
        for item in _ollama_model(model, host, "" if number == 1 else f"-{number}"):
            # Models of one quantization have one configuration.
            files.setdefault(item["target"], item)
    return list(files.values())


def _ollama_model(model: Mapping[str, Any], host: str, ending: str) -> list[dict[str, Any]]:
    """Return manifest and configuration of one model that is a GGUF file."""
    file = model["model_file"]
    try:
        parts = parse_name(model["name"])
    except StoreError as error:
        raise PlanError(f"{host}: {error}") from error
    config = {"model_format": "gguf", "file_type": model["quantization"], "architecture": "amd64", "os": "linux"}
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    kinds = {
        "config": ("application/vnd.docker.container.image.v1+json", digest, len(text.encode("utf-8"))),
        "model": ("application/vnd.ollama.image.model", file["sha256"], file["size_bytes"]),
    }
    layers = {
        layer: {"mediaType": kind, "digest": f"sha256:{checksum}", "size": size}
        for layer, (kind, checksum, size) in kinds.items()
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layers["config"],
        "layers": [layers["model"]],
    }
    store = f"{MODELS_MOUNT}/{OLLAMA_FOLDER}"
    # Everybody may read them, as the server in the container must.
    return [
        {
            "name": f"ollama-manifest{ending}.json",
            "content": json.dumps(manifest, indent=2) + "\n",
            "target": posixpath.join(store, "manifests", *parts),
            "mode": "0644",
        },
        {
            "name": f"ollama-config{ending}.json",
            "content": text,
            "target": f"{store}/blobs/sha256-{digest}",
            "mode": "0644",
        },
    ]


def _cache_key(service: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return the name of a cache's folder: what is compiled for one image and architecture is of no use to another."""
    identities = {unit["identity"] for unit in service["units"]}
    found = units(facts, service["tier"]) if identities else ()
    architectures = {unit.architecture or "unknown" for unit in found if unit.identity in identities}
    if not architectures:
        architectures = {str((facts.get("cpu") or {}).get("architecture") or "unknown")}
    version = parse_reference(service["image"]).version.removeprefix("sha256:")[:32]
    return re.sub(r"[^A-Za-z0-9._-]", "_", "-".join([service["variant"], version, *sorted(architectures)]))


def _earlier(service: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Return the units of the services that share a GPU with this one and start before it."""
    mine = {unit["identity"] for unit in service["units"]}
    sharing = {other["name"] for other in plan["services"] if mine & {unit["identity"] for unit in other["units"]}}
    order = list(plan["start_order"])
    return [f"inference-{name}.service" for name in order[: order.index(service["name"])] if name in sharing]


def _readiness(service: Mapping[str, Any], kind: Container) -> dict[str, Any]:
    found: dict[str, Any] = {
        "host": service["address"],
        "port": service["port"],
        "health_path": kind.health_path,
        "models_path": kind.models_path,
        "model": service["model"],
        "generate_path": "/v1/chat/completions",
        "generate_body": {
            "model": service["model"],
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 1,
        },
        "request_timeout_seconds": kind.request_timeout,
        "timeout_seconds": service["readiness_timeout_seconds"],
    }
    if service["backend"] == "ollama":
        # It loads a model when it is first asked, and stops loading when the one who asked goes away.
        found["request_timeout_seconds"] = service["readiness_timeout_seconds"]
        # The plan sets this variable where some layers are wished on the CPU.
        layers = service["env"].get("LLAMA_ARG_N_GPU_LAYERS")
        if service["units"] and layers != "0":
            found.update(gpu_path="/api/ps", gpu_whole=layers is None)
        further = [model["name"] for model in service["models"][1:]]
        if further:
            # Where not all stay in memory, asking one unloads another.
            together = int(service["env"]["OLLAMA_MAX_LOADED_MODELS"]) > len(further)
            found.update(further_models=further, further_answer=together)
    return found
