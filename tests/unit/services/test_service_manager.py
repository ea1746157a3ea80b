# SPDX-License-Identifier: Apache-2.0
"""What one call does to a node, with a stand-in for docker and systemd (see conftest.py)."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
from pathlib import Path

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services import files as fs
from ansible_collections.fleet.inference.plugins.module_utils.services.manager import ServiceError, port_problem
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import SpecError

UNIT = "inference-llamacpp.service"
TARGET = "inference-fleet.target"
CANARY = "canary-key-0001"
IMAGE = "10.1.2.3:5000/ggml-org/llama.cpp:server-b1"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_first_install(node, options):
    result = node.apply(options())
    assert result.changed
    assert result.image_id == "sha256:one"
    assert result.ready_seconds is not None
    directory = node.directory
    assert result.actions == [
        f"pull {IMAGE}",
        f"create {directory}",
        f"write {node.root}/var/bin/inference-ready",
        f"write {directory}/service.env",
        f"write {directory}/extra.json",
        f"write {directory}/readiness.json",
        f"write {node.unit}",
        f"write {node.units}/inference-fleet.target",
        f"write {node.units}/{UNIT}.d/lifecycle.conf",
        f"write {directory}/service.json",
        f"enable {UNIT}",
        "enable inference-fleet.target",
        "daemon-reload",
        f"start {UNIT}",
    ]
    assert node.active[UNIT] == "active"
    assert mode(directory) == 0o750
    assert mode(directory / "service.env") == 0o600
    assert mode(directory / "readiness.json") == 0o600
    assert mode(directory / "applied.json") == 0o600
    assert mode(directory / "extra.json") == 0o640
    assert mode(directory / "service.json") == 0o644
    assert mode(node.unit) == 0o644
    assert mode(node.root / "var/bin/inference-ready") == 0o755
    record = json.loads((directory / "service.json").read_text())
    assert (record["port"], record["address"], record["image_id"]) == (8005, "127.0.0.1", "sha256:one")
    holders = [path for path, (_, content) in node.snapshot().items() if CANARY.encode() in content]
    assert holders == [str(directory / "service.env")]
    assert CANARY not in json.dumps(node.calls) + json.dumps(result.__dict__)


def test_second_run_changes_nothing_and_is_cheap(node, options):
    node.apply(options())
    before = node.snapshot()
    result = node.apply(options())
    assert (result.changed, result.actions, result.ready_seconds) == (False, [], None)
    assert result.diff["before"] == result.diff["after"]
    assert node.snapshot() == before
    assert len(node.calls) == 3


def test_env_change_restarts_once(node, options):
    node.apply(options())
    result = node.apply(options(env={"LLAMA_ARG_CTX_SIZE": "8192"}))
    assert result.actions == [f"write {node.directory}/service.env", f"restart {UNIT}"]
    assert node.verbs("restart", "start", "stop", "daemon-reload") == ["restart"]
    assert not node.apply(options(env={"LLAMA_ARG_CTX_SIZE": "8192"})).changed


def test_unit_change_reloads_and_restarts(node, options):
    node.apply(options())
    result = node.apply(options(user="10002:10002"))
    assert result.actions == [f"write {node.unit}", "daemon-reload", f"restart {UNIT}"]
    assert node.verbs("restart", "daemon-reload") == ["daemon-reload", "restart"]


def test_file_that_is_no_longer_wanted_is_removed(node, options):
    node.apply(options())
    result = node.apply(options(files=[]))
    assert f"remove {node.directory}/extra.json" in result.actions
    assert not (node.directory / "extra.json").exists()


def test_readiness_and_labels_alone_do_not_restart(node, options):
    node.apply(options())
    readiness = dict(options()["readiness"], model="other")
    result = node.apply(options(readiness=readiness, model="other"))
    assert result.actions == [f"write {node.directory}/readiness.json", f"write {node.directory}/service.json"]
    assert node.verbs("restart", "start") == []


def test_units_are_recorded_without_a_restart(node, options):
    """Records from before units were known lack them, and running services stay up while they get them."""
    node.apply(options())
    path = node.directory / "service.json"
    assert "units" not in json.loads(path.read_text())
    result = node.apply(options(units=[]))
    assert result.actions == [f"write {path}"]
    assert node.verbs("restart", "start", "stop", "daemon-reload") == []
    assert json.loads(path.read_text())["units"] == []
    assert not node.apply(options(units=[])).changed


def test_other_units_are_recorded_without_a_restart(node, options):
    """The first ones restart it: from then on it starts when no other service starts on them."""
    node.apply(options())
    assert f"restart {UNIT}" in node.apply(options(units=["GPU-1"])).actions
    result = node.apply(options(units=["GPU-1", "GPU-2"]))
    written = [f"write {node.directory / name}" for name in ("readiness.json", "service.json")]
    assert result.actions == written
    assert node.verbs("restart", "start", "stop", "daemon-reload") == []
    assert not node.apply(options(units=["GPU-1", "GPU-2"])).changed


def test_a_new_neighbour_restarts_nobody(node, options):
    node.apply(options())
    order = node.units / f"{UNIT}.d/start-order.conf"
    result = node.apply(options(start_after=["inference-vllm.service"]))
    assert result.actions == [f"write {order}", "daemon-reload"]
    assert "After=inference-vllm.service" in order.read_text()
    assert node.verbs("restart", "start", "stop") == []
    assert not node.apply(options(start_after=["inference-vllm.service"])).changed
    result = node.apply(options())
    assert result.actions == [f"remove {order}", "daemon-reload"]
    assert [path.name for path in order.parent.iterdir()] == ["lifecycle.conf"]
    assert node.verbs("restart", "start", "stop") == []


def test_the_order_goes_with_the_service(node, options):
    node.apply(options(start_after=["inference-vllm.service"]))
    order = node.units / f"{UNIT}.d/start-order.conf"
    assert f"remove {order}" in node.apply(options(state="absent")).actions
    assert not order.parent.exists()


def cache(node, owner):
    source = node.root / "var/caches/vllm/key"
    return source, [{"source": str(source), "target": "/cache", "read_only": False, "owner": owner}]


def test_a_folder_of_the_container_is_made_and_given(node, options):
    mine = f"{os.geteuid()}:{os.getegid()}"
    source, mounts = cache(node, mine)
    assert f"create {source}" in node.apply(options(mounts=mounts), check=True).actions
    assert not source.exists()
    node.apply(options(mounts=mounts))
    assert mode(source) == 0o700 and mode(source.parent) == 0o755
    assert not node.apply(options(mounts=mounts)).changed
    (source / "kernel.so").write_text("compiled")
    node.apply(options(mounts=mounts, state="absent"))
    assert (source / "kernel.so").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_folder_goes_to_another_user_with_all_in_it(node, options, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("of somebody else")
    source, mounts = cache(node, "10001:10002")
    (source / "inner").mkdir(parents=True)
    (source / "inner/kernel.so").write_text("compiled")
    (source / "inner/link").symlink_to(outside)
    assert f"give {source} to 10001:10002" in node.apply(options(mounts=mounts)).actions
    for path in (source, source / "inner", source / "inner/kernel.so", source / "inner/link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (10001, 10002)
    assert outside.stat().st_uid == 0
    assert not node.apply(options(mounts=mounts)).changed


def test_a_failed_first_start_leaves_no_empty_folder(node, options):
    source, mounts = cache(node, f"{os.geteuid()}:{os.getegid()}")
    node.healthy = lambda: False
    with pytest.raises(ServiceError):
        node.apply(options(mounts=mounts))
    assert not source.exists()


def test_a_link_in_place_of_a_folder_is_refused(node, options, tmp_path):
    source, mounts = cache(node, "0:0")
    source.parent.mkdir(parents=True)
    source.symlink_to(tmp_path)
    with pytest.raises(ServiceError, match="is a symbolic link"):
        node.apply(options(mounts=mounts))


def test_mode_alone_is_put_right_without_a_restart(node, options):
    node.apply(options())
    (node.directory / "service.env").chmod(0o644)
    result = node.apply(options())
    assert result.actions == [f"set mode and owner of {node.directory}/service.env"]
    assert mode(node.directory / "service.env") == 0o600


def test_hand_edit_is_put_back_with_a_restart(node, options):
    node.apply(options())
    before = node.snapshot()
    (node.directory / "extra.json").write_text("{1}")
    assert f"restart {UNIT}" in node.apply(options()).actions
    assert node.snapshot() == before


def test_moved_image_restarts(node, options):
    node.apply(options())
    node.registry[IMAGE] = "sha256:two"
    assert not node.apply(options()).changed
    result = node.apply(options(pull="always"))
    assert result.actions == [f"pull {IMAGE}", f"write {node.directory}/service.json", f"restart {UNIT}"]
    assert result.image_id == "sha256:two"
    assert not node.apply(options(pull="always")).changed


def test_run_that_was_cut_off_before_the_restart_is_finished(node, options):
    node.apply(options())
    wanted = options(env={"LLAMA_ARG_CTX_SIZE": "8192"})
    env = node.directory / "service.env"
    env.write_text(env.read_text().replace("4096", "8192"))
    assert node.apply(wanted).actions == [f"restart {UNIT}"]
    assert not node.apply(wanted).changed


def test_service_that_starts_by_itself_is_waited_for(node, options):
    node.apply(options())
    node.active[UNIT] = "activating"
    result = node.apply(options())
    assert (result.changed, result.actions) == (False, [f"wait for {UNIT}"])
    assert node.active[UNIT] == "active"


def test_dead_service_is_started(node, options):
    node.apply(options())
    node.active[UNIT] = "failed"
    assert node.apply(options()).actions == [f"start {UNIT}"]
    assert node.verbs("reset-failed", "start") == ["reset-failed", "start"]


def test_restarted_always_restarts(node, options):
    node.apply(options())
    for _ in range(2):
        result = node.apply(options(state="restarted"))
        assert (result.changed, result.actions) == (True, [f"restart {UNIT}"])


@pytest.mark.parametrize("docker", [True, False])
def test_check_on_a_bare_node_predicts_the_run(node, options, docker):
    node.docker_installed = docker
    predicted = node.apply(options(), check=True)
    assert node.snapshot() == {}
    assert not (node.root / "etc").exists() and not (node.root / "var").exists()
    assert predicted.changed and predicted.diff["before"] == "" and "running: yes" in predicted.diff["after"]
    node.docker_installed = True
    assert node.apply(options()).actions == predicted.actions


def test_check_on_a_converged_node(node, options):
    node.apply(options())
    result = node.apply(options(), check=True)
    assert (result.changed, result.actions) == (False, [])
    assert result.diff["before"] == result.diff["after"]


@pytest.mark.parametrize(
    "change",
    [
        {"env": {"A": "1"}},
        {"user": "0:0", "files": []},
        {"state": "stopped"},
        {"state": "restarted"},
        {"state": "absent"},
        {"image": "10.1.2.3:5000/x:y"},
    ],
)
def test_check_predicts_the_change(node, options, change):
    node.registry["10.1.2.3:5000/x:y"] = "sha256:x"
    node.apply(options())
    before = node.snapshot()
    predicted = node.apply(options(**change), check=True)
    assert node.snapshot() == before
    assert not node.verbs("pull", "daemon-reload", "enable", "disable", "start", "stop", "restart", "rm", "tag")
    done = node.apply(options(**change))
    assert (done.actions, done.changed) == (predicted.actions, predicted.changed)


def test_diff_masks_secrets(node, options):
    secret = {"name": "auth.yml", "content": "token: canary-file-0002\n", "target": "/auth.yml", "secret": True}
    first = options(files=[secret])
    shown = json.dumps(node.apply(first, check=True).__dict__)
    node.apply(first)
    changed = options(
        files=[dict(secret, content="token: canary-file-0003\n")],
        secret_env={"LLAMA_API_KEY": "canary-key-0004", "MORE": "canary-key-0005"},
    )
    result = node.apply(changed)
    assert "LLAMA_API_KEY=******** (changed)" in result.diff["after"]
    assert "LLAMA_API_KEY=********\n" in result.diff["before"]
    assert "MORE=********\n" in result.diff["after"]
    assert "******** (changed)" in result.diff["after"].partition("auth.yml")[2]
    shown += json.dumps(result.__dict__)
    # What was secret stays masked when it is dropped, turned into plain text, or left over by a cut-off run.
    shown += json.dumps(node.apply(options(secret_env={}, readiness=None, files=[]), check=True).__dict__)
    (node.directory / "applied.json").unlink()
    plain = dict(secret, content="open", secret=False)
    shown += json.dumps(node.apply(options(secret_env={}, readiness=None, files=[plain]), check=True).__dict__)
    shown += json.dumps(node.apply({**options(), "state": "absent", "secret_env": {}, "readiness": None}).__dict__)
    assert "canary" not in shown


def test_line_separators_in_a_secret_do_not_show_it(node, options):
    for sign in ("\u2028", "\x0b", "\x0c", "\x1c", "\x85"):
        result = node.apply(options(secret_env={"LLAMA_API_KEY": f"start{sign}canary-rest"}), check=True)
        assert "canary" not in json.dumps(result.diff)


def broken_when(node, word):
    node.healthy = lambda: word not in node.unit.read_text() + (node.directory / "service.env").read_text()


def test_not_ready_puts_the_previous_version_back(node, options):
    node.apply(options())
    before = node.snapshot()
    broken_when(node, "BROKEN")
    node.journal.append(f"the key is {CANARY}")
    changed = options(env={"BROKEN": "1"}, files=[{"name": "new.json", "content": "", "target": "/n"}])
    with pytest.raises(ServiceError) as caught:
        node.apply(changed)
    assert str(caught.value) == (
        "gpu-01: service llamacpp: it did not become ready: 127.0.0.1:8005 did not answer as it should within 5 s; "
        "the previous version is serving again"
    )
    assert caught.value.restored == "the previous version is serving again"
    assert caught.value.journal[-1] == "the key is ********"
    assert node.snapshot() == before
    assert node.active[UNIT] == "active"
    assert node.loaded[UNIT] == node.unit.read_text()
    assert node.verbs("stop", "start", "restart") == ["restart", "stop", "start"]
    assert not node.apply(options()).changed


def test_not_ready_after_a_moved_tag_puts_the_image_back(node, options):
    node.apply(options())
    before = node.snapshot()
    node.registry[IMAGE] = "sha256:bad"
    node.healthy = lambda: node.images[IMAGE] != "sha256:bad"
    with pytest.raises(ServiceError, match="the previous version is serving again"):
        node.apply(options(pull="always"))
    assert node.images[IMAGE] == "sha256:one"
    assert node.snapshot() == before
    assert not node.apply(options()).changed


def test_first_install_that_fails_leaves_nothing(node, options):
    node.healthy = lambda: False
    with pytest.raises(ServiceError, match="the service is new, so it was removed again"):
        node.apply(options())
    assert node.snapshot() == {}
    assert not node.directory.exists()
    assert node.links(UNIT) == node.links(TARGET) == []
    assert node.active[UNIT] == "inactive"
    assert UNIT not in node.loaded


def test_previous_version_that_fails_too_is_said(node, options):
    node.apply(options())
    node.healthy = lambda: False
    with pytest.raises(ServiceError, match="the previous version does not serve either"):
        node.apply(options(env={}))


def test_stopped_service_that_does_not_start_stays_stopped(node, options):
    node.apply(options())
    node.apply(options(state="stopped"))
    node.healthy = lambda: False
    with pytest.raises(ServiceError, match="it is stopped, as it was before"):
        node.apply(options())
    assert node.active[UNIT] == "inactive"
    assert node.links(UNIT) == []


def test_full_disk_before_the_restart_keeps_it_serving(node, options, monkeypatch):
    node.apply(options())
    before = node.snapshot()
    write = fs.write_file

    def full(path, state):
        if path == str(node.unit) and b"10009" in state.content:
            raise OSError(28, "No space left on device", path)
        write(path, state)

    monkeypatch.setattr(fs, "write_file", full)
    with pytest.raises(
        ServiceError, match=r"is full: free space there; the previous version was put back and kept serving"
    ):
        node.apply(options(user="10009:1", env={"A": "1"}))
    assert node.snapshot() == before
    assert node.verbs("stop", "start", "restart") == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("Bind for 127.0.0.1:8005 failed: port is already allocated", "127.0.0.1:8005 is already used"),
        ("listen tcp4 10.0.0.1:8005: bind: address already in use", "10.0.0.1:8005 is already used"),
        ("failed to bind host port 10.0.0.1:8005/tcp: address already in use", "10.0.0.1:8005 is already used"),
        ("listen tcp4 10.9.9.9:8005: bind: cannot assign requested address", "the node has no address 10.9.9.9"),
        ("unresolvable CDI devices nvidia.com/gpu=7", "knows no device nvidia.com/gpu=7"),
        ("ggml_cuda: CUDA error: out of memory", "it ran out of memory"),
        ("error: invalid device: CUDA0", r"the engine sees no GPU \(CUDA0\) in its container"),
        (
            "ValueError: Free memory on device (3/24 GiB) on startup is less than desired GPU memory utilization (0.9)",
            "less GPU memory is free than the plan gives it",
        ),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "its share of the GPU"),
        ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find", "the model is not whole in the model store"),
        ("RuntimeError: Failed to infer device type", "the engine sees no GPU in its container"),
        ("RuntimeError: No accelerator (CUDA, XPU) is available.", "the engine sees no GPU in its container"),
    ],
)
def test_known_causes_have_their_own_sentence(node, options, line, sentence):
    node.journal = [line]
    node.healthy = lambda: False
    with pytest.raises(ServiceError, match=sentence):
        node.apply(options())


def test_the_cause_is_found_above_the_lines_that_are_shown(node, options):
    """The processes of one engine end one after the other, each with a traceback of its own."""
    node.healthy = lambda: False
    node.journal = ["RuntimeError: Failed to infer device type", *(f"  File {number}" for number in range(60))]
    with pytest.raises(ServiceError, match="the engine sees no GPU in its container") as caught:
        node.apply(options())
    assert caught.value.journal == node.journal[-15:]


def test_taken_port_is_refused_before_anything(node, options):
    with pytest.raises(ServiceError, match="8005 is already used"):
        node.apply(options(), port="127.0.0.1:8005 is already used")
    assert node.snapshot() == {}
    assert node.verbs("pull") == []
    node.apply(options())
    assert not node.apply(options(), port="taken").changed


def test_port_probe_sees_a_real_listener():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert f"127.0.0.1:{port} is already used" in port_problem("127.0.0.1", port)
    assert port_problem("127.0.0.1", port) == ""
    assert "no address 203.0.113.9" in port_problem("203.0.113.9", port)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (None, "image ggml-org/llama.cpp nope is not in image registry 10.1.2.3:5000: correct the tag"),
        ("dial tcp 10.1.2.3:5000: connect: connection refused", "10.1.2.3:5000 cannot be reached"),
        ("http: server gave HTTP response to HTTPS client", "inference_insecure_registries"),
        ("unauthorized: authentication required", "docker login 10.1.2.3:5000"),
        ("write /var/lib/docker/tmp/x: no space left on device", "does not fit on the disk"),
        ("something else", r"could not be pulled .* \(something else\)"),
    ],
)
def test_pull_failures(node, options, message, sentence):
    node.pull_error = message
    with pytest.raises(ServiceError, match=sentence):
        node.apply(options(image="10.1.2.3:5000/ggml-org/llama.cpp:nope"))
    assert node.snapshot() == {}


def test_pull_failure_keeps_what_serves(node, options):
    node.apply(options())
    before = node.snapshot()
    with pytest.raises(ServiceError, match="is not in image registry"):
        node.apply(options(image="10.1.2.3:5000/ggml-org/llama.cpp:nope"))
    assert node.snapshot() == before and node.active[UNIT] == "active"


def test_pull_never(node, options):
    with pytest.raises(ServiceError, match="pull is never"):
        node.apply(options(pull="never"))
    node.images[IMAGE] = "sha256:one"
    assert node.apply(options(pull="never")).changed


@pytest.mark.parametrize(("flag", "word"), [("docker_installed", "not installed"), ("docker_running", "does not run")])
def test_no_engine(node, options, flag, word):
    setattr(node, flag, False)
    with pytest.raises(ServiceError, match=f"docker .*{word}"):
        node.apply(options())
    assert node.snapshot() == {}


def test_absent(node, options):
    node.apply(options())
    result = node.apply({**options(), "state": "absent"})
    assert result.actions == [
        f"stop {UNIT}",
        f"disable {UNIT}",
        f"remove {node.units}/{UNIT}.d/lifecycle.conf",
        f"remove {node.unit}",
        f"remove {node.units}/inference-fleet.target",
        "daemon-reload",
        "remove container inference-llamacpp",
        f"remove {node.directory}",
    ]
    assert not node.directory.exists() and not node.unit.exists()
    assert node.links(TARGET) == [] and node.active[TARGET] == "inactive"
    assert node.images == {IMAGE: "sha256:one"}
    assert not node.apply({**options(), "state": "absent"}).changed


def test_stopped_and_started_again_without_settings(node, options):
    node.apply(options())
    paths = {key: options()[key] for key in ("config_root", "state_root", "unit_dir")}
    by_name = {"name": "llamacpp", **paths}
    result = node.apply({**by_name, "state": "stopped"})
    assert result.actions == [f"disable {UNIT}", f"stop {UNIT}"]
    # An engine that was killed in the end leaves no failed unit behind.
    assert node.verbs("stop", "reset-failed")[-2:] == ["stop", "reset-failed"]
    assert not node.apply({**by_name, "state": "stopped"}).changed
    assert not node.apply(options(state="stopped")).changed
    assert node.apply(by_name, check=True).actions == [f"enable {UNIT}", f"start {UNIT}"]
    assert node.apply(by_name).actions == [f"enable {UNIT}", f"start {UNIT}"]
    assert not node.apply(by_name).changed
    assert not node.apply(options()).changed
    assert node.apply({**by_name, "state": "restarted"}).actions == [f"restart {UNIT}"]


def test_started_by_name_alone_needs_an_installed_service(node, options):
    paths = {key: options()[key] for key in ("config_root", "state_root", "unit_dir")}
    assert not node.apply({"name": "llamacpp", "state": "stopped", **paths}).changed
    with pytest.raises(ServiceError, match=r"is not installed: give image, or run site\.yml"):
        node.apply({"name": "llamacpp", **paths})


def test_installed_but_stopped(node, options):
    node.docker_running = False
    result = node.apply(options(state="stopped"))
    assert result.changed and node.unit.exists() and UNIT not in node.active
    assert not node.apply(options(state="stopped")).changed


def test_two_runs_do_not_interleave(node, options, monkeypatch):
    lock = node.root / "var/locks/llamacpp.lock"
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(
        "ansible_collections.fleet.inference.plugins.module_utils.services.manager.LOCK_MARGIN_SECONDS", -1e6
    )
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ServiceError, match=r"another run still holds .*llamacpp\.lock"):
            node.apply(options())
    assert node.snapshot() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_file_owner(node, options):
    file = {"name": "extra.json", "content": "{}\n", "target": "/x", "owner_uid": 10001, "mode": "0400"}
    node.apply(options(files=[file]))
    assert (node.directory / "extra.json").stat().st_uid == 10001
    assert not node.apply(options(files=[file])).changed


def test_symbolic_link_in_place_of_the_unit_is_refused(node, options):
    node.unit.symlink_to("/dev/null")
    with pytest.raises(ServiceError, match="is a symbolic link"):
        node.apply(options())


def test_secret_in_the_command_is_refused(node, options):
    with pytest.raises(SpecError, match=r"secret_env\.LLAMA_API_KEY also stands"):
        node.apply(options(command=["--api-key", CANARY]))
    assert node.snapshot() == {}
