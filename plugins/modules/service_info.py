#!/usr/bin/python
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: Apache-2.0
"""Tell which services are installed on a node, and in which state they are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_info
short_description: Tell which services a node has, and in which state they are
version_added: 0.1.0
description:
  - Returns the engines' services that M(fleet.inference.container_service) installed on the node, with the states that
    systemd gives them and, where wished, their last lines of the journal. LiteLLM's are left out.
  - Changes nothing.
options:
  services:
    description: Names of the services that are wanted, all when not given. Others and unknown names are left out.
    type: list
    elements: str
  lines:
    description: How many last lines of each service's journal to return.
    type: int
    default: 0
  config_root:
    description: Root of the services' configuration.
    type: path
    default: /etc/inference-fleet
attributes:
  check_mode:
    description: Nothing is changed.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
  idempotent:
    description: Nothing is changed.
    support: full
author:
  - Inference Fleet contributors (@inference-fleet)
seealso:
  - module: fleet.inference.container_service
"""

EXAMPLES = r"""
- name: Look at a node's services
  fleet.inference.service_info:
    lines: 20
"""

RETURN = r"""
services:
  description: The services, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name.
      type: str
      returned: always
    backend:
      description: Backend, null where the service's record does not tell.
      type: str
      returned: always
    models:
      description: Public names of the models that it serves.
      type: list
      elements: str
      returned: always
    address:
      description: Address on which it listens, null where the record does not tell.
      type: str
      returned: always
    port:
      description: Port on which it listens, null where the record does not tell.
      type: int
      returned: always
    state:
      description:
        - V(serving) (its models have answered), V(starting), V(stopping), V(stopped), V(failed), or V(unknown) where
          systemd does not answer.
      type: str
      returned: always
    lines:
      description: Last lines of its journal, the oldest first.
      type: list
      elements: str
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.services.installed import (
    last_lines,
    read_services,
    states,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import Runner


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str"},
            "lines": {"type": "int", "default": 0},
            "config_root": {"type": "path", "default": "/etc/inference-fleet"},
        },
        supports_check_mode=True,
    )
    wished, lines, runner = module.params["services"], module.params["lines"], Runner()
    if lines < 0:
        module.fail_json(msg=f"lines is {lines}; give 0 or more")
    found = [item for item in read_services(module.params["config_root"]) if wished is None or item["name"] in wished]
    state = states([item["name"] for item in found], runner)
    module.exit_json(
        changed=False,
        services=[
            {
                **item,
                "state": state[item["name"]],
                "lines": last_lines(item["name"], lines, runner) if lines else [],
            }
            for item in found
        ],
    )


if __name__ == "__main__":
    main()
