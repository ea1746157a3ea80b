# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for the packages in NVIDIA's CUDA and container toolkit repositories and in AMD's driver repository.

Names and relations are those of the repositories for Debian, as far as a driver for computing goes; kernel modules are
built by the real DKMS from a few lines of C, so a kernel without headers fails as it does with the real packages.

Sources: NVIDIA Driver Installation Guide (Debian, compute-only systems; version locking); `dpkg -l` of Debian machines
with 580, 595 and 615 from that repository; NVIDIA forum 353805 (``cuda-drivers-580`` asks for ``>=`` and pulls in 590);
the repository's listings of ``nvidia-fabricmanager`` (its name carries the branch up to 575); `dkms status` there
(``nvidia/580.126.20``) and in AMD's ROCm installation guide (``amdgpu/6.19.4-2337710.24.04``).
"""

from __future__ import annotations

import dataclasses

from .vendor_repository import Package, Repository

#: All that the repositories offer; the last one of a branch is what that branch means.
NVIDIA_VERSIONS = ("570.172.08", "580.65.06", "580.82.07", "580.95.05", "595.58.03")
#: Its modules do not build, as happens when a kernel is newer than a driver.
NVIDIA_UNBUILDABLE = "580.82.07"
NVIDIA_PATHS = {release: f"cuda/repos/{release}/x86_64" for release in ("debian12", "debian13")}
#: Release of AMD's driver → version of its package, and of its module as DKMS calls it.
AMDGPU_VERSIONS = {
    "31.40.1": ("1:6.18.4.31400100-2310000.24.04", "6.18.4-2310000.24.04"),
    "31.50": ("1:6.19.4.31500000-2337710.24.04", "6.19.4-2337710.24.04"),
}

#: NVIDIA's container toolkit, the wanted version and a newer one.
TOOLKIT_VERSIONS = ("1.20.0", "1.21.0")
TOOLKIT_PATH = "libnvidia-container/stable/deb/amd64"

_MODULE = """\
#include <linux/module.h>
MODULE_DESCRIPTION("stand-in");
MODULE_LICENSE("{license}");
MODULE_VERSION("{version}");
{broken}
"""
_BROKEN = "#error this driver does not know this kernel"
_MAKEFILE = """\
obj-m := {objects}
KDIR ?= /lib/modules/$(shell uname -r)/build
modules:
\t$(MAKE) -C $(KDIR) M=$(CURDIR) modules
"""
# As dh_dkms writes them.
_DKMS_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  /usr/lib/dkms/common.postinst {name} {version} /usr/share/{package} "" "$2"
fi
"""
_DKMS_PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = upgrade ] || [ "$1" = deconfigure ]; then
  if [ "$(dkms status -m {name} -v {version})" ]; then
    dkms remove -m {name} -v {version} --all
  fi
fi
"""
_UNIT = """\
[Unit]
Description=stand-in for {name}
[Service]
ExecStart=/usr/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""
_UNIT_POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
  deb-systemd-helper enable {unit} >/dev/null || true
  if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
    deb-systemd-invoke {action} {unit} >/dev/null || true
  fi
fi
"""
_UNIT_PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  deb-systemd-invoke stop {unit} >/dev/null || true
fi
"""
_UNIT_POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ] && [ -x /usr/bin/deb-systemd-helper ]; then
  deb-systemd-helper purge {unit} >/dev/null || true
fi
"""
# A test's power cut: dpkg, which runs this, is killed, and what it was doing stays half-done.
_POWER_CUT = """\
#!/bin/sh
set -e
if [ -e /run/stand-in-power-cut ]; then
  rm /run/stand-in-power-cut
  kill -9 "$PPID"
fi
"""
# What the real one says when no module is loaded.
_NVIDIA_SMI = """\
#!/bin/sh
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
exit 9
"""


def _dkms(package: Package, name: str, version: str, modules: dict[str, str], *, broken: bool = False) -> Package:
    """Add a module source that DKMS builds: module → licence."""
    source = f"/usr/src/{name}-{version}"
    lines = [f'PACKAGE_NAME="{name}"', f'PACKAGE_VERSION="{version}"', 'AUTOINSTALL="yes"']
    lines.append('MAKE[0]="make KDIR=${kernel_source_dir} modules"')
    for number, module in enumerate(modules):
        lines += [f'BUILT_MODULE_NAME[{number}]="{module}"', f'DEST_MODULE_LOCATION[{number}]="/kernel/drivers/video"']
    files = {
        f"{source}/dkms.conf": "\n".join(lines) + "\n",
        f"{source}/Makefile": _MAKEFILE.format(objects=" ".join(f"{module}.o" for module in modules)),
    }
    for module, license_ in modules.items():
        error = "#error this driver does not know this kernel" if broken else ""
        files[f"{source}/{module}.c"] = _MODULE.format(
            license=license_, version=version.partition("-")[0], broken=error
        )
    scripts = {
        "postinst": _DKMS_POSTINST.format(name=name, version=version, package=package.name),
        "prerm": _DKMS_PRERM.format(name=name, version=version),
    }
    return dataclasses.replace(package, files={**package.files, **files}, scripts={**package.scripts, **scripts})


def _service(package: Package, unit: str, *, enabled: bool) -> Package:
    """Add a service; ``enabled`` as its package enables and starts it at once."""
    scripts = {"prerm": _UNIT_PRERM.format(unit=unit), "postrm": _UNIT_POSTRM.format(unit=unit)}
    if enabled:
        scripts["postinst"] = _UNIT_POSTINST.format(unit=unit, action="start")
    files = {f"/usr/lib/systemd/system/{unit}": _UNIT.format(name=package.name)}
    return dataclasses.replace(package, files={**package.files, **files}, scripts={**package.scripts, **scripts})


def _exactly(version: str, *names: str) -> str:
    return ", ".join(f"{name} (= {version})" for name in names)


def _at_least(version: str, *names: str) -> str:
    return ", ".join(f"{name} (>= {version})" for name in names)


def nvidia_packages(driver: str) -> list[Package]:
    """The packages of one driver version, as NVIDIA's repositories for Debian have them."""
    version, branch = f"{driver}-1", driver.partition(".")[0]
    broken = driver == NVIDIA_UNBUILDABLE
    libraries = {
        "libcuda1": "libcuda.so",
        "libnvidia-ml1": "libnvidia-ml.so",
        "libnvidia-ptxjitcompiler1": "libnvidia-ptxjitcompiler.so",
        "libnvidia-cfg1": "libnvidia-cfg.so",
        "libnvidia-nvvm4": "libnvidia-nvvm.so",
    }
    found = [
        Package(name, version, files={f"/usr/lib/x86_64-linux-gnu/{file}.{driver}": "stand-in\n"})
        for name, file in libraries.items()
    ]
    found += [
        Package(
            "firmware-nvidia-gsp", version, files={f"/usr/lib/firmware/nvidia/{driver}/gsp_ga10x.bin": "stand-in\n"}
        ),
        Package("nvidia-modprobe", version, files={"/usr/bin/nvidia-modprobe": "#!/bin/sh\nexit 1\n"}),
        Package(
            "nvidia-kernel-support",
            version,
            {"Depends": _exactly(version, "firmware-nvidia-gsp", "nvidia-modprobe")},
            {"/usr/lib/modprobe.d/nvidia.conf": "blacklist nouveau\n"},
            {"postinst": _POWER_CUT},
        ),
        _service(
            Package("nvidia-persistenced", version, {"Depends": _exactly(version, "libnvidia-cfg1")}),
            "nvidia-persistenced.service",
            enabled=True,
        ),
        Package("nvidia-driver-libs", version),
        Package("xserver-xorg-video-nvidia", version),
        Package("nvidia-settings", version),
        Package(
            "nvidia-driver",
            version,
            {"Depends": _exactly(version, "nvidia-driver-libs", "xserver-xorg-video-nvidia", "nvidia-kernel-support")},
        ),
        Package(
            "nvidia-driver-cuda",
            version,
            {
                "Depends": _exactly(version, *libraries, "nvidia-modprobe", "nvidia-persistenced"),
                "Recommends": "nvidia-kernel-dkms | nvidia-kernel-open-dkms",
                "Conflicts": "nvidia-smi",
                "Provides": "nvidia-smi",
                "Replaces": "nvidia-smi",
            },
            {"/usr/bin/nvidia-smi": _NVIDIA_SMI},
        ),
    ]
    for name, other, license_ in (
        ("nvidia-kernel-dkms", "nvidia-kernel-open-dkms", "NVIDIA"),
        ("nvidia-kernel-open-dkms", "nvidia-kernel-dkms", "Dual MIT/GPL"),
    ):
        depends = f"dkms, {_exactly(version, 'nvidia-kernel-support')}"
        relations = {"Depends": depends, "Conflicts": other, "Replaces": other, "Provides": f"nvidia-kernel-{driver}"}
        modules = {"nvidia": license_, "nvidia-uvm": license_}
        found.append(_dkms(Package(name, version, relations), "nvidia", driver, modules, broken=broken))
    # They ask for "at least": without a pin they bring the newest branch, whatever their own name says.
    both = ("nvidia-driver", "nvidia-driver-cuda")
    found += [
        Package("nvidia-open", version, {"Depends": _at_least(driver, *both, "nvidia-kernel-open-dkms")}),
        Package("cuda-drivers", version, {"Depends": _at_least(driver, *both, "nvidia-kernel-dkms")}),
        Package(f"cuda-drivers-{branch}", version, {"Depends": _at_least(driver, *both, "nvidia-kernel-dkms")}),
    ]
    manager = "nvidia-fabricmanager" if int(branch) >= 580 else f"nvidia-fabricmanager-{branch}"
    found.append(_service(Package(manager, version), "nvidia-fabricmanager.service", enabled=False))
    found.append(Package("libnvidia-nscq" if int(branch) >= 580 else f"libnvidia-nscq-{branch}", version))
    return found


def amdgpu_packages(version: str, module_version: str) -> list[Package]:
    """The packages of one amdgpu kernel driver; its user space is no matter of the node."""
    relations = {"Depends": f"dkms, amdgpu-dkms-firmware (= {version})"}
    driver = Package("amdgpu-dkms", version, relations, architecture="all")
    firmware = Package(
        "amdgpu-dkms-firmware",
        version,
        files={"/usr/lib/firmware/updates/amdgpu/stand_in.bin": "stand-in\n"},
        architecture="all",
    )
    return [_dkms(driver, "amdgpu", module_version, {"amdgpu": "GPL and additional rights"}), firmware]


def toolkit_packages(toolkit: str) -> list[Package]:
    """The packages of one version of NVIDIA's container toolkit (relations: ``apt-cache show`` of 1.17)."""
    version = f"{toolkit}-1"
    library, tools, base = "libnvidia-container1", "libnvidia-container-tools", "nvidia-container-toolkit-base"
    return [
        Package(library, version),
        Package(tools, version, {"Depends": _at_least(version, library)}),
        Package(base, version, files={"/usr/bin/nvidia-ctk": "#!/bin/sh\nexit 1\n"}),
        Package("nvidia-container-toolkit", version, {"Depends": _exactly(version, tools, base)}),
    ]


def repositories() -> list[Repository]:
    """Every repository that is served: good ones, the same with a new key, and ones that no node may trust."""
    nvidia = tuple(package for version in NVIDIA_VERSIONS for package in nvidia_packages(version))
    found = []
    for path in NVIDIA_PATHS.values():
        found += [
            Repository(path, nvidia, label="NVIDIA CUDA"),
            Repository(f"new-key/{path}", nvidia, key="second", label="NVIDIA CUDA"),
            Repository(f"wrong-signature/{path}", nvidia, key="first", signer="second", label="NVIDIA CUDA"),
        ]
    toolkit = tuple(package for version in TOOLKIT_VERSIONS for package in toolkit_packages(version))
    found.append(Repository(TOOLKIT_PATH, toolkit, label="NVIDIA container toolkit"))
    for release, versions in AMDGPU_VERSIONS.items():
        amdgpu = tuple(amdgpu_packages(*versions))
        for suite in ("jammy", "noble"):
            path = f"amdgpu/{release}/ubuntu"
            found += [
                Repository(path, amdgpu, suite=suite, label="repo.radeon.com"),
                Repository(f"wrong-signature/{path}", amdgpu, suite=suite, signer="second", label="repo.radeon.com"),
            ]
    return found
