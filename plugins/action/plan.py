# SPDX-License-Identifier: Apache-2.0
"""Action plugin ``fleet.inference.plan``: collects a host's facts and variables on the controller and plans it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import VARIABLES

_CATALOG = {"models": "inference_models", "engines": "inference_engines"}


class ActionModule(ActionBase):
    """Plan the host; nothing is run on it."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the plan as ``plan`` and as the fact ``inference_plan``, or fail with one sentence."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validated, arguments = self.validate_argument_spec(
            argument_spec={"facts": {"type": "dict"}, "variables": {"type": "dict"}}
        )
        host = str(task_vars.get("inventory_hostname", "localhost"))
        try:
            plan = self._plan(host, task_vars, arguments)
        except PlanError as error:
            return {**result, "failed": True, "changed": False, "msg": str(error)}
        return {**result, "changed": False, "plan": plan, "ansible_facts": {"inference_plan": plan}}

    def _plan(self, host: str, task_vars: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        given = arguments["variables"]

        def variable(name: str) -> Any:
            if given is not None:
                return given.get(name)
            if name not in task_vars:
                return None
            try:
                return self._templar.template(task_vars[name])
            except AnsibleError as error:
                reason = str(error).strip().rstrip(".").splitlines()[0]
                raise PlanError(f"{host}: {name} has no value ({reason}); correct its template") from error

        facts = arguments["facts"]
        if facts is None:
            gathered = task_vars.get("ansible_facts") or {}
            facts = gathered.get("gpu") or {}
        wishes = {name: variable(name) for name in (*VARIABLES, "ansible_host")}
        catalog = {key: variable(name) for key, name in _CATALOG.items()}
        return plan_node(facts, {**wishes, "host": host}, catalog)
