# SPDX-License-Identifier: Apache-2.0
"""Action plugin ``fleet.inference.recommend``: what a host should serve, or the hosts of a play together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node, recommend_text
from ansible_collections.fleet.inference.plugins.module_utils.planning.catalog import Catalog
from ansible_collections.fleet.inference.plugins.module_utils.planning.plan import recommended_node
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend import recommend
from ansible_collections.fleet.inference.plugins.module_utils.planning.recommend_fleet import recommend_fleet
from ansible_collections.fleet.inference.plugins.module_utils.planning.wishes import parse_wishes
from ansible_collections.fleet.inference.plugins.plugin_utils import plan_input


class ActionModule(ActionBase):
    """Recommend services; nothing is run on any host."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the recommendation with its ``text``, or fail with one sentence."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validated, arguments = self.validate_argument_spec(
            argument_spec={"workload": {"type": "str"}, "hosts": {"type": "list", "elements": "str"}}
        )
        try:
            if arguments["hosts"] is None:
                found = self._for_host(task_vars, arguments["workload"])
            else:
                found = self._for_hosts(task_vars, arguments["hosts"], arguments["workload"])
        except PlanError as error:
            return {**result, "failed": True, "changed": False, "msg": str(error)}
        return {**result, "changed": False, **found}

    def _for_host(self, task_vars: Mapping[str, Any], workload: str | None) -> dict[str, Any]:
        host = str(task_vars.get("inventory_hostname", "localhost"))
        given = plan_input.read(host, task_vars, self._templar.template)
        book = Catalog(host, given.catalog)
        wishes = _wishes(given, workload)
        name = parse_wishes(wishes, book.backends).workload
        found = recommend(recommended_node(given.facts, wishes, book), name, book)
        plan = plan_node(given.facts, {**wishes, "inference_services": found["services"]}, given.catalog)
        recommendation = {"node": host, "workload": name, **found}
        text = recommend_text.node_lines(recommendation, plan)
        return {"recommendation": recommendation, "plan": plan, "text": text}

    def _for_hosts(self, task_vars: Mapping[str, Any], hosts: Sequence[str], workload: str | None) -> dict[str, Any]:
        """Return what the hosts should serve together, for the first one's workload and with its catalog."""
        inputs = [plan_input.read(host, task_vars["hostvars"][host], lambda value: value) for host in hosts]
        if not inputs:
            return {"recommendation": None, "text": []}
        book = Catalog(hosts[0], inputs[0].catalog)
        wished = [_wishes(given, workload) for given in inputs]
        name = parse_wishes(wished[0], book.backends).workload
        pairs = zip(inputs, wished, strict=True)
        found = recommend_fleet((recommended_node(given.facts, wishes, book) for given, wishes in pairs), name, book)
        return {"recommendation": {"workload": name, **found}, "text": recommend_text.fleet_lines(name, found)}


def _wishes(given: plan_input.PlanInput, workload: str | None) -> dict[str, Any]:
    chosen = {} if workload is None else {"inference_workload": workload}
    return {**given.wishes, **chosen, "inference_services": "auto"}
