# SPDX-License-Identifier: Apache-2.0
"""Action plugin ``fleet.inference.switch_plan``: how a service of a host is switched to another backend or model."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.switch import SwitchWish, plan_switch
from ansible_collections.fleet.inference.plugins.plugin_utils import plan_input


class ActionModule(ActionBase):
    """Plan a switch; nothing is run on the host."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the switch, or fail with one sentence."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        text = {"type": "str"}
        _validated, arguments = self.validate_argument_spec(
            argument_spec={
                "service": text,
                "backend": text,
                "model": text,
                "new_name": text,
                "way": {"type": "str", "default": "auto"},
            }
        )
        host = str(task_vars.get("inventory_hostname", "localhost"))
        try:
            found = plan_input.read(host, task_vars, self._templar.template)
            # As plain values: those of Ansible carry more than themselves.
            wanted = SwitchWish(**json.loads(json.dumps(arguments)))
            switch = plan_switch(found.facts, found.wishes, found.catalog, wanted)
        except PlanError as error:
            return {**result, "failed": True, "changed": False, "msg": str(error)}
        return {**result, "changed": False, "switch": switch}
