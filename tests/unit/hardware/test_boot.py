# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import boot
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

OLD = "6.12.9+deb13-amd64"
NEW = "6.12.43+deb13-amd64"
EFI = "sys/firmware/efi/efivars"
OPEN = "license:        Dual MIT/GPL"
PROPRIETARY = "license:        NVIDIA"


def kernel(machine: Any, release: str, *modules: str, image: bool = True, initramfs: int | None = 100) -> None:
    """Install a kernel with modules, whose files are given relative to its folder; times are seconds."""
    if image:
        machine.write(f"boot/vmlinuz-{release}", "")
    if initramfs is not None:
        path = machine.write(f"boot/initrd.img-{release}", "")
        os.utime(path, (initramfs, initramfs))
    for module in modules:
        os.utime(machine.write(f"lib/modules/{release}/{module}", ""), (50, 50))
    machine.write(f"lib/modules/{release}/modules.dep", "".join(f"{module}: kernel/a.ko\n" for module in modules))


def running(machine: Any, release: str) -> None:
    """Make `release` the kernel that runs."""
    machine.write("proc/sys/kernel/osrelease", f"{release}\n")


@pytest.fixture
def modinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `modinfo` of our own that prints the given lines for each file."""

    def make(*lines: str) -> None:
        program = tmp_path / "bin" / "modinfo"
        program.parent.mkdir(exist_ok=True)
        text = "\n".join(lines)
        # The machine of the test is not at the root, as a real one is.
        program.write_text(f"#!/bin/sh\nfor file; do echo \"filename:       $file\"; echo '{text}'; done\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return make


def modules_of(facts: dict[str, Any], release: str = OLD) -> dict[str, Any]:
    """The modules of a kernel in the facts."""
    return next(row["modules"] for row in facts["boot"]["kernels"] if row["release"] == release)


def test_the_newest_image_is_the_next_kernel(machine: Any) -> None:
    running(machine, OLD)
    kernel(machine, OLD)
    kernel(machine, NEW)
    for name in ("vmlinuz-6.99.0.dpkg-tmp", "vmlinuz-0-rescue-4711", "vmlinuz-6.99.1.old", "config-7.0.0"):
        machine.write(f"boot/{name}", "")
    kernel(machine, "7.1.0-removed", image=False, initramfs=None)
    found = machine.facts()["boot"]
    assert (found["running_kernel"], found["next_kernel"]) == (OLD, NEW)
    assert [(row["release"], row["image"], row["initramfs"]) for row in found["kernels"]] == [
        (OLD, True, True),
        (NEW, True, True),
        ("7.1.0-removed", False, False),
    ]


def test_without_an_image_the_running_kernel_is_the_next(machine: Any) -> None:
    running(machine, OLD)
    found = machine.facts()["boot"]
    assert (found["next_kernel"], [row["release"] for row in found["kernels"]]) == (OLD, [OLD])


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("6.1.0-9-amd64", "6.1.0-13-amd64"),
        ("6.12-rc7-amd64", "6.12-amd64"),
        ("6.12~rc7-amd64", "6.12.0-amd64"),
        ("6.8.0-51-generic", "6.11.0-9-generic"),
        ("5.14.0-503.el9.x86_64", "5.14.0-503.11.1.el9_5.x86_64"),
        ("6.12.43+deb13-amd64", "6.12.43+deb13-cloud-amd64"),
    ],
)
def test_kernels_in_the_order_of_their_versions(earlier: str, later: str) -> None:
    assert sorted([later, earlier], key=boot.version_key) == [earlier, later]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({f"SecureBoot-{boot.EFI_GLOBAL}": 1}, True),
        ({f"SecureBoot-{boot.EFI_GLOBAL}": 0}, False),
        ({f"SecureBoot-{boot.EFI_GLOBAL}": 1, f"SetupMode-{boot.EFI_GLOBAL}": 1}, False),
        ({f"SecureBoot-{boot.EFI_GLOBAL}": 1, f"SetupMode-{boot.EFI_GLOBAL}": 0}, True),
        ({f"SecureBoot-{boot.EFI_GLOBAL}": 1, f"MokSBStateRT-{boot.SHIM}": 1}, False),
        ({f"BootOrder-{boot.EFI_GLOBAL}": 0}, False),
        ({f"SecureBoot-{boot.EFI_GLOBAL}": None}, None),
    ],
)
def test_secure_boot(machine: Any, variables: dict[str, int | None], expected: bool | None) -> None:
    assert machine.facts()["boot"]["secure_boot"] is False
    (machine.root / EFI).mkdir(parents=True)
    for name, value in variables.items():
        (machine.root / EFI / name).write_bytes(b"\x06\0\0\0" + (b"" if value is None else bytes([value])))
    assert machine.facts()["boot"]["secure_boot"] is expected


def test_debians_open_module_under_its_own_name(machine: Any, modinfo: Any) -> None:
    running(machine, OLD)
    machine.write("etc/modprobe.d/nvidia.conf", "install nvidia modprobe -i nvidia-current-open $CMDLINE_OPTS\n")
    names = [
        "nvidia-current",
        "nvidia-current-open-drm",
        "nvidia-current-open",
        "nvidia-current-open-uvm",
        "nvidia-wmi-ec",
    ]
    kernel(machine, OLD, *(f"updates/dkms/{name}.ko.xz" for name in names))
    modinfo(OPEN, "version:        550.163.01", "sig_id:         PKCS#7")
    host = Host(str(machine.root), live=True)
    pending = boot.start(host)
    assert list(pending.files) == [f"/lib/modules/{OLD}/updates/dkms/nvidia-current-open.ko.xz"]
    (row,) = boot.finish(pending, host)["kernels"]
    assert row["modules"] == {
        "nvidia": {"version": "550.163.01", "flavour": "open", "dkms": True, "signed": True},
    }


@pytest.mark.parametrize(
    ("path", "dkms"),
    [
        ("updates/dkms/nvidia.ko", True),
        ("extra/nvidia.ko.xz", False),
        ("weak-updates/nvidia/nvidia.ko", False),
        ("kernel/nvidia-580/nvidia.ko.zst", False),
    ],
)
def test_vendors_module(machine: Any, modinfo: Any, path: str, dkms: bool) -> None:
    running(machine, OLD)
    kernel(machine, OLD, path)
    modinfo(PROPRIETARY, "version:        580.95.05")
    assert modules_of(machine.facts(live=True))["nvidia"] == {
        "version": "580.95.05",
        "flavour": "proprietary",
        "dkms": dkms,
        "signed": False,
    }


def test_dkms_outside_debian_remembers_by_a_link(machine: Any) -> None:
    running(machine, OLD)
    kernel(machine, OLD, "extra/amdgpu.ko.xz")
    machine.link(f"var/lib/dkms/amdgpu/kernel-{OLD}-x86_64", f"6.14.14/{OLD}/x86_64")
    assert modules_of(machine.facts())["amdgpu"]["dkms"] is True


def test_the_kernels_own_module_is_not_asked(machine: Any) -> None:
    running(machine, OLD)
    kernel(machine, OLD, "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko.xz")
    facts = machine.facts(live=True)
    assert modules_of(facts)["amdgpu"] == {"version": None, "flavour": None, "dkms": False, "signed": None}
    assert facts["probes"]["modinfo"]["status"] == "absent"


def test_a_module_that_depmod_does_not_know_is_not_loaded(machine: Any) -> None:
    running(machine, OLD)
    kernel(machine, OLD)
    machine.write(f"lib/modules/{OLD}/updates/dkms/nvidia.ko", "")
    assert modules_of(machine.facts()) == {}


def test_a_module_in_modules_dep_whose_file_is_gone(machine: Any) -> None:
    running(machine, OLD)
    kernel(machine, OLD)
    machine.write(f"lib/modules/{OLD}/modules.dep", "updates/dkms/nvidia.ko:\n")
    assert modules_of(machine.facts()) == {}


def test_headers_are_where_the_link_leads_below_the_root(machine: Any) -> None:
    running(machine, OLD)
    for release, target in ((OLD, f"/usr/src/linux-headers-{OLD}"), (NEW, f"../../../usr/src/linux-headers-{NEW}")):
        kernel(machine, release)
        machine.link(f"lib/modules/{release}/build", target)
    assert [row["headers"] for row in machine.facts()["boot"]["kernels"]] == [False, False]
    for release in (OLD, NEW):
        machine.write(f"usr/src/linux-headers-{release}/Makefile", "")
    assert [row["headers"] for row in machine.facts()["boot"]["kernels"]] == [True, True]


@pytest.mark.parametrize(
    ("path", "seconds", "stale"),
    [
        ("etc/modprobe.d/x.conf", 99, False),
        ("etc/modprobe.d/x.conf", 101, True),
        ("etc/initramfs-tools/conf.d/x", 101, True),
        ("etc/dracut.conf.d/x.conf", 101, True),
        ("etc/modules-load.d/x.conf", 101, False),
    ],
)
def test_an_initramfs_older_than_its_settings(machine: Any, path: str, seconds: int, stale: bool) -> None:
    running(machine, OLD)
    kernel(machine, OLD, initramfs=100)
    place = machine.write(path, "")
    for changed in (place, *place.relative_to(machine.root).parents[:-2]):
        os.utime(machine.root / changed, (seconds, seconds))
    assert machine.facts()["boot"]["kernels"][0]["initramfs_stale"] is stale


def test_an_initramfs_older_than_a_module_or_a_removed_setting(machine: Any) -> None:
    running(machine, OLD)
    kernel(machine, OLD, "updates/dkms/nvidia.ko", initramfs=100)
    row = machine.facts()["boot"]["kernels"][0]
    assert row["initramfs_stale"] is False
    os.utime(machine.root / f"lib/modules/{OLD}/updates/dkms/nvidia.ko", (101, 101))
    assert machine.facts()["boot"]["kernels"][0]["initramfs_stale"] is True
    os.utime(machine.root / f"boot/initrd.img-{OLD}", (102, 102))
    assert machine.facts()["boot"]["kernels"][0]["initramfs_stale"] is False
    (machine.root / "etc/modprobe.d").mkdir(parents=True)
    assert machine.facts()["boot"]["kernels"][0]["initramfs_stale"] is True


def test_blacklisted_and_loaded_modules(machine: Any) -> None:
    machine.write("etc/modprobe.d/a.conf", "blacklist nouveau\n#blacklist amdgpu\noptions radeon si_support=0\n")
    machine.write("etc/modprobe.d/b.conf", "install nova-core /bin/false\ninstall nvidia modprobe -i nvidia-current\n")
    # A file of the same name in /etc hides the package's.
    machine.write("usr/lib/modprobe.d/a.conf", "blacklist xe\n")
    machine.write("usr/lib/modprobe.d/c.conf", "blacklist i915 # by the package\n")
    for name in ("nouveau", "i915", "snd"):
        machine.write(f"sys/module/{name}/refcnt", "0\n")
    found = machine.facts()["boot"]
    assert found["blacklisted"] == ["nouveau", "nova_core", "i915"]
    assert found["loaded"] == ["nouveau", "i915"]


def test_kernel_parameters_without_passwords(machine: Any) -> None:
    machine.write(
        "proc/cmdline", "quiet iommu=pt rd.iscsi.password=abc url=http://me:abc@host/ numa_balancing=disable\n"
    )
    machine.write("proc/sys/kernel/numa_balancing", "0\n")
    machine.write("sys/class/iommu/dmar0/x", "")
    found = machine.facts()["boot"]
    assert found["command_line"][0] == "quiet" and "abc" not in str(found)
    assert (found["iommu"], found["numa_balancing"]) == ("pt", False)


def nvidia(machine: Any, driver: str | None = "nvidia") -> None:
    """A GPU that is bound to `driver`."""
    machine.gpu("0000:01:00.0", 0x10DE, 0x2330, driver=driver)


def reason(machine: Any) -> str | None:
    """Why a reboot is needed."""
    driver = machine.facts(live=True)["driver"]
    assert driver["reboot_required"] is (driver["reboot_reason"] is not None)
    return driver["reboot_reason"]


def test_pitfall_1_module_on_disk_differs_from_the_loaded_one(machine: Any, modinfo: Any) -> None:
    running(machine, OLD)
    nvidia(machine)
    kernel(machine, OLD, "updates/dkms/nvidia.ko")
    machine.write("sys/module/nvidia/version", "580.82.07\n")
    modinfo("version:        580.82.07")
    assert reason(machine) is None
    modinfo("version:        580.95.05")
    assert reason(machine) == "the kernel module nvidia 580.82.07 is loaded and 580.95.05 is installed"


def test_pitfall_2_only_the_next_kernel_has_the_module(machine: Any, modinfo: Any) -> None:
    modinfo("version:        580.95.05")
    running(machine, OLD)
    nvidia(machine, None)
    kernel(machine, OLD)
    kernel(machine, NEW, "updates/dkms/nvidia.ko")
    assert reason(machine) == f"the kernel module nvidia is installed for kernel {NEW}, and {OLD} runs"
    kernel(machine, OLD, "updates/dkms/nvidia.ko")
    assert reason(machine) is None


def test_pitfall_5_nouveau_is_bound(machine: Any, modinfo: Any) -> None:
    modinfo("version:        580.95.05")
    running(machine, OLD)
    nvidia(machine, "nouveau")
    machine.write("sys/module/nouveau/refcnt", "0")
    kernel(machine, OLD)
    assert reason(machine) is None
    kernel(machine, OLD, "updates/dkms/nvidia.ko")
    assert reason(machine) == "nouveau is bound to a GPU and the kernel module nvidia is installed"


def test_amdgpu_from_dkms_replaces_the_kernels_own_at_the_next_boot(machine: Any, modinfo: Any) -> None:
    modinfo("version:        6.14.14")
    running(machine, OLD)
    machine.gpu("0000:01:00.0", 0x1002, 0x74A1, 0x1200, driver="amdgpu")
    machine.write("sys/module/amdgpu/refcnt", "0")
    kernel(machine, OLD, "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko")
    assert reason(machine) is None
    kernel(machine, OLD, "updates/dkms/amdgpu.ko")
    assert reason(machine) == "the kernel module amdgpu of the kernel itself is loaded and 6.14.14 is installed"
    machine.write("sys/module/amdgpu/version", "6.14.14\n")
    assert reason(machine) is None
    kernel(machine, OLD, "kernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko")
    assert reason(machine) == ("the kernel module amdgpu 6.14.14 is loaded and that of the kernel itself is installed")


def test_modules_of_gpus_that_are_not_there_ask_for_no_reboot(machine: Any, modinfo: Any) -> None:
    modinfo("version:        580.95.05")
    running(machine, OLD)
    kernel(machine, OLD)
    kernel(machine, NEW, "updates/dkms/nvidia.ko")
    assert reason(machine) is None
