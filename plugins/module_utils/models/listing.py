# SPDX-License-Identifier: Apache-2.0
"""What a node's store has and lacks, under the names that people use. Pure; runs on the controller."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.models.ollama import parse_name
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import size_text, suggestion_text
from ansible_collections.fleet.inference.plugins.module_utils.text import table

Entry = Mapping[str, Any]
HEAD = ("node", "model", "in the store as", "size", "use", "done")


def rows(
    stored: Sequence[Entry],
    wanted: Sequence[Entry],
    catalog: Mapping[str, Entry],
    served: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return the models of a store and those that it lacks.

    Args:
        stored: What fleet.inference.stored_models found.
        wanted: Entries of the plan's models.
        catalog: ``inference_models``.
        served: Public names of the models of the node's services.
        missing: What fleet.inference.model_store says is missing of ``wanted``.

    Returns:
        ``[{key, models (public names), what, size_bytes, use}]``. The use is ``planned`` (and there), ``incomplete`` or
        ``missing`` (planned), ``served`` (by a service that the plan has otherwise) or ``unused``.
    """
    found, matched = [], []
    for entry in stored:
        plans = [item for item in wanted if _is(item, entry)]
        matched += plans
        models = sorted({str(item["model"]) for item in plans} or _public_names(entry, catalog))
        use = "unused"
        if plans:
            use = "incomplete" if any(_key(item) in _keys(missing) for item in plans) else "planned"
        elif set(models) & set(served):
            use = "served"
        what = ", ".join(entry["names"])
        row = {"key": entry["key"], "models": models, "what": what, "size_bytes": entry["size_bytes"], "use": use}
        found.append(row)
    for item in wanted:
        if item not in matched:
            what = str(item.get("ollama") or item.get("repository") or posixpath.basename(item["path"]))
            size = int(item["size_bytes"])
            row = {"key": _key(item), "models": [item["model"]], "what": what, "size_bytes": size, "use": "missing"}
            found.append(row)
    return sorted(found, key=lambda row: (row["models"] or [row["what"]], row["what"]))


def chosen(found: Sequence[Entry], name: str) -> list[Entry]:
    """Return the rows that a name means: a public one, or one of the store; all that are not in use for ``unused``."""
    there = [row for row in found if row["use"] != "missing"]
    if name == "unused":
        return [row for row in there if row["use"] == "unused"]
    return [row for row in there if name in row["models"] or name in str(row["what"]).split(", ")]


def removal_problem(host: str, found: Sequence[Entry], name: str) -> str | None:
    """Return one sentence that says why a model can't be removed from a store; None when it can.

    A node whose store does not have it is no problem as long as the name is one of the catalog's or the store's.
    """
    rows_of_it = chosen(found, name)
    used = [row for row in rows_of_it if row["use"] != "unused"]
    if used:
        why = "a service serves it" if used[0]["use"] == "served" else "the plan names it"
        return (
            f"{host}: the model {name} is in use, because {why}; take it out of the node's variables first, and run "
            "site.yml"
        )
    return None


def name_problem(name: str, found: Sequence[Entry], catalog: Mapping[str, Any]) -> str | None:
    """Return one sentence when a name is neither one of the catalog nor of a store; None otherwise."""
    there = [row for row in found if row["use"] != "missing"]
    known = {name for row in there for name in [*row["models"], *str(row["what"]).split(", ")]}
    if name in ("unused", *catalog) or name in known:
        return None
    return f"the model is {name!r}, which no store has; {suggestion_text(name, known, 'stored')}"


def lines(found: Sequence[Entry]) -> list[str]:
    """Return the table of rows, each with ``node`` and ``done``."""
    cells = [
        [
            str(row["node"]),
            ", ".join(row["models"]) or "-",
            str(row["what"]),
            size_text(int(row["size_bytes"])),
            str(row["use"]),
            str(row["done"] or "-"),
        ]
        for row in found
    ]
    return table([HEAD, *cells], right=[3]) if cells else []


def _is(item: Entry, entry: Entry) -> bool:
    """Whether a wanted model is this one of the store."""
    if item.get("ollama"):
        return entry["kind"] == "ollama" and _full(str(item["ollama"])) in map(_full, entry["names"])
    return str(entry["key"]).removesuffix(".partial") == str(item["path"])


def _full(name: str) -> str:
    """Return a name as Ollama completes it."""
    return name if ":" in name else f"{name}:latest"


def _key(item: Entry) -> str:
    """Return the beginning of what fleet.inference.model_store calls a missing model."""
    if item.get("ollama"):
        return posixpath.join(str(item["path"]), "manifests", *parse_name(str(item["ollama"])))
    return str(item["path"])


def _keys(missing: Sequence[str]) -> set[str]:
    return {key.partition("@")[0] for key in missing}


def _public_names(entry: Entry, catalog: Mapping[str, Entry]) -> set[str]:
    """Return the names under which the catalog has a model of the store."""
    found = set()
    for name, model in catalog.items():
        own = {str((model.get("ollama") or {}).get("tag")), name}
        files = {str(item["file"]) for item in _gguf_files(model)}
        repositories = {str(item.get("repository")) for item in model.get("safetensors") or ()}
        known = {"gguf": files, "repository": repositories, "ollama": own}[str(entry["kind"])]
        if known & {str(item).removesuffix(".partial") for item in entry["names"]}:
            found.add(name)
    return found


def _gguf_files(model: Entry) -> list[Entry]:
    return [part for item in model.get("gguf") or () for part in item.get("files") or [item]]
