# SPDX-License-Identifier: Apache-2.0
"""Whether one structure has everything that another one asks for."""

from __future__ import annotations

from typing import Any

DOCUMENTATION = r"""
name: contains
short_description: Whether a structure has everything that another one asks for
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - A mapping contains another when it has each of its keys and each value contains the other's.
    A wanted V(null) asks for a key that is absent or null.
  - A list contains another when every wanted item is contained in one of its items, in whatever order.
  - Anything else contains what it equals. Nothing (V(null)) contains only what asks for nothing.
positional: _input, wanted
options:
  _input:
    description: What is there.
    type: raw
    required: true
  wanted:
    description: What is asked for.
    type: raw
    required: true
"""

EXAMPLES = r"""
- name: Say whether Docker has the wanted options
  ansible.builtin.debug:
    msg: "{{ ansible_facts.gpu.runtime.docker.daemon_config | fleet.inference.contains({'live-restore': true}) }}"
"""

RETURN = r"""
_value:
  description: Whether everything wanted is there.
  type: bool
"""


def contains(there: Any, wanted: Any) -> bool:
    """Return whether ``there`` has everything that ``wanted`` asks for (see DOCUMENTATION)."""
    if isinstance(wanted, dict):
        have = there if isinstance(there, dict) else {}
        return (isinstance(there, dict) or there is None) and all(
            contains(have.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        if there is None:
            return not wanted
        return isinstance(there, list) and all(any(contains(item, one) for item in there) for one in wanted)
    if isinstance(there, bool) is not isinstance(wanted, bool):
        return False
    return bool(there == wanted)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"contains": contains}
