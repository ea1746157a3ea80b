#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin ``fleet.inference.plan``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Plan the inference services of a node
version_added: 0.1.0
description:
  - Turns the facts of M(fleet.inference.gpu_facts), the host's variables and the catalog of models and engines into the
    node's services with every setting resolved - image, GPU, port, context, slots, memory, environment, model file.
  - A pure function. It runs on the controller, connects to nothing and changes nothing, and the same input gives the
    same plan.
  - When there is no plan it fails with one sentence that names the host, the variable or service, what is wrong and
    what would be right.
options:
  facts:
    description:
      - Facts to plan for, in place of the host's C(ansible_facts.gpu).
    type: dict
  variables:
    description:
      - Variables to plan with, in place of all of the host's. The catalog is read from them as well.
    type: dict
notes:
  - >-
    Variables read: C(inference_services), or else C(inference_backends) with C(llamacpp_model), C(llamacpp_port),
    C(llamacpp_ctx_size), C(llamacpp_parallel), C(llamacpp_kv_cache_type), C(llamacpp_quantization), C(llamacpp_gpus),
    C(llamacpp_gpu_layers), which are also the defaults of an entry of C(inference_services); C(llamacpp_extra_env);
    C(inference_address), C(inference_tier), C(inference_models_path), C(inference_image_registries); the catalog
    C(inference_models) and C(inference_engines).
attributes:
  check_mode:
    support: full
    description: Plans as it does without check mode.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
  idempotent:
    support: full
    description: The same facts, variables and catalog give the same plan.
seealso:
  - module: fleet.inference.gpu_facts
  - plugin: fleet.inference.plan
    plugin_type: filter
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Gather the hardware facts
  fleet.inference.gpu_facts:

- name: Plan the node
  fleet.inference.plan:

- name: Show what will run
  ansible.builtin.debug:
    msg: "{{ ansible_facts.inference_plan.services | map(attribute='decisions') }}"
"""

RETURN = r"""
plan:
  description: The plan. Sizes are bytes.
  returned: success
  type: dict
  contains:
    schema_version:
      description: Version of this structure.
      type: int
      returned: always
      sample: 1
    node:
      description: The host's name.
      type: str
      returned: always
      sample: gpu-01
    address:
      description: Address that the services listen on.
      type: str
      returned: always
      sample: 192.0.2.11
    tier:
      description: What accelerates the node - V(cuda), V(rocm), V(vulkan) or V(cpu).
      type: str
      returned: always
      sample: cpu
    services:
      description: >-
        The services with image, address, port, devices, context_length (tokens of one slot), parallel (slots), memory
        (weights, KV cache and overhead against the budget of its pool), model_file, env, readiness_timeout_seconds,
        memory_limit_bytes and decisions (why).
      type: list
      elements: dict
      returned: always
    models:
      description: The model files that the services need, one a path - path, size_bytes, sha256, source.
      type: list
      elements: dict
      returned: always
    warnings:
      description: Sentences about settings that are worse than wished or usual.
      type: list
      elements: str
      returned: always
ansible_facts:
  description: The plan as a fact of the host.
  returned: success
  type: dict
  contains:
    inference_plan:
      description: Same as RV(plan).
      type: dict
      returned: success
"""
