# SPDX-License-Identifier: Apache-2.0
"""Run the module on the node with the controller's nvidia-ml-py, and sum the facts up for a person."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.fleet.inference.plugins.module_utils.hardware.summary import lines
from ansible_collections.fleet.inference.plugins.plugin_utils.nvidia_ml_py import carried


class ActionModule(ActionBase):
    """One module execution; nothing is left on the node."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result and its ``summary``."""
        result = super().run(tmp, task_vars)
        arguments = {key: value for key, value in self._task.args.items() if not key.startswith("_")}
        answer: dict[str, Any] = self._execute_module(
            module_name="fleet.inference.gpu_facts",
            module_args={**arguments, "_pynvml": carried()},
            task_vars=task_vars,
        )
        answer.get("invocation", {}).get("module_args", {}).pop("_pynvml", None)
        facts = answer.get("ansible_facts", {}).get("gpu")
        if facts is not None:
            answer["summary"] = lines(facts)
        result.update(answer)
        return result
