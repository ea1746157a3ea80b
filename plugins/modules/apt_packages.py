#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_packages
short_description: Install, remove and hold packages as one change, after a full forecast
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Makes a change of packages together with the repository, key and preferences it needs. Before anything is touched,
    all of it is tried in a temporary folder - the repository is read and its signature checked, and the change is
    simulated with the preferences in force. What can't be done changes nothing.
  - What goes leaves in the same transaction as what comes, so a driver is never gone in between.
  - Packages that an earlier run left half-configured are finished, and the module fails when any are left.
options:
  host:
    description: The host that messages name.
    type: str
    required: true
  install:
    description: Packages, with C(=version) where one is wanted; a star stands for the rest of a version.
    type: list
    elements: str
    default: []
  remove:
    description: Packages that are purged.
    type: list
    elements: str
    default: []
  hold:
    description: Regular expressions of packages that are held when they are installed.
    type: list
    elements: str
    default: []
  owned:
    description: Regular expressions of packages that the change may take away, and whose state is checked afterwards.
    type: list
    elements: str
    default: []
  files:
    description: Files that apt reads - sources, keys, preferences, settings. They are written after a good forecast.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is.
        type: path
        required: true
      content:
        description: What is in it.
        type: str
        required: true
      mode:
        description: Its mode.
        type: str
        default: '0644'
  absent_files:
    description: Files that are deleted with the change.
    type: list
    elements: path
    default: []
  url:
    description: The repository that O(files) describe. When it can't be read, the change is refused.
    type: str
  components:
    description: Sections of the distribution's own sources that are added, in O(components_path), where the packages
      can't be had without them.
    type: list
    elements: str
    default: []
  components_path:
    description: The file that these sections are written to.
    type: path
  same_version:
    description: Packages that have to get the same upstream version.
    type: list
    elements: str
    default: []
  repair:
    description: Finishes what an interrupted run left half-configured.
    type: bool
    default: false
  blame:
    description: What messages name - C(repository), C(packages) and C(version) are variables, C(key) is the fingerprint
      and C(remedy) a clause.
    type: dict
    required: true
attributes:
  check_mode:
    description: Makes the forecast, with the network, and changes nothing.
    support: full
  diff_mode:
    description: Shows the packages and files that change.
    support: full
  idempotent:
    description: Reports a change only when a package, file or hold differs.
    support: full
"""

EXAMPLES = r"""
- name: Install a driver
  fleet.inference.apt_packages:
    host: "{{ inventory_hostname }}"
    install: [nvidia-driver-cuda, nvidia-kernel-open-dkms]
    hold: ["nvidia-.*"]
    owned: ["nvidia-.*"]
    blame: {repository: my_url, key: ABCD, packages: my_source, version: my_version, remedy: set my_source to another}
"""

RETURN = r"""
packages:
  description: What changes, or would change - C(name old -> new), with C(-) for nothing.
  type: list
  elements: str
  returned: success
written:
  description: Files that are written.
  type: list
  elements: str
  returned: success
deleted:
  description: Files that are deleted.
  type: list
  elements: str
  returned: success
held:
  description: Packages that are held.
  type: list
  elements: str
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.drivers import apt

#: No question may stop a run, no other tool may restart services in the middle, and messages are read.
_ENVIRONMENT = {
    "APT_LISTCHANGES_FRONTEND": "none",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C",
    "NEEDRESTART_SUSPEND": "1",
}


def main() -> None:
    """Entry point of the module."""
    texts = {"type": "list", "elements": "str", "default": []}
    entry = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
    }
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "install": texts,
            "remove": texts,
            "hold": texts,
            "owned": texts,
            "files": {"type": "list", "elements": "dict", "default": [], "options": entry},
            "absent_files": {"type": "list", "elements": "path", "default": []},
            "url": {"type": "str"},
            "components": texts,
            "components_path": {"type": "path"},
            "same_version": texts,
            "repair": {"type": "bool", "default": False},
            "blame": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    request = apt.Request(
        install=options["install"],
        remove=options["remove"],
        hold=options["hold"],
        owned=options["owned"],
        files=options["files"],
        absent=options["absent_files"],
        components=options["components"],
        components_path=options["components_path"],
        url=options["url"],
        same_version=options["same_version"],
        repair=options["repair"],
        blame=options["blame"],
    )

    def run(command: list[str]) -> tuple[int, str, str]:
        rc, out, err = module.run_command(command, environ_update=_ENVIRONMENT)
        return rc, out, err

    try:
        expected = apt.forecast(request, run)
        deleted = [path for path in request.absent if os.path.lexists(path)]
        before = {entry["path"]: apt.read(entry["path"]) for entry in expected.files}
        held = apt.to_hold(request, run) if module.check_mode else apt.apply(request, expected, run)
    except apt.AptError as error:
        module.fail_json(msg=f"{options['host']}: {error}")
    result = apt.summary(expected, held, deleted)
    result["diff"] = _diff(expected, before, result["packages"])
    module.exit_json(**result)


def _diff(expected: apt.Forecast, before: dict[str, str | None], packages: list[str]) -> list[dict[str, str]]:
    shown = [
        {
            "before_header": entry["path"],
            "after_header": entry["path"],
            "before": before[entry["path"]] or "",
            "after": entry["content"],
        }
        for entry in expected.files
    ]
    if packages:
        shown.append({"prepared": "\n".join(packages) + "\n"})
    return shown


if __name__ == "__main__":
    main()
