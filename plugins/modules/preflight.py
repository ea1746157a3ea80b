#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Check a host's variables before anything is changed
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Checks every variable of the host whose name begins with a role's name, or with C(inference_), against the
    argument specifications of the fleet's roles. An unknown name gets a suggestion, a wrong value the right type.
  - Text that reads as the wanted number or truth value is accepted, because inventories and the command line give text.
  - Refuses an inventory without a host in the group C(gateways).
  - When something is wrong, its message has one sentence, on a line of its own, for each problem of the host.
  - Runs on the controller and opens no connection to the host. Values of secrets are never shown.
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Check the variables
  fleet.inference.preflight:
"""

RETURN = r"""
checked:
  description: Names of the variables that were checked.
  type: list
  elements: str
  returned: success
"""
