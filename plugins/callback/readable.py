# SPDX-License-Identifier: Apache-2.0
"""Output for people: Ansible's default, with a failure's sentence on one line and nothing said twice."""

from __future__ import annotations

import functools
import json
from typing import Any

from ansible import constants as C
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.plugins.callback.minimal import CallbackModule as Minimal
from ansible.utils.display import Display

DOCUMENTATION = r"""
name: readable
type: stdout
short_description: Ansible's default output, with failures as one line
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Like P(ansible.builtin.default#callback), except that a result which is only a message is printed as that message,
    that an error is not printed a second time with its place in the source, and that included files are not listed.
  - The command C(ansible) prints as with P(ansible.builtin.minimal#callback), except that of a result with a C(summary)
    (a list of lines) only these lines are printed. It uses this callback where C(bin_ansible_callbacks) is set.
  - A play that has V(json) in its variable C(output_formats) can be run with C(-e format=json) for programs. Then only
    what M(ansible.builtin.debug) says that is no text is printed on standard output, as JSON, and all else on standard
    error.
  - With C(-v) all else is printed as Ansible's own callbacks do.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

#: What a result carries beside its message, and what is only printed with -vvv.
_USUAL = {"msg", "invocation", "changed", "failed", "unreachable", "skipped", "skip_reason", "failed_when_result"}
#: What the command `ansible` calls its only play's file.
_AD_HOC_FILE = "__adhoc_playbook__"


def _in_playbooks(name: str, ad_hoc: Any = None) -> Any:
    """Return the default callback's method `name` for playbooks, and `ad_hoc` (or silence) for a single command."""
    default = getattr(Default, name)

    @functools.wraps(default)
    def method(self: CallbackModule, *args: Any, **kwargs: Any) -> None:
        chosen = default if self.in_playbook else ad_hoc
        if chosen is not None:
            chosen(self, *args, **kwargs)

    return method


def _says_data(result: Any) -> bool:
    """Whether a task is a debug that says a dictionary or a list."""
    said = result.result.get("msg")
    return result.task.action in C._ACTION_DEBUG and isinstance(said, dict | list)


class _Aside:
    """Ansible's display with all that it prints on standard error."""

    def __init__(self, display: Any) -> None:
        self.display_on_stdout = display.display
        self._display = display

    def __getattr__(self, name: str) -> Any:
        return getattr(self._display, name)

    def display(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self._display.display(msg, *args, **{**kwargs, "stderr": True})

    def banner(self, *args: Any, **kwargs: Any) -> None:
        # Ansible's own, with this object for itself: it prints with the method above.
        type(self._display).banner(self, *args, **kwargs)


class CallbackModule(Default, Minimal):
    """The default callback, quieter; for the command `ansible` the minimal one."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "fleet.inference.readable"

    # ansible-console names no file at all.
    in_playbook = False

    v2_playbook_on_task_start = _in_playbooks("v2_playbook_on_task_start")
    v2_playbook_on_no_hosts_remaining = _in_playbooks("v2_playbook_on_no_hosts_remaining")
    v2_playbook_on_stats = _in_playbooks("v2_playbook_on_stats")
    v2_runner_on_start = _in_playbooks("v2_runner_on_start")
    v2_runner_on_async_poll = _in_playbooks("v2_runner_on_async_poll")
    v2_runner_on_async_ok = _in_playbooks("v2_runner_on_async_ok")
    v2_runner_on_async_failed = _in_playbooks("v2_runner_on_async_failed")
    v2_runner_on_failed = _in_playbooks("v2_runner_on_failed", Minimal.v2_runner_on_failed)
    v2_runner_on_skipped = _in_playbooks("v2_runner_on_skipped", Minimal.v2_runner_on_skipped)
    v2_runner_on_unreachable = _in_playbooks("v2_runner_on_unreachable", Minimal.v2_runner_on_unreachable)
    v2_on_file_diff = _in_playbooks("v2_on_file_diff", Minimal.v2_on_file_diff)

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

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self.in_playbook = playbook._file_name != _AD_HOC_FILE
        if self.in_playbook:
            super().v2_playbook_on_start(playbook)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        if not self.in_playbook:
            return
        wished = play.get_variable_manager().extra_vars.get("format")
        aside = wished == "json" and wished in (play.vars.get("output_formats") or ())
        self._display = _Aside(Display()) if aside else Display()
        super().v2_playbook_on_play_start(play)

    def v2_runner_on_ok(self, result: Any) -> None:
        if not self.in_playbook:
            self._ad_hoc_ok(result)
        elif isinstance(self._display, _Aside) and _says_data(result):
            text = json.dumps(result.result["msg"], indent=2, ensure_ascii=False)
            self._display.display_on_stdout(text)
        elif self._display.verbosity > 0 or not isinstance(result.task, TaskInclude):
            super().v2_runner_on_ok(result)

    def _ad_hoc_ok(self, result: Any) -> None:
        summary = result.result.get("summary")
        if self._display.verbosity > 0 or not isinstance(summary, list) or not summary:
            Minimal.v2_runner_on_ok(self, result)
            return
        self._handle_warnings_and_exception(result)
        changed = result.result.get("changed", False)
        head = f"{result.host.get_name()} | {'CHANGED' if changed else 'SUCCESS'}"
        text = "\n    ".join([head, *(str(line) for line in summary)])
        self._display.display(text, color=C.COLOR_CHANGED if changed else C.COLOR_OK)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._display.verbosity > 0:
            super().v2_playbook_on_include(included_file)
