# SPDX-License-Identifier: Apache-2.0
"""Counts remote module executions: one line (host, module, task) a call of a module on a host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: executions
type: notification
short_description: Write one line for each remote module execution
description: For tests. Workers are forked after this plugin was loaded, so each of them counts too.
options: {}
"""

_original = ActionBase._execute_module


def _counted(self: ActionBase, *args: Any, **kwargs: Any) -> dict[str, Any]:
    module = kwargs.get("module_name") or (args[0] if args else None) or self._task.action
    host = self._task.delegate_to or (kwargs.get("task_vars") or {}).get("inventory_hostname", "?")
    with Path(os.environ["EXECUTIONS_FILE"]).open("a", encoding="utf-8") as file:
        file.write(f"{host}\t{module}\t{self._task.name}\n")
    return _original(self, *args, **kwargs)


class CallbackModule(CallbackBase):
    """Put the counter in place; there is nothing to print."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "executions"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        ActionBase._execute_module = _counted
