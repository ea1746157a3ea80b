#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_facts
short_description: Gather a node's GPUs and everything else that decides what it can serve
version_added: 0.1.0
author: Inference Fleet contributors (@inference-fleet)
description:
  - Finds GPUs on the PCI bus and among the graphics devices, then asks NVML, C(nvidia-smi), kfd, the amdgpu, xe and
    i915 drivers, C(amd-smi) and C(vulkaninfo) what they know of them. The same device seen by several sources is one
    device.
  - Reads the processor, memory, NUMA nodes, operating system, cgroup controllers, addresses, listening sockets,
    container engines, the services that this fleet runs on the node already, and what was measured of them.
  - The whole of it takes I(timeout) seconds at most. What may be stuck or crash runs in a process of its own, which is
    not waited for; it costs its own facts and an entry in C(errors), and the module does not fail for it.
  - Reads only. NVML is asked through nvidia-ml-py, of which the controller sends what is needed along with the module;
    where the controller has none, the node's own is used.
  - Run by hand, as in C(ansible gpu-nodes -m fleet.inference.gpu_facts), it prints a summary; with C(-v) all facts.
options:
  root:
    description:
      - The directory below which everything is read.
      - Any other than C(/) is a recorded machine, of which no program, library or socket is asked. It may be a part of
        one, such as C(sys/class/drm) alone.
    type: path
    default: /
  timeout:
    description: How long the facts may take, in seconds.
    type: int
    default: 10
  wake:
    description:
      - Asks GPUs that sleep as well, which wakes them.
      - Without it a sleeping NVIDIA GPU is listed as not usable, and of a sleeping AMD or Intel GPU only what the
        kernel tells without waking it is known.
    type: bool
    default: false
  integrated:
    description: Lets services be put on integrated GPUs too. They share the host's memory.
    type: bool
    default: false
  nvidia_smi_xml:
    description: A file with the output of C(nvidia-smi -q -x), or of C(nvidia-smi -q), on the node; read in the place
      of NVML and C(nvidia-smi).
    type: path
  amd_smi_json:
    description: A file with the output of C(amd-smi static --json), or of C(rocm-smi -a --json), on the node. It fills
      in what kfd and amdgpu leave unknown.
    type: path
  vulkaninfo:
    description: A file with the output of C(vulkaninfo), or of C(vulkaninfo --summary), on the node; read in the place
      of the program.
    type: path
  storage_path:
    description: Where the free space is measured. The nearest parent that exists stands in for it.
    type: path
    default: /var/lib/inference-fleet
  state_path:
    description: The fleet's configuration directory; services are read from C(services/*/service.json) below it.
    type: path
    default: /etc/inference-fleet
  measurements_path:
    description: The file with the results of this node's benchmarks.
    type: path
    default: /var/lib/inference-fleet/measurements.json
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
ansible_facts:
  description: The facts. What is not known is null, never 0.
  returned: success
  type: dict
  contains:
    gpu:
      description: The node.
      returned: always
      type: dict
      contains:
        schema_version:
          description: Version of this structure. It goes up when a field goes away or changes its meaning.
          type: int
          returned: always
          sample: 1
        tier:
          description:
            - What accelerates the node, C(cuda), C(rocm), C(vulkan) or C(cpu).
            - A usable NVIDIA GPU or MIG instance makes C(cuda), else a usable AMD GPU with a gfx target and kfd
              C(rocm), else any usable GPU C(vulkan).
          type: str
          returned: always
          sample: cuda
        vendor:
          description: Vendor of the tier's GPUs; on C(cpu) of the first GPU that is not integrated.
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
          description: 'What services can be put on: usable GPUs, MIG instances, partitions of usable AMD cards.'
          type: int
          returned: always
        driver:
          description: The GPU driver.
          type: dict
          returned: always
          contains:
            version:
              description: Version of the driver in use, NVIDIA's where there is one.
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
              description: 'C(open) or C(proprietary) NVIDIA kernel module.'
              type: str
              returned: always
            cuda_version:
              description: Newest CUDA that the driver supports.
              type: str
              returned: always
              sample: '12.8'
            mismatch:
              description: The loaded NVIDIA kernel module and the library differ; no GPU can be used until a reboot.
              type: bool
              returned: always
            amdgpu_version:
              description: Version of the amdgpu driver, null where it is the kernel's own.
              type: str
              returned: always
            rocm_version:
              description: Installed ROCm.
              type: str
              returned: always
              sample: 6.4.1
            reboot_required:
              description: A reboot is needed before the GPUs can be used.
              type: bool
              returned: always
            reboot_reason:
              description: Why.
              type: str
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
              sample: GPU-5c4f1f0e-6a52-9a5e-2c0b-6e1c6d4b7a90
            pci_bus_id:
              description: PCI address as sysfs writes it.
              type: str
              returned: always
              sample: '0000:01:00.0'
            vendor:
              description: 'C(nvidia), C(amd) or C(intel); C(qualcomm), C(arm), C(broadcom), C(imagination), C(apple)
                or C(other) where only Vulkan tells of it.'
              type: str
              returned: always
            name:
              description: Product name; from pci.ids or the PCI id where no driver tells it.
              type: str
              returned: always
            architecture:
              description: Compute capability (NVIDIA), gfx target (AMD) or Xe architecture (Intel); from the PCI id
                where no driver tells it.
              type: str
              returned: always
              sample: '9.0'
            generation:
              description: Generation of the chip.
              type: str
              returned: always
              sample: hopper
            pci:
              description: Ids in hexadecimal, null where the GPU is not on PCI.
              type: dict
              returned: always
              contains:
                vendor_id:
                  description: Vendor.
                  type: str
                  returned: always
                  sample: 10de
                device_id:
                  description: Device.
                  type: str
                  returned: always
                  sample: '2330'
                subsystem_vendor_id:
                  description: Vendor of the board.
                  type: str
                  returned: always
                  sample: 10de
                subsystem_device_id:
                  description: Board.
                  type: str
                  returned: always
                  sample: 16c1
                class:
                  description: Class, subclass and programming interface.
                  type: str
                  returned: always
                  sample: '030200'
                revision:
                  description: Revision.
                  type: str
                  returned: always
                  sample: a1
            compute_units:
              description: Streaming multiprocessors (NVIDIA) or compute units (AMD).
              type: int
              returned: always
            memory_total_bytes:
              description: Memory in bytes. With unified memory that of the host, or what of it the GPU may use.
              type: int
              returned: always
            memory_used_bytes:
              description: Used memory in bytes; that of its processes where NVIDIA has unified memory.
              type: int
              returned: always
            memory_reserved_bytes:
              description: Memory in bytes that the driver keeps for itself, part of neither used nor free memory.
              type: int
              returned: always
            carve_out_bytes:
              description: Host memory in bytes that the firmware set apart for an integrated AMD GPU.
              type: int
              returned: always
            gtt_bytes:
              description: Host memory in bytes that an integrated AMD GPU can map.
              type: int
              returned: always
            memory_bar_bytes:
              description: Memory in bytes that the processor can address at once (BAR1). 256 MiB means that resizable
                BAR is off.
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
            cpu_affinity:
              description: Processors that are near, as the kernel lists them.
              type: str
              returned: always
              sample: 0-55,112-167
            driver_bound:
              description: Kernel driver bound to the device.
              type: str
              returned: always
              sample: nvidia
            device_node:
              description: Path of the device node.
              type: str
              returned: always
              sample: /dev/nvidia0
            render_node:
              description: Path of the DRM render node.
              type: str
              returned: always
              sample: /dev/dri/renderD128
            power_state:
              description: The kernel's runtime power state, such as C(active) or C(suspended).
              type: str
              returned: always
            health:
              description: 'C(ok), C(lost), C(reset_required) or C(error), as the driver tells it.'
              type: str
              returned: always
            virtualization:
              description: 'C(none), C(passthrough) (a whole GPU in a virtual machine), C(vgpu_guest), C(vgpu_host) or
                C(sriov_vf).'
              type: str
              returned: always
            persistence_mode:
              description: The driver stays loaded for the GPU while nobody uses it.
              type: bool
              returned: always
            compute_mode:
              description: 'C(default), C(exclusive_process), C(exclusive_thread) or C(prohibited).'
              type: str
              returned: always
            ecc:
              description: Error correction.
              type: dict
              returned: always
              contains:
                mode:
                  description: ECC is on.
                  type: bool
                  returned: always
                pending_mode:
                  description: ECC will be on after the next reboot.
                  type: bool
                  returned: always
                uncorrected:
                  description: Errors that could not be corrected since the driver was loaded.
                  type: int
                  returned: always
                remap_pending:
                  description: Rows (or pages) wait for a reset to be taken out of use.
                  type: bool
                  returned: always
                remap_failure:
                  description: A row could not be taken out of use; the GPU should be replaced.
                  type: bool
                  returned: always
            power:
              description: Power limits in watts.
              type: dict
              returned: always
              contains:
                limit_watts:
                  description: Limit in force.
                  type: float
                  returned: always
                default_limit_watts:
                  description: Limit after a reboot.
                  type: float
                  returned: always
                min_limit_watts:
                  description: Lowest limit that can be set.
                  type: float
                  returned: always
                max_limit_watts:
                  description: Highest limit that can be set.
                  type: float
                  returned: always
            pcie:
              description: PCIe link, where it is the slot's and not one inside the card.
              type: dict
              returned: always
              contains:
                generation_max:
                  description: Highest generation that GPU and slot share.
                  type: int
                  returned: always
                generation_current:
                  description: Generation now; idle GPUs lower it.
                  type: int
                  returned: always
                width_max:
                  description: Lanes at most.
                  type: int
                  returned: always
                width_current:
                  description: Lanes now.
                  type: int
                  returned: always
            mig:
              description: Multi-Instance GPU (NVIDIA).
              type: dict
              returned: always
              contains:
                mode:
                  description: MIG is enabled.
                  type: bool
                  returned: always
                pending_mode:
                  description: MIG will be enabled after the next reset.
                  type: bool
                  returned: always
                instances:
                  description: Its instances.
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
                      description: Memory of the GPU instance, in bytes.
                      type: int
                      returned: always
                    memory_shared:
                      description: Another compute instance uses the same memory, so it counts once for all with this
                        C(gpu_instance_id).
                      type: bool
                      returned: always
                    multiprocessors:
                      description: Streaming multiprocessors of the compute instance.
                      type: int
                      returned: always
            partition:
              description: Partitions (AMD), null where the card is one device.
              type: dict
              returned: always
              contains:
                compute:
                  description: Compute mode.
                  type: str
                  returned: always
                  sample: CPX
                memory:
                  description: Memory mode.
                  type: str
                  returned: always
                  sample: NPS4
                count:
                  description: Partitions there are.
                  type: int
                  returned: always
                instances:
                  description: The partitions.
                  type: list
                  elements: dict
                  returned: always
                  contains:
                    kfd_node:
                      description: Number of the compute node.
                      type: int
                      returned: always
                    architecture:
                      description: Its gfx target.
                      type: str
                      returned: always
                      sample: gfx942
                    render_node:
                      description: Path of its DRM render node.
                      type: str
                      returned: always
                    memory_total_bytes:
                      description: Memory in bytes.
                      type: int
                      returned: always
            links:
              description: Direct links.
              type: list
              elements: dict
              returned: always
              contains:
                type:
                  description: 'C(nvlink), C(xgmi) or C(c2c).'
                  type: str
                  returned: always
                peer_bus_id:
                  description: PCI address of the other end.
                  type: str
                  returned: always
                peer_type:
                  description: 'C(gpu), C(switch) or C(cpu).'
                  type: str
                  returned: always
                count:
                  description: Links to it.
                  type: int
                  returned: always
                weight:
                  description: The kernel's weight of an xGMI link; about 15 a hop.
                  type: int
                  returned: always
            fabric:
              description: Membership in an NVLink fabric, null where there is none.
              type: dict
              returned: always
              contains:
                state:
                  description: 'C(not_supported), C(not_started), C(in_progress) or C(completed).'
                  type: str
                  returned: always
                status:
                  description: Result of joining it.
                  type: str
                  returned: always
                cluster_uuid:
                  description: UUID of the cluster.
                  type: str
                  returned: always
                clique_id:
                  description: Number of the clique that can reach each other.
                  type: int
                  returned: always
                healthy:
                  description: Nothing is degraded.
                  type: bool
                  returned: always
            hive_id:
              description: xGMI hive; GPUs of one hive are linked with each other.
              type: str
              returned: always
            vulkan:
              description: What Vulkan says of it, null where it was not asked or does not know it.
              type: dict
              returned: always
              contains:
                name:
                  description: Name.
                  type: str
                  returned: always
                driver:
                  description: Driver.
                  type: str
                  returned: always
                  sample: radv
                api_version:
                  description: Version of Vulkan.
                  type: str
                  returned: always
                  sample: 1.3.255
            usable:
              description: A service can be put on it.
              type: bool
              returned: always
            unusable_reason:
              description: Why not.
              type: str
              returned: always
              sample: bound to vfio-pci
        topology:
          description: How the GPUs reach each other.
          type: dict
          returned: always
          contains:
            matrix:
              description:
                - A row for each device, in the order of C(devices), with the class of its way to each.
                - 'C(SELF), C(NVLINK), C(XGMI), C(PIX) (one PCIe bridge), C(PXB) (several), C(PHB) (a host bridge),
                  C(NODE) (several of one NUMA node), C(SYS) (between NUMA nodes), C(UNKNOWN).'
              type: list
              elements: list
              returned: always
            link_domains:
              description: GPUs that belong together for tensor parallelism. Every usable whole GPU is in one of them.
              type: list
              elements: dict
              returned: always
              contains:
                type:
                  description: 'C(nvlink), C(xgmi) or C(pcie).'
                  type: str
                  returned: always
                numa_node:
                  description: NUMA node, null where there are several.
                  type: int
                  returned: always
                devices:
                  description: Positions in C(devices).
                  type: list
                  elements: int
                  returned: always
        nvswitch_count:
          description: NVSwitches on the PCI bus.
          type: int
          returned: always
        vulkan:
          description: What vulkaninfo lists without software devices and doubles, null where it was not asked.
          type: dict
          returned: always
          contains:
            version:
              description: Version of the Vulkan instance.
              type: str
              returned: always
            devices:
              description: The devices.
              type: list
              elements: dict
              returned: always
              contains:
                name:
                  description: Name.
                  type: str
                  returned: always
                type:
                  description: 'C(discrete), C(integrated), C(virtual) or C(other).'
                  type: str
                  returned: always
                vendor_id:
                  description: PCI or Khronos vendor id in hexadecimal.
                  type: str
                  returned: always
                device_id:
                  description: Device id in hexadecimal.
                  type: str
                  returned: always
                driver:
                  description: Driver.
                  type: str
                  returned: always
                api_version:
                  description: Version of Vulkan.
                  type: str
                  returned: always
                uuid:
                  description: UUID.
                  type: str
                  returned: always
                pci_bus_id:
                  description: PCI address.
                  type: str
                  returned: always
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
            threads:
              description: Threads there are.
              type: int
              returned: always
            physical_cores:
              description: Cores, without their second threads.
              type: int
              returned: always
            sockets:
              description: Processors.
              type: int
              returned: always
            flags:
              description: Instruction sets that engines have code for (AVX, AMX, NEON, SVE …), lower-case, sorted.
              type: list
              elements: str
              returned: always
        memory_total_bytes:
          description: 'The host''s memory in bytes, without NUMA nodes that have no processor: those are a GPU''s
            memory.'
          type: int
          returned: always
        memory_available_bytes:
          description: Memory in bytes that can be had without swapping.
          type: int
          returned: always
        numa:
          description: NUMA nodes.
          type: list
          elements: dict
          returned: always
          contains:
            node:
              description: Number.
              type: int
              returned: always
            cpus:
              description: Its processors, null where it has none.
              type: str
              returned: always
              sample: 0-55,112-167
            memory_total_bytes:
              description: Memory in bytes.
              type: int
              returned: always
            memory_free_bytes:
              description: Free memory in bytes.
              type: int
              returned: always
            distances:
              description: Distance to each node; 10 is the node itself.
              type: list
              elements: int
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
              description: 'C(debian), C(redhat) or C(other).'
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
            container:
              description: Container that the node is, such as C(docker), C(podman) or C(lxc); null for a machine.
              type: str
              returned: always
            wsl:
              description: The node is Windows Subsystem for Linux.
              type: bool
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
              sample: [cpu, memory, pids]
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
          description: Listening TCP sockets.
          type: list
          elements: dict
          returned: always
          contains:
            address:
              description: Address.
              type: str
              returned: always
            port:
              description: Port.
              type: int
              returned: always
            process:
              description: Name of the process, null where it cannot be seen.
              type: str
              returned: always
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
            filesystem:
              description: Kind of file system.
              type: str
              returned: always
              sample: ext4
            mount_point:
              description: Where it is mounted.
              type: str
              returned: always
              sample: /var
            rotational:
              description: It is on a disk that turns.
              type: bool
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
                  description: Content of /etc/docker/daemon.json without passwords, null without a valid one.
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
              description: podman, null where it is not installed.
              type: dict
              returned: always
              contains:
                version:
                  description: Version.
                  type: str
                  returned: always
            toolkit:
              description: NVIDIA's container toolkit, null where it is not installed.
              type: dict
              returned: always
              contains:
                version:
                  description: Version.
                  type: str
                  returned: always
                runtime_configured:
                  description: Docker's daemon.json has the runtime C(nvidia).
                  type: bool
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
                  sample: [nvidia.com/gpu=0]
                nvidia_driver_version:
                  description: Version of the driver files that NVIDIA's specification names.
                  type: str
                  returned: always
                stale:
                  description: That version is not the loaded one; the specification has to be made anew.
                  type: bool
                  returned: always
        boot:
          description: What the node boots, and the GPU modules of its kernels.
          type: dict
          returned: always
          contains:
            secure_boot:
              description: The kernel refuses modules without a known signature; null when the firmware cannot be asked.
              type: bool
              returned: always
            running_kernel:
              description: Release of the kernel that runs.
              type: str
              returned: always
              sample: 6.12.43+deb13-amd64
            next_kernel:
              description: Newest kernel in /boot, which the next boot starts unless the boot loader was told otherwise;
                the running one where /boot has none.
              type: str
              returned: always
              sample: 6.12.48+deb13-amd64
            kernels:
              description: Kernels that have an image, modules or headers, the oldest first.
              type: list
              elements: dict
              returned: always
              contains:
                release:
                  description: Release.
                  type: str
                  returned: always
                image:
                  description: Its image is in /boot.
                  type: bool
                  returned: always
                headers:
                  description: The folder is there that modules are built with.
                  type: bool
                  returned: always
                initramfs:
                  description: Its initramfs is in /boot.
                  type: bool
                  returned: always
                initramfs_stale:
                  description: The initramfs is older than its settings (those of modprobe too) or than a GPU module.
                  type: bool
                  returned: always
                modules:
                  description: What C(modprobe) would load for this kernel, by C(nvidia) and C(amdgpu); missing where
                    there is none. C(signed) tells of a signature, by whichever key. Of a module that came with the
                    kernel (C(version) and C(signed) are null) it is the kernel's own.
                  type: dict
                  returned: always
                  sample: {nvidia: {version: 580.95.05, flavour: open, dkms: true, signed: false}}
            command_line:
              description: The kernel's parameters.
              type: list
              elements: str
              returned: always
            loaded:
              description: GPU drivers that are loaded, of C(nvidia), C(nvidia_uvm), C(nvidia_modeset), C(nvidia_drm),
                C(nouveau), C(nova_core), C(amdgpu), C(radeon), C(i915), C(xe).
              type: list
              elements: str
              returned: always
            blacklisted:
              description: Those of them that modprobe's settings keep from being loaded.
              type: list
              elements: str
              returned: always
            free_bytes:
              description: Bytes free below C(/), C(/boot) and C(/var); unknown for a recorded machine.
              type: dict
              returned: always
              sample: {/: 21474836480, /boot: 536870912, /var: 21474836480}
            iommu:
              description: 'C(on), C(off), or C(pt) where the host goes through it untranslated.'
              type: str
              returned: always
            numa_balancing:
              description: The kernel moves memory between NUMA nodes by itself.
              type: bool
              returned: always
        packages:
          description: dpkg packages of GPUs and kernels by name, null on a node without dpkg. Those of another
            architecture are called as dpkg does, C(libnvidia-ml1:i386).
          type: dict
          returned: always
          sample: {nvidia-smi: {version: 550.163.01-2, state: installed, held: true}}
        files:
          description: SHA-256 of each file that this fleet's roles wrote below /etc and /usr/local/libexec, by path.
            Files that not everybody may read are left out.
          type: dict
          returned: always
          sample: {/etc/modprobe.d/inference-gpu.conf: 3c5e...}
        units:
          description: Units of GPUs that are there, by name; C(enabled) at boot, and C(active) or null where systemd
            could not be asked. Of C(nvidia-persistenced.service), C(nvidia-fabricmanager.service),
            C(nvidia-cdi-refresh.path), C(inference-gpu-settings.service), C(gpu-ready.service).
          type: dict
          returned: always
          sample: {nvidia-persistenced.service: {enabled: true, active: true}}
        gpu_ready:
          description: What C(gpu-ready.service) found since the last boot, null when it has not run.
          type: dict
          returned: always
          contains:
            ready:
              description: Every GPU can be used.
              type: bool
              returned: always
            problems:
              description: What is missing, a sentence each.
              type: list
              elements: str
              returned: always
            configuration_sha256:
              description: SHA-256 of the configuration that it checked.
              type: str
              returned: always
            boot_id:
              description: The kernel's number of the boot.
              type: str
              returned: always
            expected:
              description: GPUs that it looked for.
              type: list
              elements: dict
              returned: always
              contains:
                vendor:
                  description: Vendor.
                  type: str
                  returned: always
                pci_bus_id:
                  description: PCI address.
                  type: str
                  returned: always
                power_limit_watts:
                  description: Power limit that it is to have, null for any.
                  type: float
                  returned: always
                mig:
                  description: Profiles of the MIG instances that it is to have, null for any.
                  type: list
                  elements: str
                  returned: always
        services:
          description: What this fleet runs on the node already.
          type: list
          elements: dict
          returned: always
          contains:
            name:
              description: Name.
              type: str
              returned: always
            backend:
              description: Backend.
              type: str
              returned: always
            model:
              description: Public name of the model, of several the first.
              type: str
              returned: always
            models:
              description: Public names of all models that it serves.
              type: list
              elements: str
              returned: always
            port:
              description: Port.
              type: int
              returned: always
            address:
              description: Address.
              type: str
              returned: always
            units:
              description:
                - Identities of the GPUs, MIG instances or partitions that it runs on, as the plan gives them in
                  C(units); empty in the host's memory alone.
                - Null for a service whose record does not tell.
              type: list
              elements: str
              returned: always
        measurements:
          description: Results of this node's benchmarks; none where there is no file of them or one is wrong.
          type: list
          elements: dict
          returned: always
          contains:
            backend:
              description: Backend.
              type: str
              returned: always
            model:
              description: Public name of the model.
              type: str
              returned: always
            measured_at:
              description: When it was measured.
              type: str
              returned: always
              sample: '2026-11-23T15:04:05Z'
            concurrency:
              description: Requests at the same time.
              type: int
              returned: always
            requests_per_second:
              description: Answered requests a second.
              type: float
              returned: always
            tokens_per_second:
              description: Generated tokens a second, of all requests together.
              type: float
              returned: always
            time_to_first_token_ms:
              description: Milliseconds from a request to the first token of its answer.
              type: float
              returned: always
        errors:
          description: What could not be found out.
          type: list
          elements: dict
          returned: always
          contains:
            source:
              description: Source that was asked.
              type: str
              returned: always
            message:
              description: What went wrong.
              type: str
              returned: always
        probes:
          description:
            - 'How each source answered: C(status) (C(ok), C(absent), C(timeout), C(error)), C(message) and C(ms), its
              milliseconds.'
            - Sources are C(sysfs), C(drm), C(nvml), C(nvidia_smi), C(kfd), C(amdgpu), C(amd_smi), C(rocm_smi),
              C(intel), C(vulkaninfo), C(systemd), C(docker), C(podman), C(nvidia_ctk), C(modinfo), C(systemctl).
          type: dict
          returned: always
          sample: {nvml: {status: ok, message: null, ms: 41}}
summary:
  description: The facts as lines for a person to read.
  returned: success
  type: list
  elements: str
"""

import base64
import os
import zlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.fleet.inference.plugins.module_utils.hardware.collect import collect
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/"},
            "timeout": {"type": "int", "default": 10},
            "wake": {"type": "bool", "default": False},
            "integrated": {"type": "bool", "default": False},
            "nvidia_smi_xml": {"type": "path"},
            "amd_smi_json": {"type": "path"},
            "vulkaninfo": {"type": "path"},
            "storage_path": {"type": "path", "default": "/var/lib/inference-fleet"},
            "state_path": {"type": "path", "default": "/etc/inference-fleet"},
            "measurements_path": {"type": "path", "default": "/var/lib/inference-fleet/measurements.json"},
            # From the action plugin: nvidia-ml-py's source. It is no secret, but nothing that a node's log should hold.
            "_pynvml": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    if options["timeout"] < 1:
        module.fail_json(msg=f"timeout is {options['timeout']}, it must be at least 1 second.")
    if not os.path.isdir(options["root"]):
        module.fail_json(msg=f"root is {options['root']}, which is no directory; name a recorded machine's.")
    for name in ("nvidia_smi_xml", "amd_smi_json", "vulkaninfo"):
        path = options[name]
        if path is not None and not os.path.isfile(path):
            module.fail_json(msg=f"{name} is {path}, which is no file; give the tool's recorded output.")
    host = Host(options["root"], options["timeout"], wake=options["wake"], integrated=options["integrated"])
    carried = options["_pynvml"]
    facts = collect(
        host,
        nvidia_smi_xml=options["nvidia_smi_xml"],
        amd_smi_json=options["amd_smi_json"],
        vulkaninfo=options["vulkaninfo"],
        pynvml=zlib.decompress(base64.b64decode(carried)).decode() if carried else None,
        storage_path=options["storage_path"],
        state_path=options["state_path"],
        measurements_path=options["measurements_path"],
    )
    module.exit_json(changed=False, ansible_facts={"gpu": facts})


if __name__ == "__main__":
    main()
