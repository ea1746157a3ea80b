#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Documentation of the action plugin ``fleet.inference.driver_plan``, which runs on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: driver_plan
short_description: Decide what of a GPU driver a node needs
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Compares the facts of M(fleet.inference.gpu_facts), the variables of a driver's role and the driver table, and
    returns what to install, remove, hold and write, which of the role's steps have something to do, and whether the
    node has to restart.
  - A pure function. It runs on the controller, connects to nothing and changes nothing, and the same input gives the
    same decision.
  - Fails with a sentence for every problem; each names the host, the variable, what is wrong and what would be right.
options:
  driver:
    description: Which driver is decided on; V(gpu_ready) is what services of all of them wait for.
    type: str
    required: true
    choices: [gpu_ready, nvidia, rocm, vulkan]
  facts:
    description: Facts to decide by, in place of the host's C(ansible_facts.gpu).
    type: dict
  host:
    description: The host that messages name. The play's host when it is not given.
    type: str
  table:
    description: The driver table, in place of the variable C(inference_drivers).
    type: dict
  variables:
    description: The role's variables by name, in place of those of the play.
    type: dict
attributes:
  check_mode:
    support: full
    description: Decides as it does without check mode.
  diff_mode:
    support: none
    description: Nothing is changed, so there is no difference to show.
  idempotent:
    support: full
    description: The same facts, variables and table give the same decision.
seealso:
  - module: fleet.inference.gpu_facts
"""

EXAMPLES = r"""
- name: Gather the hardware facts
  fleet.inference.gpu_facts:

- name: Decide what of NVIDIA's driver the node needs
  fleet.inference.driver_plan:
    driver: nvidia
    variables:
      nvidia_driver_source: vendor
      nvidia_driver_branch: "580"
  register: decided

- name: Show why
  ansible.builtin.debug:
    msg: "{{ decided.driver_plan.decisions }}"
"""

RETURN = r"""
driver_plan:
  description: The decision.
  returned: success
  type: dict
  contains:
    needed:
      description: The node has a GPU for this driver, or something of the driver to remove.
      type: bool
      returned: always
    state:
      description: V(present) or V(absent).
      type: str
      returned: always
    source:
      description: Where the driver comes from.
      type: str
      returned: for nvidia and rocm
    branch:
      description: Branch of the driver, null where nothing is installed.
      type: str
      returned: for nvidia
      sample: '580'
    flavour:
      description: V(open) or V(proprietary) kernel module, null where there is no choice.
      type: str
      returned: for nvidia
    headers:
      description: Meta package of the kernel's headers, null where none is needed.
      type: str
      returned: for nvidia and rocm
      sample: linux-headers-cloud-amd64
    packages:
      description: What C(install) (with C(=version) where one is wanted) and C(remove) have to do with, what C(hold)
        is not held yet, and the expressions of all that is to be C(held).
      type: dict
      returned: always
    pins:
      description: Stanzas of apt's preferences.
      type: list
      elements: str
      returned: for nvidia
    fabric_manager:
      description: The machine has NVSwitches, and Fabric Manager belongs to its driver.
      type: bool
      returned: for nvidia
    files:
      description: Files that the role owns, each with C(path), C(content) and C(mode).
      type: list
      elements: dict
      returned: for nvidia
    repository:
      description: The vendor's repository, null where none is used.
      type: dict
      returned: for nvidia and rocm
    package_files:
      description: Files that the package manager reads, each with C(path), C(content) and C(mode).
      type: list
      elements: dict
      returned: for nvidia and rocm
    obsolete_files:
      description: Paths of files that the role wrote and no longer wants.
      type: list
      elements: str
      returned: for nvidia, rocm and vulkan
    components:
      description: Sections of the distribution's own package sources that may be needed.
      type: list
      elements: str
      returned: for nvidia, rocm and vulkan
    kernel:
      description: The kernel that starts next, for which the driver has to be there.
      type: str
      returned: for nvidia and rocm
    line:
      description: Line of ROCm, null with the kernel's own driver.
      type: str
      returned: for rocm
      sample: '10.0'
    driver_release:
      description: Release of AMD's driver that belongs to the line.
      type: str
      returned: for rocm
      sample: '31.50'
    version:
      description: Pattern of the versions that its packages have.
      type: str
      returned: for rocm
    record:
      description: File that remembers the release where no facts tell of packages, null elsewhere.
      type: dict
      returned: for rocm
    initramfs:
      description: Command that makes the next kernel's initramfs anew, null where kernels have none.
      type: list
      elements: str
      returned: for rocm
    parameters:
      description: Kernel parameters C(wanted), the file that has them, and the boot loader's C(commands).
      type: dict
      returned: for rocm
    groups:
      description: Groups that the devices belong to.
      type: list
      elements: str
      returned: for rocm and vulkan
    steps:
      description: The role's steps; true where the facts say that the step has something to do.
      type: dict
      returned: always
    reboot:
      description: C(required), whether the play has to restart the node, and C(reason), which is there as well where it
        must not.
      type: dict
      returned: always
    decisions:
      description: Why everything is what it is.
      type: list
      elements: str
      returned: always
    gpus:
      description: GPUs to look for, each with C(vendor), C(pci_bus_id), C(power_limit_watts) and C(mig).
      type: list
      elements: dict
      returned: for gpu_ready
    settings:
      description: The node's GPUs have MIG layouts or power limits to apply at boot.
      type: bool
      returned: for gpu_ready
    remove:
      description: Paths of files that the role wrote and no longer wants.
      type: list
      elements: str
      returned: for gpu_ready
    waiting:
      description: Why nothing can be looked for before a restart, null where it can.
      type: str
      returned: for gpu_ready
"""
