# SPDX-License-Identifier: Apache-2.0
"""What the daily verbs (start, stop, restart, remove, logs) do to which services, in which order, and how that reads.

A pure function each. `seen` is what fleet.inference.service_info returned, by node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import FLAGS
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import suggestion_text
from ansible_collections.fleet.inference.plugins.module_utils.text import table

Seen = Mapping[str, Sequence[Mapping[str, Any]]]
#: A service of a node: {"node", "service"}.
Target = dict[str, str]

#: What a verb did, and would do.
WORDS = {
    "start": ("started", "would be started"),
    "stop": ("stopped", "would be stopped"),
    "restart": ("restarted", "would be restarted"),
    "remove": ("removed", "would be removed"),
}
HEAD = ("node", "service", "backend", "model", "done", "state")


def name_problem(seen: Seen, service: str | None) -> str | None:
    """Return one sentence when no node has a service of this name; None when one has, or no name is given."""
    names = {str(item["name"]) for items in seen.values() for item in items}
    if not service or service in names:
        return None
    where = next(iter(seen)) if len(seen) == 1 else f"{len(seen)} nodes"
    return f"{where}: service is {service!r}, which is not installed; {suggestion_text(service, names, 'installed')}"


def targets(seen: Seen, verb: str, service: str | None = None) -> list[Target]:
    """Return the services that a verb is about, by node and name.

    What somebody stopped is restarted only by its name.
    """
    return [
        {"node": node, "service": str(item["name"])}
        for node in sorted(seen)
        for item in seen[node]
        if item["name"] == service or (not service and (verb, item["state"]) != ("restart", "stopped"))
    ]


def waves(wanted: Sequence[Target], fragments: Sequence[Mapping[str, Any]]) -> list[list[Target]]:
    """Split services into waves that may be away at the same time: at most half of those that serve one thing, or one.

    What serves one thing is a pool (model and backend), and all pools of a model. Only servers that get requests count:
    a drained node or a stopped service replaces nobody.

    Args:
        wanted: Services that will be away for a while.
        fragments: The service registry, checked (validate_fragments).

    Returns:
        The waves in their order; none without services.
    """
    members = _members(fragments)
    found: list[list[Target]] = []
    away: list[dict[tuple[str, ...], int]] = []
    for target in wanted:
        who = (target["node"], target["service"])
        mine = [key for key, group in members.items() if who in group]
        number = next(
            (
                number
                for number, counts in enumerate(away)
                if all(counts.get(key, 0) < max(1, len(members[key]) // 2) for key in mine)
            ),
            len(found),
        )
        if number == len(found):
            found.append([])
            away.append({})
        found[number].append(target)
        for key in mine:
            away[number][key] = away[number].get(key, 0) + 1
    return found


def _members(fragments: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], set[tuple[str, str]]]:
    """Return the servers, as node and service, that get requests for each model, and in each pool."""
    members: dict[tuple[str, ...], set[tuple[str, str]]] = {}
    for fragment in fragments:
        if any(fragment[flag] for flag in FLAGS):
            continue
        for entry in fragment["services"]:
            if not entry["stopped"]:
                keys: list[tuple[str, ...]] = [(entry["model"],), (entry["model"], entry["backend"])]
                for key in keys:
                    members.setdefault(key, set()).add((fragment["node"], entry["name"]))
    return members


def last_servers(wanted: Sequence[Target], fragments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the models that nothing serves any more without these services, each with the services.

    Args:
        wanted: Services that are to go.
        fragments: The service registry, checked (validate_fragments).

    Returns:
        Texts such as ``qwen3-8b (chat on gpu-01, chat on gpu-02)``.
    """
    going = {(target["node"], target["service"]) for target in wanted}
    return [
        f"{key[0]} ({', '.join(f'{service} on {node}' for node, service in sorted(group))})"
        for key, group in sorted(_members(fragments).items())
        if len(key) == 1 and group <= going
    ]


def rows(
    wanted: Sequence[Target],
    verb: str,
    before: Seen,
    after: Seen,
    results: Mapping[str, Mapping[str, Mapping[str, Any]]],
    *,
    check: bool = False,
) -> list[dict[str, Any]]:
    """Return what was done to each service.

    Args:
        wanted: The services that the verb was about.
        verb: ``start``, ``stop``, ``restart`` or ``remove``.
        before: What was installed before.
        after: What is installed now; a node that is missing did not answer.
        results: Result of fleet.inference.container_service by node and service; those that are missing were not
            reached.
        check: Whether nothing was to be changed.

    Returns:
        ``[{node, service, backend, models, done, changed, failed, state, reason}]``.
    """
    found = []
    for target in wanted:
        node, name = target["node"], target["service"]
        was = next(item for item in before[node] if item["name"] == name)
        now = next((item for item in after.get(node, ()) if item["name"] == name), None)
        result = results.get(node, {}).get(name)
        failed, changed = bool((result or {}).get("failed")), bool((result or {}).get("changed"))
        if result is None:
            done = "not reached"
        elif failed:
            done = "failed"
        else:
            done = WORDS[verb][check] if changed else "nothing to do"
        state = str(now["state"]) if now else ("unknown" if node not in after else "removed")
        found.append(
            {
                "node": node,
                "service": name,
                "backend": was["backend"],
                "models": list(was["models"]),
                "done": done,
                "changed": changed and not failed,
                "failed": failed or result is None,
                "state": state,
                "reason": str((result or {}).get("msg") or "").partition("\n")[0] or None if failed else None,
            }
        )
    return found


def lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of rows."""
    cells = [
        [
            str(row["node"]),
            str(row["service"]),
            str(row["backend"] or "-"),
            ", ".join(row["models"]) or "-",
            str(row["done"]),
            str(row["state"]),
        ]
        for row in found
    ]
    return table([HEAD, *cells]) if cells else []
