# SPDX-License-Identifier: Apache-2.0
"""Docker's ``daemon.json``: merging wanted options into it, and what a change of it asks for.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Optional

# What dockerd takes over on SIGHUP (https://docs.docker.com/reference/cli/dockerd/#configuration-reload-behavior).
# "features" is missing on purpose: a reload doesn't register the CDI driver.
RELOADABLE = frozenset(
    {
        "debug",
        "default-runtime",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)


class DaemonConfigError(ValueError):
    """A configuration that can't be used. The text is a clause without the host's name."""


def parse(text: Optional[str]) -> Dict[str, Any]:
    """Return the options in the text of a ``daemon.json`` (``None`` or blank: none)."""
    if text is None or not text.strip():
        return {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise DaemonConfigError(f"is no valid JSON ({error})") from error
    if not isinstance(options, dict):
        raise DaemonConfigError("is no JSON object")
    return options


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> Dict[str, Any]:
    """Return ``current`` with ``wanted`` in it.

    Objects are merged key by key, lists get the items they lack, anything else is replaced; a wanted ``None`` removes
    the key. Keys which nobody asked for, or changed, keep their place and value.
    """
    merged = dict(current)
    for key, value in wanted.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = merge(old if isinstance(old, Mapping) else {}, value)
        elif isinstance(value, list) and isinstance(old, list):
            merged[key] = old + [item for item in value if item not in old]
        else:
            merged[key] = value
    return merged


def render(options: Mapping[str, Any]) -> str:
    """Return the text of a ``daemon.json``."""
    return json.dumps(options, indent=2) + "\n"


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> List[str]:
    """Return the top-level options that differ, sorted."""
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def needed_action(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return what makes a running dockerd use ``after``: ``none``, ``reload`` (SIGHUP) or ``restart``."""
    keys = changed_keys(before, after)
    if not keys:
        return "none"
    return "reload" if RELOADABLE.issuperset(keys) else "restart"
