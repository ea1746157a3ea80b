#!/usr/bin/python
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: Apache-2.0
"""List the models of a node's store, and remove some of them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stored_models
short_description: List the models of a node's model store, and remove some
version_added: 0.1.0
description:
  - Returns what lies in the store of M(fleet.inference.model_store), whoever wanted it, and removes the models that are
    named. It does not know which are in use.
  - Layers that models of Ollama's store share stay as long as one of these models does.
options:
  path:
    description: Root of the model store.
    type: path
    default: /var/lib/inference-fleet/models
  remove:
    description: RV(stored[].key) of the models to remove. Keys of no model are ignored.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    description: Tells what would be removed.
    support: full
  diff_mode:
    description: Lists the paths that are removed.
    support: full
  idempotent:
    description: A second call removes nothing.
    support: full
author:
  - Inference Fleet contributors (@inference-fleet)
seealso:
  - module: fleet.inference.model_store
"""

EXAMPLES = r"""
- name: List the models
  fleet.inference.stored_models:
  register: models

- name: Remove one
  fleet.inference.stored_models:
    remove: ["{{ models.stored[0].key }}"]
"""

RETURN = r"""
stored:
  description: The models of the store before anything is removed.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: Path that tells this model from all others.
      type: path
      returned: always
    kind:
      description: V(gguf), V(repository) or V(ollama).
      type: str
      returned: always
    names:
      description: Name of the file or repository, or the names that Ollama knows it by.
      type: list
      elements: str
      returned: always
    size_bytes:
      description: Bytes on the disk. Layers that models of Ollama's store share are counted for each.
      type: int
      returned: always
removed:
  description: Paths that were removed, or would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.models import contents, unused
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import StoreError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/lib/inference-fleet/models"},
            "remove": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    root = module.params["path"]
    try:
        stored = contents.find(root)
        removed = contents.paths(module.params["remove"], root)
        if not module.check_mode:
            unused.remove(removed, root)
    except StoreError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(removed),
        stored=stored,
        removed=removed,
        diff={"before": "".join(f"{path}\n" for path in removed), "after": ""},
    )


if __name__ == "__main__":
    main()
