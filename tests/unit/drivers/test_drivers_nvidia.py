# SPDX-License-Identifier: Apache-2.0
"""Decisions on NVIDIA's driver, for every generation of GPU, operating system and source."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.fleet.inference.plugins.module_utils.drivers import nvidia, nvidia_packages
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import DriverError
from ansible_collections.fleet.inference.plugins.module_utils.hardware import written
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from nvidia_machines import GPUS, ROOT, SYSTEMS, converged, decide, facts, gpu, installed, kernel, table

OLD = ("maxwell", "pascal", "volta")
MIDDLE = ("turing", "ampere", "ada", "hopper")
VERSIONS = {"535": "535.309.01", "550": "550.163.01", "580": "580.95.05", "595": "595.58.03"}


def refusal(node: dict[str, Any], **changes: Any) -> str:
    """Return the message of a refusal."""
    with pytest.raises(DriverError) as error:
        decide(node, **changes)
    text = str(error.value)
    assert all(line.startswith("gpu-07: ") and ";" in line for line in text.splitlines())
    return text


def right(generation: str, branch: str) -> str:
    """Return the kernel module that a generation gets on a branch."""
    return "proprietary" if generation in OLD or (branch == "535" and generation != "blackwell") else "open"


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "rhel 10"])
@pytest.mark.parametrize("generation", [name for name in GPUS if name != "kepler"])
def test_the_vendor_has_a_driver_for_every_generation(system: str, generation: str) -> None:
    plan = decide(facts(system, gpu(generation)), source="vendor")
    assert (plan["branch"], plan["flavour"]) == ("580", right(generation, "580"))
    assert plan["needed"] and plan["steps"]["install"] and plan["steps"]["repository"]
    assert plan["repository"]["url"].endswith("/x86_64")
    assert plan["headers"] in plan["packages"]["install"]


@pytest.mark.parametrize("system", [name for name in SYSTEMS if not name.startswith("rhel")])
@pytest.mark.parametrize("generation", [name for name in GPUS if name != "kepler"])
def test_the_distribution_has_one_for_what_its_branch_knows(system: str, generation: str) -> None:
    node = facts(system, gpu(generation))
    branch = {"debian 12": "535", "debian 13": "550"}.get(system, "580")
    if generation == "blackwell" and branch != "580":
        assert f"where {system} has {branch}, and NVIDIA B200 needs branch 570 or later" in refusal(node)
        return
    plan = decide(node)
    assert (plan["branch"], plan["flavour"]) == (branch, right(generation, branch))
    assert plan["repository"] is None
    assert plan["prebuilt"] is system.startswith("ubuntu")


@pytest.mark.parametrize("system", [name for name in SYSTEMS if not name.startswith("rhel")])
@pytest.mark.parametrize("source", ["distribution", "vendor"])
@pytest.mark.parametrize("generation", ["pascal", "hopper"])
def test_nothing_is_left_to_do_on_a_converged_node(system: str, source: str, generation: str) -> None:
    node = facts(system, gpu(generation))
    branch = decide(node, source=source)["branch"]
    after = converged(node, VERSIONS[branch], source=source)
    plan = decide(after, source=source)
    assert not any(plan["steps"].values()), plan["steps"]
    assert plan["reboot"] == {"required": False, "reason": None}
    assert plan["packages"]["install"] == plan["packages"]["remove"] == plan["packages"]["hold"] == []


@pytest.mark.parametrize("vendor", ["amd", "intel"])
def test_a_node_without_an_nvidia_gpu_gets_nothing(vendor: str) -> None:
    for devices in ([], [{**gpu("ampere"), "vendor": vendor}]):
        plan = decide(facts("debian 13", devices=devices))
        assert not plan["needed"] and not any(plan["steps"].values()) and plan["files"] == []


def test_a_gpu_that_a_virtual_machine_has_needs_no_driver() -> None:
    assert not decide(facts("debian 13", gpu("ampere", driver_bound="vfio-pci")))["needed"]


# Pitfalls of running GPU servers, as the field tells them.


def test_pitfall_1_driver_library_mismatch() -> None:
    node = converged(facts("debian 13", gpu("ampere")), "550.163.01")
    node["packages"]["libcuda1"]["held"] = False
    plan = decide(node)
    assert plan["packages"]["hold"] == ["libcuda1"] and plan["steps"]["hold"]
    blacklist = next(entry for entry in plan["package_files"] if entry["path"] == nvidia_packages.UPGRADES_PATH)
    patterns = re.findall(r'"(\^.+\$)";', blacklist["content"])
    for name in ("nvidia-smi", "libnvidia-ml1", "libcuda1", "cuda-drivers", "libnvidia-compute-580-server"):
        assert any(re.match(pattern, name) for pattern in patterns), name
    # A library that was upgraded all the same: it is said, and it is not left like that.
    node["driver"].update(
        reboot_required=True, reboot_reason="the kernel module 550.163.01 is loaded and 550.90 is installed"
    )
    assert decide(node)["reboot"]["required"] and "is loaded" in decide(node)["reboot"]["reason"]
    never = decide(node, reboot="never")["reboot"]
    assert not never["required"] and "is loaded" in never["reason"]


def test_pitfall_1_a_library_of_another_version_is_brought_back() -> None:
    node = converged(
        facts(
            "debian 13",
            gpu("ampere"),
        ),
        "580.95.05",
        source="vendor",
    )
    node["packages"]["nvidia-driver-cuda"]["version"] = "580.65.06-1"
    plan = decide(node, source="vendor")
    assert "nvidia-driver-cuda=580.95.05-*" in plan["packages"]["install"]


@pytest.mark.parametrize(
    ("system", "release", "images", "headers"),
    [
        ("debian 13", "6.12.48+deb13-amd64", ["amd64"], "linux-headers-amd64"),
        ("debian 13", "6.12.48+deb13-cloud-amd64", ["cloud-amd64"], "linux-headers-cloud-amd64"),
        ("debian 12", "6.1.0-41-rt-amd64", [], "linux-headers-rt-amd64"),
        ("debian 13", "6.12.48+deb13-arm64", ["arm64"], "linux-headers-arm64"),
        ("ubuntu 24.04", "6.8.0-86-generic", ["generic"], "linux-headers-generic"),
        ("ubuntu 24.04", "6.14.0-33-generic", ["generic-hwe-24.04"], "linux-headers-generic-hwe-24.04"),
        ("ubuntu 24.04", "6.8.0-86-generic", ["virtual"], "linux-headers-virtual"),
        ("ubuntu 22.04", "6.8.0-1031-aws", ["aws"], "linux-headers-aws"),
        ("rhel 9", "5.14.0-570.el9.x86_64", [], "kernel-devel-matched"),
    ],
)
def test_pitfall_2_headers_meta_package(system: str, release: str, images: list[str], headers: str) -> None:
    node = facts(system, gpu("ampere"))
    node["boot"].update(next_kernel=release, kernels=[kernel(release)])
    if node["packages"] is not None:
        node["packages"] = {f"linux-image-{name}": installed("1") for name in images}
    plan = decide(node, source="vendor")
    assert plan["headers"] == headers and headers in plan["packages"]["install"]


def test_pitfall_2_no_module_for_the_next_kernel() -> None:
    node = converged(facts("debian 13", gpu("ampere")), "550.163.01")
    newer = "6.12.57+deb13-amd64"
    node["boot"]["kernels"].append(kernel(newer, headers=True))
    node["boot"]["next_kernel"] = newer
    plan = decide(node)
    assert plan["steps"]["dkms"] and plan["kernel"] == newer
    assert not plan["steps"]["install"]
    # Without its headers they come first.
    node["boot"]["kernels"][-1]["headers"] = False
    assert decide(node)["packages"]["install"] == [f"linux-headers-{newer}"]


def test_pitfall_2_prebuilt_modules_follow_the_kernel() -> None:
    node = converged(facts("ubuntu 24.04", gpu("hopper")), "580.95.05")
    newer = "6.8.0-90-generic"
    node["boot"]["kernels"].append(kernel(newer))
    node["boot"]["next_kernel"] = newer
    plan = decide(node)
    assert plan["packages"]["install"] == [f"linux-modules-nvidia-580-server-open-{newer}"]
    assert "linux-image-generic" not in plan["packages"]["hold"], "the kernel is held already"
    assert any(re.fullmatch(pattern, "linux-image-generic") for pattern in plan["packages"]["held"])


def test_pitfall_2_a_kernel_that_no_headers_are_known_for_is_refused() -> None:
    node = facts("debian 13", gpu("ampere"))
    node["boot"].update(next_kernel="6.8.12-4-pve", kernels=[kernel("6.8.12-4-pve")])
    assert "the kernel 6.8.12-4-pve has no headers" in refusal(node)


@pytest.mark.parametrize("system", ["debian 12", "debian 13", "ubuntu 24.04", "rhel 9"])
@pytest.mark.parametrize("source", ["distribution", "vendor"])
def test_pitfall_3_secure_boot(system: str, source: str) -> None:
    if system == "rhel 9" and source == "distribution":
        pytest.skip("it has no driver of its own")
    node = facts(system, gpu("turing"))
    node["boot"]["secure_boot"] = True
    if system == "ubuntu 24.04" and source == "distribution":
        assert decide(node)["prebuilt"], "its modules are signed"
        return
    text = refusal(node, source=source)
    assert "Secure Boot is on" in text and "nvidia_driver_secure_boot_ready" in text
    assert ("set nvidia_driver_source to distribution" in text) is (system == "ubuntu 24.04")
    assert decide(node, source=source, secure_boot_ready=True)["steps"]["install"]


def test_pitfall_3_secure_boot_is_no_matter_where_the_module_is_there() -> None:
    node = converged(facts("debian 13", gpu("turing")), "550.163.01")
    node["boot"]["secure_boot"] = True
    assert not any(decide(node)["steps"].values())


@pytest.mark.parametrize("generation", OLD)
def test_pitfall_4_old_gpus_stay_on_their_last_branch(generation: str) -> None:
    node = facts("debian 12", gpu(generation))
    plan = decide(node, source="vendor")
    assert (plan["branch"], plan["flavour"]) == ("580", "proprietary")
    assert any("Pin: version 580.*" in pin and "1001" in pin for pin in plan["pins"])
    text = refusal(node, source="vendor", branch="595")
    assert f"nvidia_driver_branch is 595, and the last branch for {GPUS[generation][0]} is 580; set it to 580" in text
    text = refusal(node, source="vendor", flavour="open")
    assert "nvidia_driver_flavour is open" in text and "set it to proprietary or null" in text


def test_pitfall_4_blackwell_needs_the_open_module() -> None:
    node = facts("debian 13", gpu("blackwell"))
    assert decide(node, source="vendor")["flavour"] == "open"
    assert "set it to open or null" in refusal(node, source="vendor", flavour="proprietary")
    assert "set it to 580 or null" in refusal(facts("ubuntu 24.04", gpu("blackwell")), branch="535")
    gb10 = gpu("blackwell", architecture="12.1", name="NVIDIA GB10")
    assert "NVIDIA GB10 needs branch 580 or later" in refusal(facts("debian 13", gb10), source="vendor", branch="575")


def test_pitfall_4_impossible_mixtures_are_refused() -> None:
    text = refusal(facts("debian 13", gpu("pascal"), gpu("blackwell", 1)), source="vendor")
    assert "Tesla P40 needs the proprietary kernel module and NVIDIA B200 the open one" in text
    plan = decide(facts("debian 13", gpu("pascal"), gpu("hopper", 1)), source="vendor")
    assert (plan["branch"], plan["flavour"]) == ("580", "proprietary")


def test_pitfall_4_what_no_branch_supports_is_refused() -> None:
    text = refusal(facts("debian 13", gpu("kepler"), gpu("kepler", 1)))
    assert len(text.splitlines()) == 2
    assert "Tesla K80 at 0000:01:00.0 is of the generation kepler" in text
    # A GPU that this version does not know is newer than it.
    unknown = {**gpu("blackwell"), "generation": None, "architecture": None}
    assert decide(facts("debian 13", unknown), source="vendor")["flavour"] == "open"


def test_pitfall_4_a_branch_without_the_module_is_refused() -> None:
    # What 620 no longer has, only a GPU of these could ask for.
    text = refusal(facts("debian 13", gpu("hopper")), source="vendor", branch="620", flavour="proprietary")
    assert "runs with the open kernel module of branch 620 only" in text


def test_pitfall_5_nouveau_bound() -> None:
    node = facts("debian 13", gpu("ampere", driver_bound="nouveau"))
    plan = decide(node)
    written = {entry["path"]: entry["content"] for entry in plan["files"]}
    assert "blacklist nouveau\n" in written[nvidia.MODPROBE_PATH]
    assert plan["steps"]["files"]
    assert plan["reboot"] == {"required": True, "reason": "nouveau has the GPUs until then"}
    # The file makes the initramfs stale, and the next kernel's is made anew.
    node["boot"]["kernels"][0]["initramfs_stale"] = True
    assert decide(node)["steps"]["initramfs"]
    assert not decide(node)["steps"]["load"]


@pytest.mark.parametrize("system", ["debian 12", "debian 13", "ubuntu 24.04", "rhel 9"])
def test_pitfall_6_fabric_manager_of_the_drivers_version(system: str) -> None:
    node = facts(system, *(gpu("hopper", index) for index in range(8)), nvswitch_count=4)
    plan = decide(node, source="vendor", version="580.95.05")
    assert plan["fabric_manager"]
    separator = "-" if system == "rhel 9" else "="
    manager = [entry for entry in plan["packages"]["install"] if entry.startswith("nvidia-fabricmanager")]
    assert len(manager) == 1 and f"{separator}580.95.05" in manager[0]
    assert plan["packages"]["same_version"][1] == "nvidia-fabricmanager"
    assert nvidia.FABRIC_UNIT in plan["units"] and plan["steps"]["units"]
    assert not decide(facts(system, gpu("hopper")), source="vendor")["fabric_manager"]


def test_pitfall_6_fabric_manager_of_another_version_is_changed() -> None:
    node = facts("debian 13", gpu("hopper"), nvswitch_count=4)
    after = converged(node, "580.95.05", source="vendor")
    assert not any(decide(after, source="vendor")["steps"].values())
    after["packages"]["nvidia-fabricmanager"]["version"] = "580.65.06-1"
    assert "nvidia-fabricmanager=580.95.05-*" in decide(after, source="vendor")["packages"]["install"]


def test_pitfall_6_a_source_without_fabric_manager_is_refused() -> None:
    text = refusal(facts("debian 13", gpu("hopper"), nvswitch_count=4))
    assert "debian 13 has no Fabric Manager" in text and "set nvidia_driver_source to vendor" in text


def test_pitfall_7_the_default_branch_runs_every_image() -> None:
    engines = yaml.safe_load((ROOT / "group_vars" / "all" / "engines.yml").read_text())["inference_engines"]
    floors = [
        int(variant["minimum_driver"])
        for engine in engines.values()
        for variant in engine.get("variants", {}).values()
        if variant.get("minimum_driver")
    ]
    assert floors and max(floors) <= int(table()["nvidia"]["default_branch"])


# What is installed, and what was.


def test_a_restart_into_the_kernel_that_has_the_module() -> None:
    node = converged(facts("debian 13", gpu("ampere")), "550.163.01")
    node["boot"].update(running_kernel="6.12.1-amd64", loaded=[])
    node["driver"].update(kernel_module_version=None, module_flavour=None)
    reason = decide(node)["reboot"]["reason"]
    assert reason == "the running kernel 6.12.1-amd64 has no module of the driver, and 6.12.48+deb13-amd64 has"
    assert not decide(node)["steps"]["load"]


def test_a_module_that_can_be_loaded_needs_no_restart() -> None:
    node = converged(facts("debian 13", gpu("ampere")), "550.163.01")
    node["boot"]["loaded"] = []
    node["driver"].update(kernel_module_version=None, module_flavour=None)
    node["devices"][0]["driver_bound"] = None
    plan = decide(node)
    assert plan["steps"]["load"] and plan["reboot"]["reason"] is None


def test_what_is_installed_and_can_stay_stays() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "595.58.03", source="vendor", branch="595")
    plan = decide(node, source="vendor")
    assert plan["branch"] == "595" and not any(plan["steps"].values())


def test_a_lower_branch_is_installed_over_a_higher_one() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "595.58.03", source="vendor", branch="595")
    plan = decide(node, source="vendor", branch="580")
    assert plan["steps"]["install"] and plan["steps"]["repository"], "the pin changes as well"
    assert "nvidia-kernel-open-dkms" in plan["packages"]["install"]
    assert plan["reboot"]["reason"] == "the kernel module 595.58.03 stays loaded until then"


def test_another_version_of_the_branch() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "580.65.06", source="vendor")
    plan = decide(node, source="vendor", version="580.95.05")
    assert "nvidia-kernel-open-dkms=580.95.05-*" in plan["packages"]["install"]
    assert "Pin: version 580.95.05-*" in plan["pins"][0]


def test_the_other_kernel_module_goes_in_the_same_step() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "580.95.05", source="vendor")
    plan = decide(node, source="vendor", flavour="proprietary")
    assert plan["packages"]["remove"] == ["nvidia-kernel-open-dkms"]
    assert "nvidia-kernel-dkms" in plan["packages"]["install"]
    assert plan["reboot"]["required"]


def test_from_the_distribution_to_the_vendor() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "550.163.01")
    plan = decide(node, source="vendor")
    assert plan["branch"] == "580"
    assert plan["packages"]["remove"] == ["nvidia-open-kernel-dkms"]
    back = decide(converged(node, "580.95.05", source="vendor"))
    assert back["branch"] == "550" and "nvidia-kernel-open-dkms" in back["packages"]["remove"]
    assert nvidia_packages.SOURCES_PATH in back["obsolete_files"]


@pytest.mark.parametrize(
    ("system", "generation", "source"),
    [
        # Debian's branches have ended; Ubuntu's are supported and signed.
        ("debian 12", "hopper", "vendor"),
        ("debian 13", "turing", "vendor"),
        ("ubuntu 24.04", "hopper", "distribution"),
        ("ubuntu 24.04", "blackwell", "distribution"),
        ("ubuntu 22.04", "pascal", "distribution"),
        ("rhel 9", "hopper", "vendor"),
    ],
)
def test_the_source_is_chosen_by_what_is_supported(system: str, generation: str, source: str) -> None:
    plan = decide(facts(system, gpu(generation)), source="auto")
    assert plan["source"] == source
    assert plan["branch"] == "580"


@pytest.mark.parametrize(
    ("source", "version", "branch"), [("distribution", "550.163.01", "550"), ("vendor", "580.95.05", "580")]
)
def test_an_installed_driver_stays_where_it_is_from(source: str, version: str, branch: str) -> None:
    node = converged(facts("debian 13", gpu("hopper")), version, source=source)
    plan = decide(node, source="auto")
    assert (plan["source"], plan["branch"]) == (source, branch)
    assert not any(plan["steps"].values())


def working_by_hand(system: str = "ubuntu 24.04", **changes: Any) -> dict[str, Any]:
    """Return a machine whose driver works and is in no package of either source."""
    node = facts(system, gpu("hopper", driver_bound="nvidia"), **changes)
    node["driver"].update(version="575.57.08", library_version="575.57.08", kernel_module_version="575.57.08")
    return node


def test_a_working_driver_of_somebody_else_stays_as_it_is() -> None:
    plan = decide(working_by_hand(), source="auto")
    assert not plan["needed"] and not any(plan["steps"].values()) and not plan["files"]
    assert "the driver 575.57.08 works and was not installed by this role" in plan["decisions"][0]


def test_its_packages_are_held() -> None:
    node = working_by_hand()
    node["packages"]["nvidia-driver-575"] = installed("575.57.08-0ubuntu1")
    plan = decide(node, source="auto")
    assert plan["packages"]["hold"] == ["nvidia-driver-575"]
    assert [name for name, todo in plan["steps"].items() if todo] == ["hold"]
    assert not decide(node, source="auto", hold=False)["needed"]


@pytest.mark.parametrize(
    "changes", [{"source": "distribution"}, {"branch": "580"}, {"flavour": "open"}, {"version": "580.95.05"}]
)
def test_who_asks_for_a_driver_gets_it(changes: dict[str, Any]) -> None:
    assert decide(working_by_hand(), **{"source": "auto", **changes})["steps"]["install"]


def test_a_driver_of_somebody_else_that_does_not_work_is_replaced() -> None:
    node = working_by_hand()
    node["driver"].update(reboot_required=True, reboot_reason="library and module differ")
    assert decide(node, source="auto")["steps"]["install"]


def test_ubuntus_names_of_another_branch_flavour_and_kind_go() -> None:
    node = facts("ubuntu 24.04", gpu("hopper"))
    there = [
        "linux-modules-nvidia-580-server-generic",
        "nvidia-headless-no-dkms-580-server",
        "libnvidia-compute-570-server",
        "nvidia-driver-580-open",
        "libnvidia-compute-580-server",
        "nvidia-container-toolkit",
    ]
    node["packages"].update({name: installed("580.95.05-0ubuntu1") for name in there})
    assert decide(node)["packages"]["remove"] == sorted(
        name for name in there if name not in ("libnvidia-compute-580-server", "nvidia-container-toolkit")
    )


def test_absent_takes_everything_away() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "580.95.05", source="vendor")
    node["packages"]["nvidia-smi"] = installed("1", state="config-files")
    node["packages"]["nvidia-container-toolkit"] = installed("1.20.0-1")
    plan = decide(node, state="absent", source="vendor")
    assert plan["steps"]["remove"] and plan["steps"]["files"] and not plan["steps"]["install"]
    assert {"nvidia-smi", "nvidia-driver-cuda", "nvidia-kernel-open-dkms"} <= set(plan["packages"]["remove"])
    assert not {"nvidia-container-toolkit", "linux-headers-amd64"} & set(plan["packages"]["remove"])
    assert set(plan["obsolete_files"]) == {path for path in nvidia.OWN_PATHS if path in node["files"]}
    assert plan["reboot"]["reason"] == "the driver is removed and its kernel module is still loaded"
    bare = decide(facts("debian 13", gpu("hopper")), state="absent")
    assert not bare["needed"] and not any(bare["steps"].values())


def test_what_an_interrupted_run_left_is_repaired() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "550.163.01")
    node["packages"]["nvidia-open-kernel-dkms"]["state"] = "half-configured"
    plan = decide(node)
    assert plan["steps"]["repair"] and plan["steps"]["install"]


@pytest.mark.parametrize("step", ["packages", "files", "key", "module", "unit"])
def test_every_interruption_leaves_the_rest_to_the_next_run(step: str) -> None:
    node = converged(facts("debian 13", gpu("hopper")), "580.95.05", source="vendor")
    broken = copy.deepcopy(node)
    if step == "packages":
        broken["packages"].pop("nvidia-driver-cuda")
    elif step == "files":
        broken["files"].pop(nvidia.MODPROBE_PATH)
    elif step == "key":
        broken["files"].pop(nvidia_packages.KEY_PATH)
    elif step == "module":
        broken["boot"]["kernels"][0]["modules"] = {}
    else:
        broken["units"] = {}
    expected = {"packages": "install", "files": "files", "key": "repository", "module": "dkms", "unit": "units"}[step]
    assert [name for name, todo in decide(broken, source="vendor")["steps"].items() if todo] == [expected]


def test_another_key_is_a_change_of_the_repository() -> None:
    node = converged(facts("debian 13", gpu("hopper")), "580.95.05", source="vendor")
    plan = decide(node, source="vendor", repository_key_fingerprint="0" * 40)
    assert [name for name, todo in plan["steps"].items() if todo] == ["repository"]


# Bad input.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"branch": "581"}, "nvidia_driver_branch is 581, which is no branch of the driver table; did you mean 580?"),
        ({"branch": "595", "source": "distribution"}, "nvidia_driver_branch is 595, and debian 13 itself offers 550"),
        (
            {"branch": "580", "version": "595.58.03"},
            "nvidia_driver_version is 595.58.03, which is not of the branch 580",
        ),
        ({"flavour": "closed"}, "nvidia_driver_flavour is closed; give open, proprietary or null"),
        ({"power_limits": {"all": 0}}, "nvidia_driver_power_limits.all is 0; give a whole number of watts"),
        ({"power_limits": {"gpu0": 300}}, "nvidia_driver_power_limits has the key gpu0"),
        ({"mig": {"all": ["3g40gb"]}}, "nvidia_driver_mig.all is ['3g40gb']; give a list of profiles"),
    ],
)
def test_bad_input(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(facts("debian 13", gpu("hopper")), **{"source": "vendor", **changes})


def test_a_gpu_that_cannot_be_divided() -> None:
    assert "NVIDIA L40S can't be divided" in refusal(
        facts("debian 13", gpu("ada")), source="vendor", mig={"all": ["1g.10gb"]}
    )


def test_room_is_looked_at_before_anything_is_done() -> None:
    node = facts("debian 13", gpu("hopper"))
    node["boot"]["free_bytes"] = {"/": 1024**3, "/boot": 1024**2, "/var": None}
    text = refusal(node)
    assert "gpu-07: / has 1.0 GiB free" in text and "gpu-07: /boot has 1 MiB free" in text
    assert len(text.splitlines()) == 2
    after = converged(facts("debian 13", gpu("hopper")), "550.163.01")
    after["boot"]["free_bytes"] = {"/": 0, "/boot": 0, "/var": 0}
    assert not any(decide(after)["steps"].values()), "a node that has it all needs no room"


def test_systems_and_processors_without_a_driver() -> None:
    node = facts("debian 13", gpu("hopper"))
    node["os"].update(id="opensuse-leap", version_id="15.6", family="other")
    assert "which has no driver for opensuse-leap 15.6; the driver table has debian 12" in refusal(node)
    assert "set it to vendor" in refusal(facts("rhel 9", gpu("hopper")))
    text = refusal(facts("rhel 10", gpu("hopper")), source="vendor")
    assert "nvidia_driver_repository_key_fingerprint is empty" in text
    arm = facts("debian 13", gpu("hopper"), cpu={"architecture": "aarch64"})
    assert decide(arm, source="vendor")["repository"]["url"].endswith("/sbsa")


def test_facts_that_are_missing_or_old() -> None:
    assert "nvidia_driver_facts is empty" in refusal({})
    node = facts("debian 13")
    node.pop("boot")
    assert "nvidia_driver_facts lacks boot" in refusal(node)


def test_rhel_gets_stream_and_repository() -> None:
    plan = decide(facts("rhel 9", gpu("hopper")), source="vendor")
    assert plan["stream"] == "580-open" and plan["pins"] == []
    assert plan["packages"]["install"][0] == "kmod-nvidia-open-dkms"
    assert [entry["path"] for entry in plan["package_files"]] == [nvidia_packages.YUM_PATH]
    assert decide(facts("rhel 9", gpu("volta")), source="vendor")["stream"] == "580-dkms"


def test_every_path_of_the_role_is_one_that_the_facts_hash(tmp_path: Path) -> None:
    for path in nvidia.OWN_PATHS:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    assert set(written.files(Host(str(tmp_path), 10))) == set(nvidia.OWN_PATHS)


# The table.


def test_the_table_is_whole() -> None:
    entry = table()["nvidia"]
    assert list(entry["branches"]) == sorted(entry["branches"]) and entry["default_branch"] in entry["branches"]
    assert set(entry["generations"]) == set(GPUS) - {"kepler"}
    for row in entry["generations"].values():
        assert row["oldest"] in entry["branches"] and (row["newest"] is None or row["newest"] in entry["branches"])
    for source, systems in entry["sources"].items():
        for name, system in systems.items():
            assert name in SYSTEMS, name
            assert all(branch in entry["branches"] for branch in system.get("branches", []))
            if source == "vendor":
                assert system["url"].startswith("https://developer.download.nvidia.com/")
                assert system["key_fingerprint"] is None or re.fullmatch("[0-9A-F]{40}", system["key_fingerprint"])
            for names in system["packages"]:
                assert {"common", "open", "proprietary", "desktop"} <= set(names)


def test_the_patterns_leave_the_container_toolkit_alone() -> None:
    patterns = table()["nvidia"]["driver_packages"]
    for name in (
        "nvidia-container-toolkit",
        "nvidia-container-toolkit-base",
        "libnvidia-container1",
        "nvidia-cuda-toolkit",
    ):
        assert not any(re.fullmatch(pattern, name) for pattern in patterns), name
    named = ["nvidia-kernel-open-dkms", "libnvidia-compute", "nvidia-headless-no-dkms-580-server-open", "nvidia-smi"]
    named += ["libnvidia-ptxjitcompiler1", "firmware-nvidia-gsp", "nvidia-fabricmanager", "nvidia-driver-cuda"]
    for name in named:
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name
