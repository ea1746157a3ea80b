# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import nvidia, nvidia_smi
from hypothesis import given, settings
from hypothesis import strategies as st

MIB = 1 << 20


def xml(*gpus: str, head: str = "") -> str:
    """A document as `nvidia-smi -q -x` prints it."""
    return (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n<nvidia_smi_log>\n'
        f"<driver_version>570.124.06</driver_version><cuda_version>12.8</cuda_version>{head}\n"
        + "\n".join(gpus)
        + "\n</nvidia_smi_log>\n"
    )


def element(body: str, address: str = "00000000:01:00.0") -> str:
    """One GPU of a document."""
    return f'<gpu id="{address}"><product_name>NVIDIA A100-SXM4-40GB</product_name>{body}</gpu>'


# A GPU with all that the facts read, as drivers since 525 print it.
RICH = """
<product_architecture>Ampere</product_architecture>
<persistence_mode>Enabled</persistence_mode>
<addressing_mode>None</addressing_mode>
<mig_mode><current_mig>Enabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
<mig_devices>
  <mig_device><index>0</index><gpu_instance_id>3</gpu_instance_id><compute_instance_id>0</compute_instance_id>
    <device_attributes><shared><multiprocessor_count>14</multiprocessor_count></shared></device_attributes>
    <fb_memory_usage><total>9728 MiB</total></fb_memory_usage></mig_device>
</mig_devices>
<uuid>GPU-00000000-0000-0000-0000-000000000001</uuid>
<minor_number>3</minor_number>
<c2c_mode>Enabled</c2c_mode>
<gpu_virtualization_mode>
  <virtualization_mode>Pass-Through</virtualization_mode><host_vgpu_mode>N/A</host_vgpu_mode>
</gpu_virtualization_mode>
<gpu_recovery_action>None</gpu_recovery_action>
<pci><pci_device_id>20B210DE</pci_device_id><pci_bus_id>00000000:01:00.0</pci_bus_id>
  <pci_sub_system_id>147F10DE</pci_sub_system_id>
  <pci_gpu_link_info>
    <pcie_gen><max_link_gen>4</max_link_gen><current_link_gen>1</current_link_gen></pcie_gen>
    <link_widths><max_link_width>16x</max_link_width><current_link_width>8x</current_link_width></link_widths>
  </pci_gpu_link_info></pci>
<fb_memory_usage><total>40960 MiB</total><reserved>614 MiB</reserved><used>12 MiB</used></fb_memory_usage>
<bar1_memory_usage><total>65536 MiB</total></bar1_memory_usage>
<compute_mode>Exclusive_Process</compute_mode>
<ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Disabled</pending_ecc></ecc_mode>
<ecc_errors><volatile><sram_correctable>9</sram_correctable><sram_uncorrectable>1</sram_uncorrectable>
  <dram_correctable>9</dram_correctable><dram_uncorrectable>2</dram_uncorrectable></volatile>
  <aggregate><dram_uncorrectable>70</dram_uncorrectable></aggregate></ecc_errors>
<remapped_rows><remapped_row_pending>Yes</remapped_row_pending><remapped_row_failure>No</remapped_row_failure>
</remapped_rows>
<gpu_power_readings><current_power_limit>350.00 W</current_power_limit>
  <default_power_limit>400.00 W</default_power_limit><min_power_limit>100.00 W</min_power_limit>
  <max_power_limit>400.00 W</max_power_limit></gpu_power_readings>
<module_power_readings><current_power_limit>N/A</current_power_limit></module_power_readings>
<fabric><state>Completed</state><status>Success</status><cliqueId>7</cliqueId>
  <clusterUuid>AAAAAAAA-0000-0000-0000-000000000001</clusterUuid>
  <health><summary>Healthy</summary></health></fabric>
<processes><process_info><pid>1</pid><used_memory>100 MiB</used_memory></process_info></processes>
"""

# The same GPU as `nvidia-smi -q` prints it.
TEXT = """
==============NVSMI LOG==============

Timestamp                                 : Thu Nov 14 07:00:14 2024
Driver Version                            : 570.124.06
CUDA Version                              : 12.8

Attached GPUs                             : 1
GPU 00000000:01:00.0
    Product Name                          : NVIDIA A100-SXM4-40GB
    Product Architecture                  : Ampere
    Persistence Mode                      : Enabled
    Addressing Mode                       : None
    MIG Mode
        Current                           : Enabled
        Pending                           : Disabled
    MIG Device
        Index                             : 0
        GPU Instance ID                   : 3
        Compute Instance ID               : 0
        Device Attributes
            Shared
                Multiprocessor count      : 14
                Copy Engine count         : 1
        Shared FB Memory Usage
            Total                         : 9728 MiB
    GPU UUID                              : GPU-00000000-0000-0000-0000-000000000001
    Minor Number                          : 3
    GPU C2C Mode                          : Enabled
    GPU Virtualization Mode
        Virtualization Mode               : Pass-Through
        Host VGPU Mode                    : N/A
    GPU Reset Status
        Reset Required                    : No
        Drain and Reset Recommended       : No
    PCI
        Device Id                         : 0x20B210DE
        Bus Id                            : 00000000:01:00.0
        Sub System Id                     : 0x147F10DE
        GPU Link Info
            PCIe Generation
                Max                       : 4
                Current                   : 1
            Link Width
                Max                       : 16x
                Current                   : 8x
    FB Memory Usage
        Total                             : 40960 MiB
        Reserved                          : 614 MiB
        Used                              : 12 MiB
    BAR1 Memory Usage
        Total                             : 65536 MiB
    Compute Mode                          : Exclusive_Process
    ECC Mode
        Current                           : Enabled
        Pending                           : Disabled
    ECC Errors
        Volatile
            SRAM Correctable              : 9
            SRAM Uncorrectable            : 1
            DRAM Uncorrectable            : 2
        Aggregate
            DRAM Uncorrectable            : 70
    Remapped Rows
        Pending                           : Yes
        Remapping Failure Occurred        : No
    GPU Power Readings
        Current Power Limit               : 350.00 W
        Default Power Limit               : 400.00 W
        Min Power Limit                   : 100.00 W
        Max Power Limit                   : 400.00 W
    Module Power Readings
        Current Power Limit               : N/A
    Fabric
        State                             : Completed
        Status                            : Success
        CliqueId                          : 7
        ClusterUUID                       : AAAAAAAA-0000-0000-0000-000000000001
        Health
            Summary                       : Healthy
    Processes
        Process ID                        : 1
            Type                          : C
            Used GPU Memory               : 100 MiB
    Capabilities
        EGM                               : disabled

"""


@pytest.mark.parametrize("text", [xml(element(RICH)), TEXT], ids=["xml", "text"])
def test_all_that_a_document_has(text: str) -> None:
    answer = nvidia_smi.parse(text)
    assert (answer.driver_version, answer.cuda_version, answer.problem) == ("570.124.06", "12.8", None)
    (record,) = answer.records
    device = nvidia.judge(record, 1 << 40)
    expected = {
        "index": 0,
        "pci_bus_id": "0000:01:00.0",
        "uuid": "GPU-00000000-0000-0000-0000-000000000001",
        "name": "NVIDIA A100-SXM4-40GB",
        "architecture": "8.0",
        "generation": "ampere",
        "memory_total_bytes": 40960 * MIB,
        "memory_used_bytes": 12 * MIB,
        "memory_reserved_bytes": 614 * MIB,
        "memory_bar_bytes": 65536 * MIB,
        "unified_memory": False,
        "device_node": "/dev/nvidia3",
        "health": "ok",
        "virtualization": "passthrough",
        "persistence_mode": True,
        "compute_mode": "exclusive_process",
        "usable": False,
    }
    assert {key: device[key] for key in expected} == expected
    assert (device["pci"]["device_id"], device["pci"]["subsystem_device_id"]) == ("20b2", "147f")
    assert device["pcie"] == {"generation_max": 4, "generation_current": 1, "width_max": 16, "width_current": 8}
    assert device["power"] == {
        "limit_watts": 350,
        "default_limit_watts": 400,
        "min_limit_watts": 100,
        "max_limit_watts": 400,
    }
    assert device["ecc"] == {
        "mode": True,
        "pending_mode": False,
        "uncorrected": 3,
        "remap_pending": True,
        "remap_failure": False,
    }
    assert device["fabric"] == {
        "state": "completed",
        "status": "Success",
        "cluster_uuid": "aaaaaaaa-0000-0000-0000-000000000001",
        "clique_id": 7,
        "healthy": True,
    }
    assert [link["type"] for link in device["links"]] == ["c2c"]
    assert device["mig"] == {
        "mode": True,
        "pending_mode": False,
        "instances": [
            {
                "index": 0,
                "uuid": None,
                "profile": None,
                "gpu_instance_id": 3,
                "compute_instance_id": 0,
                "memory_total_bytes": 9728 * MIB,
                "memory_shared": False,
                "multiprocessors": 14,
            }
        ],
    }
    assert record["process_bytes"] == 100 * MIB


def record(body: str) -> dict[str, Any]:
    """What a GPU with these elements is read as."""
    (found,) = nvidia_smi.parse(xml(element(body))).records
    return found


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        # Up to 525, and from 610 on.
        (
            "<power_readings><power_limit>70.00 W</power_limit><default_power_limit>60.00 W</default_power_limit>"
            "<enforced_power_limit>50.00 W</enforced_power_limit><min_power_limit>40.00 W</min_power_limit>"
            "<max_power_limit>80.00 W</max_power_limit></power_readings>",
            [70, 60, 40, 80],
        ),
        (
            "<gpu_power_readings><gpu_ceiling_power_limit><current_power_limit>70.00 W</current_power_limit>"
            "<default_power_limit>60.00 W</default_power_limit></gpu_ceiling_power_limit>"
            "<min_power_limit>40.00 W</min_power_limit><max_power_limit>80.00 W</max_power_limit></gpu_power_readings>",
            [70, 60, 40, 80],
        ),
        ("<power_readings><power_limit>[Unknown Error]</power_limit></power_readings>", [None] * 4),
    ],
)
def test_power_limits_of_all_ages(body: str, limits: list[Any]) -> None:
    assert list(record(body)["power"].values()) == limits


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("<volatile><double_bit><total>4</total></double_bit></volatile>", 4),
        (
            "<volatile><sram_uncorrectable_parity>1</sram_uncorrectable_parity>"
            "<sram_uncorrectable_secded>2</sram_uncorrectable_secded><dram_uncorrectable>4</dram_uncorrectable></volatile>",
            7,
        ),
        ("<volatile><sram_uncorrectable>N/A</sram_uncorrectable></volatile>", None),
        ("<aggregate><dram_uncorrectable>4</dram_uncorrectable></aggregate>", None),
    ],
)
def test_uncorrected_errors_since_the_driver_was_loaded(body: str, count: int | None) -> None:
    assert record(f"<ecc_errors>{body}</ecc_errors>")["ecc"]["uncorrected"] == count


@pytest.mark.parametrize(
    ("body", "action"),
    [
        ("<gpu_recovery_action>None</gpu_recovery_action>", None),
        ("<gpu_recovery_action>N/A</gpu_recovery_action>", None),
        ("<gpu_recovery_action>Reset</gpu_recovery_action>", "reset"),
        ("<gpu_recovery_action>Drain and Reset</gpu_recovery_action>", "drain and reset"),
        ("<gpu_recovery_action>Drain P2P</gpu_recovery_action>", None),
        ("<gpu_recovery_action>Reboot</gpu_recovery_action>", "reboot"),
        ("<gpu_reset_status><reset_required>Yes</reset_required></gpu_reset_status>", "reset"),
        (
            "<gpu_reset_status><reset_required>No</reset_required>"
            "<drain_and_reset_recommended>Yes</drain_and_reset_recommended></gpu_reset_status>",
            "drain and reset",
        ),
    ],
)
def test_what_the_driver_asks_for(body: str, action: str | None) -> None:
    found = record(body)
    assert found["recovery"] == action
    assert nvidia.judge(found, None)["usable"] is (action is None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<state>N/A</state><status>N/A</status>", ("not_supported", None, None, None)),
        ("<state>In Progress</state><status>N/A</status><cliqueId>0</cliqueId>", ("in_progress", None, None, None)),
        (
            "<state>Completed</state><status>Success</status><cliqueId>0</cliqueId>"
            "<clusterUuid>00000000-0000-0000-0000-000000000000</clusterUuid>",
            ("completed", None, 0, None),
        ),
        (
            "<state>Completed</state><status>Unknown Error</status><cliqueId>0</cliqueId>",
            ("completed", None, 0, None),
        ),
        (
            "<state>Completed</state><status>Insufficient Resources</status><cliqueId>0</cliqueId>",
            ("completed", None, 0, False),
        ),
        (
            "<state>Completed</state><status>Success</status><health><bandwidth>Full</bandwidth>"
            "<route_unhealthy>True</route_unhealthy></health>",
            ("completed", None, None, False),
        ),
        (
            "<state>Completed</state><status>Success</status><health><summary>N/A</summary><bandwidth>Full</bandwidth>"
            "<route_unhealthy>False</route_unhealthy></health>",
            ("completed", None, None, True),
        ),
    ],
)
def test_fabric(body: str, expected: tuple[Any, ...]) -> None:
    fabric = record(f"<fabric>{body}</fabric>")["fabric"]
    assert tuple(fabric[key] for key in ("state", "cluster_uuid", "clique_id", "healthy")) == expected


@pytest.mark.parametrize(
    ("mode", "host", "expected"),
    [
        ("None", "N/A", "none"),
        ("Pass-Through", "N/A", "passthrough"),
        ("VGPU", "N/A", "vgpu_guest"),
        ("Host VGPU", "SR-IOV", "vgpu_host"),
        ("None", "Non SR-IOV", "vgpu_host"),
        ("N/A", "N/A", None),
    ],
)
def test_virtualization(mode: str, host: str, expected: str | None) -> None:
    body = f"<virtualization_mode>{mode}</virtualization_mode><host_vgpu_mode>{host}</host_vgpu_mode>"
    found = record(f"<gpu_virtualization_mode>{body}</gpu_virtualization_mode>")
    assert found["virtualization"] == expected
    assert nvidia.judge(found, None)["usable"] is (expected != "vgpu_host")


def test_numbers_that_are_no_sizes() -> None:
    found = record(
        "<fb_memory_usage><total>0 MiB</total></fb_memory_usage><minor_number>Not Supported</minor_number>"
        "<pci><pci_device_id>000000DE</pci_device_id></pci><bar1_memory_usage><total>0 MiB</total></bar1_memory_usage>"
    )
    assert [found[key] for key in ("memory_total_bytes", "minor", "pci", "memory_bar_bytes")] == [None] * 4


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "N/A",
        "[N/A]",
        "None",
        "ERR!",
        "[Not Supported]",
        "[Unknown Error]",
        "[GPU is lost]",
        "[GPU requires reset]",
        "Insufficient Permissions",
        "Requested functionality has been deprecated",
        "[Requested functionality has been deprecated]",
    ],
)
def test_null_spellings(spelling: str) -> None:
    assert nvidia_smi.value_of(spelling) is None
    assert nvidia_smi.size_of(spelling) is None
    assert nvidia_smi.watts_of(spelling) is None
    assert nvidia_smi.integer_of(spelling) is None
    assert nvidia_smi.switch_of(spelling) is None


def test_versions_with_a_note_behind_them() -> None:
    note = "[Deprecated; will be removed in CUDA 14.0. Use KMD Version instead]"
    text = TEXT.replace("570.124.06\n", f"610.57.04 {note}\n").replace(": 12.8", ": N/A")
    answer = nvidia_smi.parse(text)
    assert (answer.driver_version, answer.cuda_version) == ("610.57.04", None)


def test_several_runs_in_one_file_are_one_machine() -> None:
    answer = nvidia_smi.parse(f"# idle\n{TEXT}\n# load\n{TEXT}")
    assert (len(answer.records), answer.problem) == (1, None)


def test_fewer_gpus_than_attached() -> None:
    answer = nvidia_smi.parse(TEXT.replace("Attached GPUs                             : 1", "Attached GPUs : 4"))
    assert (len(answer.records), answer.problem) == (1, "nvidia-smi's output lists 1 of 4 GPUs")


def test_list_of_mig_devices() -> None:
    (found,) = nvidia_smi.parse(TEXT).records
    listing = "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-2)\n"
    nvidia_smi.add_listing(
        [found], f"GPU 1: other (UUID: GPU-9)\n  MIG 7g.80gb     Device  0: (UUID: MIG-9)\n{listing}"
    )
    (instance,) = found["mig"]["instances"]
    assert (instance["uuid"], instance["profile"]) == ("MIG-2", "1g.10gb")


@pytest.mark.parametrize(
    ("text", "address", "health"),
    [
        (
            "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost. Reboot the system to recover",
            "0000:02:00.0",
            "lost",
        ),
        ("Unable to determine the device handle for GPU0000:17:00.0: Unknown Error\n", "0000:17:00.0", "error"),
        (
            "Unable to determine the device handle for GPU 0000:0B:00.0: GPU requires reset",
            "0000:0b:00.0",
            "reset_required",
        ),
    ],
)
def test_the_gpu_that_keeps_nvidia_smi_from_listing_any(text: str, address: str, health: str) -> None:
    answer = nvidia_smi.parse(text)
    assert answer.problem is not None and answer.records == []
    assert [(record["pci_bus_id"], record["health"]) for record in answer.lost] == [(address, health)]


def test_document_that_ends_early_keeps_the_complete_gpus() -> None:
    text = xml(element(RICH), element(RICH, "00000000:02:00.0"))
    answer = nvidia_smi.parse(text[: text.rindex("<fb_memory_usage>")])
    assert [record["pci_bus_id"] for record in answer.records] == ["0000:01:00.0"]
    assert answer.problem is not None and answer.driver_version == "570.124.06"


def test_entities_are_refused() -> None:
    text = xml(element("&a;")).replace("<nvidia_smi_log>", '<nvidia_smi_log>\n<!DOCTYPE x [<!ENTITY a "b">]>', 1)
    assert nvidia_smi.parse(text).problem is not None


DOCUMENTS = {"xml": xml(element(RICH), element(RICH, "00000000:02:00.0")), "text": TEXT}


@pytest.mark.parametrize("kind", DOCUMENTS)
@given(st.data())
def test_truncation_gives_all_gpus_or_a_problem(kind: str, data: st.DataObject) -> None:
    whole = DOCUMENTS[kind]
    answer = nvidia_smi.parse(whole[: data.draw(st.integers(0, len(whole)))])
    count = len(nvidia_smi.parse(whole).records)
    assert len(answer.records) == count or answer.problem is not None
    for raw in answer.records:
        # What is there is what the whole document says: half a number is no number.
        assert raw["memory_total_bytes"] == 40960 * MIB
        nvidia.judge(raw, 1 << 30)


@pytest.mark.parametrize("kind", DOCUMENTS)
@settings(max_examples=300)
@given(st.data())
def test_corruption_never_raises(kind: str, data: st.DataObject) -> None:
    text = list(DOCUMENTS[kind])
    changes = st.lists(st.tuples(st.integers(0, len(text) - 1), st.characters()), min_size=1, max_size=20)
    for position, character in data.draw(changes):
        text[position] = character
    for raw in nvidia_smi.parse("".join(text)).records:
        device = nvidia.judge(raw, 1 << 30)
        assert device["usable"] is (device["unusable_reason"] is None)


VALUES = ("[N/A]", "GPU is lost", "0", "-1", "9" * 30, "Enabled", "None", "∞ MiB", "1e9 MiB", "\u0660 MiB", "", ": :")


@pytest.mark.parametrize("kind", DOCUMENTS)
@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere_never_raises(kind: str, data: st.DataObject) -> None:
    lines = DOCUMENTS[kind].splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 5))):
        position = data.draw(st.integers(0, len(lines) - 1))
        value = data.draw(st.sampled_from(VALUES))
        how = data.draw(st.sampled_from(("drop", "double", "value", "indent")))
        line = lines[position]
        label, separator, _ = line.partition(" : ")
        changed = {
            "drop": "",
            "double": line * 2,
            "value": f"{label}{separator}{value}\n" if separator else line.replace("MiB", value),
            "indent": f"    {line}",
        }
        lines[position] = changed[how]
    for raw in nvidia_smi.parse("".join(lines)).records:
        device = nvidia.judge(raw, 1 << 30)
        numbers = [device[key] for key in device if key.endswith("_bytes") and device[key] is not None]
        assert all(isinstance(number, int) and 0 <= number < 1 << 70 for number in numbers)
        assert all(math.isfinite(watts) for watts in device["power"].values() if watts is not None)


@given(st.text())
def test_any_text_never_raises(text: str) -> None:
    for prefix in ("", "<nvidia_smi_log>", "<nvidia_smi_log><gpu>", "NVSMI LOG\nGPU 00000000:01:00.0\n"):
        answer = nvidia_smi.parse(prefix + text)
        assert answer.problem is not None or answer.records
    nvidia_smi.add_listing([], text)
    nvidia_smi.add_capabilities([], text)
    for reader in (nvidia_smi.value_of, nvidia_smi.size_of, nvidia_smi.watts_of, nvidia_smi.integer_of):
        reader(text)
