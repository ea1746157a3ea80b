# SPDX-License-Identifier: Apache-2.0
"""Action plugin ``fleet.inference.inspect_model``: reads a model's numbers from its own files on the controller."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.planning.inspect_model import InspectError, inspect_model


class ActionModule(ActionBase):
    """Read one model; nothing is run on the host."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the entry for the catalog as ``models``, or fail with one sentence."""
        result: dict[str, Any] = super().run(tmp, task_vars or {})
        _validated, arguments = self.validate_argument_spec(argument_spec={"path": {"type": "str", "required": True}})
        try:
            return {**result, "changed": False, "models": inspect_model(arguments["path"])}
        except InspectError as error:
            return {**result, "failed": True, "changed": False, "msg": str(error)}
