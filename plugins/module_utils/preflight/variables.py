# SPDX-License-Identifier: Apache-2.0
"""A host's variables against the roles' argument specifications (pure, runs on the controller)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

#: Names that roles and plugins set themselves during a run.
SET_BY_RUN = frozenset(
    {"inference_plan", "nvidia_driver_restart_reason", "rocm_restart_reason", "vulkan_restart_reason"}
)

_SECRET = re.compile(r"key|token|secret|password|passphrase|credential|salt", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?[0-9]+\Z")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
_BOOLEAN_TEXT = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "t", "f", "1", "0"})
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "path": "a path",
    "list": "a list",
    "dict": "a mapping",
}
_PLURAL = {
    "int": "whole numbers",
    "float": "numbers",
    "bool": "true or false values",
    "str": "texts",
    "path": "paths",
    "list": "lists",
    "dict": "mappings",
}
_MISSING = object()


def load_specs(roles: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read every role's ``meta/argument_specs.yml`` below ``roles``.

    Returns the options of all roles by variable name (entry points of a role together), and the prefixes that the
    roles own, each with the role's name. ``inference_`` belongs to the fleet, its options to ``preflight``.
    """
    options: dict[str, dict[str, Any]] = {}
    prefixes = {"inference_": "fleet"}
    for file in sorted(roles.glob("*/meta/argument_specs.yml")):
        role = file.parent.parent.name
        prefixes[f"{role}_"] = role
        entry_points = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("argument_specs") or {}
        for entry_point in entry_points.values():
            options.update(entry_point.get("options") or {})
    return options, prefixes


def owned_names(names: Iterable[str], prefixes: Iterable[str]) -> list[str]:
    """Return the sorted names that begin with one of ``prefixes`` and are a user's to set."""
    starts = tuple(prefixes)
    return sorted(name for name in names if name.startswith(starts) and name not in SET_BY_RUN)


def unknown_sentence(host: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for a variable that no role has."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    remedy = f"did you mean {close[0]}?" if close else "remove it, or see the roles' README files for the known names"
    return f"{host}: no variable is called {name}; {remedy}"


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a decimal number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else type(value).__name__


def _fits(value: Any, kind: str) -> bool:
    """Return whether ``value`` is of the specification's type; text counts when it reads as that type."""
    if kind in ("raw", "any", "json", "jsonarg"):
        return True
    if kind == "bool":
        if isinstance(value, str):
            return value.lower() in _BOOLEAN_TEXT
        return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    if kind in ("int", "float"):
        if isinstance(value, bool):
            return False
        if isinstance(value, str):
            return bool((_INTEGER if kind == "int" else _FLOAT).match(value.strip()))
        return isinstance(value, int if kind == "int" else (int, float))
    if kind == "list":
        return isinstance(value, (list, tuple))
    if kind == "dict":
        return isinstance(value, Mapping)
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _shown(value: Any, secret: bool) -> str:
    if value is None:
        return "empty"
    if secret:
        return _kind(value)
    text = str(value)
    if isinstance(value, (Mapping, list, tuple)) or len(text) > 60:
        return _kind(value)
    quoted = f"'{value}'" if isinstance(value, str) else str(value)
    return f"{quoted} ({_kind(value)})"


def _wanted(spec: Mapping[str, Any]) -> str:
    choices = spec.get("choices")
    if choices:
        return "one of " + ", ".join(str(choice) for choice in choices)
    kind = str(spec.get("type") or "str")
    if kind == "list" and spec.get("elements"):
        return f"a list of {_PLURAL.get(str(spec['elements']), 'items')}"
    return _WANTED.get(kind, "another value")


def value_problems(where: str, value: Any, spec: Mapping[str, Any]) -> list[str]:
    """Return a clause (``<where> is <value>; give <what is right>``) for everything wrong in ``value``."""
    secret = bool(spec.get("no_log")) or bool(_SECRET.search(where))
    default = spec.get("default", _MISSING)
    if value is None:
        # A default written as a template may well come out empty.
        may_be_empty = default in (None, _MISSING) or (isinstance(default, str) and "{{" in default)
        return [] if may_be_empty else [f"{where} is empty; give {_wanted(spec)}"]
    kind = str(spec.get("type") or "str")
    choices = spec.get("choices")
    if not _fits(value, kind) or (choices and kind != "list" and str(value) not in [str(choice) for choice in choices]):
        return [f"{where} is {_shown(value, secret)}; give {_wanted(spec)}"]
    problems: list[str] = []
    if kind == "list":
        element = {key: spec[key] for key in ("options", "choices", "no_log") if key in spec}
        for index, item in enumerate(value):
            if spec.get("elements"):
                problems += value_problems(
                    f"{where}[{index}]", item, {**element, "type": spec["elements"], "default": ""}
                )
    elif kind == "dict" and spec.get("options"):
        for key, item in value.items():
            known = spec["options"]
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                remedy = f"did you mean {close[0]}?" if close else "it may have " + ", ".join(known)
                problems.append(f"{where} has no key called {key}; {remedy}")
            else:
                problems += value_problems(f"{where}.{key}", item, known[key])
        problems += [
            f"{where} lacks {key}; give {_wanted(inner)}"
            for key, inner in spec["options"].items()
            if inner.get("required") and key not in value
        ]
    return problems


def host_problems(host: str, values: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one sentence for every problem of ``values`` (variables owned by the fleet's roles) on ``host``."""
    problems: list[str] = []
    for name, value in values.items():
        if name not in specs:
            problems.append(unknown_sentence(host, name, specs))
        else:
            problems += [f"{host}: {problem}" for problem in value_problems(name, value, specs[name])]
    return problems
