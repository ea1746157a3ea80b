#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_collect
short_description: Bring models from a node to the controller
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Copies models that a node's store has to the controller's, from which M(fleet.inference.model_store) carries them to
    other nodes. Delegate it to the node that has the models.
  - Every file is verified by its checksum before it counts. What the controller has already is not copied again.
  - A model that the node does not have is left out.
  - The login user of the node must be able to read its store.
options:
  path:
    description: Root of the model store on the node.
    type: path
    default: /var/lib/inference-fleet/models
  models:
    description: The models, as RV(fleet.inference.plan#module:plan.models) has them.
    type: list
    elements: dict
    required: true
  only:
    description: The models that are needed, as RV(fleet.inference.model_store#module:missing) has them; without it all.
    type: list
    elements: str
  cache_path:
    description: Folder on the controller in which files that it carries are kept.
    type: path
    default: ~/.cache/inference-fleet/models
attributes:
  check_mode:
    support: full
    description: Says what would be copied.
  diff_mode:
    support: none
    description: Only the controller's cache changes.
  idempotent:
    support: full
    description: No remote execution when the controller has the models.
seealso:
  - module: fleet.inference.model_store
"""

EXAMPLES = r"""
- name: Bring to the controller what gpu-01 has
  fleet.inference.model_collect:
    models: "{{ inference_plan.models }}"
  delegate_to: gpu-01
"""

RETURN = r"""
collected:
  description: >-
    The models that were copied, or would be in check mode, in the words of
    RV(fleet.inference.model_store#module:missing).
  type: list
  elements: str
  returned: success
"""
