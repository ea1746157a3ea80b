# SPDX-License-Identifier: Apache-2.0
"""What a node with AMD GPUs gets: GPUs, systems and sources, what is refused, and what is left alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from amd_machines import AMD, GIB, ROOT, SYSTEMS, TABLE, add_packages, amd_gpu, intel_gpu, machine, package, write_files
from ansible_collections.fleet.inference.plugins.module_utils.drivers import amd
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import DriverError

DEFAULTS: dict[str, Any] = {
    "rocm_state": "present",
    "rocm_source": "inbox",
    "rocm_line": None,
    "rocm_user_space": False,
    "rocm_kernel_parameters": [],
    "rocm_instinct_tuning": False,
    "rocm_repository_url": None,
    "rocm_repository_key_url": None,
    "rocm_repository_key_fingerprint": None,
}
APT_VERSION = "1:6.16.13.30300300-2341068.24.04"
DEBIANS = [name for name in SYSTEMS if not name.startswith("rhel")]


def plan(facts: dict[str, Any], **wish: Any) -> dict[str, Any]:
    """The decision for gpu-07."""
    return amd.plan("gpu-07", facts, {**DEFAULTS, **wish}, TABLE)


def refusal(facts: dict[str, Any], **wish: Any) -> str:
    """Why there is none."""
    with pytest.raises(DriverError) as caught:
        plan(facts, **wish)
    return str(caught.value)


def steps(decision: dict[str, Any]) -> list[str]:
    """What is left to do."""
    return [name for name, there in decision["steps"].items() if there]


def with_headers(facts: dict[str, Any]) -> dict[str, Any]:
    """The machine with headers for its kernel, and for those that come after it."""
    facts["boot"]["kernels"][0]["headers"] = True
    if facts["packages"] is not None:
        flavour = facts["os"]["kernel"].rsplit("-", 1)[-1]
        add_packages(facts, f"linux-headers-{flavour}")
    return facts


def converged(system: str, release: str = "30.30.3", line: str = "7.2") -> dict[str, Any]:
    """A machine that AMD's driver was installed on, and that was restarted."""
    facts = with_headers(machine(system, amd_gpu("gfx942")))
    decision = plan(facts, rocm_source="vendor", rocm_line=line)
    write_files(facts, *decision["package_files"])
    if facts["packages"] is not None:
        facts["files"][amd.KEY] = "0" * 64
        digits = amd.package_release(release)
        facts["packages"]["amdgpu-dkms"] = package(f"1:6.16.13.{digits}-2341068.24.04", held=True)
        facts["packages"]["amdgpu-dkms-firmware"] = package(f"{release}.0.{digits}-2341068.24.04", held=True)
    else:
        write_files(facts, decision["record"])
    facts["boot"]["kernels"][0]["modules"]["amdgpu"] = {"version": "6.16.13", "dkms": True, "signed": False}
    facts["driver"]["amdgpu_version"] = "6.16.13"
    return facts


def test_without_facts_it_says_how_to_get_them() -> None:
    assert refusal({}).startswith("gpu-07: rocm_facts is empty because nothing has read this host's facts")


# Who needs it


@pytest.mark.parametrize("target", AMD)
def test_gpus_with_an_image_need_it_and_the_others_do_not(target: str) -> None:
    facts = machine("ubuntu 26.04", amd_gpu(target))
    facts["boot"]["next_kernel"] = facts["boot"]["running_kernel"] = "7.2.1-generic"
    facts["boot"]["kernels"][0]["release"] = "7.2.1-generic"
    decision = plan(facts)
    assert decision["needed"] is (target not in ("gfx803", "gfx1103"))


@pytest.mark.parametrize(
    "devices",
    [(), (intel_gpu(),), (amd_gpu("gfx942", driver_bound="vfio-pci"),)],
    ids=["none", "Intel", "given to a virtual machine"],
)
def test_nothing_for_others(devices: tuple[dict[str, Any], ...]) -> None:
    decision = plan(machine("debian 13", *devices))
    assert not decision["needed"]
    assert steps(decision) == []
    assert decision["reboot"] == {"required": False, "reason": None}


# The kernel's own driver


@pytest.mark.parametrize("system", SYSTEMS)
def test_inbox_wants_the_firmware_alone(system: str) -> None:
    decision = plan(machine(system, amd_gpu("gfx1100")))
    wanted = TABLE["amd"]["inbox"]["systems"][system]["firmware"]
    assert decision["packages"]["install"] == wanted
    assert decision["packages"]["remove"] == decision["packages"]["hold"] == []
    assert steps(decision) == (["install"] if wanted else [])
    assert decision["repository"] is None
    assert decision["package_files"] == []
    assert not decision["reboot"]["required"]


@pytest.mark.parametrize("system", DEBIANS)
def test_inbox_leaves_a_node_alone_that_has_it(system: str) -> None:
    facts = machine(system, amd_gpu("gfx1100"))
    add_packages(facts, *TABLE["amd"]["inbox"]["systems"][system]["firmware"])
    decision = plan(facts)
    assert steps(decision) == []
    assert not decision["reboot"]["required"]


@pytest.mark.parametrize(
    ("system", "target"),
    [
        ("debian 12", "gfx942"),
        ("debian 12", "gfx1201"),
        ("debian 12", "gfx1151"),
        ("debian 13", "gfx950"),
        ("ubuntu 22.04", "gfx1201"),
    ],
)
def test_inbox_is_refused_where_the_kernel_does_not_know_the_gpu(system: str, target: str) -> None:
    said = refusal(machine(system, amd_gpu(target, usable=False)))
    kernel = SYSTEMS[system][4]
    assert re.fullmatch(
        rf"gpu-07: rocm_source is 'inbox' but amdgpu of the kernel {re.escape(kernel)} does not know {target}, which "
        r"needs \S+ or later; install a newer kernel of the distribution, or set rocm_source to 'vendor'",
        said,
    )


def test_rhel_kernels_have_a_newer_driver_than_their_number_says() -> None:
    assert plan(machine("rhel 9", amd_gpu("gfx942")))["needed"]


def test_a_kernel_without_amdgpu_is_refused() -> None:
    facts = machine("debian 13", amd_gpu("gfx1100", driver_bound=None))
    facts["boot"]["kernels"][0]["modules"] = {}
    assert refusal(facts) == (
        "gpu-07: rocm_source is 'inbox' but the kernel 6.12.57+deb13-amd64 has no amdgpu driver; install "
        "linux-image-amd64 and remove the kernel without it"
    )


def test_ubuntu_has_the_module_in_a_package_of_its_own() -> None:
    facts = machine("ubuntu 24.04", amd_gpu("gfx1100", driver_bound=None))
    facts["boot"]["kernels"][0]["modules"] = {}
    assert "linux-modules-extra-6.14.0-36-generic" in plan(facts)["packages"]["install"]


def test_kernel_that_nobody_knows_is_not_judged() -> None:
    facts = machine("debian 13", amd_gpu("gfx1100"), kernels=[])
    assert plan(facts)["packages"]["install"] == ["firmware-amd-graphics"]


def test_the_next_kernel_brings_the_driver_after_a_restart() -> None:
    facts = machine("debian 13", amd_gpu("gfx1100", driver_bound=None), running_kernel="6.12.57+deb13-cloud-amd64")
    add_packages(facts, "firmware-amd-graphics")
    decision = plan(facts)
    assert steps(decision) == []
    assert decision["reboot"]["required"]
    assert "6.12.57+deb13-cloud-amd64 drives no AMD GPU" in decision["reboot"]["reason"]


def test_missing_groups_are_made() -> None:
    facts = machine("debian 13", amd_gpu("gfx1100"))
    facts["groups"] = {"render": None, "video": 44}
    assert "groups" in steps(plan(facts))


@pytest.mark.parametrize(
    ("system", "tools"), [("debian 13", ["amd-smi", "rocminfo"]), ("debian 12", ["rocminfo"])], ids=["13", "12"]
)
def test_user_space_comes_when_asked_for(system: str, tools: list[str]) -> None:
    facts = machine(system, amd_gpu("gfx1100"))
    add_packages(facts, "firmware-amd-graphics")
    assert plan(facts, rocm_user_space=True)["packages"]["install"] == tools


def test_user_space_that_the_system_does_not_have_is_refused() -> None:
    assert refusal(machine("rhel 9", amd_gpu("gfx1100")), rocm_user_space=True) == (
        "gpu-07: rocm_user_space is true but rocky 9.6 has no ROCm tools of its own; set rocm_user_space to false, or "
        "install AMD's packages by hand"
    )


def test_a_full_disk_is_refused() -> None:
    facts = machine("debian 13", amd_gpu("gfx1100"), free_bytes={"/": GIB // 8, "/boot": GIB, "/var": 50 * GIB})
    assert refusal(facts).startswith("gpu-07: / has 128 MiB free and installing the driver needs 256 MiB")


def test_an_unknown_system_is_refused() -> None:
    facts = machine("debian 13", amd_gpu("gfx1100"))
    facts["os"].update(id="debian", version_id="11")
    assert refusal(facts).startswith("gpu-07: rocm can't set up amdgpu on debian 11; use one of debian 12, debian 13")


# AMD's driver


@pytest.mark.parametrize("line", TABLE["amd"]["vendor"]["lines"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_vendor_by_line_and_system(system: str, line: str) -> None:
    entry = TABLE["amd"]["vendor"]["lines"][line]
    facts = machine(system, amd_gpu("gfx942"))
    if system not in entry["systems"]:
        assert "AMD has no amdgpu of ROCm" in refusal(facts, rocm_source="vendor", rocm_line=line)
        return
    decision = plan(facts, rocm_source="vendor", rocm_line=line)
    assert decision["driver_release"] == entry["driver"]
    assert decision["packages"]["install"][-1].startswith("amdgpu-dkms-")
    assert any("headers" in name or "devel" in name for name in decision["packages"]["install"])
    assert {"repository", "install", "dkms", "initramfs"} <= set(steps(decision))
    assert decision["initramfs"][0] == ("dracut" if system.startswith("rhel") else "update-initramfs")
    assert decision["reboot"]["required"]
    url = decision["repository"]["url"]
    if system == "rhel 9":
        assert url == f"https://repo.radeon.com/amdgpu/{entry['driver']}/el/9.6/main/x86_64"
    elif system == "rhel 10":
        assert url == f"https://repo.radeon.com/amdgpu/{entry['driver']}/el/10/main/x86_64"
    else:
        assert url == f"https://repo.radeon.com/amdgpu/{entry['driver']}/ubuntu"
        assert decision["repository"]["suite"] == TABLE["amd"]["vendor"]["systems"][system]["suite"]
        assert (
            f"# Key: {TABLE['amd']['vendor']['repository_key_fingerprint']}" in decision["package_files"][-1]["content"]
        )


@pytest.mark.parametrize("system", TABLE["amd"]["vendor"]["lines"]["7.2"]["systems"])
def test_a_working_driver_of_amd_stays_as_it_is(system: str) -> None:
    decision = plan(converged(system), rocm_source="auto")
    assert not decision["needed"] and steps(decision) == []
    assert decision["decisions"][-1].startswith("AMD's amdgpu 6.16.13 is installed and works, so it stays as it is")
    assert plan(converged(system), rocm_source="inbox")["packages"]["remove"]


def test_without_a_driver_of_amd_the_kernels_own_is_taken() -> None:
    facts = machine("debian 13", amd_gpu("gfx942"))
    assert plan(facts, rocm_source="auto") == plan(facts, rocm_source="inbox")
    broken = converged("debian 13")
    broken["driver"]["amdgpu_version"] = None
    assert plan(broken, rocm_source="auto") == plan(broken, rocm_source="inbox")


def test_gpus_that_work_need_no_newer_kernel() -> None:
    assert "does not know gfx942" in refusal(machine("debian 12", amd_gpu("gfx942", usable=False)))
    assert plan(machine("debian 12", amd_gpu("gfx942")))["needed"]


def test_the_default_line_is_the_newest() -> None:
    assert plan(machine("debian 13", amd_gpu("gfx942")), rocm_source="vendor")["line"] == "10.0"


@pytest.mark.parametrize("system", TABLE["amd"]["vendor"]["lines"]["7.2"]["systems"])
def test_vendor_leaves_a_node_alone_that_has_it(system: str) -> None:
    decision = plan(converged(system), rocm_source="vendor", rocm_line="7.2")
    assert steps(decision) == []
    assert not decision["reboot"]["required"]


@pytest.mark.parametrize("system", ["debian 13", "rhel 9"])
@pytest.mark.parametrize(("there", "wanted"), [(("30.30.3", "7.2"), "10.0"), (("31.50", "10.0"), "7.2")])
def test_another_line_is_an_upgrade_or_a_downgrade(system: str, there: tuple[str, str], wanted: str) -> None:
    decision = plan(converged(system, *there), rocm_source="vendor", rocm_line=wanted)
    version = f"*.{amd.package_release(TABLE['amd']['vendor']['lines'][wanted]['driver'])}-*[0-9]"
    if system == "rhel 9":
        assert decision["packages"]["install"] == [f"amdgpu-dkms-{version}*"]
    else:
        assert decision["packages"]["install"] == [f"amdgpu-dkms={version}", f"amdgpu-dkms-firmware={version}"]
    assert {"repository", "install", "dkms"} <= set(steps(decision))
    assert decision["reboot"]["required"]


def test_another_key_is_another_repository() -> None:
    decision = plan(
        converged("debian 13"), rocm_source="vendor", rocm_line="7.2", rocm_repository_key_fingerprint="AB" * 20
    )
    assert steps(decision) == ["repository"]


def test_a_mirror_takes_the_place_of_amd() -> None:
    wish = {
        "rocm_repository_url": "http://mirror.example/amdgpu/",
        "rocm_repository_key_url": "http://mirror.example/key",
    }
    decision = plan(machine("debian 12", amd_gpu("gfx90a")), rocm_source="vendor", **wish)
    assert decision["repository"]["url"] == "http://mirror.example/amdgpu/31.50/ubuntu"
    assert decision["repository"]["key_url"] == "http://mirror.example/key"


def test_the_pin_keeps_the_release() -> None:
    decision = plan(machine("debian 13", amd_gpu("gfx942")), rocm_source="vendor", rocm_line="7.2")
    assert "Pin: version *.30300300-*[0-9]\nPin-Priority: 1001\n" in decision["package_files"][0]["content"]


@pytest.mark.parametrize(
    ("release", "digits"), [("31.50", "31500000"), ("30.30.3", "30300300"), ("31.40.1", "31400100")]
)
def test_package_versions_carry_the_release(release: str, digits: str) -> None:
    assert amd.package_release(release) == digits
    assert amd.is_release(f"1:6.16.13.{digits}-2303411.24.04", release)
    assert not amd.is_release("1:6.16.13.30300400-2341068.24.04", release)
    assert not amd.is_release(None, release)


def test_pitfall_27_a_kernel_that_the_driver_can_not_be_built_for_is_refused() -> None:
    facts = machine("debian 13", amd_gpu("gfx942"), next_kernel="6.18.7+deb13-amd64")
    assert refusal(facts, rocm_source="vendor", rocm_line="7.2") == (
        "gpu-07: rocm_source is 'vendor' but amdgpu 30.30.3 can't be built for kernels after 6.17 and the next one is "
        "6.18.7+deb13-amd64; set rocm_line to a newer line or rocm_source to 'inbox'"
    )


def test_pitfall_2_headers_of_this_and_every_later_kernel_come_along() -> None:
    decision = plan(machine("debian 13", amd_gpu("gfx942")), rocm_source="vendor")
    assert decision["headers"] == "linux-headers-amd64"
    assert decision["packages"]["install"] == [
        "linux-headers-amd64",
        "linux-headers-6.12.57+deb13-amd64",
        "amdgpu-dkms=*.31500000-*[0-9]",
        "amdgpu-dkms-firmware=*.31500000-*[0-9]",
    ]


def test_pitfall_2_a_module_missing_for_the_next_kernel_is_built() -> None:
    facts = converged("debian 13")
    facts["boot"]["next_kernel"] = "6.12.63+deb13-amd64"
    newer = {**facts["boot"]["kernels"][0], "release": "6.12.63+deb13-amd64"}
    newer["modules"] = {"amdgpu": {"version": None, "dkms": False, "signed": True}}
    facts["boot"]["kernels"].append(newer)
    decision = plan(facts, rocm_source="vendor", rocm_line="7.2")
    assert steps(decision) == ["dkms", "initramfs"]


def test_pitfall_3_secure_boot_refuses_the_unsigned_driver() -> None:
    facts = machine("debian 13", amd_gpu("gfx942"), secure_boot=True)
    assert refusal(facts, rocm_source="vendor") == (
        "gpu-07: rocm_source is 'vendor' but Secure Boot is on and would refuse amdgpu-dkms, which is built "
        "here; set rocm_source to 'inbox', whose driver is signed, or turn Secure Boot off in the firmware"
    )
    assert plan(facts)["needed"]


def test_pitfall_3_a_driver_that_is_loaded_is_one_that_secure_boot_trusts() -> None:
    facts = converged("debian 13")
    facts["boot"]["secure_boot"] = True
    assert steps(plan(facts, rocm_source="vendor", rocm_line="7.2")) == []


def test_apus_want_the_kernels_own_driver() -> None:
    facts = machine("ubuntu 26.04", amd_gpu("gfx1151"))
    assert "is part of its processor" in refusal(facts, rocm_source="vendor")
    assert plan(facts)["needed"]


def test_arm_servers_want_the_kernels_own_driver() -> None:
    facts = machine("ubuntu 24.04", amd_gpu("gfx942"))
    facts["cpu"]["architecture"] = "aarch64"
    assert "AMD's amdgpu is for x86_64 and this is aarch64" in refusal(facts, rocm_source="vendor")


def test_rhel_minor_version_has_to_match() -> None:
    facts = machine("rhel 9", amd_gpu("gfx942"))
    facts["os"]["version_id"] = "9.5"
    assert "in the versions 9.4, 9.6, 9.8 and this is rocky 9.5" in refusal(facts, rocm_source="vendor")


def test_an_unknown_line_is_refused() -> None:
    assert refusal(machine("debian 13", amd_gpu("gfx942")), rocm_source="vendor", rocm_line="6.4") == (
        "gpu-07: rocm_line is '6.4', which is no line of ROCm in inference_drivers; give one of 10.0, 7.14, 7.2"
    )


def test_all_problems_are_told_at_once() -> None:
    facts = machine("debian 13", amd_gpu("gfx942"), secure_boot=True, next_kernel="6.18.7+deb13-amd64")
    assert len(refusal(facts, rocm_source="vendor", rocm_line="7.2").splitlines()) == 2


def test_the_kernels_own_driver_loaded_asks_for_a_restart() -> None:
    facts = converged("debian 13")
    facts["driver"]["amdgpu_version"] = None
    decision = plan(facts, rocm_source="vendor", rocm_line="7.2")
    assert steps(decision) == []
    assert decision["reboot"] == {
        "required": True,
        "reason": "the kernel's own amdgpu is loaded and AMD's 6.16.13 is installed",
    }


def test_debian_with_radeon_is_said_to_be_untested_by_amd() -> None:
    decision = plan(machine("debian 13", amd_gpu("gfx1100")), rocm_source="vendor")
    assert "AMD tests Radeon GPUs with Ubuntu and RHEL alone, Debian only with Instinct" in decision["decisions"]


# Back, away, and half-way


def test_back_to_the_kernels_own_driver() -> None:
    facts = converged("debian 13")
    add_packages(facts, "firmware-amd-graphics")
    decision = plan(facts)
    assert decision["packages"]["remove"] == ["amdgpu-dkms", "amdgpu-dkms-firmware"]
    assert decision["obsolete_files"] == [amd.KEY, amd.APT_SOURCE, amd.APT_PIN]
    assert {"remove", "repository", "initramfs"} <= set(steps(decision))
    assert decision["reboot"]["required"]


def test_absent_takes_away_what_the_role_brought() -> None:
    facts = converged("debian 13")
    add_packages(facts, "firmware-amd-graphics", "rocminfo")
    decision = plan(facts, rocm_state="absent")
    assert decision["packages"]["remove"] == ["amdgpu-dkms", "amdgpu-dkms-firmware", "rocminfo"]
    assert decision["packages"]["hold"] == []
    assert {"remove", "repository"} <= set(steps(decision))


@pytest.mark.parametrize("devices", [(), (amd_gpu("gfx942"),)], ids=["no GPU", "MI300X"])
def test_absent_where_nothing_is_does_nothing(devices: tuple[dict[str, Any], ...]) -> None:
    decision = plan(machine("debian 13", *devices), rocm_state="absent")
    assert not decision["needed"]
    assert steps(decision) == []
    assert not decision["reboot"]["required"]


def test_a_package_with_only_its_settings_left_is_away() -> None:
    facts = machine("debian 13")
    add_packages(facts, "amdgpu-dkms", state="config-files")
    assert steps(plan(facts, rocm_state="absent")) == []


def test_half_configured_packages_are_repaired() -> None:
    facts = converged("debian 13")
    facts["packages"]["amdgpu-dkms"]["state"] = "half-configured"
    decision = plan(facts, rocm_source="vendor", rocm_line="7.2")
    assert {"repair", "install", "dkms"} <= set(steps(decision))


# Kernel parameters


def test_tuning_is_for_instinct() -> None:
    decision = plan(machine("debian 13", amd_gpu("gfx90a")), rocm_instinct_tuning=True)
    assert decision["parameters"]["wanted"] == ["pci=realloc=off", "iommu=pt", "numa_balancing=disable"]
    assert "parameters" in steps(decision)
    assert decision["reboot"]["required"]
    assert plan(machine("debian 13", amd_gpu("gfx1100")), rocm_instinct_tuning=True)["parameters"]["wanted"] == []


def test_rhel_changes_its_boot_entries() -> None:
    decision = plan(machine("rhel 9", amd_gpu("gfx90a")), rocm_instinct_tuning=True)
    words = "pci=realloc=off iommu=pt numa_balancing=disable"
    assert decision["parameters"]["commands"] == [
        ["grubby", "--update-kernel=ALL", f"--remove-args={words}"],
        ["grubby", "--update-kernel=ALL", f"--args={words}"],
    ]


def test_parameters_wait_for_the_restart_and_then_rest() -> None:
    facts = machine("debian 13", amd_gpu("gfx90a"))
    add_packages(facts, "firmware-amd-graphics")
    first = plan(facts, rocm_kernel_parameters=["iommu=pt"])
    unfinished = {**first["parameters"], "content": first["parameters"]["unfinished"]}
    write_files(facts, unfinished)
    assert steps(plan(facts, rocm_kernel_parameters=["iommu=pt"])) == ["parameters"], "the run was interrupted"
    write_files(facts, first["parameters"])
    second = plan(facts, rocm_kernel_parameters=["iommu=pt"])
    assert steps(second) == []
    assert second["reboot"] == {"required": True, "reason": "the kernel runs without iommu=pt"}
    facts["boot"]["command_line"].append("iommu=pt")
    assert not plan(facts, rocm_kernel_parameters=["iommu=pt"])["reboot"]["required"]


def test_parameters_go_when_nobody_wants_them() -> None:
    facts = machine("debian 13", amd_gpu("gfx90a"))
    add_packages(facts, "firmware-amd-graphics")
    write_files(facts, plan(facts, rocm_kernel_parameters=["iommu=pt"])["parameters"])
    for state in ("present", "absent"):
        decision = plan(facts, rocm_state=state)
        assert steps(decision) == ["parameters"]
        assert decision["needed"]


@pytest.mark.parametrize("word", ["iommu=pt quiet", "$(reboot)", 'a"b', ""])
def test_parameters_are_words(word: str) -> None:
    said = refusal(machine("debian 13", amd_gpu("gfx90a")), rocm_kernel_parameters=[word])
    assert said.startswith(f"gpu-07: rocm_kernel_parameters has {word!r}, which is no kernel parameter")


def test_iommu_and_numa_balancing_are_reported() -> None:
    facts = machine("debian 13", amd_gpu("gfx90a"), iommu="on", numa_balancing=True)
    said = " ".join(plan(facts)["decisions"])
    assert "NUMA balancing is on" in said
    assert "the IOMMU is on; AMD advises iommu=pt" in said


def test_the_same_input_gives_the_same_decision() -> None:
    facts = converged("debian 13")
    assert plan(facts, rocm_source="vendor") == plan(facts, rocm_source="vendor")


# The table


def test_the_table_knows_every_gpu_that_an_image_has_code_for() -> None:
    engines = yaml.safe_load((ROOT / "group_vars" / "all" / "engines.yml").read_text(encoding="utf-8"))
    variants = [
        variant for engine in engines["inference_engines"].values() for variant in engine.get("variants", {}).values()
    ]
    images = {target for item in variants if item["tier"] == "rocm" for target in item["gpu_architectures"]}
    assert set(TABLE["amd"]["rocm_architectures"]) == images


def test_the_table_is_complete_and_in_order() -> None:
    inbox, vendor = TABLE["amd"]["inbox"], TABLE["amd"]["vendor"]
    for systems in (inbox["systems"], vendor["systems"], TABLE["vulkan"]["systems"]):
        assert list(systems) == list(SYSTEMS)
    for entry in vendor["lines"].values():
        assert list(entry["systems"]) == [name for name in SYSTEMS if name in entry["systems"]]
    lines = list(vendor["lines"])
    assert lines == sorted(lines, key=amd.kernel_number)
    assert vendor["default_line"] == lines[-1]
    assert set(inbox["minimum_kernel"]) <= set(TABLE["amd"]["rocm_architectures"])
    assert set(TABLE["amd"]["user_space"]) <= set(SYSTEMS)
