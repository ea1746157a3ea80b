# SPDX-License-Identifier: Apache-2.0
"""Check a host's variables on the controller, before anything touches the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.preflight import variables

_ROLES = Path(__file__).resolve().parents[2] / "roles"


class ActionModule(ActionBase):
    """Runs on the controller alone: no remote execution, no connection."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the names that were checked, or fail with one sentence for each problem."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        host = str(task_vars.get("inventory_hostname", "localhost"))
        specs, prefixes = variables.load_specs(_ROLES)
        problems: list[str] = []
        values: dict[str, Any] = {}
        for name in variables.owned_names(task_vars, prefixes):
            try:
                values[name] = self._templar.template(task_vars[name])
            except AnsibleError as error:
                reason = " ".join(str(error).split()).rstrip(".")
                problems.append(f"{host}: {name} can't be resolved ({reason}); correct its template")
        problems += variables.host_problems(host, values, specs)
        if not (task_vars.get("groups") or {}).get("gateways"):
            problems.append(
                f"{host}: the inventory has no host in the group gateways, so nobody could reach the models; "
                "add at least one host to that group"
            )
        if problems:
            return {**result, "failed": True, "changed": False, "msg": "\n".join(problems)}
        return {**result, "changed": False, "checked": sorted(values)}
