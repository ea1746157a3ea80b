# SPDX-License-Identifier: Apache-2.0
"""Filter ``fleet.inference.plan``: the plan of a node from its facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError, plan_node

DOCUMENTATION = r"""
name: plan
short_description: Plan the inference services of a node from its facts
version_added: 0.1.0
description:
  - Returns the node's services with every setting resolved, from hardware facts, variables and the catalog.
  - A pure function, the same as that of the action P(fleet.inference.plan#module).
positional: wishes, catalog
options:
  _input:
    description: Facts of the node, as C(ansible_facts.gpu) of P(fleet.inference.gpu_facts#module).
    type: dict
    required: true
  wishes:
    description:
      - Variables of the host that the plan reads, and its name as C(host). With C(inference_services=auto) the services
        are those that P(fleet.inference.recommend#module) recommends.
    type: dict
    required: true
  catalog:
    description:
      - Dictionary of C(models) (C(inference_models)) and C(engines) (C(inference_engines)).
    type: dict
    required: true
author:
  - Inference Fleet contributors (@inference-fleet)
seealso:
  - plugin: fleet.inference.plan
    plugin_type: module
"""

EXAMPLES = r"""
- name: Show what a node would run with another model
  ansible.builtin.debug:
    msg: "{{ ansible_facts.gpu | fleet.inference.plan(wishes, catalog) }}"
  vars:
    wishes:
      host: "{{ inventory_hostname }}"
      llamacpp_model: qwen3-8b
    catalog:
      models: "{{ inference_models }}"
      engines: "{{ inference_engines }}"
"""

RETURN = r"""
_value:
  description: The plan, as P(fleet.inference.plan#module) returns it. Sizes are bytes.
  type: dict
"""


def plan(facts: Mapping[str, Any], wishes: Mapping[str, Any], catalog: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan of a node, or raise with the sentence that says why there is none."""
    for name, value in {"wishes": wishes, "catalog": catalog}.items():
        if not isinstance(value, Mapping):
            raise AnsibleFilterError(f"{name} of the filter fleet.inference.plan is not a dictionary; give one")
    try:
        return plan_node(facts, wishes, catalog)
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"plan": plan}
