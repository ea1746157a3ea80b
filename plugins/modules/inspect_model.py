#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin ``fleet.inference.inspect_model``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: inspect_model
short_description: Read a model's catalog entry from a GGUF file or a config.json
version_added: 0.1.0
description:
  - Returns what C(inference_models) needs to know of a model - parameters, layers, heads, context, sliding window,
    latent attention, experts - from the header of a GGUF file or from the C(config.json) of a Hugging Face model.
  - For a GGUF file the entry also names the file with its size, SHA-256 and quantization, for a split model all parts.
  - Reads a file of the controller and connects to nothing. Fails with one sentence when there is no such file, when it
    is damaged or of another kind, or when it lacks numbers.
options:
  path:
    description:
      - A GGUF file (of a split model the first part, beside the others), a C(config.json), or a folder that holds one.
    type: str
    required: true
notes:
  - GGUF files need the Python package gguf where Ansible runs.
  - >-
    The parameters of a C(config.json) are counted for dense models (Llama, Mistral, Phi 3 and 4, Granite, SmolLM3,
    Qwen 2 and 3, Gemma 3) and for mixtures of experts (Mixtral, Qwen 3, gpt-oss, DeepSeek V2 and V3, Kimi K2); other
    models fail.
attributes:
  check_mode:
    support: full
    description: Reads as it does without check mode.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
  idempotent:
    support: full
    description: The same file gives the same entry.
seealso:
  - module: fleet.inference.plan
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Read a model's numbers
  fleet.inference.inspect_model:
    path: /srv/models/Qwen3-8B-Q4_K_M.gguf
  register: found

- name: Show them
  ansible.builtin.debug:
    msg: "{{ found.models | to_nice_yaml(sort_keys=false) }}"
"""

RETURN = r"""
models:
  description: The suggested public name with the entry of C(inference_models).
  returned: success
  type: dict
  sample:
    qwen3-8b:
      parameters: 8190735360
      layers: 36
      attention_heads: 32
      kv_heads: 8
      head_dim: 128
      hidden_size: 4096
      vocabulary_size: 151936
      context_length: 40960
"""
