# SPDX-License-Identifier: Apache-2.0
"""What gpu-ready looks for, decided from facts."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.drivers import ready
from ansible_collections.fleet.inference.plugins.module_utils.drivers.common import DriverError

KERNEL = "6.12.43+deb13-amd64"
FIRST, SECOND, THIRD = "0000:01:00.0", "0000:41:00.0", "0000:81:00.0"
DEFAULTS = {
    "gpu_ready_deadline_seconds": 120,
    "gpu_ready_expected": None,
    "gpu_ready_mig": {},
    "gpu_ready_power_limits": {},
    "nvidia_driver_state": "present",
    "rocm_state": "present",
}


def nvidia(address: str, index: int = 0, **known: Any) -> dict[str, Any]:
    """An H100 that works."""
    return {
        "vendor": "nvidia",
        "pci_bus_id": address,
        "index": index,
        "uuid": f"GPU-{address[5:7]}",
        "name": "NVIDIA H100",
        "driver_bound": "nvidia",
        "health": "ok",
        "usable": True,
        "unusable_reason": None,
        "virtualization": "none",
        "power": {"limit_watts": 700.0, "min_limit_watts": 200.0, "max_limit_watts": 700.0},
        "mig": {"mode": False, "instances": []},
        **known,
    }


def amd(address: str, **known: Any) -> dict[str, Any]:
    """An MI300X that works."""
    return {"vendor": "amd", "pci_bus_id": address, "driver_bound": "amdgpu", "usable": True, **known}


def facts(*devices: dict[str, Any], **known: Any) -> dict[str, Any]:
    """A node with these GPUs on which nothing of gpu-ready is."""
    vendors = {device["vendor"] for device in devices}
    return {
        "tier": "cuda" if "nvidia" in vendors else "rocm" if "amd" in vendors else "cpu",
        "vendor": next(iter(vendors), None),
        "devices": list(devices),
        "nvswitch_count": 0,
        "driver": {"reboot_required": False, "reboot_reason": None},
        "boot": {
            "running_kernel": KERNEL,
            "next_kernel": KERNEL,
            "kernels": [{"release": KERNEL, "modules": {"nvidia": {"version": "580.95.05"}}}],
        },
        "os": {"family": "debian"},
        "packages": {},
        "files": {},
        "units": {},
        "gpu_ready": None,
        "runtime": {"cdi": {"stale": False}},
        **known,
    }


def plan(found: dict[str, Any], **variables: Any) -> dict[str, Any]:
    """The decision for a node."""
    return ready.plan("gpu-01", found, {**DEFAULTS, **variables}, {})


def converged(found: dict[str, Any], **variables: Any) -> dict[str, Any]:
    """The same node after the role."""
    decided = plan(found, **variables)
    digests = {entry["path"]: hashlib.sha256(entry["content"].encode()).hexdigest() for entry in decided["files"]}
    units = [path.rpartition("/")[2] for path in digests if path.endswith(".service")]
    return {
        **found,
        "files": digests,
        "units": {unit: {"enabled": True, "active": True} for unit in units},
        "gpu_ready": {
            "ready": True,
            "problems": [],
            "configuration_sha256": digests[ready.CONFIGURATION_PATH],
            "expected": decided["gpus"],
        },
    }


def looked_for(decided: dict[str, Any]) -> list[str]:
    """The addresses that are looked for."""
    return [gpu["pci_bus_id"] for gpu in decided["gpus"]]


def refusal(found: dict[str, Any], **variables: Any) -> str:
    """The one sentence by which something is refused."""
    with pytest.raises(DriverError) as raised:
        plan(found, **variables)
    (sentence,) = raised.value.problems
    return sentence


@pytest.mark.parametrize(
    "found",
    [
        facts(),
        facts(nvidia(FIRST, driver_bound="vfio-pci", usable=False)),
        facts(nvidia(FIRST, virtualization="vgpu_host", usable=False)),
        facts(amd(FIRST), tier="vulkan"),
        facts(amd(FIRST, driver_bound="radeon"), tier="vulkan"),
        facts({"vendor": "intel", "pci_bus_id": FIRST, "driver_bound": "xe", "usable": True}, tier="vulkan"),
    ],
)
def test_nodes_without_cuda_and_rocm_get_nothing(found: dict[str, Any]) -> None:
    decided = plan(found)
    assert decided["needed"] is False and decided["files"] == [] and not any(decided["steps"].values())


def test_a_bare_nvidia_node_gets_everything() -> None:
    decided = plan(facts(nvidia(SECOND, 1), nvidia(FIRST)))
    assert looked_for(decided) == [FIRST, SECOND]
    assert decided["steps"] == {"files": True, "remove": False, "enable": True, "settings": False, "check": True}
    assert [entry["path"] for entry in decided["files"]] == [
        ready.PROGRAM_PATH,
        ready.CONFIGURATION_PATH,
        "/etc/systemd/system/gpu-ready.service",
    ]


def test_amd_nodes_get_it_too() -> None:
    decided = plan(facts(amd(FIRST), boot={"kernels": []}))
    assert decided["gpus"] == [{"vendor": "amd", "pci_bus_id": FIRST, "power_limit_watts": None, "mig": None}]


@pytest.mark.parametrize(
    "variables",
    [{}, {"gpu_ready_power_limits": {"all": 700}}, {"gpu_ready_expected": [FIRST]}, {"gpu_ready_mig": {"all": []}}],
)
def test_a_converged_node_has_nothing_to_do(variables: dict[str, Any]) -> None:
    after = converged(facts(nvidia(FIRST)), **variables)
    decided = plan(after, **variables)
    assert not any(decided["steps"].values()), decided["steps"]


def test_a_restart_that_is_due_comes_before_every_look() -> None:
    found = facts(nvidia(FIRST, driver_bound="nouveau", usable=False))
    found["driver"] = {"reboot_required": True, "reboot_reason": "nouveau is bound"}
    decided = plan(found, gpu_ready_power_limits={"all": 300})
    assert decided["waiting"] == "nouveau is bound"
    assert decided["steps"] == {"files": True, "remove": False, "enable": True, "settings": False, "check": False}
    after = {**converged(found, gpu_ready_power_limits={"all": 300}), "gpu_ready": None}
    for unit in after["units"].values():
        unit["active"] = False
    assert not any(plan(after, gpu_ready_power_limits={"all": 300})["steps"].values())


def test_a_gpu_without_a_driver_and_without_any_installed_is_not_looked_for() -> None:
    found = facts(nvidia(FIRST, driver_bound=None, usable=False))
    found["boot"]["kernels"] = []
    assert looked_for(plan(found)) == []


def test_pitfall_10_a_gpu_that_fell_off_the_bus_stays_expected() -> None:
    after = converged(facts(nvidia(FIRST), nvidia(SECOND, 1)))
    after["devices"] = after["devices"][:1]
    decided = plan(after)
    assert looked_for(decided) == [FIRST, SECOND]
    assert decided["steps"] == {"files": False, "remove": False, "enable": False, "settings": False, "check": True}
    # Until somebody says otherwise.
    assert looked_for(plan(after, gpu_ready_expected=[FIRST])) == [FIRST]


def test_pitfall_10_a_lost_gpu_is_looked_for_again() -> None:
    after = converged(facts(nvidia(FIRST)))
    after["devices"][0].update(health="lost", usable=False)
    assert plan(after)["steps"]["check"] is True


def test_a_gpu_that_was_given_to_a_virtual_machine_is_forgotten() -> None:
    after = converged(facts(nvidia(FIRST), nvidia(SECOND, 1)))
    after["devices"][1].update(driver_bound="vfio-pci", usable=False)
    assert looked_for(plan(after)) == [FIRST]


def test_pitfall_8_and_9_settings_that_were_lost_are_applied_again() -> None:
    variables = {"gpu_ready_mig": {"all": ["3g.40gb", "3g.40gb"]}, "gpu_ready_power_limits": {"all": 500}}
    after = converged(facts(nvidia(FIRST)), **variables)
    decided = plan(after, **variables)
    assert decided["steps"] == {"files": False, "remove": False, "enable": False, "settings": True, "check": True}
    instances = [{"profile": "3g.40gb"}, {"profile": "3g.40gb"}]
    after["devices"][0].update(mig={"mode": True, "instances": instances}, power={"limit_watts": 500.2})
    assert not any(plan(after, **variables)["steps"].values())
    assert "Before=gpu-ready.service" in decided["files"][3]["content"]
    assert "After=nvidia-persistenced.service" in decided["files"][3]["content"]


def test_pitfall_12_settings_by_index_are_kept_by_address() -> None:
    found = facts(nvidia(FIRST, 1), nvidia(SECOND, 0))
    decided = plan(found, gpu_ready_power_limits={"all": 400, 1: 300})
    assert {gpu["pci_bus_id"]: gpu["power_limit_watts"] for gpu in decided["gpus"]} == {FIRST: 300, SECOND: 400}
    assert plan(found, gpu_ready_power_limits={"GPU-01": 300, SECOND: 400})["gpus"] == decided["gpus"]


def test_pitfall_12_settings_stay_where_they_are_while_a_gpu_is_missing() -> None:
    variables = {"gpu_ready_power_limits": {0: 300, "GPU-41": 500}, "gpu_ready_mig": {1: ["7g.80gb"]}}
    after = converged(facts(nvidia(FIRST), nvidia(SECOND, 1)), **variables)
    wanted = plan(after, **variables)["gpus"]
    assert [(gpu["power_limit_watts"], gpu["mig"]) for gpu in wanted] == [(300, None), (500, ["7g.80gb"])]
    after["devices"] = [nvidia(SECOND, 0)]
    decided = plan(after, **variables)
    assert decided["gpus"] == wanted and decided["steps"]["files"] is False and decided["steps"]["check"] is True


def test_settings_of_a_gpu_that_is_not_looked_for() -> None:
    found = facts(nvidia(FIRST), nvidia(SECOND, 1, driver_bound="vfio-pci", uuid=None, usable=False))
    decided = plan(found, gpu_ready_power_limits={0: 300, 1: 400})
    assert [gpu["power_limit_watts"] for gpu in decided["gpus"]] == [300]


def test_all_leaves_out_gpus_without_mig() -> None:
    found = facts(nvidia(FIRST), nvidia(SECOND, 1, mig={"mode": None, "instances": []}))
    assert [gpu["mig"] for gpu in plan(found, gpu_ready_mig={"all": ["7g.80gb"]})["gpus"]] == [["7g.80gb"], None]


def test_uuids_are_not_known_before_the_driver_is_loaded() -> None:
    found = facts(nvidia(FIRST, uuid=None, driver_bound=None, health=None, usable=False))
    assert plan(found, gpu_ready_power_limits={"GPU-01": 300})["gpus"][0]["power_limit_watts"] is None


def test_a_stale_cdi_specification_is_renewed_by_the_check() -> None:
    after = converged(facts(nvidia(FIRST)))
    after["runtime"] = {"cdi": {"stale": True}}
    assert plan(after)["steps"]["check"] is True


def test_pitfall_6_the_fabric_is_looked_at_where_there_are_switches() -> None:
    for count, fabric in ((0, False), (4, True)):
        content = plan(facts(nvidia(FIRST), nvswitch_count=count))["files"][1]["content"]
        assert json.loads(content)["fabric"] is fabric


def test_everything_goes_with_the_driver() -> None:
    after = converged(facts(nvidia(FIRST)), gpu_ready_power_limits={"all": 300})
    decided = plan(after, nvidia_driver_state="absent", gpu_ready_power_limits={7: 300})
    assert decided["needed"] is False
    assert decided["remove"] == [
        ready.CONFIGURATION_PATH,
        "/etc/systemd/system/gpu-ready.service",
        "/etc/systemd/system/inference-gpu-settings.service",
        ready.PROGRAM_PATH,
        ready.REPORT_PATH,
    ]
    steps = {"files": False, "remove": True, "enable": False, "settings": False, "check": False}
    assert decided["steps"] == steps


def test_without_settings_their_unit_goes() -> None:
    after = converged(facts(nvidia(FIRST)), gpu_ready_power_limits={"all": 300})
    assert plan(after)["remove"] == ["/etc/systemd/system/inference-gpu-settings.service"]


def test_an_interrupted_run_is_finished() -> None:
    done = converged(facts(nvidia(FIRST)), gpu_ready_power_limits={"all": 700})
    variables = {"gpu_ready_power_limits": {"all": 700}}
    written = {**done, "units": {}, "gpu_ready": None}
    assert plan(written, **variables)["steps"] == {
        "files": False,
        "remove": False,
        "enable": True,
        "settings": True,
        "check": True,
    }
    enabled = {**done, "gpu_ready": None, "units": {name: {"enabled": True, "active": False} for name in done["units"]}}
    assert plan(enabled, **variables)["steps"]["check"] is True
    # Other files than those that ran: systemd may not have read the units.
    other = {**done, "gpu_ready": {**done["gpu_ready"], "configuration_sha256": "0" * 64}}
    assert plan(other, **variables)["steps"]["enable"] is True


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"gpu_ready_deadline_seconds": 0},
            "gpu_ready_deadline_seconds is 0; give a whole number of seconds from 1 to 3600",
        ),
        (
            {"gpu_ready_expected": ["GPU-01"]},
            "gpu_ready_expected is ['GPU-01']; give a list of PCI addresses as the facts have them, such as "
            "0000:01:00.0, or null",
        ),
        (
            {"gpu_ready_power_limits": {"all": 900}},
            f"nvidia_driver_power_limits is 900 for GPU {FIRST}; give watts from 200 to 700",
        ),
        (
            {"gpu_ready_power_limits": {"all": "much"}},
            f"nvidia_driver_power_limits is 'much' for GPU {FIRST}; give watts from 200 to 700",
        ),
        (
            {"gpu_ready_power_limits": {7: 300}},
            "nvidia_driver_power_limits names 7, which is none of the node's NVIDIA GPUs; known: GPU-01",
        ),
        (
            {"gpu_ready_mig": {"all": ["3g"]}},
            f"nvidia_driver_mig is ['3g'] for GPU {FIRST}; give a list of profiles such as 3g.40gb, or [] for a GPU "
            "that is not divided",
        ),
        (
            {"gpu_ready_mig": ["3g.40gb"]},
            "nvidia_driver_mig is ['3g.40gb']; give a dictionary from all, a UUID or an index to what it gets",
        ),
    ],
)
def test_bad_input_is_one_sentence(variables: dict[str, Any], sentence: str) -> None:
    assert refusal(facts(nvidia(FIRST)), **variables) == f"gpu-01: {sentence}"


def test_mig_for_a_gpu_that_has_none() -> None:
    found = facts(nvidia(FIRST, name="NVIDIA L4", mig={"mode": None, "instances": []}))
    assert refusal(found, gpu_ready_mig={0: ["1g.10gb"]}) == (
        f"gpu-01: nvidia_driver_mig names GPU {FIRST} (NVIDIA L4), which has no MIG; leave it out"
    )


def test_facts_are_needed() -> None:
    assert refusal({}).startswith("gpu-01: gpu_ready_facts is empty because nothing has read this host's facts")
