# SPDX-License-Identifier: Apache-2.0
"""Output for people: Ansible's default, with a failure's sentence on one line and nothing said twice."""

from __future__ import annotations

from typing import Any

from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = r"""
name: readable
type: stdout
short_description: Ansible's default output, with failures as one line
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Like P(ansible.builtin.default#callback), except that a result which is only a message is printed as that message,
    that an error is not printed a second time with its place in the source, and that included files are not listed.
  - With C(-v) all of it is printed as the default does.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

#: What every result carries beside its message.
_USUAL = {"msg", "changed", "failed", "unreachable", "skipped", "skip_reason", "failed_when_result"}


class CallbackModule(Default):
    """The default callback, quieter."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fleet.inference.readable"

    def _handle_exception(self, result: Any, use_stderr: bool = False) -> None:
        if self._display.verbosity == 0 and isinstance(result.get("msg"), str):
            result.pop("exception", None)
        super()._handle_exception(result, use_stderr=use_stderr)

    def _dump_results(self, result: Any, *args: Any, **kwargs: Any) -> str:
        told = {key for key in result if not key.startswith("_")}
        if self._display.verbosity == 0 and isinstance(result.get("msg"), str) and told <= _USUAL:
            lines = str(result["msg"]).splitlines()
            return "\n    ".join(["", *lines]) if len(lines) > 1 else "".join(lines)
        return str(super()._dump_results(result, *args, **kwargs))

    def v2_runner_on_ok(self, result: Any) -> None:
        if self._display.verbosity > 0 or not isinstance(result.task, TaskInclude):
            super().v2_runner_on_ok(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._display.verbosity > 0:
            super().v2_playbook_on_include(included_file)
