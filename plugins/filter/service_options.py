# SPDX-License-Identifier: Apache-2.0
"""Filter ``fleet.inference.service_options``: a planned service as a container."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.fleet.inference.plugins.module_utils.planning import PlanError
from ansible_collections.fleet.inference.plugins.module_utils.planning.engine_service import (
    service_options as container_options,
)

DOCUMENTATION = r"""
name: service_options
short_description: Describe the container of a planned service
version_added: 0.1.0
description:
  - Returns the options of P(fleet.inference.container_service#module) for one service of a node's plan.
  - A pure function.
positional: plan, facts
options:
  _input:
    description: Name of the service.
    type: str
    required: true
  plan:
    description: The node's plan, as P(fleet.inference.plan#module) returns it.
    type: dict
    required: true
  facts:
    description: Facts of the node, as C(ansible_facts.gpu) of P(fleet.inference.gpu_facts#module).
    type: dict
    required: true
  user:
    description: Numeric user and group of the container's process, such as V(10001:10001).
    type: str
    required: true
  models_path:
    description: Folder of the model store on the node.
    type: str
    required: true
  state_root:
    description: Folder of the fleet's state on the node. Caches are kept below it.
    type: str
    required: true
author:
  - Inference Fleet contributors (@inference-fleet)
seealso:
  - module: fleet.inference.container_service
"""

EXAMPLES = r"""
- name: Show the container of a service
  ansible.builtin.debug:
    msg: >-
      {{ 'chat' | fleet.inference.service_options(inference_plan, ansible_facts.gpu, user='10001:10001',
                                                  models_path='/srv/models', state_root='/var/lib/inference-fleet') }}
"""

RETURN = r"""
_value:
  description: Options of P(fleet.inference.container_service#module). Sizes are bytes, times seconds.
  type: dict
"""


def service_options(name: str, plan: Mapping[str, Any], facts: Mapping[str, Any], **where: str) -> dict[str, Any]:
    """Return the container of a planned service, or raise with the sentence that says why there is none."""
    try:
        return container_options(name, plan, facts, **where)
    except PlanError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """The filter for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"service_options": service_options}
