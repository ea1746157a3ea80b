#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gpu_facts
short_description: Gather a node's GPUs and everything else that decides what it can serve
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Finds GPUs on the PCI bus, then asks NVML, C(nvidia-smi), the amdgpu, xe and i915 drivers what they know of them.
    The same device seen by several sources is one device.
  - Reads the processor, memory, operating system, cgroup controllers, addresses, listening sockets, container engines
    and the services that this fleet runs on the node already.
  - Every program and library is given I(timeout) seconds. One that is stuck or broken costs its own facts and an entry
    in C(errors); the module does not fail for it.
  - Reads only. NVML is asked through nvidia-ml-py; a node with an NVIDIA driver and without nvidia-ml-py gets the
    controller's copy for the duration of the task, where the controller has one.
options:
  root:
    description:
      - The directory below which everything is read.
      - Any other than C(/) is a recorded machine, of which no program, library or socket is asked.
    type: path
    default: /
  timeout:
    description: How long one program or library may take, in seconds.
    type: int
    default: 10
  nvidia_smi_xml:
    description: A file with the output of C(nvidia-smi -q -x) on the node, read in the place of NVML and C(nvidia-smi).
    type: path
  amd_smi_json:
    description:
      - A file with the output of C(amd-smi static --json) on the node.
      - Used where kfd and amdgpu leave a device's name unknown.
    type: path
  storage_path:
    description: Where the free space is measured. The nearest parent that exists stands in for it.
    type: path
    default: /var/lib/inference-fleet
  state_path:
    description: The fleet's configuration directory; services are read from C(services/*/service.json) below it.
    type: path
    default: /etc/inference-fleet
attributes:
  check_mode:
    description: Runs the same in check mode; it changes nothing.
    support: full
  diff_mode:
    description: There is nothing to show.
    support: none
  idempotent:
    description: Never reports a change.
    support: full
"""

EXAMPLES = r"""
- name: Gather the facts
  fleet.inference.gpu_facts:

- name: Show what accelerates the node
  ansible.builtin.debug:
    msg: "{{ ansible_facts.gpu.tier }}, {{ ansible_facts.gpu.usable_count }} usable"

- name: Read a recorded machine
  fleet.inference.gpu_facts:
    root: /srv/recorded/dgx-01
    nvidia_smi_xml: /srv/recorded/dgx-01/nvidia-smi.xml
"""

RETURN = r"""
---
ansible_facts:
  description: The facts. What is not known is null, never 0.
  returned: always
  type: dict
  contains:
    gpu:
      description: The node.
      returned: always
      type: dict
      contains:
        schema_version:
          description: Version of this structure.
          type: int
          returned: always
          sample: 1
        tier:
          description:
            - What accelerates the node, C(cuda), C(rocm), C(vulkan) or C(cpu).
            - A usable NVIDIA GPU or MIG instance makes C(cuda), else a usable AMD GPU with a gfx target and kfd
              C(rocm), else a usable AMD or Intel GPU with a render node C(vulkan).
          type: str
          returned: always
          sample: cuda
        vendor:
          description: Vendor of the tier's GPUs; on C(cpu) of the first GPU that is not integrated, C(nvidia),
            C(amd), C(intel) or null.
          type: str
          returned: always
        vendors:
          description: Every vendor of a GPU in the node.
          type: list
          elements: str
          returned: always
        physical_count:
          description: GPUs in the node, usable or not.
          type: int
          returned: always
        usable_count:
          description: Usable GPUs and MIG instances.
          type: int
          returned: always
        driver:
          description: The GPU driver.
          type: dict
          returned: always
          contains:
            version:
              description: Version of the driver in use.
              type: str
              returned: always
              sample: 570.124.06
            library_version:
              description: Version of the installed NVIDIA user-space library.
              type: str
              returned: always
            kernel_module_version:
              description: Version of the loaded NVIDIA kernel module.
              type: str
              returned: always
            module_flavour:
              description: C(open) or C(proprietary) NVIDIA kernel module.
              type: str
              returned: always
            cuda_version:
              description: Newest CUDA that the driver supports.
              type: str
              returned: always
              sample: '12.8'
            rocm_version:
              description: Installed ROCm.
              type: str
              returned: always
              sample: 6.4.1
            reboot_required:
              description:
                - The loaded NVIDIA kernel module and the library differ, nouveau is bound although NVIDIA's driver
                  is installed, or the distribution asks for a reboot because of an NVIDIA package.
              type: bool
              returned: always
        devices:
          description: Every GPU, sorted by vendor and PCI address.
          type: list
          elements: dict
          returned: always
          contains:
            index:
              description: Number among the vendor's GPUs; for NVIDIA that of NVML.
              type: int
              returned: always
            uuid:
              description: UUID that the vendor's runtime knows the GPU by.
              type: str
              returned: always
            pci_bus_id:
              description: PCI address as sysfs writes it.
              type: str
              returned: always
              sample: '0000:01:00.0'
            vendor:
              description: C(nvidia), C(amd) or C(intel).
              type: str
              returned: always
            name:
              description: Product name; from pci.ids or the PCI id where no driver tells it.
              type: str
              returned: always
            architecture:
              description: Compute capability (NVIDIA) or gfx target (AMD).
              type: str
              returned: always
              sample: '9.0'
            memory_total_bytes:
              description: Memory in bytes; the host's with unified memory.
              type: int
              returned: always
            memory_used_bytes:
              description: Used memory in bytes; that of its processes with unified memory.
              type: int
              returned: always
            unified_memory:
              description: The GPU uses the host's memory.
              type: bool
              returned: always
            integrated:
              description: The GPU is part of the processor.
              type: bool
              returned: always
            numa_node:
              description: NUMA node.
              type: int
              returned: always
            driver_bound:
              description: Kernel driver bound to the PCI device.
              type: str
              returned: always
              sample: nvidia
            render_node:
              description: Path of the DRM render node.
              type: str
              returned: always
              sample: /dev/dri/renderD128
            mig:
              description: Multi-Instance GPU (NVIDIA).
              type: dict
              returned: always
              contains:
                mode:
                  description: Whether MIG is enabled.
                  type: bool
                  returned: always
                instances:
                  description: Its instances. Compute instances with the same C(gpu_instance_id) share one memory
                    and each print all of it.
                  type: list
                  elements: dict
                  returned: always
                  contains:
                    index:
                      description: Number of the instance on its GPU.
                      type: int
                      returned: always
                    uuid:
                      description: UUID.
                      type: str
                      returned: always
                    profile:
                      description: Profile.
                      type: str
                      returned: always
                      sample: 3g.40gb
                    gpu_instance_id:
                      description: Number of the GPU instance.
                      type: int
                      returned: always
                    compute_instance_id:
                      description: Number of the compute instance.
                      type: int
                      returned: always
                    memory_total_bytes:
                      description: Memory of the GPU instance in bytes.
                      type: int
                      returned: always
            partition:
              description: 'Partitioning (AMD), null where there is none: C(compute) and C(memory) mode, C(count)
                of partitions.'
              type: dict
              returned: always
              sample:
                compute: CPX
                memory: NPS4
                count: 8
            links:
              description: 'Direct links to other PCI devices: C(type) (C(nvlink) or C(xgmi)), C(peer_bus_id)
                (a GPU or a switch), C(count).'
              type: list
              elements: dict
              returned: always
            usable:
              description: A service can be put on it.
              type: bool
              returned: always
            unusable_reason:
              description: Why not.
              type: str
              returned: always
              sample: bound to vfio-pci
        cpu:
          description: The processor.
          type: dict
          returned: always
          contains:
            model:
              description: Model name.
              type: str
              returned: always
            architecture:
              description: Machine architecture.
              type: str
              returned: always
              sample: x86_64
            cores:
              description: Threads that may be used.
              type: int
              returned: always
            flags:
              description: Instruction sets that engines have code for (AVX, AMX, NEON, SVE …), lower-case, sorted.
              type: list
              elements: str
              returned: always
        memory_total_bytes:
          description: The host's memory in bytes.
          type: int
          returned: always
        memory_available_bytes:
          description: Memory in bytes that can be had without swapping.
          type: int
          returned: always
        os:
          description: The operating system.
          type: dict
          returned: always
          contains:
            id:
              description: ID of os-release.
              type: str
              returned: always
              sample: debian
            version_id:
              description: VERSION_ID of os-release.
              type: str
              returned: always
              sample: '13'
            codename:
              description: VERSION_CODENAME of os-release.
              type: str
              returned: always
              sample: trixie
            family:
              description: C(debian), C(redhat) or C(other).
              type: str
              returned: always
            kernel:
              description: Kernel release.
              type: str
              returned: always
            systemd_version:
              description: Version of systemd.
              type: int
              returned: always
              sample: 257
            hostname:
              description: Host name.
              type: str
              returned: always
        cgroup:
          description: Where limits can be set.
          type: dict
          returned: always
          contains:
            version:
              description: Version of the hierarchy that has the controllers.
              type: int
              returned: always
              sample: 2
            controllers:
              description: Controllers that are there.
              type: list
              elements: str
              returned: always
              sample:
                - cpu
                - memory
                - pids
        network:
          description: The network.
          type: dict
          returned: always
          contains:
            addresses:
              description: Own IPv4 and IPv6 addresses, without loopback and link-local.
              type: list
              elements: str
              returned: always
        listening:
          description: 'Listening TCP sockets: C(address), C(port), C(process) (its name, null where it cannot
            be seen).'
          type: list
          elements: dict
          returned: always
          sample:
            - address: 0.0.0.0
              port: 22
              process: sshd
        groups:
          description: Numbers of the groups that own GPU devices.
          type: dict
          returned: always
          contains:
            render:
              description: Number of the group render.
              type: int
              returned: always
            video:
              description: Number of the group video.
              type: int
              returned: always
        storage:
          description: The file system that I(storage_path) is on; unknown for a recorded machine.
          type: dict
          returned: always
          contains:
            path:
              description: The path asked for.
              type: str
              returned: always
            free_bytes:
              description: Bytes free.
              type: int
              returned: always
            total_bytes:
              description: Bytes in all.
              type: int
              returned: always
        runtime:
          description: Container engines.
          type: dict
          returned: always
          contains:
            docker:
              description: Docker Engine, null where it is not installed.
              type: dict
              returned: always
              contains:
                version:
                  description: Version; the engine's where it runs, else the client's.
                  type: str
                  returned: always
                running:
                  description: The engine answers on its socket; null when it may not be asked or gave no answer.
                  type: bool
                  returned: always
                cdi:
                  description: CDI devices can be used.
                  type: bool
                  returned: always
                daemon_config:
                  description: Content of /etc/docker/daemon.json, null without a valid one.
                  type: dict
                  returned: always
                package:
                  description: dpkg package that it came in, null where it is not known.
                  type: str
                  returned: always
                  sample: docker-ce
                held:
                  description: The runtime's dpkg packages that are on hold.
                  type: list
                  elements: str
                  returned: always
            podman:
              description: 'podman, null where it is not installed: its C(version).'
              type: dict
              returned: always
            toolkit:
              description: 'NVIDIA''s container toolkit, null where it is not installed: its C(version).'
              type: dict
              returned: always
            cdi:
              description: Container Device Interface.
              type: dict
              returned: always
              contains:
                specs:
                  description: Paths of the specifications.
                  type: list
                  elements: str
                  returned: always
                devices:
                  description: Names of the devices in them.
                  type: list
                  elements: str
                  returned: always
                  sample:
                    - nvidia.com/gpu=0
        services:
          description: 'What this fleet runs on the node: C(name), C(backend), C(model), C(port), C(address).'
          type: list
          elements: dict
          returned: always
        errors:
          description: 'What could not be found out: C(source) and C(message).'
          type: list
          elements: dict
          returned: always
        probes:
          description:
            - The C(status) of each source (C(ok), C(absent), C(timeout), C(error)), its C(message) and C(ms),
              its milliseconds.
            - Sources are C(sysfs), C(nvml), C(nvidia_smi), C(kfd), C(amdgpu), C(intel), C(systemd), C(docker),
              C(podman), C(nvidia_ctk).
          type: dict
          returned: always
          sample:
            nvml:
              status: ok
              message: null
              ms: 41
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.hardware.collect import collect, lacks_pynvml
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "timeout": {"type": "int", "default": 10},
            "nvidia_smi_xml": {"type": "path"},
            "amd_smi_json": {"type": "path"},
            "storage_path": {"type": "path", "default": "/var/lib/inference-fleet"},
            "state_path": {"type": "path", "default": "/etc/inference-fleet"},
            # Between the action plugin and the module: nvidia-ml-py's path on the node, and whether it can be brought.
            "_pynvml": {"type": "path"},
            "_pynvml_offered": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    options = module.params
    if options["timeout"] < 1:
        module.fail_json(msg=f"timeout is {options['timeout']}, it must be at least 1 second.")
    host = Host(options["root"], options["timeout"])
    if options["_pynvml_offered"] and not options["nvidia_smi_xml"] and lacks_pynvml(host):
        module.exit_json(changed=False, pynvml_wanted=True)
    facts = collect(
        host,
        nvidia_smi_xml=options["nvidia_smi_xml"],
        amd_smi_json=options["amd_smi_json"],
        pynvml=options["_pynvml"],
        storage_path=options["storage_path"],
        state_path=options["state_path"],
    )
    module.exit_json(changed=False, ansible_facts={"gpu": facts})


if __name__ == "__main__":
    main()
