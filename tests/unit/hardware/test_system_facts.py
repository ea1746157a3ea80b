# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.hardware import cpu, system
from ansible_collections.fleet.inference.plugins.module_utils.hardware.collect import collect
from ansible_collections.fleet.inference.plugins.module_utils.hardware.devices import bus_id, merge, new_device
from ansible_collections.fleet.inference.plugins.module_utils.hardware.probe import Host
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no dead file server."""
    monkeypatch.setattr(system, "STORAGE_SECONDS", 60)


FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.1.2.3
        /32 host LOCAL
     |-- 10.1.2.255
        /32 link BROADCAST
Local:
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.1.2.3
        /32 host LOCAL
"""
IF_INET6 = """fd000000000000000000000000000002 04 40 00 82     eth0
fe8000000000000000fc00fffe000001 04 40 20 80     eth0
00000000000000000000000000000001 01 80 10 80       lo
"""
TCP_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def tcp(address: str, state: str, inode: int) -> str:
    return (
        f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0  0 {inode} 1 0 100 0 0 10 0\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000008:06:00.0", "0008:06:00.0"),
        ("00000000:0A:1F.7", "0000:0a:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("06:00.0", "0000:06:00.0"),
        ("N/A", None),
        ("", None),
        (None, None),
    ],
)
def test_bus_id(text: str | None, expected: str | None) -> None:
    assert bus_id(text) == expected


def test_merge_by_address_then_uuid() -> None:
    devices = [new_device("nvidia", "0000:01:00.0", numa_node=1), new_device("nvidia", uuid="GPU-2")]
    found = [
        new_device("nvidia", "0000:01:00.0", uuid="GPU-1", numa_node=0, usable=True),
        new_device("nvidia", uuid="GPU-2", name="Orin (nvgpu)"),
        new_device("nvidia", "0000:02:00.0", uuid="GPU-1"),
    ]
    merge(devices, found)
    assert [(row["pci_bus_id"], row["uuid"], row["name"], row["numa_node"], row["usable"]) for row in devices] == [
        ("0000:01:00.0", "GPU-1", None, 1, True),
        (None, "GPU-2", "Orin (nvgpu)", None, False),
        ("0000:02:00.0", "GPU-1", None, None, False),
    ]


def test_empty_root_is_unknown_and_no_error(machine: Any) -> None:
    (machine.root / "proc/meminfo").unlink()
    facts = machine.facts()
    assert facts["errors"] == []
    assert facts["cpu"] == cpu.UNKNOWN
    assert facts["numa"] == [] and facts["topology"] == {"matrix": [], "link_domains": []}
    assert facts["memory_total_bytes"] is None and facts["memory_available_bytes"] is None
    assert facts["os"] == dict.fromkeys(system.OS_KEYS) | {"family": "other", "wsl": False}
    assert facts["cgroup"] == {"version": None, "controllers": []}
    assert facts["storage"] == {
        "path": "/var/lib/inference-fleet",
        "free_bytes": None,
        "total_bytes": None,
        "filesystem": None,
        "mount_point": None,
        "rotational": None,
    }
    assert facts["runtime"]["docker"] is None and facts["runtime"]["podman"] is None


def test_os_and_memory(machine: Any) -> None:
    release = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
    machine.write("usr/lib/os-release", release)
    machine.link("etc/os-release", "../usr/lib/os-release")
    machine.write("proc/sys/kernel/osrelease", "6.8.0-55-generic\n")
    machine.write("proc/sys/kernel/hostname", "gpu-01\n")
    facts = machine.facts()
    assert facts["os"] == {
        "id": "ubuntu",
        "version_id": "24.04",
        "codename": "noble",
        "family": "debian",
        "kernel": "6.8.0-55-generic",
        "systemd_version": None,
        "hostname": "gpu-01",
        "container": None,
        "wsl": False,
    }
    assert (facts["memory_total_bytes"], facts["memory_available_bytes"]) == (64 << 30, 48 << 30)


@pytest.mark.parametrize(
    ("release", "family"),
    [("ID=rocky\nID_LIKE='rhel centos fedora'", "redhat"), ("ID=debian", "debian"), ("ID=arch", "other")],
)
def test_family(machine: Any, release: str, family: str) -> None:
    machine.write("etc/os-release", release)
    assert machine.facts()["os"]["family"] == family


@pytest.mark.parametrize(
    ("files", "container"),
    [
        ({"run/systemd/container": "docker\n"}, "docker"),
        ({"run/systemd/container": "systemd-nspawn\n", ".dockerenv": ""}, "systemd-nspawn"),
        ({"run/systemd/container": "rkt\n"}, "other"),
        ({"run/systemd/container": "wsl\n"}, None),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/1/environ": "PATH=/bin\0container=lxc\0TERM=linux\0"}, "lxc"),
        ({"proc/1/environ": "PATH=/bin\0my_container=lxc\0"}, None),
        ({"proc/1/environ": "container=\0"}, None),
    ],
)
def test_container(machine: Any, files: dict[str, str], container: str | None) -> None:
    for path, text in files.items():
        machine.write(path, text)
    assert machine.facts()["os"]["container"] == container


@pytest.mark.parametrize(
    ("kernel", "wsl"),
    [
        ("5.15.153.1-microsoft-standard-WSL2", True),
        ("4.4.0-19041-Microsoft", True),
        ("6.8.0-1021-azure", False),
        ("6.12.48+deb13-amd64", False),
    ],
)
def test_wsl(machine: Any, kernel: str, wsl: bool) -> None:
    machine.write("proc/sys/kernel/osrelease", kernel + "\n")
    assert machine.facts()["os"]["wsl"] is wsl


def test_cgroup_v2(machine: Any) -> None:
    machine.write("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")
    machine.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu memory pids\n")
    assert machine.facts()["cgroup"] == {"version": 2, "controllers": ["cpu", "cpuset", "memory", "pids"]}
    machine.write("sys/fs/cgroup/cgroup.controllers", "\n")
    assert machine.facts()["cgroup"] == {"version": 2, "controllers": []}


def test_cgroup_hybrid_has_its_controllers_in_v1(machine: Any) -> None:
    mounts = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu,cpuacct 0 0\n"
    machine.write("proc/self/mounts", mounts + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n")
    rows = "#subsys_name hierarchy num_cgroups enabled\nmemory 4 1 1\ncpu 1 1 1\ncpuacct 1 1 0\npids 0 1 1\n"
    machine.write("proc/cgroups", rows)
    machine.write("sys/fs/cgroup/unified/cgroup.controllers", "")
    assert machine.facts()["cgroup"] == {"version": 1, "controllers": ["cpu", "memory"]}


def test_addresses(machine: Any) -> None:
    machine.write("proc/net/fib_trie", FIB_TRIE)
    machine.write("proc/net/if_inet6", IF_INET6)
    assert machine.facts()["network"] == {"addresses": ["10.1.2.3", "fd00::2"]}


def test_listening_with_process(machine: Any) -> None:
    table = TCP_HEAD + tcp("0100007F:1F45", "0A", 11) + tcp("0302010A:0016", "01", 12) + tcp("00000000:0FA0", "0A", 14)
    machine.write("proc/net/tcp", table)
    machine.write("proc/net/tcp6", TCP_HEAD + tcp("00000000000000000000000000000000:0016", "0A", 13))
    for pid, name, inode in ((1, "systemd", 13), (77, "sshd", 13), (80, "llama-server", 11)):
        machine.write(f"proc/{pid}/comm", name + "\n")
        machine.link(f"proc/{pid}/fd/3", f"socket:[{inode}]")
    assert machine.facts()["listening"] == [
        {"address": "::", "port": 22, "process": "sshd"},
        {"address": "0.0.0.0", "port": 4000, "process": None},
        {"address": "127.0.0.1", "port": 8005, "process": "llama-server"},
    ]


def test_damaged_table_costs_itself_only(machine: Any) -> None:
    machine.write("proc/net/tcp", TCP_HEAD + tcp("zz:1F45", "0A", 11))
    facts = machine.facts()
    assert facts["listening"] == []
    assert [error["source"] for error in facts["errors"]] == ["listening"]


def test_groups(machine: Any) -> None:
    machine.write("etc/group", "root:x:0:\nvideo:x:44:me\nrender:x:992:\nbroken\n")
    assert machine.facts()["groups"] == {"render": 992, "video": 44}


def live(machine: Any) -> Host:
    return Host(str(machine.root), 60, live=True)


def test_storage_of_the_nearest_parent(machine: Any) -> None:
    found = system.storage(live(machine), "/var/lib/not/there")
    assert found["path"] == "/var/lib/not/there"
    assert found["total_bytes"] == os.statvfs(machine.root).f_blocks * os.statvfs(machine.root).f_frsize
    assert (found["filesystem"], found["mount_point"], found["rotational"]) == (None, None, None)


# A disk with partitions; LVM; a btrfs with a number of its own; a blank in a name; something mounted over another.
MOUNTINFO = r"""22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
23 22 253:0 / /var rw shared:2 master:1 - xfs /dev/mapper/vg-var rw
24 22 0:42 /@data /data rw - btrfs /dev/nvme0n1p1 rw,subvol=/@data
25 22 0:50 / /my\040disk rw - nfs4 server:/export rw
26 22 8:3 / /over rw - ext3 /dev/sda3 rw
27 26 0:51 / /over rw - tmpfs tmpfs rw
broken - line
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/models", ("ext4", "/", True)),
        ("/var/lib/inference-fleet", ("xfs", "/var", False)),
        ("/variant", ("ext4", "/", True)),
        ("/data/models", ("btrfs", "/data", False)),
        ("/linked/models", ("btrfs", "/data", False)),
        ("/my disk", ("nfs4", "/my disk", None)),
        ("/over", ("tmpfs", "/over", None)),
    ],
)
def test_storage_device(machine: Any, path: str, expected: tuple[str, str, bool | None]) -> None:
    machine.write("proc/self/mountinfo", MOUNTINFO)
    for folder in ("var", "variant", "data/models", "my disk", "over"):
        (machine.root / folder).mkdir(parents=True)
    machine.link("linked", "data")
    machine.write("sys/devices/pci0000:00/sda/queue/rotational", "1\n")
    machine.write("sys/devices/pci0000:00/sda/sda2/partition", "2\n")
    machine.write("sys/devices/pci0000:00/nvme0n1/queue/rotational", "0\n")
    machine.write("sys/devices/pci0000:00/nvme0n1/nvme0n1p1/partition", "1\n")
    machine.write("sys/devices/virtual/block/dm-0/queue/rotational", "0\n")
    machine.link("sys/dev/block/8:2", "../../devices/pci0000:00/sda/sda2")
    machine.link("sys/dev/block/253:0", "../../devices/virtual/block/dm-0")
    machine.link("sys/class/block/nvme0n1p1", "../../devices/pci0000:00/nvme0n1/nvme0n1p1")
    found = system.storage(live(machine), path)
    assert (found["filesystem"], found["mount_point"], found["rotational"]) == expected
    assert found["free_bytes"] > 0


def test_storage_without_mountinfo(machine: Any) -> None:
    machine.write("proc/self/mounts", "/dev/root / ext4 rw 0 0\n/dev/mapper/vg-a /a xfs rw 0 0\nrest\n")
    machine.link("dev/mapper/vg-a", "../dm-3")
    machine.write("sys/class/block/dm-3/queue/rotational", "1\n")
    (machine.root / "a").mkdir()
    found = system.storage(live(machine), "/a/b")
    assert (found["filesystem"], found["mount_point"], found["rotational"]) == ("xfs", "/a", True)


def test_a_file_system_that_does_not_answer_is_not_waited_for(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "STORAGE_SECONDS", 0.2)
    monkeypatch.setattr(system, "_storage", lambda host, path, mounts: time.sleep(30))
    machine.write("proc/self/mountinfo", MOUNTINFO)
    host = live(machine)
    started = time.monotonic()
    assert system.storage(host, "/a") == system.no_storage("/a")
    assert time.monotonic() - started < 5
    assert [error["source"] for error in host.report.errors] == ["storage"]


MOUNT_WORDS = st.sampled_from(
    ["/", "/var", "/a\\040b", "\\999", "-", "8:1", "0:1", "::", "ext4", "nfs4", "/dev/x", "rw", "", "\n"]
)


@settings(max_examples=100)
@given(
    st.one_of(st.text(max_size=40), st.lists(MOUNT_WORDS, max_size=40).map(" ".join)), st.sampled_from(["/", "/var"])
)
def test_no_mount_table_raises(text: str, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_bytes(text.encode("utf-8", "surrogatepass"))
        (root / "proc/self/mounts").write_bytes(text.encode("utf-8", "surrogatepass"))
        host = Host(folder, 60, live=True)
        found = system.storage(host, path)
        json.dumps(found)
        assert found["free_bytes"] is not None and host.report.errors == []
        assert "" not in (found["filesystem"], found["mount_point"])


def test_services(machine: Any) -> None:
    row = {"name": "llamacpp", "backend": "llamacpp", "model": "m", "port": 8005, "address": "10.1.2.3"}
    row["units"] = ["GPU-1", "GPU-2"]
    machine.write("etc/inference-fleet/services/llamacpp/service.json", json.dumps({**row, "image": "x"}))
    machine.write("etc/inference-fleet/services/other/service.json", "{")
    machine.write(
        "etc/inference-fleet/services/wrong/service.json",
        '{"name": 1, "model": "", "port": "1", "address": [], "units": [1]}',
    )
    (machine.root / "etc/inference-fleet/services/empty").mkdir()
    facts = machine.facts()
    assert facts["services"] == [
        {**row, "models": ["m"]},
        {**dict.fromkeys(row), "name": "wrong", "models": []},
    ]
    assert facts["errors"] == [
        {"source": "services", "message": "/etc/inference-fleet/services/other/service.json is no JSON object"}
    ]


@pytest.mark.parametrize(("record", "units"), [({"units": []}, []), ({}, None), ({"units": "GPU-1"}, None)])
def test_units_of_a_service(machine: Any, record: dict[str, Any], units: list[str] | None) -> None:
    machine.write("etc/inference-fleet/services/a/service.json", json.dumps({"name": "a", **record}))
    (service,) = machine.facts()["services"]
    assert service["units"] == units


RESULT = {
    "backend": "llamacpp",
    "model": "qwen3-8b",
    "measured_at": "2026-11-23T15:04:05Z",
    "concurrency": 4,
    "requests_per_second": 1.5,
    "tokens_per_second": 180,
    "time_to_first_token_ms": 92.5,
}
MEASUREMENTS = "var/lib/inference-fleet/measurements.json"


def test_measurements(machine: Any) -> None:
    sparse = {key: RESULT[key] for key in ("backend", "model", "measured_at")}
    content = {"schema_version": 1, "results": [{**RESULT, "prompt": "x"}, sparse]}
    machine.write(MEASUREMENTS, json.dumps(content))
    machine.write("srv/measured.json", json.dumps({**content, "results": []}))
    facts = machine.facts()
    assert facts["measurements"] == [RESULT, {**dict.fromkeys(RESULT), **sparse}]
    assert facts["errors"] == []
    assert machine.facts(measurements_path="/srv/measured.json")["measurements"] == []


def test_no_measurements(machine: Any) -> None:
    facts = machine.facts()
    assert facts["measurements"] == [] and facts["errors"] == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is no JSON object with a list of results"),
        ("[]", "is no JSON object with a list of results"),
        ('{"schema_version": 1, "results": {}}', "is no JSON object with a list of results"),
        ('{"results": []}', "has schema version None, and 1 is read"),
        ('{"schema_version": 2, "results": []}', "has schema version 2, and 1 is read"),
        ([RESULT, "fast"], "has a result 1 that is no JSON object"),
        ([{**RESULT, "model": ""}], "has a result 0 whose model is no text"),
        ([{**RESULT, "backend": None}], "has a result 0 whose backend is no text"),
        ([{**RESULT, "measured_at": 5}], "has a result 0 whose measured_at is no text"),
        ([{**RESULT, "concurrency": 1.5}], "has a result 0 whose concurrency is no whole number above 0"),
        ([{**RESULT, "concurrency": True}], "has a result 0 whose concurrency is no whole number above 0"),
        ([{**RESULT, "requests_per_second": 0}], "has a result 0 whose requests_per_second is no number above 0"),
        ([{**RESULT, "tokens_per_second": "9"}], "has a result 0 whose tokens_per_second is no number above 0"),
        (
            [{**RESULT, "time_to_first_token_ms": math.inf}],
            "has a result 0 whose time_to_first_token_ms is no number above 0",
        ),
        (
            [{**RESULT, "time_to_first_token_ms": math.nan}],
            "has a result 0 whose time_to_first_token_ms is no number above 0",
        ),
        ([{**RESULT, "concurrency": 10**400}], "has a result 0 whose concurrency is no whole number above 0"),
    ],
)
def test_wrong_measurements_are_none_and_told(machine: Any, content: str | list[Any], problem: str) -> None:
    text = content if isinstance(content, str) else json.dumps({"schema_version": 1, "results": content})
    machine.write(MEASUREMENTS, text)
    facts = machine.facts()
    assert facts["measurements"] == []
    message = f"/{MEASUREMENTS} {problem}; run the benchmark again, or remove the file"
    assert facts["errors"] == [{"source": "measurements", "message": message}]


def test_measurements_that_are_no_file_are_told(machine: Any) -> None:
    (machine.root / MEASUREMENTS).mkdir(parents=True)
    facts = machine.facts()
    assert facts["measurements"] == []
    assert facts["errors"] == [{"source": "measurements", "message": f"/{MEASUREMENTS} cannot be read"}]


FILES = [
    "etc/cdi/x.json",
    "etc/cdi/x.yaml",
    "etc/docker/daemon.json",
    "etc/group",
    "etc/inference-fleet/services/a/service.json",
    "etc/os-release",
    "opt/rocm/.info/version",
    "proc/cgroups",
    "proc/cpuinfo",
    "proc/driver/nvidia/version",
    "proc/meminfo",
    "proc/net/fib_trie",
    "proc/net/if_inet6",
    "proc/net/tcp",
    "proc/net/tcp6",
    "proc/self/mounts",
    "proc/1/environ",
    "run/systemd/container",
    "sys/bus/pci/devices/0000:01:00.0/numa_node",
    "sys/bus/pci/devices/0000:01:00.0/uevent",
    "sys/bus/pci/devices/0000:02:00.0/mem_info_vram_total",
    "sys/bus/pci/devices/0000:02:00.0/unique_id",
    "sys/class/kfd/kfd/topology/nodes/1/properties",
    "sys/class/kfd/kfd/topology/nodes/1/mem_banks/0/properties",
    "sys/devices/system/cpu/online",
    "sys/devices/system/node/node0/cpulist",
    "sys/devices/system/node/node0/meminfo",
    "sys/fs/cgroup/cgroup.controllers",
    "var/lib/inference-fleet/measurements.json",
    "usr/share/misc/pci.ids",
    "smi.xml",
    "smi.json",
]
LINES = """0A
|-- 1.2.3.4
/32 host LOCAL
vendor_id 4098
simd_count 4
location_id -1
[
{"kind": 1}
{"gpu_data": [{"vram": {"size": {"value": "N/A", "unit": "MB"}}}]}
<nvidia_smi_log><gpu id="x"></gpu>
kind: x
devices:
- name: a
DRIVER=amdgpu
PCI_ID=1002:73ff
cgroup / cgroup rw"""
WORDS = st.sampled_from([b"\n", b" ", b": ", *LINES.encode().splitlines()])
CONTENT = st.one_of(st.binary(max_size=60), st.lists(WORDS, max_size=20).map(b" ".join))


@settings(max_examples=150)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FILES, CONTENT)))
def test_no_content_of_any_file_raises(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for address, vendor in (("0000:01:00.0", "0x10de"), ("0000:02:00.0", "0x1002")):
            device = root / "sys/bus/pci/devices" / address
            device.mkdir(parents=True)
            (device / "vendor").write_text(vendor)
            (device / "class").write_text("0x030200")
            (device / "driver").symlink_to("../amdgpu")
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        options = {"nvidia_smi_xml": f"{root}/smi.xml", "amd_smi_json": f"{root}/smi.json"}
        facts = collect(Host(folder), **options)
        json.dumps(facts)
        assert facts["tier"] in ("cuda", "rocm", "vulkan", "cpu")


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (["usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so"], 257),
        (["lib/systemd/libsystemd-shared-249.so"], 249),
        (["usr/lib/systemd/libsystemd-shared-257-9.el10.so"], 257),
        (["usr/lib/systemd/libsystemd-core-257.so"], None),
        (["usr/lib/systemd/libsystemd-shared-255.so", "usr/lib/systemd/libsystemd-shared-257.so"], None),
    ],
)
def test_systemd_by_its_library(machine: Any, files: list[str], version: int | None) -> None:
    for file in files:
        machine.write(file, "")
    facts = machine.facts()
    assert facts["os"]["systemd_version"] == version
    # Where the file does not tell, systemctl would be asked, which a recorded tree does not have.
    assert facts["probes"]["systemd"]["status"] == ("absent" if version is None else "ok")
