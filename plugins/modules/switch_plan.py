#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin ``fleet.inference.switch_plan``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: switch_plan
short_description: Plan how a service of a node is switched to another backend or model
version_added: 0.1.0
description:
  - Says what takes the place of one service of the node, with every setting resolved, whether the old service can serve
    until the new one has answered, and what to write into the host's variables so that C(site.yml) keeps the new one.
  - The new service has a name and a port of its own, and the settings of the plan without the old one.
  - A pure function. It runs on the controller, connects to nothing and changes nothing, and the same input gives the
    same answer.
options:
  service:
    description: Name of the service to switch; not needed on a node that has one.
    type: str
  backend:
    description: Backend of the new service, that of the old one when not given.
    type: str
  model:
    description: Public name of the model of the new service, that of the old one when not given.
    type: str
  new_name:
    description:
      - Name of the new service. Without it the name follows from the old one - C(chat) gives C(chat-vllm), and that one
        C(chat) again; a service that is called after its backend gives one that is called after the new backend.
    type: str
  way:
    description:
      - V(beside) lets the old service serve until the new one has answered, and fails where there is no room for both.
      - V(window) stops the old one first. V(auto) is V(beside) where there is room for both.
    type: str
    choices: [auto, beside, window]
    default: auto
notes:
  - Reads the same facts and variables as M(fleet.inference.plan).
attributes:
  check_mode:
    support: full
    description: Plans as it does without check mode.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
  idempotent:
    support: full
    description: The same facts, variables and catalog give the same answer.
seealso:
  - module: fleet.inference.plan
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Plan to serve the same model with vLLM
  fleet.inference.switch_plan:
    service: chat
    backend: vllm
  register: planned

- name: Say how
  ansible.builtin.debug:
    msg: "{{ planned.switch.text }}"
"""

RETURN = r"""
switch:
  description: The switch.
  returned: success
  type: dict
  contains:
    way:
      description:
        - V(beside), where the old service serves until the new one has answered; V(window), where it stops first;
          V(start), where it is not on the node.
      type: str
      returned: always
    why:
      description: Why it is this way.
      type: str
      returned: always
    old:
      description:
        - The service that goes, with C(name), C(backend), C(models), C(image), C(port), and whether it is C(running).
      type: dict
      returned: always
    new:
      description: The service that takes its place, with the same keys.
      type: dict
      returned: always
    before:
      description: The node's plan as its variables are, as M(fleet.inference.plan) returns it.
      type: dict
      returned: always
    beside:
      description: The plan with both services, null where they do not serve at the same time.
      type: dict
      returned: always
    plan:
      description: The plan with the new service in place of the old one.
      type: dict
      returned: always
    others:
      description: Other services that C(site.yml) changes with the new variables.
      type: list
      elements: str
      returned: always
    left_out:
      description: Settings of the old service that do not suit the new one.
      type: list
      elements: str
      returned: always
    inference_services:
      description: The value of the variable with the new service.
      type: list
      elements: dict
      returned: always
    host_vars:
      description: The same as lines of YAML for the host's variables.
      type: list
      elements: str
      returned: always
    text:
      description: What will happen, for people.
      type: list
      elements: str
      returned: always
"""
