#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin ``fleet.inference.recommend``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: recommend
short_description: Recommend what a node, or a fleet of nodes, should serve
version_added: 0.1.0
description:
  - Chooses backends and models for a workload from the facts of M(fleet.inference.gpu_facts), the host's variables and
    the catalog, as a host with C(inference_services=auto) gets them. Everything that is recommended has a plan.
  - A pure function. It runs on the controller, connects to nothing and changes nothing, and the same input gives the
    same recommendation.
options:
  workload:
    description:
      - What is to be served - C(experimentation), C(chat), C(agents), C(coding), C(edge) or C(mixed). By default the
        host's C(inference_workload), else C(chat).
    type: str
  hosts:
    description:
      - Recommends for these hosts of the inventory together, with a model that most of them share, in place of for
        this host. Every one of them must have its facts.
    type: list
    elements: str
notes:
  - >-
    C(inference_backends) limits the backends, C(inference_gated_models=true) allows models whose licence must be
    accepted first, and variables of whole backends such as C(vllm_max_model_len) apply. C(inference_services) is not
    read.
attributes:
  check_mode:
    support: full
    description: Recommends as it does without check mode.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
  idempotent:
    support: full
    description: The same facts, variables and catalog give the same recommendation.
seealso:
  - module: fleet.inference.gpu_facts
  - module: fleet.inference.plan
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Gather the hardware facts
  fleet.inference.gpu_facts:

- name: Ask what this node should serve to chat users
  fleet.inference.recommend:
    workload: chat
  register: recommended

- name: Show it
  ansible.builtin.debug:
    msg: "{{ recommended.text | join('\n') }}"

- name: Ask what all nodes of the play should serve together
  fleet.inference.recommend:
    workload: chat
    hosts: "{{ ansible_play_hosts }}"
  run_once: true
"""

RETURN = r"""
recommendation:
  description: What to serve; null without any hosts.
  returned: success
  type: dict
  contains:
    workload:
      description: The workload.
      type: str
      returned: always
    node:
      description: Name of the node.
      type: str
      returned: without O(hosts)
    services:
      description: Services as in C(inference_services).
      type: list
      elements: dict
      returned: without O(hosts)
    common_model:
      description: The model that at least half of the hosts should share, null without one.
      type: str
      returned: with O(hosts)
    nodes:
      description: Services, why and better of every host, by its name.
      type: dict
      returned: with O(hosts)
    why:
      description: A sentence for every rule that decided.
      type: list
      elements: str
      returned: always
    better:
      description: What it would take to do better, in sentences.
      type: list
      elements: str
      returned: always
plan:
  description: The plan of the services, as M(fleet.inference.plan) returns it.
  returned: success, without O(hosts)
  type: dict
text:
  description: The recommendation for people, lines without line ends.
  returned: success
  type: list
  elements: str
"""
