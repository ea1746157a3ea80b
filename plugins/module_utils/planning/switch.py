# SPDX-License-Identifier: Apache-2.0
"""Another backend or model for one service of a node: what takes its place, in which way, and what to write down.

The new service has a name and a port of its own, so that the old one is what it was until the new one has answered. It
gets the settings of the plan without the old one: the next run of site.yml finds it as it is.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from ansible_collections.fleet.inference.plugins.module_utils.planning import assignment, placement
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog
from ansible_collections.fleet.inference.plugins.module_utils.planning.core import HOST_SHARE
from ansible_collections.fleet.inference.plugins.module_utils.planning.errors import (
    PlanError,
    choices_text,
    size_text,
    suggestion_text,
)
from ansible_collections.fleet.inference.plugins.module_utils.planning.plan import plan_node, recommended_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend import recommend
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import (
    AUTO,
    SETTINGS,
    ServiceWish,
    parse_wishes,
)

#: ``beside``: the old service serves until the new one has answered. ``window``: the old one stops first, and comes
#: back when the new one does not answer. ``start``: the old one is not on the node.
WAYS = ("beside", "window", "start")
#: What a user may ask for; ``auto`` is beside where that is possible.
WISHED_WAYS = ("auto", "beside", "window")

#: Settings that say what users of a service need, whatever serves them.
_OF_USERS = ("context_length", "parallel", "gpus")
#: Settings that are right for one model only.
_OF_MODELS = ("quantization", "gpu_layers")
#: What a service runs with: where two plans differ in none of it, its container stays as it is.
_RUN_WITH = (
    "image",
    "arguments",
    "env",
    "address",
    "port",
    "devices",
    "shared_memory_bytes",
    "memory_limit_bytes",
)


@dataclass(frozen=True)
class SwitchWish:
    """What is to be switched: None keeps the backend or the model, or leaves the choice of service or name."""

    service: str | None = None
    backend: str | None = None
    model: str | None = None
    new_name: str | None = None
    way: str = "auto"


def plan_switch(
    facts: Mapping[str, Any], wishes: Mapping[str, Any], catalog: Mapping[str, Any], wanted: SwitchWish
) -> dict[str, Any]:
    """Return how one service of a node is switched to another backend or model.

    A pure function; facts, wishes and catalog are those of ``plan_node``.

    Returns:
        ``{"way", "why", "old", "new", "before", "beside", "plan", "others", "left_out", "inference_services",
        "host_vars", "text"}``: the plans before, with both services (None unless the way is ``beside``) and afterwards;
        the other services that site.yml will change as well; the settings of the old service that the new one does not
        take over; the lines for the host's variables; what a person is told.

    Raises:
        PlanError: What is wished can't be; every problem is one sentence that begins with the host's name.
    """
    return _Switch(facts, wishes, catalog, wanted).plan()


class _Switch:
    def __init__(
        self, facts: Mapping[str, Any], wishes: Mapping[str, Any], catalog: Mapping[str, Any], wanted: SwitchWish
    ) -> None:
        self._host = str(wishes.get("host") or "this host")
        self._facts, self._wishes, self._catalog, self._wanted = facts, wishes, catalog, wanted
        self._book = Catalog(self._host, catalog)
        self._before = plan_node(facts, wishes, catalog)
        self._running = {str(item.get("name")): item for item in facts.get("services") or []}

    def plan(self) -> dict[str, Any]:
        """Return the switch."""
        entries, services = self._listed()
        position = self._position(services)
        old = services[position]
        backend, models = self._target(old)
        others = [entry for entry in entries if entry["name"] != old.name]
        name = self._name(old, backend, models, {str(entry["name"]) for entry in others})
        entry, left_out = _new_entry(entries[position], old, name, backend, models)
        wished = [entry if item["name"] == old.name else item for item in entries]

        there = old.name in self._running and old.name != name
        beside, problem = self._with_both([*entries, entry]) if there else (None, "")
        after = self._afterwards(wished, entry, [*entries, entry] if there else wished, beside)
        new = _named(after, name)
        changing = self._changing(after, name, old.name)
        was = _named(self._before, old.name)
        stay = [item for item in self._before["services"] if item["name"] != old.name]
        if beside is not None:
            problem = self._room_problem(stay, was, new)
        if not self._fit([*stay, new]):
            raise PlanError(
                f"{self._host}: {name} has room only when {choices_text(changing) if changing else 'another service'} "
                f"changes as well; put inference_services: {_flow(wished)} into host_vars of {self._host} and run "
                "site.yml"
            )
        way, why = self._way(there, problem, old.name)
        both = {**after, "services": [*after["services"], was]}
        found = {
            "way": way,
            "why": why,
            "old": _told(was, old.name in self._running),
            "new": _told(new, name in self._running),
            "before": self._before,
            "beside": both if way == "beside" else None,
            "plan": after,
            "others": changing,
            "left_out": left_out,
            "inference_services": wished,
            "host_vars": ["inference_services:", *(f"  - {_flow(item)}" for item in wished)],
        }
        return {**found, "text": _text(self._host, found)}

    # what is wished

    def _listed(self) -> tuple[list[dict[str, Any]], Sequence[ServiceWish]]:
        """Return the node's services as entries of inference_services, each with its name, and the parsed ones."""
        wishes = dict(self._wishes)
        if wishes.get("inference_services") == AUTO:
            workload = parse_wishes(wishes, self._book.backends).workload
            node = recommended_node(self._facts, wishes, self._book)
            wishes["inference_services"] = recommend(node, workload, self._book)["services"]
        services = parse_wishes(wishes, self._book.backends).services
        given = wishes.get("inference_services")
        if given is None:
            return [_entry_of(service) for service in services], services
        # As plain values: those of Ansible carry more than themselves.
        plain = json.loads(json.dumps(given))
        return [{"name": wish.name, **entry} for wish, entry in zip(services, plain, strict=True)], services

    def _position(self, services: Sequence[ServiceWish]) -> int:
        names = [service.name for service in services]
        wanted = self._wanted.service
        if wanted is None and len(names) == 1:
            return 0
        if wanted is None:
            raise PlanError(f"{self._host}: service is not given; give one of {choices_text(names)}")
        if wanted not in names:
            raise PlanError(
                f"{self._host}: service is {wanted!r}, which the node does not serve; "
                + suggestion_text(wanted, names, "known")
            )
        return names.index(wanted)

    def _target(self, old: ServiceWish) -> tuple[str, tuple[str, ...]]:
        """Return the backend and the models that are wished in place of the old ones."""
        backend = self._wanted.backend or old.backend
        if backend not in self._book.backends:
            raise PlanError(
                f"{self._host}: backend is {backend!r}, which is not available; "
                + suggestion_text(backend, self._book.backends, "available")
            )
        if self._wanted.model is not None:
            self._book.model(self._wanted.model, "model")
        models = old.models if self._wanted.model is None else (self._wanted.model,)
        if (backend, models) == (old.backend, old.models):
            raise PlanError(
                f"{self._host}: service {old.name} serves {', '.join(models)} with {backend} already; give another "
                "backend or model"
            )
        if len(models) > 1 and backend not in SETTINGS["models"]:
            raise PlanError(
                f"{self._host}: service {old.name} serves {', '.join(models)}, and a service of {backend} serves one "
                "model; give model"
            )
        return backend, models

    def _name(self, old: ServiceWish, backend: str, models: tuple[str, ...], taken: set[str]) -> str:
        """Return the new service's name: of an earlier run that did the same, else the first one that is free."""
        wished = self._wanted.new_name
        if wished is not None:
            if wished in taken or (wished in self._running and not self._serves(wished, backend, models)):
                raise PlanError(f"{self._host}: new_name is {wished}, which is a service already; give another name")
            return wished
        for name in itertools.islice(_names(old, backend), len(taken) + len(self._running) + 2):
            if name not in taken and name != old.name and self._serves(name, backend, models):
                return name
        return next(name for name in _names(old, backend) if name not in taken and name not in self._running)

    def _serves(self, name: str, backend: str, models: tuple[str, ...]) -> bool:
        found = self._running.get(name, {})
        return found.get("backend") == backend and models == tuple(found.get("models") or [found.get("model")])

    # plans

    def _plan(self, services: Sequence[Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        wishes = {**self._wishes, "inference_services": list(services)}
        return plan_node(self._facts if facts is None else facts, wishes, self._catalog)

    def _with_both(self, services: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, str]:
        """Return the plan with both services, or why there is none."""
        try:
            return self._plan(services), ""
        except PlanError as error:
            return None, error.problems[0].removeprefix(f"{self._host}: ")

    def _afterwards(
        self,
        wished: Sequence[Mapping[str, Any]],
        entry: Mapping[str, Any],
        all_of_them: Sequence[Mapping[str, Any]],
        beside: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return the plan without the old service, the new one on the port and the units that are free beside it."""
        name = str(entry["name"])
        if name in self._running:
            return self._plan(wished)
        parsed = parse_wishes({**self._wishes, "inference_services": list(all_of_them)}, self._book.backends)
        engines = {wish.backend: self._book.engine(wish.backend) for wish in parsed.services}
        address = placement.node_address(parsed, self._facts)
        port = placement.assign_ports(parsed, engines, address, self._facts)[name]
        units = None if beside is None else [unit["identity"] for unit in _named(beside, name)["units"]]
        record = {"name": name, "backend": entry["backend"], "port": port, "units": units}
        return self._plan(wished, {**self._facts, "services": [*self._running.values(), record]})

    def _changing(self, after: Mapping[str, Any], new: str, old: str) -> list[str]:
        """Return the other services that do not run with the same settings in both plans."""
        before = {item["name"]: item for item in self._before["services"] if item["name"] != old}
        return sorted(
            item["name"]
            for item in after["services"]
            if item["name"] != new and any(item[key] != before[item["name"]][key] for key in _RUN_WITH)
        )

    def _room_problem(self, stay: Sequence[Mapping[str, Any]], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
        """Return why the new service has no room while the old one serves, by the plans and by what is free now."""
        if not self._fit([*stay, old, new]):
            return f"there is not enough memory for {old['name']} and {new['name']} at the same time"
        shared = {unit["identity"] for unit in old["units"]} & {unit["identity"] for unit in new["units"]}
        if new["backend"] == "sglang" and shared:
            return f"SGLang takes a share of what is free when it starts, and {old['name']} is on its GPU"
        need, available = _host_bytes(new), self._facts.get("memory_available_bytes")
        if isinstance(available, int) and available < need and new["name"] not in self._running:
            return (
                f"{new['name']} needs {size_text(need)} of host memory and {size_text(available)} is available while "
                f"{old['name']} serves"
            )
        return ""

    def _fit(self, services: Iterable[Mapping[str, Any]]) -> bool:
        """Tell whether services, each with what its own plan gives it, leave every unit and the host within budget."""
        taken: dict[str, int] = {}
        budgets: dict[str, int] = {}
        host = 0
        for item in services:
            memory = item["memory"]
            host += _host_bytes(item)
            if memory["pool"] == assignment.HOST:
                continue
            for unit in item["units"]:
                taken[unit["identity"]] = taken.get(unit["identity"], 0) + memory["share_bytes"]
                budgets[unit["identity"]] = memory["budget_bytes"]
        enough = host <= int(self._facts["memory_total_bytes"] * HOST_SHARE)
        return enough and all(taken[identity] <= budgets[identity] for identity in taken)

    # the way

    def _way(self, there: bool, problem: str, old: str) -> tuple[str, str]:
        wished = self._wanted.way
        if wished not in WISHED_WAYS:
            raise PlanError(f"{self._host}: way is {wished!r}; give one of {', '.join(WISHED_WAYS)}")
        if not there:
            return "start", f"{old} is not on the node"
        if wished == "window":
            return "window", "wished"
        if not problem:
            return "beside", "there is room for both"
        if wished == "beside":
            raise PlanError(
                f"{self._host}: {old} can't serve until the new service has answered, because {problem}; leave way out "
                "to switch in a window, in which the node does not serve it"
            )
        return "window", problem


def _text(host: str, found: Mapping[str, Any]) -> list[str]:
    """Return what a person is told of a switch before it happens."""
    words = {
        "beside": "the old one serves until the new one has answered",
        "window": "in a window: the old one stops first, and comes back if the new one does not answer",
        "start": "the new one is started",
    }
    old, new = found["old"], found["new"]
    text = [f"{host}: {_words(old)} becomes {_words(new)}; {words[found['way']]} ({found['why']})"]
    if found["left_out"]:
        text.append(f"{host}: not taken over from {old['name']}: {', '.join(found['left_out'])}")
    if found["others"]:
        text.append(f"{host}: with this plan, site.yml changes {', '.join(found['others'])} as well")
    return text


def _entry_of(service: ServiceWish) -> dict[str, Any]:
    """Return a service that the variables of its backend describe as an entry of inference_services."""
    models = service.models[0] if service.models_setting == "model" else list(service.models)
    return {"name": service.name, "backend": service.backend, service.models_setting: models}


def _new_entry(
    entry: Mapping[str, Any], old: ServiceWish, name: str, backend: str, models: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Return the new service's entry, and the settings of the old one that it does not take over."""
    found: dict[str, Any] = {"name": name, "backend": backend}
    found.update({"model": models[0]} if len(models) == 1 else {"models": list(models)})
    left_out = []
    for setting, value in entry.items():
        if setting not in SETTINGS or setting in ("model", "models") or value is None:
            continue
        other_backend, other_model = backend != old.backend, models != old.models
        known = backend in SETTINGS[setting] and setting != "port"
        if not known or (other_backend and setting not in _OF_USERS) or (other_model and setting in _OF_MODELS):
            left_out.append(setting)
        else:
            found[setting] = value
    return found, left_out


def _names(old: ServiceWish, backend: str) -> Iterator[str]:
    """Yield names for a service that takes another's place, the nicest first.

    A service that is called after its backend gives a name after the new one; ``chat`` becomes ``chat-vllm``, and that
    one ``chat`` again.
    """
    if re.fullmatch(rf"{re.escape(old.backend)}(-[0-9]+)?", old.name):
        stem = backend
        yield stem
    else:
        stem = re.sub(rf"-({re.escape(old.backend)}|[0-9]+)\Z", "", old.name) or old.name
        yield stem
        if backend != old.backend:
            yield f"{stem}-{backend}"
    for number in itertools.count(2):
        yield f"{stem}-{number}"


def _named(plan: Mapping[str, Any], name: str) -> dict[str, Any]:
    return next(dict(item) for item in plan["services"] if item["name"] == name)


def _host_bytes(service: Mapping[str, Any]) -> int:
    """Return what a planned service takes of the host's memory."""
    memory = service["memory"]
    found = int(memory["host_bytes"])
    if memory["pool"] == assignment.HOST:
        found += int(memory["total_bytes"]) * max(1, len(service["units"]))
    return found


def _told(service: Mapping[str, Any], running: bool) -> dict[str, Any]:
    models = [model["name"] for model in service["models"]]
    kept = {key: service[key] for key in ("name", "backend", "image", "port")}
    return {**kept, "models": models, "running": running}


def _words(service: Mapping[str, Any]) -> str:
    return f"{service['name']} ({service['backend']}, {', '.join(service['models'])}, port {service['port']})"


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)).strip()
