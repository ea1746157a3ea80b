# SPDX-License-Identifier: Apache-2.0
"""The unit's text, and that systemd would read from it exactly what was meant."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.services.engine import cgroup_controllers
from ansible_collections.fleet.inference.plugins.module_utils.services.image import parse_reference
from ansible_collections.fleet.inference.plugins.module_utils.services.spec import ServiceSpec, SpecError
from ansible_collections.fleet.inference.plugins.module_utils.services.unit import (
    csv_fields,
    quote,
    render_order,
    render_unit,
)
from hypothesis import given
from hypothesis import strategies as st

ALL = frozenset({"memory", "pids"})
ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "s": " ",
}


def systemd_lines(text: str) -> List[str]:
    """A unit's lines after joining continuations, by systemd.syntax(7): a backslash at the end becomes a space."""
    lines: List[str] = []
    open_line = ""
    for line in text.split("\n"):
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            open_line += line[:-1] + " "
        else:
            lines.append(open_line + line)
            open_line = ""
    return lines


def systemd_words(value: str) -> List[str]:
    """The arguments that systemd passes for an Exec value: quoting, C escapes, %% and $$ (systemd.service(5))."""
    words: List[str] = []
    word = ""
    inside = False
    quote_sign = ""
    at = 0
    while at < len(value):
        sign = value[at]
        if quote_sign == "" and sign in " \t":
            if inside:
                words.append(word)
            word, inside = "", False
        elif quote_sign == "" and sign in "\"'" and not inside:
            quote_sign, inside = sign, True
        elif quote_sign and sign == quote_sign:
            quote_sign = ""
        elif sign == "\\":
            inside = True
            at += 1
            if value[at] == "x":
                word += chr(int(value[at + 1 : at + 3], 16))
                at += 2
            else:
                word += ESCAPES[value[at]]
        else:
            assert sign != "\n"
            inside = True
            word += sign
        at += 1
    assert quote_sign == ""
    if inside:
        words.append(word)
    return [expand(word) for word in words]


def expand(word: str) -> str:
    """Specifiers, then variables; a lone % or $ would mean something else than itself."""
    for sign in "%$":
        assert word.replace(sign * 2, "").count(sign) == 0
        word = word.replace(sign * 2, sign)
    return word


def carried(code: int) -> bool:
    return not (0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE)


text_values = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]).filter(lambda sign: carried(ord(sign))))


@given(st.lists(text_values, min_size=1))
def test_quoting_round_trip(arguments):
    line = " ".join(quote(argument) for argument in arguments)
    assert "\n" not in line and not line.endswith("\\")
    assert systemd_words(line) == arguments


@given(st.lists(text_values))
def test_command_round_trip_through_the_whole_unit(arguments):
    text = render_unit(build(command=arguments), ALL)
    create = [line for line in systemd_lines(text) if line.startswith("ExecStartPre=/usr/bin/docker create ")]
    words = systemd_words(create[0].partition("=")[2])
    assert words[words.index("img:1") + 1 :] == arguments


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126)), min_size=1))
def test_mount_fields_are_read_back_by_a_csv_reader(fields):
    wanted = [field for field in fields if field] or ["x"]
    assert next(csv.reader([csv_fields(wanted)])) == wanted


def build(**changes) -> ServiceSpec:
    options: Dict[str, object] = {"name": "one", "image": "img:1"}
    options.update(changes)
    return ServiceSpec.from_params(options)


FULL: Dict[str, object] = {
    "description": "100% llama.cpp on gpu-01",
    "env": {"A": "1"},
    "secret_env": {"KEY": "canary-secret"},
    "command": ["--flag", "a b", "$HOME %n", 'say "x"'],
    "files": [{"name": "c.yml", "content": "x", "target": "/c.yml"}],
    "mounts": [
        {"source": "/m,odels", "target": "/models"},
        {"source": "/cache", "target": "/cache", "read_only": False},
    ],
    "volumes": [{"name": "jit", "target": "/jit"}],
    "tmpfs": ["/tmp"],
    "ports": [{"address": "fd00::1", "host_port": 1, "container_port": 2}],
    "devices": ["nvidia.com/gpu=0", "/dev/dri/renderD128"],
    "groups": [105],
    "user": "10001:10001",
    "network": "none",
    "extra_hosts": ["pool.internal:10.0.0.1"],
    "shm_size_bytes": 2**30,
    "memory_limit_bytes": 2**31,
    "pids_limit": 100,
    "stop_timeout_seconds": 20,
    "after": ["gpu-ready.service"],
    "requires": ["gpu-ready.service"],
    "readiness": {"host": "h", "port": 1, "timeout_seconds": 300},
}


def test_every_option_reaches_docker():
    text = render_unit(build(**FULL), ALL)
    lines = systemd_lines(text)
    create = next(line for line in lines if " create " in line)
    words = systemd_words(create.partition("=")[2])
    for word in (
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges:true",
        "--read-only",
        "--init",
        "--pull=never",
        "--log-driver=none",
        "--restart=no",
        "--user=10001:10001",
        "--group-add=105",
        "--pids-limit=100",
        f"--memory={2**31}",
        f"--shm-size={2**30}",
        "--stop-timeout=20",
        "--network=none",
        "--add-host=pool.internal:10.0.0.1",
        "--publish=[fd00::1]:1:2",
        "--device=nvidia.com/gpu=0",
        "--device=/dev/dri/renderD128",
        "--tmpfs=/tmp",
        "--env-file=/etc/inference-fleet/services/one/service.env",
        "--mount=type=bind,source=/etc/inference-fleet/services/one/c.yml,target=/c.yml,readonly",
        '--mount=type=bind,"source=/m,odels",target=/models,readonly',
        "--mount=type=bind,source=/cache,target=/cache",
        "--mount=type=volume,source=jit,target=/jit",
        "--label=inference-fleet.service=one",
    ):
        assert word in words
    assert words[-5:] == ["img:1", "--flag", "a b", "$HOME %n", 'say "x"']
    assert "Description=100%% llama.cpp on gpu-01" in lines
    assert "After=docker.service network-online.target gpu-ready.service" in lines
    assert "Requires=gpu-ready.service" in lines
    assert "TimeoutStartSec=360" in lines and "TimeoutStopSec=50" in lines
    assert "StartLimitIntervalSec=1800" in lines and "StartLimitBurst=5" in lines
    assert "canary-secret" not in text
    assert "privileged" not in text.replace("no-new-privileges", "") and "docker.sock" not in text


def test_a_stop_waits_for_running_requests_where_the_engine_would_cut_them():
    lines = render_unit(build(**FULL, idle_timeout_seconds=120), ALL).split("\n")
    stops = [line for line in lines if line.startswith("ExecStop=")]
    assert stops == [
        "ExecStop=-/usr/bin/python3 -I /var/lib/inference-fleet/bin/inference-idle /etc/inference-fleet one 120",
        "ExecStop=-/usr/bin/docker stop -t 20 inference-one",
    ]
    assert "TimeoutStopSec=170" in lines


def test_limits_only_where_the_controller_is():
    text = render_unit(build(**FULL), frozenset())
    assert "--memory" not in text and "--pids-limit" not in text


def test_label_follows_the_settings():
    def label(spec: ServiceSpec) -> str:
        return next(line for line in render_unit(spec, ALL).split("\n") if "inference-fleet.spec" in line)

    assert label(build()) == label(build(env={"A": "1"}))
    assert label(build()) != label(build(user="1:1"))


def test_the_start_limit_outlasts_five_failed_starts():
    text = render_unit(build(readiness={"host": "h", "port": 1, "timeout_seconds": 3600}), ALL)
    assert "StartLimitIntervalSec=18300" in text


SOON = {"host": "h", "port": 1, "timeout_seconds": 120}


def test_a_service_on_gpus_starts_when_it_holds_their_locks():
    spec = build(units=["GPU-2", "GPU-1", "0000:c1:00.0#1"], readiness=SOON)
    assert spec.start_locks == (
        "/run/inference-fleet/start-on-0000_c1_00.0_1.lock",
        "/run/inference-fleet/start-on-GPU-1.lock",
        "/run/inference-fleet/start-on-GPU-2.lock",
    )
    text = render_unit(spec, ALL)
    (start,) = [line for line in systemd_lines(text) if line.startswith("ExecStart=")]
    program = "/var/lib/inference-fleet/bin/inference-ready"
    assert systemd_words(start.partition("=")[2]) == [
        *("/usr/bin/python3", "-I", program, "--when-open", "/run/inference-fleet/one.start"),
        *("/usr/bin/docker", "start", "--attach", "inference-one"),
    ]
    lines = text.splitlines()
    assert {"RuntimeDirectory=inference-fleet", "RuntimeDirectoryPreserve=yes"} <= set(lines)
    # Waiting for others is no failed start: it lengthens the start, and not the time in which five may fail.
    assert {"TimeoutStartSec=3780", "StartLimitIntervalSec=900"} <= set(lines)
    assert json.loads(spec.readiness_json())["locks"] == list(spec.start_locks)


@pytest.mark.parametrize("options", [{"units": [], "readiness": SOON}, {"readiness": SOON}, {"units": ["GPU-1"]}])
def test_other_services_wait_for_nobody(options):
    spec = build(**options)
    assert spec.start_locks == () and "locks" not in json.loads(spec.readiness_json())
    text = render_unit(spec, ALL)
    assert "ExecStart=/usr/bin/docker start --attach inference-one" in text.splitlines()
    assert "RuntimeDirectory" not in text


def test_the_order_of_starts():
    units = ["inference-a.service", "inference-b.service", "inference-a.service"]
    spec = build(start_after=units)
    assert spec.order_path == "/etc/systemd/system/inference-one.service.d/start-order.conf"
    assert render_order(spec).splitlines()[1:] == ["[Unit]", "After=inference-a.service inference-b.service"]
    assert "inference-a" not in render_unit(spec, ALL)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
@pytest.mark.parametrize("units", [[], ["GPU-1"]])
def test_systemd_reads_the_unit(tmp_path: Path, units: List[str]):
    spec = build(**{**FULL, "after": [], "requires": [], "units": units, "readiness": SOON})
    text = render_unit(spec, ALL).replace("/usr/bin/docker", "/bin/true").replace("/usr/bin/python3", "/bin/true")
    unit = tmp_path / spec.unit_name
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    complaints = [line for line in done.stderr.splitlines() if "inference-one" in line and "docker.service" not in line]
    assert complaints == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_exposure_of_the_unit_itself(tmp_path: Path):
    """Scores the docker client's own sandbox only; what the container may do is asked of `docker inspect` on a node."""
    unit = tmp_path / "inference-one.service"
    unit.write_text(render_unit(build(**FULL), ALL))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_controllers(tmp_path: Path):
    assert cgroup_controllers(str(tmp_path / "none")) == frozenset()
    (tmp_path / "v1/cpu,cpuacct").mkdir(parents=True)
    (tmp_path / "v1/memory").mkdir()
    assert cgroup_controllers(str(tmp_path / "v1")) == {"cpu", "cpuacct", "memory"}
    (tmp_path / "cgroup.controllers").write_text("cpuset io pids\n")
    assert cgroup_controllers(str(tmp_path)) == {"cpuset", "io", "pids"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("redis", ("docker.io", "redis", "latest", "")),
        ("ghcr.io/a/b:c", ("ghcr.io", "a/b", "c", "")),
        ("10.0.0.1:5000/a/b", ("10.0.0.1:5000", "a/b", "latest", "")),
        ("localhost/a@sha256:0f", ("localhost", "a", "", "sha256:0f")),
        ("a/b:c@sha256:0f", ("docker.io", "a/b", "c", "sha256:0f")),
    ],
)
def test_references(text, parts):
    found = parse_reference(text)
    assert (found.registry, found.repository, found.tag, found.digest) == parts


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": "Bad_Name"}, "lower-case letters"),
        ({"image": "a b"}, "image 'a b' must be"),
        ({"image": "--privileged"}, "must be"),
        ({"env": {"A": "x\ny"}}, "env.A has a line break"),
        ({"secret_env": {"A": "x\ry"}}, "secret_env.A has a line break"),
        ({"env": {"A B": "x"}}, "env has the name 'A B'"),
        ({"env": {"A": "x" * 70000}}, "longer than 64 KiB"),
        ({"env": {"A": "1"}, "secret_env": {"A": "2"}}, "both set A"),
        ({"command": ["\0"]}, "U+0000"),
        ({"description": "a\nb"}, "one line"),
        ({"description": "a\\"}, "no backslash"),
        ({"mounts": [{"source": "models", "target": "/m"}]}, "absolute path"),
        ({"mounts": [{"source": "/var/run/docker.sock", "target": "/m"}]}, "engine's socket"),
        ({"tmpfs": ["/a"], "volumes": [{"name": "v", "target": "/a"}]}, "both use /a"),
        ({"files": [{"name": "../x", "content": "", "target": "/x"}]}, "plain file name"),
        ({"files": [{"name": "service.env", "content": "", "target": "/x"}]}, "plain file name"),
        ({"files": [{"name": "x", "content": "", "target": "/x", "mode": "rw"}]}, "octal"),
        (
            {"files": [{"name": "x", "content": "", "target": "/x", "mode": "0644", "secret": True}]},
            "others must not read",
        ),
        ({"ports": [{"host_port": 0, "container_port": 1}]}, "1 to 65535"),
        ({"after": ["gpu ready"]}, "full name of a unit"),
        ({"start_after": ["one"]}, "start_after has 'one'"),
        ({"mounts": [{"source": "/a", "target": "/m", "owner": "me", "read_only": False}]}, "owner 'me' for /a"),
        ({"mounts": [{"source": "/a", "target": "/m", "owner": "1:1"}]}, "read_only must be false"),
        ({"readiness": {"host": "h", "port": 1, "timeout_seconds": 1, "gpu_path": "/api/ps"}}, "readiness.model"),
        (
            {"readiness": {"host": "h", "port": 1, "timeout_seconds": 1, "model": "m", "further_models": ["n"]}},
            "readiness.models_path",
        ),
        ({"pids_limit": 0}, "above 0"),
        ({"readiness": {"host": "h", "port": 1, "timeout_seconds": 0}}, "positive number"),
        ({"readiness": {"host": "h", "port": 1, "timeout_seconds": 1, "bearer_env": "K"}}, "names K"),
        ({"readiness": {"host": "h", "port": 1, "timeout_seconds": 1, "health_path": "x"}}, "begin with a slash"),
        ({"config_root": "/etc/with space"}, "config_root"),
    ],
)
def test_refusals(change, word):
    with pytest.raises(SpecError) as caught:
        build(**change)
    assert word in str(caught.value)
