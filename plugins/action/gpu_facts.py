# SPDX-License-Identifier: Apache-2.0
"""Run the module on the node, and again with the controller's nvidia-ml-py where the node has a driver and lacks it."""

from __future__ import annotations

import importlib.util
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """A node without an NVIDIA driver costs one module execution; a node with one and without nvidia-ml-py two."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result."""
        result = super().run(tmp, task_vars)
        arguments = {key: value for key, value in self._task.args.items() if not key.startswith("_")}
        source = self._controller_pynvml()
        answer = self._call({**arguments, "_pynvml_offered": source is not None}, task_vars)
        if answer.get("pynvml_wanted") and source is not None:
            answer = self._call_with(source, arguments, task_vars)
        result.update(answer)
        return result

    def _call_with(self, source: str, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        folder = self._connection._shell.tmpdir or self._make_tmp_path()
        try:
            carried = self._connection._shell.join_path(folder, "pynvml.py")
            self._transfer_file(source, carried)
            self._fixup_perms2((folder, carried))
            return self._call({**arguments, "_pynvml": carried}, task_vars)
        finally:
            self._remove_tmp_path(folder)

    def _call(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name="fleet.inference.gpu_facts", module_args=arguments, task_vars=task_vars
        )
        for key in ("_pynvml", "_pynvml_offered"):
            answer.get("invocation", {}).get("module_args", {}).pop(key, None)
        return answer

    @staticmethod
    def _controller_pynvml() -> str | None:
        spec = importlib.util.find_spec("pynvml")
        return spec.origin if spec is not None and spec.origin and spec.origin.endswith(".py") else None
