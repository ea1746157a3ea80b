# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a fleet should serve together: the model that most of them share, and what each adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog, Model
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend import (
    Chooser,
    Node,
    Recommendation,
)

#: Steps of quality that it is worth when more nodes of a fleet serve the same model.
SHARING_WORTH = 1.0


class FleetRecommendation(TypedDict):
    """What the nodes of a fleet should serve; ``common_model`` is the one that most of them share."""

    common_model: str | None
    nodes: dict[str, Recommendation]
    why: list[str]
    better: list[str]


def recommend_fleet(nodes: Iterable[Node], workload: str, catalog: Catalog) -> FleetRecommendation:
    """Return what every node of a fleet should serve for a workload.

    The common model is one that at least half of the nodes can serve well (see ``_common_model``). For a workload of
    many chat users these nodes serve nothing else, since replicas of one model share the load, and the other nodes
    share a model in the same way. For other workloads a node serves its own best model beside the common one where both
    fit, and a node that cannot serve the common one gets what suits it alone.

    Raises:
        PlanError: The workload or a measured result is wrong, or no node can serve anything.
    """
    choosers = {node.host: Chooser(node, workload, catalog) for node in sorted(nodes, key=lambda node: node.host)}
    shared, common, able = _shared_models(choosers)
    found: dict[str, Recommendation] = {}
    failed: list[str] = []
    for name, chooser in choosers.items():
        try:
            found[name] = chooser.recommend(shared.get(name))
        except PlanError as error:
            found[name] = {"services": [], "why": [], "better": [str(error)]}
            failed.append(str(error))
    if choosers and len(failed) == len(choosers):
        raise PlanError("; ".join(failed))
    why, better = [], failed
    if common is not None:
        why.append(f"{common} is the best model for at least half of the nodes: {', '.join(able)} serve it")
        missing = [name for name in choosers if name not in able]
        if missing:
            better.append(f"{common} cannot be served well on {', '.join(missing)}: larger or newer nodes would")
    return {"common_model": common, "nodes": found, "why": why, "better": better}


def _shared_models(choosers: Mapping[str, Chooser]) -> tuple[dict[str, str], str | None, list[str]]:
    """Return which model every node shares with others, the most common one, and the nodes that serve it."""
    common, able = _common_model(choosers)
    shared = {} if common is None else dict.fromkeys(able, common)
    left = {name: chooser for name, chooser in choosers.items() if name not in shared}
    # Replicas of few models: what is left of the fleet shares a model as well.
    while left and any(chooser.replicates for chooser in left.values()):
        model, names = _common_model(left)
        if model is None:
            break
        shared.update(dict.fromkeys(names, model))
        left = {name: chooser for name, chooser in left.items() if name not in shared}
    return shared, common, able


def _common_model(choosers: Mapping[str, Chooser]) -> tuple[str | None, list[str]]:
    """Return the model for most of the nodes, and the nodes that serve it well.

    It is served by at least half of the nodes. The best of these models sets the quality; of those that are at most
    ``SHARING_WORTH`` steps below, the one that most nodes serve is taken, and the best where several are.
    """
    models = {model.name: model for chooser in choosers.values() for model in chooser.models}
    found: list[tuple[Model, list[str]]] = []
    for model in models.values():
        able = [name for name, chooser in choosers.items() if chooser.serves_well(model)]
        if able and 2 * len(able) >= len(choosers):
            found.append((model, able))
    if not found:
        return None, []
    judge = next(iter(choosers.values()))
    least = max(judge.quality(model) for model, _able in found) - SHARING_WORTH
    near = [item for item in found if judge.quality(item[0]) >= least]
    model, able = max(near, key=lambda item: (len(item[1]), judge.rank(item[0])))
    return model.name, able
