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
    Variables read: C(inference_services), a list or C(auto), which takes what M(fleet.inference.recommend) recommends
    for C(inference_workload) among C(inference_backends) (all when not set), gated models only with
    C(inference_gated_models); or else C(inference_backends) with C(llamacpp_model), C(llamacpp_port),
    C(llamacpp_ctx_size), C(llamacpp_parallel), C(llamacpp_kv_cache_type), C(llamacpp_quantization), C(llamacpp_gpus),
    C(llamacpp_gpu_layers), which are also the defaults of an entry of C(inference_services); C(llamacpp_env);
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
  - module: fleet.inference.recommend
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
    recommendation:
      description: Why these services, when C(inference_services=auto); null otherwise.
      type: dict
      returned: always
      contains:
        workload:
          description: The workload that they were chosen for.
          type: str
          returned: always
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
    services:
      description: The services.
      type: list
      elements: dict
      returned: always
      contains:
        name:
          description: Name of the service.
          type: str
          returned: always
        backend:
          description: Backend.
          type: str
          returned: always
        model:
          description: Public name of the model, of several the first.
          type: str
          returned: always
        models:
          description: >-
            All models that it serves, its own first - name, quantization, context_length and parallel (what requests to
            this model get), model_file and model_source.
          type: list
          elements: dict
          returned: always
        tier:
          description: The node's tier.
          type: str
          returned: always
        variant:
          description: Variant of the engine table that the image is of.
          type: str
          returned: always
        image:
          description: Image, by digest where one is locked.
          type: str
          returned: always
        address:
          description: Address that it listens on.
          type: str
          returned: always
        port:
          description: Port on the node.
          type: int
          returned: always
        container_port:
          description: Port in the container.
          type: int
          returned: always
        devices:
          description: >-
            What its container is given of each unit - index, uuid, pci_bus_id, vendor, container_devices (CDI names
            or device nodes) and container_groups.
          type: list
          elements: dict
          returned: always
        units:
          description: GPUs, MIG instances or partitions that it runs on - identity and title; none on the CPU.
          type: list
          elements: dict
          returned: always
        tensor_parallel_size:
          description: Units that share every layer.
          type: int
          returned: always
        pipeline_parallel_size:
          description: Groups of units that share the layers.
          type: int
          returned: always
        format:
          description: Format of the weights.
          type: str
          returned: always
        quantization:
          description: Format or quantization as users write it.
          type: str
          returned: always
        context_length:
          description: Tokens that one request may use.
          type: int
          returned: always
        parallel:
          description: Requests with a full context that the memory holds at the same time.
          type: int
          returned: always
        concurrency:
          description: >-
            Requests that it answers at the same time with what it may take - requests of full length, short_requests
            of short_request_tokens (null where every request has a slot of fixed size, or where a context is no longer
            than that), and kv_cache_tokens, what the KV cache holds.
          type: dict
          returned: always
        kv_cache_type:
          description: Type of the KV cache.
          type: str
          returned: always
        gpu_layers:
          description: Layers on GPUs, a number or V(all); null where the backend has no such setting.
          type: raw
          returned: always
        threads:
          description: Threads that compute on the CPU, null where none do.
          type: int
          returned: always
        memory:
          description: >-
            Memory of each unit, or of the host on a CPU and with unified memory - pool, weights_bytes,
            kv_cache_bytes, overhead_bytes, total_bytes, share_bytes (what it may take), budget_bytes (what all
            services may take) - and host_bytes, what it takes of the host beside its units.
          type: dict
          returned: always
        model_file:
          description: >-
            Its GGUF file - model, quantization, path, size_bytes, sha256, source; null without one. Of a split model
            the first part.
          type: dict
          returned: always
        model_source:
          description: Where its weights come from - file, or repository and revision, or ollama - and size_bytes.
          type: dict
          returned: always
        arguments:
          description: Arguments behind the image's entry point.
          type: list
          elements: str
          returned: always
        env:
          description: Environment.
          type: dict
          returned: always
        shared_memory_bytes:
          description: Size of /dev/shm in the container.
          type: int
          returned: always
        readiness_timeout_seconds:
          description: Seconds until it must have answered.
          type: int
          returned: always
        memory_limit_bytes:
          description: The container's memory limit.
          type: int
          returned: always
        decisions:
          description: Why every setting is what it is.
          type: list
          elements: str
          returned: always
    start_order:
      description: Names of the services in the order in which they start.
      type: list
      elements: str
      returned: always
    models:
      description: >-
        What the model store must hold for the services, as O(fleet.inference.model_store#module:models) takes it - of
        each model, quantization, path and size_bytes; of a GGUF file, and of every part of a split one, sha256 and
        source; of a repository of safetensors repository, revision and files (patterns, none for the usual ones); of
        a model of the Ollama library ollama, its name there.
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
