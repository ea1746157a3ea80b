# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from ansible_collections.fleet.inference.plugins.module_utils.hardware import drm, pci
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import Device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host

AMD, NVIDIA = 0x1002, 0x10DE
UEVENT = "DRIVER={driver}\nPCI_CLASS=30000\nPCI_ID={id}\nPCI_SUBSYS_ID=1DA2:440E\nPCI_SLOT_NAME={address}\n"


def node(machine: Any, name: str, address: str, pci_id: str = "1002:73BF", driver: str = "amdgpu") -> str:
    folder = f"sys/class/drm/{name}/device"
    machine.write(f"{folder}/uevent", UEVENT.format(driver=driver, id=pci_id, address=address))
    return folder


def collected(machine: Any) -> tuple[Host, list[Device]]:
    host = Host(str(machine.root))
    devices = pci.collect(host).devices
    drm.collect(host, devices)
    return host, devices


def test_cards_without_a_bus(machine: Any) -> None:
    node(machine, "card0", "0000:0c:00.0")
    node(machine, "card0-DP-1", "0000:0d:00.0")
    node(machine, "card1", "0000:09:00.0", "10DE:2704", "nvidia")
    node(machine, "renderD128", "0000:0c:00.0")
    host, devices = collected(machine)
    assert [
        (device["pci_bus_id"], device["vendor"], device["driver_bound"], device["generation"], device["render_node"])
        for device in devices
    ] == [
        ("0000:0c:00.0", "amd", "amdgpu", "rdna2", "/dev/dri/renderD128"),
        ("0000:09:00.0", "nvidia", "nvidia", "ada", None),
    ]
    assert devices[0]["folder"] == "sys/class/drm/card0/device"
    assert host.report.probes["drm"]["status"] == "ok"


def test_the_same_card_on_the_bus_is_one(machine: Any) -> None:
    machine.gpu("0000:0c:00.0", AMD, 0x73BF, 0x0300)
    node(machine, "card0", "0000:0c:00.0")
    node(machine, "renderD129", "0000:0c:00.0")
    _, (device,) = collected(machine)
    assert device["folder"] == "sys/bus/pci/devices/0000:0c:00.0"
    assert (device["driver_bound"], device["render_node"]) == ("amdgpu", "/dev/dri/renderD129")
    assert device["pci"]["subsystem_vendor_id"] == "1da2"


def test_the_first_of_two_render_nodes(machine: Any) -> None:
    folder = node(machine, "card0", "0000:0c:00.0")
    for number in (130, 131):
        (machine.root / folder / "drm" / f"renderD{number}").mkdir(parents=True)
    node(machine, "renderD128", "0000:0c:00.0")
    _, (device,) = collected(machine)
    assert device["render_node"] == "/dev/dri/renderD130"


def test_the_address_of_a_link(machine: Any) -> None:
    """The kernel's way: the device is a link to the folder with the address as its name."""
    folder = machine.gpu("0000:0c:00.0", AMD, 0x73BF, 0x0300)
    machine.link("sys/class/drm/card0/device", f"../../../../{folder}")
    machine.link("sys/class/drm/renderD128/device", f"../../../../{folder}")
    _, (device,) = collected(machine)
    assert device["render_node"] == "/dev/dri/renderD128"


def test_what_is_no_gpu(machine: Any) -> None:
    node(machine, "card0", "0000:02:00.0", "1A03:2000", "ast")
    machine.write("sys/class/drm/card1/device/uevent", "DRIVER=amdgpu_xcp_drm\nMODALIAS=platform:amdgpu_xcp_1\n")
    machine.write("sys/class/drm/card2/device/uevent", "DRIVER=vc4-drm\nOF_NAME=gpu\n")
    machine.write("sys/class/drm/version", "drm 1.1.0 20060810\n")
    host, devices = collected(machine)
    assert devices == []
    assert host.report.errors == []


def test_virtual_function_of_a_card(machine: Any) -> None:
    node(machine, "card0", "0000:0c:00.1")
    machine.link("sys/class/drm/card0/device/physfn", "../0000:0c:00.0")
    node(machine, "card1", "0000:0c:00.0")
    _, devices = collected(machine)
    assert [device["pci_bus_id"] for device in devices] == ["0000:0c:00.0"]


def test_absent(machine: Any) -> None:
    host, devices = collected(machine)
    assert (devices, host.report.probes["drm"]["status"]) == ([], "absent")
