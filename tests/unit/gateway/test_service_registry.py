# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.fleet.inference.plugins.module_utils.services.files import fingerprint
from ansible_collections.fleet.inference.plugins.modules import service_registry
from gateway_samples import fragment, service


def call(capsys: pytest.CaptureFixture[str], registry: Path, check: bool = False, **options: Any) -> dict[str, Any]:
    """Run the module as Ansible does and return its result."""
    arguments = {"registry_path": str(registry), "_ansible_check_mode": check, "_ansible_diff": True, **options}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        service_registry.main()
    return dict(json.loads(capsys.readouterr().out))


def test_publishing_twice_changes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = tmp_path / "state" / "registry"
    given = [fragment("gpu-02", "10.0.0.12"), fragment("gpu-01", "10.0.0.11")]
    first = call(capsys, registry, fragments=given)
    assert first["changed"] is True
    assert first["written"] == ["gpu-01", "gpu-02"]
    assert [item["node"] for item in first["fragments"]] == ["gpu-01", "gpu-02"]
    assert first["diff"][0]["before"] == "" and "10.0.0.11" in first["diff"][0]["after"]
    file = registry / "gpu-01.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert json.loads(file.read_text()) == given[1]

    before = file.stat()
    second = call(capsys, registry, fragments=given)
    assert (second["changed"], second["written"], second["diff"]) == (False, [], [])
    assert second["fragments"] == first["fragments"]
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_one_node_keeps_every_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, tmp_path, fragments=[fragment("gpu-01", "10.0.0.11"), fragment("gpu-02", "10.0.0.12")])
    result = call(capsys, tmp_path, fragments=[fragment("gpu-02", "10.0.0.12", service(port=8010))])
    assert result["written"] == ["gpu-02"]
    assert [item["services"][0]["port"] for item in result["fragments"]] == [8005, 8010]


def test_a_node_restarts_until_it_is_published_or_said_to_be_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def restarting(**given: Any) -> list[bool]:
        return [item["restarting"] for item in call(capsys, tmp_path, **given)["fragments"]]

    nodes = [fragment("gpu-01", "10.0.0.11"), fragment("gpu-02", "10.0.0.12")]
    assert restarting(fragments=nodes) == [False, False]
    assert restarting(restarting={"gpu-01": True, "gpu-02": True, "unknown": True}) == [True, True]
    assert restarting() == [True, True]
    assert restarting(restarting={"gpu-01": False}) == [False, True]
    assert restarting(fragments=nodes[1:]) == [False, False]


def test_the_end_of_a_restart_brings_no_drained_node_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, tmp_path, fragments=[fragment("gpu-01", "10.0.0.11", drained=True)])
    call(capsys, tmp_path, restarting={"gpu-01": True})
    result = call(capsys, tmp_path, restarting={"gpu-01": False})
    assert [(item["drained"], item["restarting"]) for item in result["fragments"]] == [(True, False)]


def test_restarting_is_true_or_false(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, tmp_path, restarting={"gpu-01": "soon"})["msg"] == (
        "restarting has 'soon' for the node gpu-01; use true or false."
    )


def test_a_service_is_stopped_until_it_serves_again_or_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**given: Any) -> dict[str, list[str]]:
        found = call(capsys, tmp_path, **given)["fragments"]
        return {item["node"]: [entry["name"] for entry in item["services"] if entry["stopped"]] for item in found}

    nodes = [
        fragment("gpu-01", "10.0.0.11", service("chat"), service("code", model="coder", port=8006)),
        fragment("gpu-02", "10.0.0.12", service("chat")),
    ]
    call(capsys, tmp_path, fragments=nodes)
    away = {"gpu-01": {"chat": True, "unknown": True}, "gpu-09": {"chat": True}}
    assert stopped(stopped=away) == {"gpu-01": ["chat"], "gpu-02": []}
    assert call(capsys, tmp_path, stopped=away)["changed"] is False
    assert stopped(stopped={"gpu-01": {"code": True}, "gpu-02": {"chat": True}}) == {
        "gpu-01": ["chat", "code"],
        "gpu-02": ["chat"],
    }
    assert stopped(stopped={"gpu-01": {"chat": False}}) == {"gpu-01": ["code"], "gpu-02": ["chat"]}
    assert stopped(fragments=nodes[1:]) == {"gpu-01": ["code"], "gpu-02": []}


def test_one_flag_reaches_every_model_of_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    several = [service("many", backend="ollama", model=model) for model in ("a", "b")]
    call(capsys, tmp_path, fragments=[fragment("gpu-01", "10.0.0.11", *several)])
    result = call(capsys, tmp_path, stopped={"gpu-01": {"many": True}})
    assert [entry["stopped"] for entry in result["fragments"][0]["services"]] == [True, True]
    result = call(capsys, tmp_path, remove_services={"gpu-01": ["many", "unknown"], "gpu-09": ["many"]})
    assert (result["changed"], result["fragments"][0]["services"]) == (True, [])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"stopped": {"gpu-01": True}}, "stopped has True for the node gpu-01; use true or false for each service."),
        ({"stopped": {"gpu-01": {"a": "x"}}}, "use true or false for each service."),
        (
            {"remove_services": {"gpu-01": "chat"}},
            "remove_services has 'chat' for the node gpu-01; use a list of services.",
        ),
    ],
)
def test_flags_of_services_have_one_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, Any], sentence: str
) -> None:
    assert sentence in call(capsys, tmp_path, **given)["msg"]


def test_a_drained_node_stays_drained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, tmp_path, fragments=[fragment("gpu-01", "10.0.0.11", drained=True)])
    result = call(capsys, tmp_path, fragments=[fragment("gpu-01", "10.0.0.99", drained=False)])
    assert [(item["address"], item["drained"]) for item in result["fragments"]] == [("10.0.0.99", True)]


def test_a_node_that_left_is_removed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, tmp_path, fragments=[fragment("gpu-01", "10.0.0.11")])
    result = call(capsys, tmp_path, remove=["gpu-01", "never-there"])
    assert (result["changed"], result["removed"], result["fragments"]) == (True, ["gpu-01"], [])
    assert not (tmp_path / "gpu-01.json").exists()
    assert call(capsys, tmp_path, remove=["gpu-01"])["changed"] is False


def test_check_mode_predicts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = tmp_path / "registry"
    result = call(capsys, registry, check=True, fragments=[fragment("gpu-01", "10.0.0.11")])
    assert result["changed"] is True and result["diff"]
    assert [item["node"] for item in result["fragments"]] == ["gpu-01"]
    assert not registry.exists()


def test_the_state_of_files_comes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_bytes(b"x" * 3_000_000)
    files = [str(file), str(tmp_path / "absent")]
    result = call(capsys, tmp_path / "registry", state_files=files)
    assert result["files"] == {files[0]: hashlib.sha256(file.read_bytes()).hexdigest(), files[1]: None}


def test_services_to_be_started_again_come_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = tmp_path / "units" / "inference-litellm-1.service"
    folder = tmp_path / "etc" / "services" / "litellm-1"
    for directory in (unit.parent, folder):
        directory.mkdir(parents=True)
    unit.write_text("[Unit]\n")
    config = folder / "config.yaml"
    config.write_text("model_list: []\n")
    started_with = fingerprint({str(path): path.read_bytes() for path in (unit, config)})
    (folder / "applied.json").write_text(json.dumps({"fingerprint": started_with, "image_id": None}))

    options = {"config_root": str(tmp_path / "etc"), "unit_dir": str(unit.parent)}
    services = ["litellm-1", "litellm-2"]
    assert call(capsys, tmp_path / "registry", services=services, **options)["unapplied"] == ["litellm-2"]
    config.write_text("model_list: [more]\n")
    result = call(capsys, tmp_path / "registry", services=services, **options)
    assert (result["changed"], result["unapplied"]) == (False, services)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpu-01.json", "{", ["gpu-01.json is not valid JSON", "delete it and run site.yml"]),
        ("gpu-01.json", json.dumps(fragment("gpu-02", "a")), ["gpu-01.json is the fragment of gpu-02", "delete it"]),
        ("gpu-01.json", json.dumps({**fragment("gpu-01", "a"), "schema_version": 2}), ["schema_version 2"]),
    ],
)
def test_a_broken_file_fails_with_its_name_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / ".gpu-03.json.new").write_text("what a crash left")
    result = call(capsys, tmp_path, fragments=[fragment("gpu-09", "10.0.0.9")])
    assert result["failed"] is True
    assert str(tmp_path / name) in result["msg"]
    assert all(word in result["msg"] for word in words), result["msg"]
    assert not (tmp_path / "gpu-09.json").exists()


def test_a_node_in_both_lists_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, tmp_path, fragments=[fragment("gpu-01", "a")], remove=["gpu-01"])
    assert "gpu-01 is in fragments and in remove" in result["msg"]


def test_a_path_that_is_a_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "registry").write_text("")
    result = call(capsys, tmp_path / "registry", fragments=[fragment("gpu-01", "a")])
    assert result["failed"] is True and "can not be used" in result["msg"]


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gpu-01.json"
    texts = ["a" * 200_000, "b" * 200_000]
    service_registry.write_text(str(path), texts[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                service_registry.write_text(str(path), text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {path.read_text() for _ in range(50)} <= set(texts)
    finally:
        stop.set()
        writer.join()
