# SPDX-License-Identifier: Apache-2.0
"""Filter ``fleet.inference.explain``: a plan explained, for people or for programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.module_utils.planning import explain as explanation

DOCUMENTATION = r"""
name: explain
short_description: Explain a plan
version_added: 0.1.0
description:
  - Returns what a plan of P(fleet.inference.plan#module) means - what was recommended, what runs where, the memory it
    takes of every GPU, MIG instance or partition and of the host, how many requests it answers at once, the order of
    starts, and every decision with its reason.
  - A pure function.
positional: facts, format
options:
  _input:
    description: The plan.
    type: dict
    required: true
  facts:
    description: Facts of the node, as C(ansible_facts.gpu) of P(fleet.inference.gpu_facts#module).
    type: dict
    required: true
  format:
    description:
      - V(text) returns plain lines of at most 116 characters, which are 120 columns in a playbook's output.
      - V(json) returns a dictionary.
    type: str
    choices: [text, json]
    default: text
author:
  - Inference Fleet contributors (@inference-fleet)
seealso:
  - plugin: fleet.inference.plan
    plugin_type: module
"""

EXAMPLES = r"""
- name: Plan the node
  fleet.inference.plan:

- name: Explain the plan
  ansible.builtin.debug:
    msg: "{{ ansible_facts.inference_plan | fleet.inference.explain(ansible_facts.gpu) | join('\n') }}"
"""

RETURN = r"""
_value:
  description:
    - Lines without line ends; or a dictionary of schema_version, node, address, tier, recommendation, services, memory,
      unused (units without a service), unusable (sentences about other GPUs), start_order and warnings. Sizes are
      bytes, contexts tokens, and what is unknown is null.
  type: raw
"""

_FORMATS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Any]] = {
    "text": explanation.lines,
    "json": explanation.document,
}


def explain(plan: Mapping[str, Any], facts: Mapping[str, Any], format: str = "text") -> Any:
    """Return the explanation of a plan (see DOCUMENTATION)."""
    for name, value in {"the input": plan, "facts": facts}.items():
        if not isinstance(value, Mapping):
            raise AnsibleFilterError(f"{name} of the filter fleet.inference.explain is not a dictionary; give one")
    if format not in _FORMATS:
        raise AnsibleFilterError(
            f"format of the filter fleet.inference.explain is {format!r}; give one of {', '.join(_FORMATS)}"
        )
    return _FORMATS[format](plan, facts)


class FilterModule:
    """The filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"explain": explain}
