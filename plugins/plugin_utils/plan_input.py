# SPDX-License-Identifier: Apache-2.0
"""What a plan is made from, read on the controller: a host's facts, its variables and the catalog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleError
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import VARIABLES

_CATALOG = {"models": "inference_models", "engines": "inference_engines"}


@dataclass(frozen=True)
class PlanInput:
    """The arguments of ``plan_node``."""

    facts: Mapping[str, Any]
    wishes: dict[str, Any]
    catalog: dict[str, Any]


def read(host: str, variables: Mapping[str, Any], template: Callable[[Any], Any]) -> PlanInput:
    """Return what a host's plan is made from.

    Args:
        host: Name of the host.
        variables: The host's variables, its facts among them.
        template: Returns the value of a variable that may be a template.

    Raises:
        PlanError: The template of a variable is wrong.
    """

    def variable(name: str) -> Any:
        if name not in variables:
            return None
        try:
            return template(variables[name])
        except AnsibleError as error:
            reason = str(error).strip().rstrip(".").splitlines()[0]
            raise PlanError(f"{host}: {name} has no value ({reason}); correct its template") from error

    facts = (variables.get("ansible_facts") or {}).get("gpu") or {}
    wishes = {name: variable(name) for name in (*VARIABLES, "ansible_host")}
    return PlanInput(facts, {**wishes, "host": host}, {key: variable(name) for key, name in _CATALOG.items()})
