# SPDX-License-Identifier: Apache-2.0
"""A plan explained: what runs where, the memory it takes, how many requests it serves at once, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.core import HOST_SHARE, Unit
from ansible_collections.fleet.inference.plugins.module_utils.planning.units import names, units, unusable
from ansible_collections.fleet.inference.plugins.module_utils.text import gib, joined, table

SCHEMA_VERSION = 1
#: Longest line. Ansible puts four blanks before the lines of a message, which makes 120 columns of them.
WIDTH = 116
#: Characters of a memory bar between its brackets.
BAR_WIDTH = 50
#: What a memory bar shows, from the left: field of the document, character, words of the legend.
BAR = (
    ("weights_bytes", "#", "weights"),
    ("kv_cache_bytes", "=", "KV cache"),
    ("overhead_bytes", "+", "overhead"),
    ("beside_bytes", "h", "host memory of GPU services"),
    ("free_bytes", ".", "free"),
    ("reserved_bytes", "-", "not for services"),
)
#: Columns of the labels on the left.
LABEL_WIDTH = 13

_HOST = "host"
_HOST_UNIT: dict[str, Any] = {"identity": _HOST, "title": "host memory", "index": None, "memory_bytes": None}
_CONCURRENCY = ("requests", "short_requests", "short_request_tokens", "kv_cache_tokens")
_MODEL = ("name", "quantization", "context_length", "parallel")
_HEAD = ["Name", "Backend", "Model", "Weights", "Runs on", "TP", "Context", "Requests", "Port"]
_NUMBERS = (5, 6, 7, 8)
#: The columns that are cut where a table is too wide, and how short they may become; the full text stands below it.
_FLEXIBLE = {0: 12, 2: 20, 3: 12, 4: 12}


def document(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the explanation of a plan for programs. Sizes are bytes, contexts tokens; what is unknown is None.

    Args:
        plan: What ``plan_node`` returns.
        facts: ``ansible_facts.gpu`` of the node: names and memory of what services can be put on are read.

    Returns:
        schema_version, node, address, tier, recommendation (as in the plan), services (with units, memory of one unit,
        concurrency and decisions), memory (one entry a unit that serves, then the host's where it is used), unused
        (units without a service), unusable (sentences about other GPUs), start_order and warnings.
    """
    plan, facts = _mapping(plan), _mapping(facts)
    tier = plan.get("tier")
    known = {unit.identity: unit for unit in units(facts, str(tier))}
    services = [_service(item, known) for item in _mappings(plan.get("services"))]
    return {
        "schema_version": SCHEMA_VERSION,
        "node": plan.get("node"),
        "address": plan.get("address"),
        "tier": tier,
        "recommendation": plan.get("recommendation"),
        "services": services,
        "memory": _pools(services, known, facts.get("memory_total_bytes")),
        "unused": _unused(services, known),
        "unusable": unusable(facts, str(tier)),
        "start_order": [str(name) for name in plan.get("start_order") or ()],
        "warnings": [str(item) for item in plan.get("warnings") or ()],
    }


def lines(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return the explanation of a plan for people: plain lines of at most ``WIDTH`` characters, without line ends."""
    told = document(plan, facts)
    services = told["services"]
    found = _wrapped("Node", joined([told["node"], _after("tier", told["tier"]), told["address"]]))
    found += _recommended(_mapping(told["recommendation"]))
    found += _services(services)
    found += _memory(told["memory"])
    found += _wrapped("Unused", _names(told["unused"]) if told["unused"] else None)
    found += _bullets("Not usable", told["unusable"])
    for number, text in enumerate(text for service in services for text in _answered(service)):
        found += _wrapped("" if number else "Requests", text)
    if len(services) > 1:
        found += _wrapped("Start", ", then ".join(told["start_order"]))
    for number, service in enumerate(services):
        title = joined([service["name"], service["backend"], _models(service), _weights(service), _where(service)])
        found += _wrapped("" if number else "Why", title)
        found += _bullets("", service["decisions"])
    return found + _bullets("Warnings", told["warnings"])


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _bytes(entry: Mapping[str, Any], key: str) -> int:
    return int(entry.get(key) or 0)


def _after(word: str, value: object) -> str | None:
    return None if value is None else f"{word} {value}"


def _service(service: Mapping[str, Any], known: Mapping[str, Unit]) -> dict[str, Any]:
    memory = _mapping(service.get("memory"))
    weights, overhead = _bytes(memory, "weights_bytes"), _bytes(memory, "overhead_bytes")
    # An engine that pages its KV cache makes one of all that its share leaves, at its start.
    cache = max(_bytes(memory, "kv_cache_bytes"), _bytes(memory, "share_bytes") - weights - overhead)
    concurrency = _mapping(service.get("concurrency"))
    return {
        "name": str(service.get("name") or "-"),
        "backend": service.get("backend"),
        "model": service.get("model"),
        "models": [{key: item.get(key) for key in _MODEL} for item in _mappings(service.get("models"))],
        "format": service.get("format"),
        "quantization": service.get("quantization"),
        "image": service.get("image"),
        "units": [_unit(item, known) for item in _mappings(service.get("units"))],
        "tensor_parallel_size": service.get("tensor_parallel_size"),
        "pipeline_parallel_size": service.get("pipeline_parallel_size"),
        "context_length": service.get("context_length"),
        "parallel": service.get("parallel"),
        "kv_cache_type": service.get("kv_cache_type"),
        "address": service.get("address"),
        "port": service.get("port"),
        "memory": {
            "pool": memory.get("pool"),
            "weights_bytes": weights,
            "kv_cache_bytes": cache,
            "overhead_bytes": overhead,
            "beside_bytes": _bytes(memory, "host_bytes"),
            "budget_bytes": memory.get("budget_bytes"),
        },
        "concurrency": {key: concurrency.get(key) for key in _CONCURRENCY},
        "decisions": [str(item) for item in service.get("decisions") or ()],
    }


def _unit(item: Mapping[str, Any], known: Mapping[str, Unit]) -> dict[str, Any]:
    """Return one of the plan's units with what the facts know of it."""
    identity = str(item.get("identity"))
    unit = known.get(identity)
    if unit is None:
        return {"identity": identity, "title": str(item.get("title") or identity), "index": None, "memory_bytes": None}
    return {"identity": identity, "title": unit.title, "index": unit.index, "memory_bytes": unit.memory_bytes}


def _unused(services: Sequence[Mapping[str, Any]], known: Mapping[str, Unit]) -> list[dict[str, Any]]:
    """Return the GPUs, MIG instances and partitions that no service is on, in the order of the node's units."""
    used = {unit["identity"] for service in services for unit in service["units"]}
    return [_unit({"identity": identity}, known) for identity in known if identity not in used]


def _pools(
    services: Sequence[Mapping[str, Any]], known: Mapping[str, Unit], host_bytes: int | None
) -> list[dict[str, Any]]:
    """Add up what the services take of every unit, and of the host: the units in their order, the host last."""
    pools: dict[str, dict[str, Any]] = {}
    for service in services:
        memory = service["memory"]
        # Unified memory is the host's: the plan says so by its pool, although the service has a GPU.
        on_host = memory["pool"] == _HOST or not service["units"]
        for unit in [_HOST_UNIT] if on_host else service["units"]:
            pool = pools.setdefault(unit["identity"], _pool(unit, known, host_bytes))
            pool["budget_bytes"] = pool["budget_bytes"] or memory["budget_bytes"]
            pool["services"].append(service["name"])
            for key in ("weights_bytes", "kv_cache_bytes", "overhead_bytes"):
                pool[key] += memory[key]
        if memory["beside_bytes"]:
            host = pools.setdefault(_HOST, _pool(_HOST_UNIT, known, host_bytes))
            host["beside_bytes"] += memory["beside_bytes"]
            host["services"] += [] if on_host else [service["name"]]
    order = [*known, *(key for key in pools if key not in known and key != _HOST), _HOST]
    return [_with_free(pools[key]) for key in order if key in pools]


def _pool(unit: Mapping[str, Any], known: Mapping[str, Unit], host_bytes: int | None) -> dict[str, Any]:
    """Return a unit's memory, or the host's, with nothing taken of it yet."""
    identity = unit["identity"]
    total, budget = unit["memory_bytes"], known[identity].budget if identity in known else None
    if identity == _HOST and host_bytes:
        total, budget = host_bytes, int(host_bytes * HOST_SHARE)
    return {
        "identity": identity,
        "title": unit["title"],
        "index": unit["index"],
        "services": [],
        "total_bytes": total,
        "budget_bytes": budget,
        **{key: 0 for key, _character, _words in BAR[:4]},
    }


def _with_free(pool: dict[str, Any]) -> dict[str, Any]:
    """Add what is used, what is free of the budget, and what the budget leaves to others."""
    used = sum(pool[key] for key, _character, _words in BAR[:4])
    budget = pool["budget_bytes"] or pool["total_bytes"] or used
    total = max(pool["total_bytes"] or budget, budget)
    return {
        **pool,
        "total_bytes": total,
        "budget_bytes": budget,
        "used_bytes": used,
        "free_bytes": max(0, budget - used),
        "reserved_bytes": max(0, total - max(budget, used)),
    }


def bar(pool: Mapping[str, Any]) -> str:
    """Return a memory bar: ``BAR_WIDTH`` characters in brackets, at least one for everything that is not nothing."""
    parts = [(character, int(pool[key])) for key, character, _words in BAR if pool[key] > 0]
    whole = sum(size for _character, size in parts)
    if not whole:
        return f"[{' ' * BAR_WIDTH}]"
    lengths = [max(1, size * BAR_WIDTH // whole) for _character, size in parts]
    # What rounding lost goes to the largest part; what the single characters of small ones took comes from it.
    largest = max(range(len(parts)), key=lambda number: parts[number][1])
    lengths[largest] += BAR_WIDTH - sum(lengths)
    return f"[{''.join(character * length for (character, _size), length in zip(parts, lengths, strict=True))}]"


def _wrapped(label: str, text: str | None, bullet: str = "") -> list[str]:
    """Return a text behind its label, broken where the line is full."""
    if not text:
        return []
    indent = " " * len(bullet)
    parts = textwrap.wrap(text, WIDTH - LABEL_WIDTH, initial_indent=bullet, subsequent_indent=indent or "  ")
    return [_row("" if number else label, part) for number, part in enumerate(parts)]


def _row(label: str, text: str) -> str:
    return label.ljust(LABEL_WIDTH) + text


def _bullets(label: str, texts: Iterable[object]) -> list[str]:
    """Return sentences behind one label, each with a bullet."""
    return [line for number, text in enumerate(texts) for line in _wrapped("" if number else label, str(text), "- ")]


def _recommended(recommendation: Mapping[str, Any]) -> list[str]:
    """Say for which workload the services were chosen and why, and what would do better; nothing for wished ones."""
    if not recommendation:
        return []
    found = _wrapped("Recommended", f"for the workload {recommendation.get('workload')}")
    found += _bullets("", recommendation.get("why") or ())
    return found + _bullets("Better", recommendation.get("better") or ())


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _models(service: Mapping[str, Any]) -> str | None:
    """Return the names of all models that a service serves."""
    return ", ".join(str(item["name"]) for item in service["models"]) or service["model"]


def _weights(service: Mapping[str, Any]) -> str | None:
    """Return format and quantization, which have one name where the format is the quantization."""
    return joined(list(dict.fromkeys([service["format"], service["quantization"]])), " ")


def _where(service: Mapping[str, Any]) -> str:
    """Return what a service runs on, short: ``GPU 0-7``, names of instances, or ``CPU``."""
    return _names(service["units"], short=True) if service["units"] else "CPU"


def _names(items: Iterable[Mapping[str, Any]], short: bool = False) -> str:
    """Return the names of units or pools of the document."""
    return names((item["title"] for item in items), short)


def _services(services: Sequence[Mapping[str, Any]]) -> list[str]:
    if not services:
        return [_row("Services", "none")]
    rows = [_HEAD]
    for service in services:
        rows.append(
            [
                service["name"],
                _cell(service["backend"]),
                _cell(_models(service)),
                _cell(_weights(service)),
                _where(service),
                _cell(service["tensor_parallel_size"]),
                _cell(service["context_length"]),
                _cell(service["concurrency"]["requests"]),
                _cell(service["port"]),
            ]
        )
    drawn = table(_narrowed(rows), _NUMBERS)
    return [_row("" if number else "Services", text) for number, text in enumerate(drawn)]


def _narrowed(rows: list[list[str]]) -> list[list[str]]:
    """Cut the longest of the flexible columns until the table fits."""
    columns = [max(len(cells[column]) for cells in rows) for column in range(len(_HEAD))]
    room = WIDTH - LABEL_WIDTH - 2 * (len(columns) - 1)
    while sum(columns) > room:
        wide = [column for column, least in _FLEXIBLE.items() if columns[column] > least]
        if not wide:
            break
        columns[max(wide, key=lambda column: columns[column])] -= 1
    return [[_cut(cell, columns[column]) for column, cell in enumerate(cells)] for cells in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _memory(pools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Draw every unit's memory; units that hold the same are drawn once."""
    groups: dict[tuple[object, ...], list[Mapping[str, Any]]] = {}
    for pool in pools:
        groups.setdefault((*pool["services"], pool["identity"] == _HOST, *_sizes(pool)), []).append(pool)
    found: list[str] = []
    for group in groups.values():
        pool = group[0]
        title = _names(group) + (", each" if len(group) > 1 else "")
        found += _wrapped("" if found else "Memory", f"{title}: {', '.join(pool['services'])}")
        found += _wrapped("", bar(pool)) + _wrapped("", _sum(pool))
    shown = [(character, words) for key, character, words in BAR if any(pool[key] for pool in pools)]
    return found + _wrapped("", "   ".join(f"{character} {words}" for character, words in shown))


def _sizes(pool: Mapping[str, Any]) -> tuple[int, ...]:
    return (pool["total_bytes"], pool["budget_bytes"], *(pool[key] for key, _character, _words in BAR))


def _sum(pool: Mapping[str, Any]) -> str:
    """Return a unit's memory in numbers."""
    parts = [f"{words} {gib(pool[key])}" for key, _character, words in BAR[:4] if pool[key]]
    over = pool["used_bytes"] - pool["budget_bytes"]
    end = f"{gib(over)} too much" if over > 0 else f"{gib(pool['free_bytes'])} free"
    used = f"{gib(pool['used_bytes'])} of {gib(pool['budget_bytes'])} GiB, {end}"
    return f"{' + '.join(parts)} = {used}" if parts else used


def _answered(service: Mapping[str, Any]) -> list[str]:
    """Return how many requests a service answers at once, of several models for each."""
    name, models = service["name"], service["models"]
    if len(models) < 2:
        return [f"{name}: {_requests(service)}"]
    return [
        f"{name}, {model['name']}: {model['parallel']} at once of up to {model['context_length']} tokens"
        for model in models
    ]


def _requests(service: Mapping[str, Any]) -> str:
    """Return how many requests a service answers at once; engines that page their KV cache take more short ones."""
    about, context = service["concurrency"], service["context_length"]
    if about["requests"] is None or context is None:
        return "unknown"
    text = f"{about['requests']} at once of up to {context} tokens"
    if about["short_requests"] is not None:
        text += f", or about {about['short_requests']} of {about['short_request_tokens']}"
    if about["kv_cache_tokens"] is not None:
        text += f"; the KV cache holds {about['kv_cache_tokens']} tokens"
    return text
