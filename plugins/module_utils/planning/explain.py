# SPDX-License-Identifier: Apache-2.0
"""A plan explained: what runs where, the memory it takes, how many requests it serves at once, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.planning.compatibility import device_title
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import HOST_SHARE
from ansible_collections.fleet.inference.plugins.module_utils.text import (
    LABEL_WIDTH,
    counted,
    gib,
    joined,
    ranges,
    row,
    table,
)

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
#: Backends that give their KV cache to requests block by block: shorter requests leave room for more of them.
PAGED_BACKENDS = ("sglang", "vllm")
#: Tokens of a request that is typical of a chat: what the number of shorter requests is told for.
SHORT_REQUEST = 4096

_HOST = "host"
_HEAD = ["Name", "Backend", "Model", "Weights", "Runs on", "TP", "Context", "Parallel", "Port"]
_NUMBERS = (5, 6, 7, 8)
#: The columns that are cut where a table is too wide, and how short they may become; the full text stands below it.
_FLEXIBLE = {0: 12, 2: 20, 3: 12, 4: 12}


def document(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the explanation of a plan for programs. Sizes are bytes, contexts tokens; what is unknown is None.

    Args:
        plan: What ``plan_node`` returns.
        facts: ``ansible_facts.gpu`` of the node: names and whole memory of its GPUs are read.

    Returns:
        schema_version, node, address, tier, services (with units, memory of one unit, concurrency and decisions),
        memory (one entry a unit that serves, then the host's where it is used), unused (usable GPUs without a
        service), start_order and warnings.
    """
    plan, facts = _mapping(plan), _mapping(facts)
    services = [_service(item, facts) for item in _mappings(plan.get("services"))]
    names = [service["name"] for service in services]
    return {
        "schema_version": SCHEMA_VERSION,
        "node": plan.get("node"),
        "address": plan.get("address"),
        "tier": plan.get("tier"),
        "services": services,
        "memory": _pools(services, facts),
        "unused": _unused(services, facts),
        "start_order": [str(name) for name in plan.get("start_order") or names],
        "warnings": [str(item) for item in plan.get("warnings") or ()],
    }


def lines(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return the explanation of a plan for people: plain lines of at most ``WIDTH`` characters, without line ends."""
    told = document(plan, facts)
    services = told["services"]
    found = _wrapped("Node", joined([told["node"], _after("tier", told["tier"]), told["address"]]))
    found += _services(services)
    found += _memory(told["memory"])
    found += _wrapped("Unused", _names(told["unused"]) if told["unused"] else None)
    for number, service in enumerate(services):
        found += _wrapped("" if number else "Requests", f"{service['name']}: {_requests(service)}")
    if len(services) > 1:
        found += _wrapped("Start", ", then ".join(told["start_order"]))
    for number, service in enumerate(services):
        weights = joined([service["format"], service["quantization"]], " ")
        title = joined([service["name"], service["backend"], service["model"], weights, _where(service)])
        found += _wrapped("" if number else "Why", title)
        for decision in service["decisions"]:
            found += _wrapped("", decision, "- ")
    for number, warning in enumerate(told["warnings"]):
        found += _wrapped("" if number else "Warnings", warning, "- ")
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _bytes(entry: Mapping[str, Any], key: str) -> int:
    return int(entry.get(key) or 0)


def _after(word: str, value: object) -> str | None:
    return None if value is None else f"{word} {value}"


def _service(service: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    file = _mapping(service.get("model_file"))
    memory = _mapping(service.get("memory"))
    weights = service.get("format") or ("gguf" if file else None)
    return {
        "name": str(service.get("name") or "-"),
        "backend": service.get("backend"),
        "model": service.get("model"),
        "format": weights,
        "quantization": service.get("quantization") or file.get("quantization"),
        "image": service.get("image"),
        "units": _units(service, facts),
        "tensor_parallel_size": service.get("tensor_parallel_size"),
        "pipeline_parallel_size": service.get("pipeline_parallel_size"),
        "context_length": service.get("context_length"),
        "parallel": service.get("parallel"),
        "kv_cache_type": service.get("kv_cache_type"),
        "address": service.get("address"),
        "port": service.get("port"),
        "memory": {
            "pool": memory.get("pool"),
            "weights_bytes": _bytes(memory, "weights_bytes"),
            "kv_cache_bytes": _bytes(memory, "kv_cache_bytes"),
            "overhead_bytes": _bytes(memory, "overhead_bytes"),
            "beside_bytes": _bytes(memory, "host_bytes"),
            "budget_bytes": memory.get("budget_bytes"),
        },
        "concurrency": _concurrency(service),
        "decisions": [str(item) for item in service.get("decisions") or ()],
    }


def _units(service: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a service runs on: the plan's units, else its GPUs; none on a CPU."""
    found = []
    for unit in _mappings(service.get("units")) or _mappings(service.get("devices")):
        identity = unit.get("identity") or unit.get("uuid") or unit.get("pci_bus_id")
        device = _device(identity, facts)
        index = unit.get("index") if device is None else device.get("index")
        title = unit.get("title") or device_title(device or unit)
        found.append({"identity": identity, "title": str(title), "index": index})
    return found


def _device(identity: object, facts: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for device in _mappings(facts.get("devices")):
        if identity is not None and identity in (device.get("uuid"), device.get("pci_bus_id")):
            return device
    return None


def _unused(services: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the usable GPUs that no service is on."""
    used = {unit["identity"] for service in services for unit in service["units"]}
    return [
        {
            "identity": device.get("uuid") or device.get("pci_bus_id"),
            "title": device_title(device),
            "index": device.get("index"),
        }
        for device in _mappings(facts.get("devices"))
        if device.get("usable") and not used & {device.get("uuid"), device.get("pci_bus_id")}
    ]


def _concurrency(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many requests are answered at once: what the plan gave memory to, and about how many short ones."""
    context, parallel = service.get("context_length"), service.get("parallel")
    if not context or not parallel:
        return {"requests": parallel, "tokens_each": context, "tokens": None, "short_requests": None}
    tokens = int(context) * int(parallel)
    paged = service.get("backend") in PAGED_BACKENDS and context > SHORT_REQUEST
    return {
        "requests": parallel,
        "tokens_each": context,
        "tokens": tokens,
        "short_requests": tokens // SHORT_REQUEST if paged else None,
    }


def _pools(services: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Add up what the services take of every unit, and of the host."""
    pools: dict[str, dict[str, Any]] = {}
    for service in services:
        memory = service["memory"]
        # Unified memory is the host's: the plan says so by its pool, although the service has a GPU.
        on_host = memory["pool"] == _HOST or not service["units"]
        for identity, title in [(_HOST, "host memory")] if on_host else _places(service):
            pool = _pool(pools, identity, title, facts)
            pool["budget_bytes"] = memory["budget_bytes"] or pool["budget_bytes"]
            pool["services"].append(service["name"])
            for key in ("weights_bytes", "kv_cache_bytes", "overhead_bytes"):
                pool[key] += memory[key]
        if memory["beside_bytes"]:
            host = _pool(pools, _HOST, "host memory", facts)
            host["beside_bytes"] += memory["beside_bytes"]
            host["services"] += [] if on_host else [service["name"]]
    return [_with_free(pools[key]) for key in sorted(pools, key=lambda key: (key == _HOST, pools[key]["order"], key))]


def _places(service: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for unit in service["units"]:
        yield str(unit["identity"]), unit["title"]


def _pool(pools: dict[str, dict[str, Any]], identity: str, title: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    device = _device(identity, facts)
    total = facts.get("memory_total_bytes") if identity == _HOST else _mapping(device).get("memory_total_bytes")
    index = _mapping(device).get("index")
    budget = int(total * HOST_SHARE) if identity == _HOST and total else None
    empty: dict[str, Any] = {
        "identity": identity,
        "title": title,
        "index": index,
        # GPUs in the order of their numbers; MIG instances and partitions, which have none here, by their identity.
        "order": index if isinstance(index, int) else len(_mappings(facts.get("devices"))),
        "services": [],
        "total_bytes": total,
        "budget_bytes": budget,
        **{key: 0 for key, _character, _words in BAR[:4]},
    }
    return pools.setdefault(identity, empty)


def _with_free(pool: dict[str, Any]) -> dict[str, Any]:
    """Add what is used, what is free of the budget, and what the budget leaves to others."""
    used = sum(pool[key] for key, _character, _words in BAR[:4])
    budget = pool["budget_bytes"] or pool["total_bytes"] or used
    total = max(pool["total_bytes"] or budget, budget)
    return {
        **{key: value for key, value in pool.items() if key != "order"},
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
    return [line for number, part in enumerate(parts) for line in row("" if number else label, part)]


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _where(service: Mapping[str, Any]) -> str:
    """Return what a service runs on, short: ``GPU 0-7``, names of instances, or ``CPU``."""
    return _names(service["units"], short=True) if service["units"] else "CPU"


def _names(units: Sequence[Mapping[str, Any]], short: bool = False) -> str:
    """Return the names of units; whole GPUs of one kind are told by their numbers: ``GPU 0-3 (NVIDIA L4)``."""
    heads = [f"GPU {unit.get('index')} " for unit in units]
    kinds = {unit["title"].removeprefix(head) for unit, head in zip(units, heads, strict=True)}
    whole = all(unit["title"].startswith(head) for unit, head in zip(units, heads, strict=True))
    if not whole or (len(kinds) > 1 and not short):
        return ", ".join(unit["title"] for unit in units)
    numbers = f"GPU {ranges([str(unit['index']) for unit in units])}"
    return numbers if short else f"{numbers} {kinds.pop()}"


def _services(services: Sequence[Mapping[str, Any]]) -> list[str]:
    if not services:
        return row("Services", "none")
    rows = [_HEAD]
    for service in services:
        rows.append(
            [
                service["name"],
                _cell(service["backend"]),
                _cell(service["model"]),
                joined([service["format"], service["quantization"]], " ") or "-",
                _where(service),
                _cell(service["tensor_parallel_size"]),
                _cell(service["context_length"]),
                _cell(service["parallel"]),
                _cell(service["port"]),
            ]
        )
    drawn = table(_narrowed(rows), _NUMBERS)
    return [line for number, text in enumerate(drawn) for line in row("" if number else "Services", text)]


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


def _requests(service: Mapping[str, Any]) -> str:
    about = service["concurrency"]
    if about["tokens"] is None:
        return "unknown"
    requests = counted(about["requests"], "request")
    text = f"{requests} at once, up to {about['tokens_each']} tokens each"
    if about["short_requests"]:
        text += f"; about {about['short_requests']} of {SHORT_REQUEST} tokens"
    return text
