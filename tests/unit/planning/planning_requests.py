# SPDX-License-Identifier: Apache-2.0
"""Requests, units and situations for the tests of backends, made from the machines of planning_machines."""

from __future__ import annotations

from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog, Model
from ansible_collections.fleet.inference.plugins.module_utils.planning.compatibility import first_variant
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import (
    HOST_SHARE,
    UNIT_SHARE,
    Artifact,
    Request,
    Setting,
    Share,
    Situation,
    Unit,
)
from planning_machines import catalog

BOOK = Catalog("gpu-01", catalog())


def model(name: str) -> Model:
    """Return a model of the project's catalog."""
    return BOOK.model(name, "the test")


def models(backend: Any) -> list[Model]:
    """Return all models of the project's catalog that a backend can load."""
    return [item for item in map(model, BOOK.model_names) if backend.artifacts(item)]


def request(backend: Any, name: str, units: int, **changes: Any) -> Request:
    """Return a request for a model with all its artifacts."""
    what = model(name)
    return Request(backend.name, what, changes.pop("artifacts", backend.artifacts(what)), units, **changes)


def units(machine: dict[str, Any]) -> tuple[Unit, ...]:
    """Return the whole GPUs of a machine as units."""
    return tuple(
        Unit(
            identity=str(device["uuid"] or device["pci_bus_id"]),
            kind="gpu",
            title=f"GPU {device['index']}",
            index=device["index"],
            vendor=device["vendor"],
            architecture=device["architecture"],
            memory_bytes=device["memory_total_bytes"],
            unified=device["unified_memory"],
            numa_node=None,
            domain=None,
            link=None,
            device=device,
        )
        for device in machine["devices"]
    )


def situation(backend: Any, machine: dict[str, Any], **changes: Any) -> Situation:
    """Return the situation of a service alone on all GPUs of a machine, which may take all that services may."""
    used = units(machine)
    engine = BOOK.engine(backend.name)
    tier = machine["tier"]
    variant = first_variant(engine, tier, machine["devices"][0] if used else None, machine)
    memory = used[0].memory_bytes if used and used[0].memory_bytes else machine["memory_total_bytes"]
    part = UNIT_SHARE if used and used[0].memory_bytes else HOST_SHARE
    fields = {
        "engine": engine,
        "variant": variant,
        "tier": tier,
        "units": used,
        "share": Share(int(memory * part), memory, 0, True),
        "served_name": "the-model",
        "threads": machine["cpu"]["cores"],
        "prompt_cache_bytes": 1024**3,
        "extra_arguments": (),
        "extra_environment": {},
        "host": "gpu-01",
    }
    return Situation(**{**fields, **changes})


def chosen(backend: Any, asked: Request, budget: int) -> Setting:
    """Return the last setting of the ladder that fits into the bytes of a unit, as the plan chooses it."""
    last = None
    for setting in backend.settings(asked):
        if backend.demand(asked, setting).total > budget:
            break
        last = setting
    assert last is not None, "not even the smallest setting fits"
    return last


def first(asked: Request, context: int = 8192, parallel: int = 4, artifact: Artifact | None = None) -> Setting:
    """Return a setting with a request's first artifact."""
    return Setting(artifact or asked.artifacts[0], context, parallel)
