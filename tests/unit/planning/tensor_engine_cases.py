# SPDX-License-Identifier: Apache-2.0
"""Requests, units and situations for the tests of vLLM and SGLang, with the project's own catalog."""

from __future__ import annotations

from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog, Model
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    Artifact,
    Backend,
    Request,
    Setting,
    Share,
    Situation,
    Unit,
)
from planning_machines import GIB, catalog

BOOK = Catalog("gpu-01", catalog())
#: Every model that has safetensors, and one for each way to keep tokens: heads, copied heads, latent, window, state.
MODELS = [name for name in BOOK.model_names if BOOK.model(name, "model").safetensors]


def model(name: str) -> Model:
    """Return a model of the catalog."""
    return BOOK.model(name, "model")


def request(backend: Backend, name: str, form: str | None = None, units: int = 1, **changes: Any) -> Request:
    """Return a request for a model of the catalog, in one form or in all."""
    found = model(name)
    artifacts = tuple(item for item in backend.artifacts(found) if form in (None, item.name))
    return Request("chat", found, artifacts, units, **changes)


def setting(wanted: Request, context: int, parallel: int = 1) -> Setting:
    """Return a setting with the best of a request's artifacts."""
    return Setting(wanted.artifacts[0], context, parallel)


def best(backend: Backend, wanted: Request, budget: int) -> Setting:
    """Return the last setting of the ladder that fits into the budget; the first one must."""
    fitting = [item for item in backend.settings(wanted) if backend.demand(wanted, item).total <= budget]
    return fitting[-1]


def unit(memory: int | None, architecture: str = "8.9", vendor: str = "nvidia", **changes: Any) -> Unit:
    """Return a GPU."""
    values: dict[str, Any] = {
        "identity": "GPU-0",
        "kind": "gpu",
        "title": "GPU 0",
        "index": 0,
        "vendor": vendor,
        "architecture": architecture,
        "memory_bytes": memory,
        "unified": False,
        "numa_node": None,
        "domain": None,
        "link": None,
        "device": {},
    }
    return Unit(**{**values, **changes})


def situation(backend: Backend, memory: int = 24 * GIB, count: int = 1, **changes: Any) -> Situation:
    """Return where a service runs: alone on GPUs of this memory, with all of their budget, unless changed."""
    engine = BOOK.engine(backend.name)
    tier = "cuda" if count else "cpu"
    units = tuple(unit(memory) for _ in range(count))
    values: dict[str, Any] = {
        "engine": engine,
        "variant": next(item for item in engine.variants if item.tier == tier),
        "tier": tier,
        "units": units,
        "share": Share(units[0].budget if units else memory // 2, memory, 0, True),
        "served_name": "chat-model",
        "threads": None,
        "prompt_cache_bytes": 0,
        "extra_arguments": (),
        "extra_environment": {},
        "host": "gpu-01",
    }
    return Situation(**{**values, **changes})


def options(arguments: tuple[str, ...]) -> dict[str, str]:
    """Return the values of the arguments that have one, by name."""
    pairs = zip(arguments, (*arguments[1:], "--"), strict=True)
    return {name: value for name, value in pairs if name.startswith("--") and not value.startswith("--")}


def artifact(name: str, size: int, of: Artifact) -> Artifact:
    """Return another form of an artifact."""
    return Artifact(name, name, size, of.source)
