#!/usr/bin/python
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: Apache-2.0
"""Keep the gateway's service registry: one JSON fragment a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_registry
short_description: Publish what nodes serve into a gateway's service registry
version_added: 0.1.0
description:
  - Runs on a gateway. Writes one JSON file (fragment) a node into the registry, removes the fragments of nodes that
    left, and returns all fragments, from which the configurations of HAProxy and LiteLLM are made.
  - A fragment's C(drained) flag in the registry outlives publishing; what is passed matters only for a new fragment.
    Its C(restarting) flag and the C(stopped) flags of its services end with publishing.
  - One call holds a lock on the registry, so that several runs may publish at the same time.
options:
  registry_path:
    description: Directory of the fragments.
    type: path
    default: /var/lib/inference-fleet/registry
  fragments:
    description: Fragments of this run's nodes, as the filter P(fleet.inference.gateway_fragment#filter) makes them.
    type: list
    elements: dict
    default: []
  remove:
    description: Names of nodes whose fragments go.
    type: list
    elements: str
    default: []
  restarting:
    description:
      - Nodes that a run restarts, or has restarted (V(false)); no new requests go to a node that restarts.
      - Nodes without a fragment are ignored.
    type: dict
    default: {}
  stopped:
    description:
      - Services, by name in a dictionary for each node, that a run stops or restarts, or that serve again (V(false)).
      - No new requests go to a service that is stopped.
      - Nodes without a fragment and services that it does not have are ignored.
    type: dict
    default: {}
  remove_services:
    description: Names of services, in a list for each node, that go from its fragment.
    type: dict
    default: {}
  state_files:
    description: Files whose SHA-256 is wanted, so that the caller need not look again what has to be written.
    type: list
    elements: path
    default: []
  services:
    description: Services of M(fleet.inference.container_service) of which RV(unapplied) is wanted.
    type: list
    elements: str
    default: []
  config_root:
    description: Root of these services' configuration.
    type: path
    default: /etc/inference-fleet
  unit_dir:
    description: Where their units are.
    type: path
    default: /etc/systemd/system
attributes:
  check_mode:
    description: Tells what would change and returns the fragments as they would be; writes nothing.
    support: full
  diff_mode:
    description: Shows the fragments before and after.
    support: full
  idempotent:
    description: A second call with the same fragments changes nothing.
    support: full
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Publish a node
  fleet.inference.service_registry:
    fragments:
      - schema_version: 1
        node: gpu-01
        address: 10.0.0.11
        services:
          - name: llamacpp
            backend: llamacpp
            model: smollm2-135m-instruct
            port: 8005
            context_length: 2048
            parallel: 4

- name: Send no new requests to a service
  fleet.inference.service_registry:
    stopped:
      gpu-01: {llamacpp: true}

- name: Forget a node and ask for the state of a file
  fleet.inference.service_registry:
    remove: [gpu-07]
    state_files: [/etc/haproxy/haproxy.cfg]
"""

RETURN = r"""
fragments:
  description: All fragments of the registry, sorted by node.
  returned: success
  type: list
  elements: dict
files:
  description: SHA-256 of each file of O(state_files), null where there is no such file.
  returned: success
  type: dict
unapplied:
  description:
    - Those of O(services) that were not started with the files that are there now,
      because they are not installed or a run ended between writing and starting.
  returned: success
  type: list
  elements: str
written:
  description: Nodes whose fragment was written, or would be.
  returned: success
  type: list
  elements: str
removed:
  description: Nodes whose fragment was removed, or would be.
  returned: success
  type: list
  elements: str
"""

import fcntl
import hashlib
import os
from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.gateway.fragments import (
    GatewayError,
    dump_fragment,
    load_fragment,
    validate_fragments,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.applied import is_as_started
from ansible_collections.fleet.inference.plugins.module_utils.services.files import write_text


def read_registry(path: str) -> Dict[str, Dict[str, Any]]:
    """Return the registry's fragments by node; an absent directory is an empty registry.

    :raises GatewayError: for a broken fragment, naming its file.
    """
    found: Dict[str, Dict[str, Any]] = {}
    if not os.path.isdir(path):
        return found
    for name in sorted(os.listdir(path)):
        if not name.endswith(".json") or name.startswith("."):
            continue
        file = os.path.join(path, name)
        with open(file, encoding="utf-8", errors="replace") as handle:
            fragment = load_fragment(handle.read(), file)
        if fragment["node"] + ".json" != name:
            raise GatewayError(
                f"{file} is the fragment of {fragment['node']}, not of {name[:-5]}; delete it and run site.yml again."
            )
        found[fragment["node"]] = fragment
    return found


def sha256_of(path: str) -> Optional[str]:
    """Return a file's SHA-256, or None when there is no such file."""
    if not os.path.isfile(path):
        return None
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def merge(
    present: Dict[str, Dict[str, Any]], given: List[Dict[str, Any]], options: Dict[str, Any]
) -> Dict[str, Dict[str, Any]]:
    """Return the registry as it should be: given fragments keep the drained flag that the registry knows.

    ``options`` are those of the module: remove, restarting, stopped and remove_services.
    """
    wanted = {
        node: dict(
            fragment,
            restarting=options["restarting"].get(node, fragment["restarting"]),
            services=[
                dict(service, stopped=options["stopped"].get(node, {}).get(service["name"], service["stopped"]))
                for service in fragment["services"]
                if service["name"] not in options["remove_services"].get(node, ())
            ],
        )
        for node, fragment in present.items()
        if node not in options["remove"]
    }
    for fragment in given:
        node = fragment["node"]
        drained = present[node]["drained"] if node in present else fragment["drained"]
        wanted[node] = dict(fragment, drained=drained)
    return wanted


def check_options(options: Dict[str, Any]) -> None:
    """Raise :class:`GatewayError` for values that are not of the documented shape."""
    for node, value in options["restarting"].items():
        if not isinstance(value, bool):
            raise GatewayError(f"restarting has {value!r} for the node {node}; use true or false.")
    for node, flags in options["stopped"].items():
        if not isinstance(flags, dict) or not all(isinstance(value, bool) for value in flags.values()):
            raise GatewayError(f"stopped has {flags!r} for the node {node}; use true or false for each service.")
    for node, names in options["remove_services"].items():
        if not isinstance(names, list):
            raise GatewayError(f"remove_services has {names!r} for the node {node}; use a list of services.")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "registry_path": {"type": "path", "default": "/var/lib/inference-fleet/registry"},
            "fragments": {"type": "list", "elements": "dict", "default": []},
            "remove": {"type": "list", "elements": "str", "default": []},
            "restarting": {"type": "dict", "default": {}},
            "stopped": {"type": "dict", "default": {}},
            "remove_services": {"type": "dict", "default": {}},
            "state_files": {"type": "list", "elements": "path", "default": []},
            "services": {"type": "list", "elements": "str", "default": []},
            "config_root": {"type": "path", "default": "/etc/inference-fleet"},
            "unit_dir": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    path = module.params["registry_path"]
    lock: Optional[int] = None
    try:
        given = validate_fragments(module.params["fragments"])
        check_options(module.params)
        both = sorted({fragment["node"] for fragment in given} & set(module.params["remove"]))
        if both:
            raise GatewayError(f"The node {both[0]} is in fragments and in remove; name it in one of them.")
        if not module.check_mode and not os.path.isdir(path):
            os.makedirs(path, mode=0o755, exist_ok=True)
        if os.path.isdir(path) and not module.check_mode:
            lock = os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(lock, fcntl.LOCK_EX)
        present = read_registry(path)
        wanted = merge(present, given, module.params)
        written = sorted(node for node, fragment in wanted.items() if present.get(node) != fragment)
        removed = sorted(node for node in present if node not in wanted)
        if not module.check_mode:
            for node in written:
                write_text(os.path.join(path, node + ".json"), dump_fragment(wanted[node]))
            for node in removed:
                os.unlink(os.path.join(path, node + ".json"))
        module.exit_json(
            changed=bool(written or removed),
            written=written,
            removed=removed,
            fragments=[wanted[node] for node in sorted(wanted)],
            files={file: sha256_of(file) for file in module.params["state_files"]},
            unapplied=[
                name
                for name in module.params["services"]
                if not is_as_started(
                    os.path.join(module.params["config_root"], "services", name),
                    os.path.join(module.params["unit_dir"], f"inference-{name}.service"),
                )
            ],
            diff=[
                {
                    "before_header": os.path.join(path, node + ".json"),
                    "after_header": os.path.join(path, node + ".json"),
                    "before": dump_fragment(present[node]) if node in present else "",
                    "after": dump_fragment(wanted[node]) if node in wanted else "",
                }
                for node in sorted(set(written + removed))
            ],
        )
    except GatewayError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"The service registry {path} can not be used ({error}); give root a writable directory there."
        )
    finally:
        if lock is not None:
            os.close(lock)


if __name__ == "__main__":
    main()
