# SPDX-License-Identifier: Apache-2.0
"""Action plugin ``fleet.inference.plan``: collects a host's facts and variables on the controller and plans it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node
from ansible_collections.fleet.inference.plugins.plugin_utils import plan_input


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
        if given is None:
            found = plan_input.read(host, task_vars, self._templar.template)
        else:
            facts = {"ansible_facts": task_vars.get("ansible_facts")}
            found = plan_input.read(host, {**given, **facts}, lambda value: value)
        facts = found.facts if arguments["facts"] is None else arguments["facts"]
        return plan_node(facts, found.wishes, found.catalog)
