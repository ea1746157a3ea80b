# SPDX-License-Identifier: Apache-2.0
"""Services with GPUs wait for gpu-ready.service, where the node has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services import manager
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import ServiceError
from ansible_collections.fleet.inference.plugins.module_utils.services.runner import Completed

UNIT = "inference-llamacpp.service"
NVIDIA = ["nvidia.com/gpu=GPU-1"]


def drop_in(node: Any) -> Path:
    """The file by which the service requires the GPUs."""
    return node.units / f"{UNIT}.d" / "gpu-ready.conf"


def install_gpu_ready(node: Any) -> None:
    """What the role gpu_ready leaves."""
    (node.units / "gpu-ready.service").write_text("")


@pytest.mark.parametrize(
    ("devices", "required"),
    [
        (NVIDIA, True),
        (["amd.com/gpu=0"], True),
        (["/dev/kfd", "/dev/dri/renderD128"], True),
        (["/dev/nvidia0"], True),
        (["/dev/dri/renderD128"], False),
        ([], False),
    ],
)
def test_by_its_devices(node: Any, options: Any, devices: list[str], required: bool) -> None:
    install_gpu_ready(node)
    node.apply(options(devices=devices))
    assert drop_in(node).exists() is required
    if required:
        assert drop_in(node).read_text().splitlines()[1:] == [
            "[Unit]",
            "Requires=gpu-ready.service",
            "After=gpu-ready.service",
        ]
    assert not node.apply(options(devices=devices)).changed


def test_without_the_unit_nothing_is_required(node: Any, options: Any) -> None:
    node.apply(options(devices=NVIDIA))
    assert not drop_in(node).exists()


def test_it_comes_and_goes_without_a_restart(node: Any, options: Any) -> None:
    node.apply(options(devices=NVIDIA))
    install_gpu_ready(node)
    assert node.apply(options(devices=NVIDIA), check=True).actions == [f"write {drop_in(node)}", "daemon-reload"]
    assert node.apply(options(devices=NVIDIA)).actions == [f"write {drop_in(node)}", "daemon-reload"]
    assert node.verbs("restart", "start", "stop") == []
    assert not node.apply(options(devices=NVIDIA)).changed
    (node.units / "gpu-ready.service").unlink()
    assert node.apply(options(devices=NVIDIA)).actions == [f"remove {drop_in(node)}", "daemon-reload"]
    assert not drop_in(node).exists()
    assert not node.apply(options(devices=NVIDIA)).changed


def test_it_goes_with_the_service(node: Any, options: Any) -> None:
    install_gpu_ready(node)
    node.apply(options(devices=NVIDIA))
    actions = node.apply({**options(), "state": "absent"}).actions
    assert actions.index(f"remove {drop_in(node)}") < actions.index("daemon-reload")
    assert not drop_in(node).parent.exists()


def test_another_owners_drop_in_stays(node: Any, options: Any) -> None:
    install_gpu_ready(node)
    node.apply(options(devices=NVIDIA))
    other = drop_in(node).with_name("nice.conf")
    other.write_text("[Service]\nNice=5\n")
    node.apply({**options(), "state": "absent"})
    assert other.exists()


def test_a_service_whose_gpus_are_not_ready(
    node: Any, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu_ready(node)
    report = tmp_path / "report.json"
    monkeypatch.setattr(manager, "GPU_READY_REPORT", str(report))
    systemctl = node._systemctl

    def refuse(words: list[str]) -> Completed:
        if words == ["start", UNIT]:
            return Completed(1, "", f"A dependency job for {UNIT} failed. See 'journalctl -xe' for details.")
        return systemctl(words)

    monkeypatch.setattr(node, "_systemctl", refuse)
    ending = "; the service is new, so it was removed again"
    with pytest.raises(ServiceError) as raised:
        node.apply(options(devices=NVIDIA))
    assert str(raised.value) == (
        "gpu-01: service llamacpp: it did not become ready: the node's GPUs can't be used (see `systemctl status "
        f"gpu-ready.service` on the node){ending}"
    )
    report.write_text(json.dumps({"problems": ["GPU 0000:41:00.0 is not on the PCI bus"]}))
    with pytest.raises(ServiceError) as raised:
        node.apply(options(devices=NVIDIA))
    assert f"the node's GPUs can't be used (GPU 0000:41:00.0 is not on the PCI bus){ending}" in str(raised.value)
    assert not drop_in(node).parent.exists() and not node.unit.exists()
