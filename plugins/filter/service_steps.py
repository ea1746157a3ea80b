# SPDX-License-Identifier: Apache-2.0
"""Filter ``fleet.inference.service_steps``: what to do with a node's services, in its order."""

from __future__ import annotations

from collections.abc import Callable

from ansible_collections.fleet.inference.plugins.module_utils.planning.engine_service import service_steps

DOCUMENTATION = r"""
name: service_steps
short_description: Say in which order a node's services are removed and served
version_added: 0.1.0
description:
  - What the plan does not name any more is removed first. Services that run come before new ones, because one of them
    may give its port or its GPU to a new one; among both the order is the C(start_order) of the plan.
  - A pure function.
positional: services
options:
  _input:
    description: The node's plan, as P(fleet.inference.plan#module) returns it.
    type: dict
    required: true
  services:
    description: The services on the node, as C(ansible_facts.gpu.services) of P(fleet.inference.gpu_facts#module).
    type: list
    elements: dict
    required: true
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Show what would be done
  ansible.builtin.debug:
    msg: "{{ inference_plan | fleet.inference.service_steps(ansible_facts.gpu.services) }}"
"""

RETURN = r"""
_value:
  description: Steps for one backend each, with the names of its services.
  type: list
  elements: dict
  sample: [{backend: ollama, remove: [old], serve: []}, {backend: vllm, remove: [], serve: [chat]}]
"""


class FilterModule:
    """The filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """Return the filters by name."""
        return {"service_steps": service_steps}
