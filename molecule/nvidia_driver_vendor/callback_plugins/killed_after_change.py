# SPDX-License-Identifier: Apache-2.0
"""Kills the run, as a power cut of the controller does, when the first task has changed something."""

from __future__ import annotations

import os
import signal
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: killed_after_change
type: notification
short_description: Kill the run after its first change
description: For tests.
options: {}
"""


class CallbackModule(CallbackBase):
    """Send SIGKILL to the own process, which can't be caught and cleans nothing up."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "killed_after_change"
    CALLBACK_NEEDS_ENABLED = True

    def v2_runner_on_ok(self, result: Any) -> None:
        """Kill when this task changed something."""
        if result._result.get("changed"):
            os.kill(os.getpid(), signal.SIGKILL)
