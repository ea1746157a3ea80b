#!/usr/bin/python
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: Apache-2.0
"""Wait until nobody is connected to a node's services any more."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_idle
short_description: Wait until the requests of a node's services are answered
version_added: 0.1.0
description:
  - Runs on a node that gets no new requests any more. A request holds its connection until the last token of its answer
    is out, so the module waits until no client is connected to the services.
  - Changes nothing. Services that do not run are idle.
options:
  services:
    description: Names of services of M(fleet.inference.container_service), all that are installed when not given.
    type: list
    elements: str
  timeout_seconds:
    description: How long to wait.
    type: float
    default: 300
  engine:
    description: The container engine.
    type: str
    choices: [docker]
    default: docker
  config_root:
    description: Root of the services' configuration.
    type: path
    default: /etc/inference-fleet
attributes:
  check_mode:
    description: Does not wait, and tells what is connected now.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
  idempotent:
    description: Nothing is changed.
    support: full
author:
  - Inference Fleet contributors (@inference-fleet)
"""

EXAMPLES = r"""
- name: Let running requests finish
  fleet.inference.service_idle:
    timeout_seconds: 600
"""

RETURN = r"""
busy:
  description: Connections by service, of those to which clients are still connected.
  returned: success
  type: dict
  sample: {vllm: 3}
waited_seconds:
  description: How long it took.
  returned: success
  type: float
"""

import os
import time
from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.services.connections import counter, wait_until_idle
from ansible_collections.fleet.inference.plugins.module_utils.services.engine import (
    DockerEngine,
    EngineError,
    EngineUnavailable,
    cgroup_controllers,
)
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import Runner


def _installed(config_root: str) -> List[str]:
    folder = os.path.join(config_root, "services")
    if not os.path.isdir(folder):
        return []
    return sorted(name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name, "service.json")))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "services": {"type": "list", "elements": "str"},
            "timeout_seconds": {"type": "float", "default": 300},
            "engine": {"type": "str", "choices": ["docker"], "default": "docker"},
            "config_root": {"type": "path", "default": "/etc/inference-fleet"},
        },
        supports_check_mode=True,
    )
    options: Dict[str, Any] = module.params
    names = options["services"]
    if names is None:
        names = _installed(options["config_root"])
    count = counter(DockerEngine(Runner(), cgroup_controllers()).container_pid, options["config_root"])
    started = time.monotonic()
    try:
        busy = wait_until_idle(count, names, 0 if module.check_mode else options["timeout_seconds"]) if names else {}
    except EngineUnavailable:
        # A service runs only as long as its unit is connected to the engine.
        busy = {}
    except EngineError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, busy=busy, waited_seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
