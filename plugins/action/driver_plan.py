# SPDX-License-Identifier: Apache-2.0
"""Action plugin ``fleet.inference.driver_plan``: decides on the controller what of a driver a host needs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import DriverError

_DRIVERS = "ansible_collections.fleet.inference.plugins.module_utils.drivers"
#: Driver → the module that decides. It has ``VARIABLES`` and ``plan(host, facts, variables, table)``.
_MODULES = {
    "gpu_ready": f"{_DRIVERS}.ready",
    "nvidia": f"{_DRIVERS}.nvidia",
    "rocm": f"{_DRIVERS}.amd",
    "vulkan": f"{_DRIVERS}.vulkan",
}


class ActionModule(ActionBase):
    """Decide for the host; nothing is run on it."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the decision as ``driver_plan``, or fail with a sentence for each problem."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        _validated, arguments = self.validate_argument_spec(
            argument_spec={
                "driver": {"type": "str", "required": True, "choices": sorted(_MODULES)},
                "facts": {"type": "dict"},
                "host": {"type": "str"},
                "table": {"type": "dict"},
                "variables": {"type": "dict"},
            }
        )
        host = arguments["host"] or str(task_vars.get("inventory_hostname", "localhost"))
        try:
            return {**result, "changed": False, "driver_plan": self._decide(host, task_vars, arguments)}
        except DriverError as error:
            return {**result, "failed": True, "changed": False, "msg": str(error)}

    def _decide(self, host: str, task_vars: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
        def variable(name: str) -> Any:
            if name not in task_vars:
                return None
            try:
                return self._templar.template(task_vars[name])
            except AnsibleError as error:
                reason = str(error).strip().rstrip(".").splitlines()[0]
                raise DriverError(f"{host}: {name} has no value ({reason}); correct its template") from error

        module = importlib.import_module(_MODULES[arguments["driver"]])
        facts, table, variables = arguments["facts"], arguments["table"], arguments["variables"]
        if facts is None:
            facts = (task_vars.get("ansible_facts") or {}).get("gpu") or {}
        if table is None:
            table = variable("inference_drivers") or {}
        if variables is None:
            variables = {name: variable(name) for name in module.VARIABLES}
        plan: dict[str, Any] = module.plan(host, facts, variables, table)
        return plan
