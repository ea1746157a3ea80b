# SPDX-License-Identifier: Apache-2.0
"""The environment of a llama.cpp server.

Names are those of ``llama-server --help``: every option has a variable ``LLAMA_ARG_*``. Options travel as environment
and not as arguments, so that the image's entry point and a user's own variables work together.
"""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import MIB, PlanError

MODELS_MOUNT = "/models"

#: Variables that would undo what the plan sets, and what to set in their place.
_OVERRIDES = {
    "LLAMA_ARG_API_PREFIX": "the gateway expects the API at /v1",
    "LLAMA_ARG_DOCKER_REPO": "set llamacpp_model",
    "LLAMA_ARG_HF_FILE": "set llamacpp_model",
    "LLAMA_ARG_HF_REPO": "set llamacpp_model",
    "LLAMA_ARG_KV_UNIFIED": "every slot has its own context",
    "LLAMA_ARG_MODELS_DIR": "list several services in inference_services",
    "LLAMA_ARG_MODEL_URL": "set llamacpp_model",
    "LLAMA_ARG_UBATCH": "the memory estimate is made for 512",
}
_SETTING_OF = {
    "LLAMA_ARG_CACHE_TYPE_K": "llamacpp_kv_cache_type",
    "LLAMA_ARG_CACHE_TYPE_V": "llamacpp_kv_cache_type",
    "LLAMA_ARG_CTX_SIZE": "llamacpp_ctx_size",
    "LLAMA_ARG_MODEL": "llamacpp_model",
    "LLAMA_ARG_N_GPU_LAYERS": "llamacpp_gpu_layers",
    "LLAMA_ARG_N_PARALLEL": "llamacpp_parallel",
}


def environment(
    *,
    file: str,
    model: str,
    context_length: int,
    parallel: int,
    kv_cache_type: str,
    gpu_layers: int | str,
    threads: int | None,
    cache_ram_bytes: int,
    container_port: int,
) -> dict[str, str]:
    """Return the variables of one server.

    ``--ctx-size`` is the context of all slots together: an explicit ``--parallel`` splits it into equal parts.
    ``--fit`` is off because everything it would adjust is already sized; the web interface and the slots' contents
    are not shown on the fleet's network.
    """
    env = {
        "LLAMA_ARG_ALIAS": model,
        "LLAMA_ARG_CACHE_RAM": str(cache_ram_bytes // MIB),
        "LLAMA_ARG_CACHE_TYPE_K": kv_cache_type,
        "LLAMA_ARG_CACHE_TYPE_V": kv_cache_type,
        "LLAMA_ARG_CTX_SIZE": str(context_length * parallel),
        "LLAMA_ARG_ENDPOINT_METRICS": "1",
        "LLAMA_ARG_ENDPOINT_SLOTS": "0",
        "LLAMA_ARG_FIT": "off",
        "LLAMA_ARG_HOST": "0.0.0.0",  # noqa: S104 - inside the container; the port is published on one address
        "LLAMA_ARG_MODEL": f"{MODELS_MOUNT}/{file}",
        "LLAMA_ARG_N_GPU_LAYERS": str(gpu_layers),
        "LLAMA_ARG_N_PARALLEL": str(parallel),
        "LLAMA_ARG_PORT": str(container_port),
        "LLAMA_ARG_UI": "0",
    }
    if threads is not None:
        env["LLAMA_ARG_THREADS"] = str(threads)
    return env


def with_extra(host: str, env: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the user's own variables, sorted by name.

    Raises:
        PlanError: A variable of ``llamacpp_env`` is set by the plan or would undo it.
    """
    for name in sorted(extra):
        plain = name.replace("LLAMA_ARG_NO_", "LLAMA_ARG_")
        if plain in env:
            instead = _SETTING_OF.get(plain)
            remedy = f"leave it out and set {instead}" if instead else "leave it out"
            raise PlanError(f"{host}: llamacpp_env sets {name}, which the plan sets; {remedy}")
        if plain in _OVERRIDES:
            raise PlanError(
                f"{host}: llamacpp_env sets {name}, which would undo the plan; leave it out: {_OVERRIDES[plain]}"
            )
    return dict(sorted({**env, **extra}.items()))
