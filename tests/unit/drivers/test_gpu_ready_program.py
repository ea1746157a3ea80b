# SPDX-License-Identifier: Apache-2.0
"""The program of gpu-ready.service, on a machine made of files and with a stand-in nvidia-smi."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[3]
PROGRAM = PROJECT / "roles/gpu_ready/files/gpu_ready.py"
STAND_INS = PROJECT / "molecule/gpu_ready/files"
FIRST, SECOND = "0000:01:00.0", "0000:41:00.0"
LOADED = "580.95.05"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program as a module."""
    specification = importlib.util.spec_from_file_location("gpu_ready_program", PROGRAM)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Machine:
    """Files below a root, programs in a folder of their own, and the configuration."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "root"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.state = self.root / "gpus.json"
        self.configuration = folder / "gpu-ready.json"
        self.report = folder / "run" / "gpu-ready.json"
        self.calls = folder / "calls"
        monkeypatch.setenv("NVIDIA_SMI_STAND_IN", str(self.state))
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}/usr/bin{os.pathsep}/bin")
        self.stand_in("nvidia-smi", STAND_INS / "nvidia_smi_stand_in.py")

    def stand_in(self, name: str, source: Path | str) -> None:
        """Install a program: a file of Python, or the text of a shell script."""
        place = self.bin / name
        if isinstance(source, Path):
            place.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls}\nexec {sys.executable} {source} "$@"\n')
        else:
            place.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.calls}\n{source}\n')
        place.chmod(0o755)

    def write(self, path: str, text: str = "") -> None:
        """Write a file below the root."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def bus(self, address: str, driver: str | None, minor: int = 0, render: int | None = None) -> None:
        """Put a GPU on the bus."""
        folder = self.root / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True, exist_ok=True)
        if driver:
            (folder / "driver").symlink_to(f"../../../../bus/pci/drivers/{driver}")
        if driver == "nvidia":
            self.write(
                f"proc/driver/nvidia/gpus/{address}/information", f"Model: \t NVIDIA H100\nDevice Minor: \t {minor}\n"
            )
        if render is not None:
            (folder / "drm" / f"renderD{render}").mkdir(parents=True)

    def nvidia(self, *gpus: dict[str, Any]) -> None:
        """Two GPUs of NVIDIA that work, with what `gpus` say otherwise."""
        rows = []
        for number, (address, known) in enumerate(zip((FIRST, SECOND), [*gpus, {}, {}], strict=False)):
            self.bus(address, "nvidia", number)
            self.write(f"dev/nvidia{number}")
            row = {
                "address": f"0000{address.upper()}",
                "uuid": f"GPU-{number}",
                "limit": 700.0,
                "mig": False,
                "instances": [],
            }
            rows.append({**row, **known})
        for path in ("dev/nvidiactl", "dev/nvidia-uvm", "sys/module/nvidia_uvm/refcnt"):
            self.write(path)
        self.write("sys/module/nvidia/version", f"{LOADED}\n")
        self.state.write_text(json.dumps(rows))

    def change(self, **known: Any) -> None:
        """Change the first GPU."""
        rows = json.loads(self.state.read_text())
        rows[0].update(known)
        self.state.write_text(json.dumps(rows))

    def configure(self, *gpus: dict[str, Any], **known: Any) -> None:
        """Want these GPUs."""
        rows = [{"power_limit_watts": None, "mig": None, "vendor": "nvidia", **gpu} for gpu in gpus]
        content = {"schema_version": 1, "deadline_seconds": 1, "fabric": False, "gpus": rows, **known}
        self.configuration.write_text(json.dumps(content))

    def run(self, action: str = "check") -> tuple[int, list[str]]:
        """Run the program; returns its status and the problems that it printed."""
        argv = [sys.executable, "-I", PROGRAM, action, "--configuration", self.configuration, "--report", self.report]
        done = subprocess.run(
            [*argv, "--root", self.root], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr.splitlines()

    def problems(self) -> list[str]:
        """What a check finds missing."""
        status, lines = self.run()
        report = json.loads(self.report.read_text())
        assert report["problems"] == lines and report["ready"] is (lines == []) and status == (1 if lines else 0)
        return lines

    def called(self) -> list[str]:
        """The calls of stand-ins that change something."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if "--query-gpu" not in line and not line.endswith(" -L")]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine without GPUs."""
    return Machine(tmp_path, monkeypatch)


BOTH = ({"pci_bus_id": FIRST}, {"pci_bus_id": SECOND})


def test_all_is_well(machine: Machine) -> None:
    machine.nvidia()
    machine.configure(*BOTH)
    assert machine.problems() == []
    report = json.loads(machine.report.read_text())
    assert report["configuration_sha256"] == hashlib.sha256(machine.configuration.read_bytes()).hexdigest()
    assert report["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert report["expected"] == json.loads(machine.configuration.read_text())["gpus"]
    assert machine.called() == []


def test_pitfall_10_fewer_gpus_than_expected(machine: Machine) -> None:
    machine.nvidia()
    machine.configure(*BOTH)
    shutil.rmtree(machine.root / "sys/bus/pci/devices" / SECOND)
    assert machine.problems() == [
        f"GPU {SECOND} is not on the PCI bus; look at the kernel's log and the card, or set gpu_ready_expected to the "
        "addresses that are there"
    ]


def test_pitfall_10_a_lost_gpu(machine: Machine) -> None:
    machine.nvidia({}, {"lost": True})
    machine.configure(*BOTH)
    assert machine.problems() == [
        "the driver does not answer: Unable to determine the device handle for GPU0000:41:00.0: GPU is lost.  "
        "Reboot the system to recover it"
    ]


def test_pitfall_5_nouveau_is_bound(machine: Machine) -> None:
    machine.nvidia()
    machine.configure({"pci_bus_id": FIRST})
    (machine.root / "sys/bus/pci/devices" / FIRST / "driver").unlink()
    machine.bus(FIRST, "nouveau")
    assert machine.problems() == [
        f"GPU {FIRST} is bound to nouveau instead of nvidia; see `journalctl -k -g nvidia` on the node"
    ]


def test_pitfall_11_a_driver_that_hangs_keeps_nobody_waiting(machine: Machine, program: ModuleType) -> None:
    machine.nvidia()
    machine.configure({"pci_bus_id": FIRST})
    machine.stand_in("nvidia-smi", "sleep 30")
    assert machine.problems() == ["the driver does not answer: nvidia-smi gave no answer within 1 s"]


@pytest.mark.parametrize("tool", ["nvidia-modprobe", "modprobe"])
def test_modules_and_device_nodes_are_made(machine: Machine, tool: str) -> None:
    machine.nvidia()
    machine.configure({"pci_bus_id": FIRST})
    uvm = machine.root / "sys/module/nvidia_uvm"
    shutil.rmtree(uvm)
    (machine.root / "dev/nvidia-uvm").unlink()
    machine.stand_in(tool, f"mkdir -p {uvm}; touch {machine.root}/dev/nvidia-uvm")
    assert machine.problems() == []
    if tool == "nvidia-modprobe":
        assert machine.called() == ["nvidia-modprobe -c 0", "nvidia-modprobe -u -c 0"]
    else:
        assert machine.called() == ["modprobe nvidia-uvm"]


def test_what_stays_missing_is_named(machine: Machine) -> None:
    machine.nvidia()
    machine.configure({"pci_bus_id": FIRST})
    machine.stand_in("modprobe", "exit 1")
    (machine.root / "dev/nvidia0").unlink()
    assert machine.problems() == ["the device node /dev/nvidia0 is not there"]
    shutil.rmtree(machine.root / "sys/module/nvidia_uvm")
    assert machine.problems() == [
        "the kernel module nvidia_uvm is not loaded; see `journalctl -k -g nvidia` on the node"
    ]


def test_pitfall_9_power_limits_come_back(machine: Machine) -> None:
    machine.nvidia()
    machine.configure({"pci_bus_id": FIRST, "power_limit_watts": 450}, {"pci_bus_id": SECOND})
    assert machine.problems() == [f"GPU {FIRST} has the power limit 700 W instead of 450 W"]
    assert machine.run("settings") == (0, [])
    assert machine.called() == [f"nvidia-smi -i 0000{FIRST} -pl 450"]
    assert machine.problems() == []
    assert machine.run("settings") == (0, [])
    assert len(machine.called()) == 1


def test_a_power_limit_that_the_board_refuses(machine: Machine) -> None:
    machine.nvidia()
    machine.configure({"pci_bus_id": FIRST, "power_limit_watts": 900})
    status, problems = machine.run("settings")
    assert status == 1 and problems[0].startswith(
        f"GPU {FIRST}: the power limit of 900 W is refused: Provided power limit"
    )


def test_pitfall_8_mig_instances_come_back(machine: Machine) -> None:
    machine.nvidia({"mig": True})
    machine.configure(
        {"pci_bus_id": FIRST, "mig": ["1g.10gb", "3g.40gb", "3g.40gb"]}, {"pci_bus_id": SECOND, "mig": []}
    )
    assert machine.problems() == [f"GPU {FIRST} has the MIG layout no instance instead of 1g.10gb, 3g.40gb, 3g.40gb"]
    assert machine.run("settings") == (0, [])
    assert machine.called() == [f"nvidia-smi mig -cgi 3g.40gb,3g.40gb,1g.10gb -C -i 0000{FIRST}"]
    assert machine.problems() == []


def test_mig_is_switched_on_and_off(machine: Machine) -> None:
    machine.nvidia({}, {"mig": True, "instances": ["7g.80gb"]})
    machine.configure({"pci_bus_id": FIRST, "mig": ["7g.80gb"]}, {"pci_bus_id": SECOND, "mig": []})
    assert machine.run("settings") == (0, [])
    assert machine.called() == [
        f"nvidia-smi -i 0000{FIRST} -mig 1",
        f"nvidia-smi mig -cgi 7g.80gb -C -i 0000{FIRST}",
        f"nvidia-smi mig -dci -i 0000{SECOND}",
        f"nvidia-smi mig -dgi -i 0000{SECOND}",
        f"nvidia-smi -i 0000{SECOND} -mig 0",
    ]
    assert machine.problems() == []


@pytest.mark.parametrize(
    ("known", "layout", "problem"),
    [
        ({"mig": None}, ["7g.80gb"], " has no MIG; take it out of nvidia_driver_mig"),
        ({"needs_reset": True}, ["7g.80gb"], ": MIG is switched at the next reset of the GPU; restart the node"),
        (
            {"mig": True, "instances": ["7g.80gb"], "busy": True},
            ["3g.40gb"],
            ": its MIG instances cannot be removed (Unable to destroy compute instance ID  0 from GPU  0: In use by "
            "another client); stop what uses them",
        ),
        (
            {"mig": True},
            ["4g.40gb", "4g.40gb"],
            ": the MIG layout 4g.40gb, 4g.40gb is refused: Unable to create a GPU instance on GPU  0 using profile 9: "
            "Insufficient Resources",
        ),
    ],
)
def test_mig_that_can_not_be(machine: Machine, known: dict[str, Any], layout: list[str], problem: str) -> None:
    machine.nvidia(known)
    machine.configure({"pci_bus_id": FIRST, "mig": layout})
    status, problems = machine.run("settings")
    assert (status, problems) == (1, [f"GPU {FIRST}{problem}"])


def test_pitfall_6_the_fabric_has_to_be_complete(machine: Machine) -> None:
    machine.nvidia({"fabric": "Completed"}, {"fabric": "In Progress"})
    machine.configure(*BOTH, fabric=True)
    assert machine.problems() == [
        f"GPU {SECOND} has not joined the NVSwitch fabric (In Progress); see `systemctl status nvidia-fabricmanager` "
        "on the node"
    ]


def ctk(machine: Machine) -> None:
    """Install the toolkit."""
    machine.stand_in("nvidia-ctk", STAND_INS / "nvidia_ctk_stand_in.py")


def test_cdi_is_made_where_the_toolkit_is(machine: Machine) -> None:
    machine.nvidia()
    machine.configure(*BOTH)
    ctk(machine)
    assert machine.problems() == []
    output = machine.root / "var/run/cdi/nvidia.yaml"
    assert machine.called() == [f"nvidia-ctk cdi generate --output={output}"]
    assert machine.problems() == [] and len(machine.called()) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda machine: machine.write("sys/module/nvidia/version", "580.105.08\n"),
        lambda machine: machine.change(mig=True, instances=["7g.80gb"]),
        lambda machine: machine.write(
            "var/run/cdi/nvidia.yaml",
            "kind: nvidia.com/gpu\ndevices:\n- name: GPU-0\n- name: GPU-1\n  path: /dev/nvidia9\n",
        ),
    ],
    ids=["driver", "MIG", "device node"],
)
def test_pitfall_8_cdi_is_renewed_after_a_change(machine: Machine, change: Any) -> None:
    machine.nvidia()
    machine.configure(*BOTH)
    ctk(machine)
    assert machine.problems() == []
    change(machine)
    assert machine.problems() == []
    assert len(machine.called()) == 2
    assert machine.problems() == [] and len(machine.called()) == 2


def test_cdi_follows_the_toolkits_own_settings(machine: Machine) -> None:
    machine.nvidia()
    machine.configure(*BOTH)
    ctk(machine)
    machine.write(
        "etc/nvidia-container-toolkit/nvidia-cdi-refresh.env",
        "# a comment\nNVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/etc/cdi/nvidia.yaml\n",
    )
    assert machine.problems() == []
    assert (machine.root / "etc/cdi/nvidia.yaml").exists()


def test_a_stale_specification_that_nothing_renews(machine: Machine) -> None:
    machine.nvidia()
    machine.configure(*BOTH)
    text = "kind: nvidia.com/gpu\ndevices:\n- name: all\nhostPath: /usr/lib/libcuda.so.570.1.2\n"
    machine.write("etc/cdi/old.yaml", text)
    assert machine.problems() == [f"/etc/cdi/old.yaml is for the driver 570.1.2, and {LOADED} is loaded"]
    ctk(machine)
    # The device `all` is still the old file's.
    assert machine.problems() == [f"/etc/cdi/old.yaml is for the driver 570.1.2, and {LOADED} is loaded"]


def test_amd(machine: Machine) -> None:
    machine.bus(FIRST, "amdgpu", render=128)
    machine.write("sys/module/amdgpu/refcnt")
    machine.configure({"vendor": "amd", "pci_bus_id": FIRST}, {"vendor": "amd", "pci_bus_id": SECOND})
    assert machine.problems() == [
        "the device node /dev/dri/renderD128 is not there",
        f"GPU {SECOND} is not on the PCI bus; look at the kernel's log and the card, or set gpu_ready_expected to the "
        "addresses that are there",
        "the device node /dev/kfd is not there, without which ROCm can't run",
    ]
    for path in ("dev/dri/renderD128", "dev/kfd"):
        machine.write(path)
    machine.configure({"vendor": "amd", "pci_bus_id": FIRST})
    assert machine.problems() == []
    assert machine.called() == []


def test_it_waits_for_what_comes_in_time(machine: Machine, program: ModuleType) -> None:
    machine.bus(FIRST, "amdgpu", render=128)
    machine.write("sys/module/amdgpu/refcnt")
    machine.write("dev/dri/renderD128")
    configuration = {"gpus": [{"vendor": "amd", "pci_bus_id": FIRST}], "fabric": False}

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds
            if self.now >= 10:
                machine.write("dev/kfd")

    clock = Clock()
    assert program.check(program.Node(str(machine.root), 120), configuration, clock) == []
    assert clock.now == 10
    (machine.root / "dev/kfd").unlink()
    clock = Clock()
    assert len(program.check(program.Node(str(machine.root), 9), configuration, clock)) == 1
    assert clock.now == 8


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_configuration_is_one_sentence(machine: Machine, text: str) -> None:
    machine.configuration.write_text(text)
    status, (line,) = machine.run()
    assert status == 1 and line.endswith("run the role gpu_ready again")
