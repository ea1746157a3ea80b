#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measure what the facts of an eight-GPU machine cost, and print it as a table.

The machine is made of files (its PCI bus, processors and memory) and of a stand-in libnvidia-ml.so.1 that the real
nvidia-ml-py talks to. The module runs as Ansible runs it, as an AnsiballZ program, and as a plain file; every row is
measured in turn, round after round, and compared with what ran beside it in the same round.

Needs the controller's Python environment (ansible-core, nvidia-ml-py) and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests/unit/hardware"), str(Path(__file__).parent)]

from document import nvidia_smi_document  # noqa: E402
from nvml_stand_in import MACHINE_VARIABLE, NoCompilerError, build, eight_h100, pci_files, write_machine  # noqa: E402

GOAL_MS, GOAL_RATIO, GOAL_MB = 60, 5, 40
# One warm GPU: pull request 10362 of netdata/netdata, 388 ms for `nvidia-smi -q -x`.
REAL_NVIDIA_SMI_SECONDS = 0.388
PROCESSORS = 208
OTHER_PCI_DEVICES = 200
OTHER_PACKAGES = 800
# The launcher is small, since a process takes its parent's size over until it has its own program.
LAUNCHER = """
import os, sys
child = os.fork()
if not child:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execvp(sys.argv[1], sys.argv[1:])
print(os.wait4(child, 0)[2].ru_maxrss)
"""
EMPTY_MODULE = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule


def main():
    AnsibleModule(argument_spec={}).exit_json(changed=False)


if __name__ == "__main__":
    main()
"""
# A recorded root is not live; here it is, with the stand-in as its library.
RECORDED = "live: Optional[bool] = None"
LIVE = "live: Optional[bool] = True"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=20, help="how often each row is measured (default: 20)")
    parser.add_argument(
        "--python",
        default=getattr(sys, "_base_executable", sys.executable),
        help="the node's interpreter; nvidia-ml-py must not be installed for it (default: this one's base)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the measured milliseconds to FILE")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def make_root(root: Path) -> None:
    """Write the files of the machine."""
    files, links = pci_files(eight_h100())
    for number in range(OTHER_PCI_DEVICES):
        address = f"0000:{0xE0 + number // 32:02x}:{number % 32:02x}.0"
        place = f"sys/devices/pci0000:e0/{address}"
        uevent = f"PCI_CLASS=60400\nPCI_ID=8086:352A\nPCI_SLOT_NAME={address}"
        values = {"vendor": "0x8086", "device": "0x352a", "class": "0x060400", "numa_node": "1", "uevent": uevent}
        files.update({f"{place}/{name}": f"{text}\n" for name, text in values.items()})
        links[f"sys/bus/pci/devices/{address}"] = f"../../../devices/pci0000:e0/{address}"
    flags = " ".join(["fpu", "sse4_2", "avx2", "avx512f", "amx_tile", *(f"flag{number}" for number in range(150))])
    files["proc/cpuinfo"] = "".join(
        f"processor\t: {number}\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\nphysical id\t: {number // 52 % 2}\n"
        f"core id\t\t: {number % 52}\nflags\t\t: {flags}\n\n"
        for number in range(PROCESSORS)
    )
    files["proc/meminfo"] = "MemTotal:       2113388544 kB\nMemAvailable:   2055208960 kB\n"
    for node, processors in enumerate(("0-51,104-155", "52-103,156-207")):
        folder = f"sys/devices/system/node/node{node}"
        files[f"{folder}/cpulist"] = f"{processors}\n"
        files[f"{folder}/distance"] = ("10 21\n", "21 10\n")[node]
        files[f"{folder}/meminfo"] = (
            f"Node {node} MemTotal:       1056694272 kB\nNode {node} MemFree:        1020000000 kB\n"
        )
    files["proc/driver/nvidia/version"] = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\n"
    )
    files["usr/lib/x86_64-linux-gnu/libnvidia-ml.so.570.124.06"] = ""
    files["usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so"] = ""
    packages = {f"package{number}": "1.0-1" for number in range(OTHER_PACKAGES)}
    packages |= {
        "docker-ce": "5:28.5.1-1~debian.13~trixie",
        "nvidia-container-toolkit-base": "1.17.8-1",
        "podman": "5.4.2-1",
    }
    files["var/lib/dpkg/status"] = "\n".join(
        f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nDescription: {'text ' * 200}\n"
        for name, version in sorted(packages.items())
    )
    files.update({"usr/bin/docker": "", "usr/bin/nvidia-ctk": "", "usr/bin/podman": ""})
    links["usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"] = "libnvidia-ml.so.570.124.06"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for path, target in links.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)


def copy_collection(folder: Path) -> Path:
    """Copy the collection and let a root of files count as a live machine; returns the collection's directory."""
    collection = folder / "ansible_collections/fleet/inference"
    shutil.copytree(PROJECT / "plugins", collection / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "meta", collection / "meta")
    shutil.copy(PROJECT / "galaxy.yml", collection)
    probe = collection / "plugins/module_utils/hardware/probe.py"
    text = probe.read_text()
    if text.count(RECORDED) != 1:
        raise SystemExit(f"{probe.name} has changed: `{RECORDED}` is not in it once.")
    probe.write_text(text.replace(RECORDED, LIVE))
    (collection / "plugins/modules/empty.py").write_text(EMPTY_MODULE)
    return collection


def ansiballz(collection: Path, module: str, arguments: dict[str, Any]) -> bytes:
    """Return the program that Ansible would send to the node."""
    from ansible import constants  # noqa: PLC0415
    from ansible.executor.module_common import modify_module  # noqa: PLC0415
    from ansible.parsing.dataloader import DataLoader  # noqa: PLC0415
    from ansible.template import Templar  # noqa: PLC0415

    built = modify_module(
        module_name=f"ansible_collections.fleet.inference.plugins.modules.{module}",
        module_path=str(collection / f"plugins/modules/{module}.py"),
        module_args=arguments,
        templar=Templar(loader=DataLoader()),
        task_vars={"ansible_python_interpreter": "/usr/bin/python3"},
        module_compression=constants.DEFAULT_MODULE_COMPRESSION,
    )
    return built.b_module_data


def carried_nvidia_ml_py() -> str | None:
    """Return what the action plugin sends along."""
    from ansible_collections.fleet.inference.plugins.plugin_utils.nvidia_ml_py import carried  # noqa: PLC0415

    return carried()


class Case:
    """One way to run one program, and what it printed and took."""

    def __init__(self, title: str, command: list[str], environment: dict[str, str]) -> None:
        self.title = title
        self.command = command
        self.environment = environment
        self.ms: list[float] = []

    def run(self) -> str:
        """Run it once and return what it printed."""
        done = subprocess.run(self.command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{self.title}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def measure(self) -> None:
        """Run it once and note the time."""
        started = time.perf_counter()
        self.run()
        self.ms.append((time.perf_counter() - started) * 1000)

    def facts(self) -> dict[str, Any]:
        """Run it once and return the facts."""
        return json.loads(self.run())["ansible_facts"]["gpu"]

    def peak_mb(self, python: str) -> float:
        """Return the largest resident size of the process and of each of its children, in MB."""
        launch = [python, "-S", "-E", "-c", LAUNCHER, *self.command]
        done = subprocess.run(launch, env=self.environment, capture_output=True, text=True, check=True)
        return int(done.stdout) * 1024 / 1e6


def beyond(case: Case, base: Case) -> float:
    """Return the median of what `case` took longer than `base` in the same round, in milliseconds."""
    return statistics.median(one - other for one, other in zip(case.ms, base.ms, strict=True))


def make_cases(folder: Path, python: str) -> dict[str, Case]:
    """Prepare everything in `folder` and return the rows of the table."""
    from ansible.plugins.loader import init_plugin_loader  # noqa: PLC0415

    library = build(PROJECT / ".cache")
    description = write_machine(folder / "machine", eight_h100())
    make_root(folder / "root")
    collection = copy_collection(folder / "collections")
    init_plugin_loader([str(folder / "collections")])
    import ansible  # noqa: PLC0415
    import pynvml  # noqa: PLC0415

    packages, found = folder / "packages", folder / "nvidia-ml-py"
    packages.mkdir()
    found.mkdir()
    (packages / "ansible").symlink_to(Path(ansible.__file__).parent)
    shutil.copy(str(pynvml.__file__), found / "pynvml.py")
    subprocess.run([python, "-m", "compileall", "-q", str(found), str(folder / "collections")], check=True)

    base = {key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "PATH", "TMPDIR")}
    base |= {"LD_LIBRARY_PATH": str(library.parent), MACHINE_VARIABLE: str(description)}
    with_ansible = base | {"PYTHONPATH": os.pathsep.join([str(packages), str(folder / "collections")])}

    def having(environment: dict[str, str]) -> dict[str, str]:
        paths = [str(found), environment.get("PYTHONPATH", "")]
        return environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def with_nvidia_smi(name: str, script: str) -> dict[str, str]:
        programs = folder / name
        programs.mkdir()
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "nvidia-smi").chmod(0o755)
        return base | {"PATH": f"{programs}{os.pathsep}{base['PATH']}"}

    options = {"root": str(folder / "root"), "storage_path": str(folder)}
    carrying = options | {"_pynvml": carried_nvidia_ml_py()}

    def program(name: str, module: str, arguments: dict[str, Any]) -> str:
        path = folder / f"AnsiballZ_{name}.py"
        path.write_bytes(ansiballz(collection, module, arguments))
        return str(path)

    def parameters(name: str, arguments: dict[str, Any]) -> str:
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
        return str(path)

    (folder / "document.xml").write_text(nvidia_smi_document(eight_h100()))
    # The second question is for what no document tells.
    answer = f'case "$*" in *-x*) cat {folder}/document.xml ;; *) exit 9 ;; esac'
    module = str(collection / "plugins/modules/gpu_facts.py")
    plain = program("plain", "gpu_facts", options)
    carries = program("carries", "gpu_facts", carrying)
    return {
        "python": Case("Python alone", [python, "-c", "pass"], base),
        "basic": Case(
            "Python and ansible.module_utils.basic", [python, "-c", "import ansible.module_utils.basic"], with_ansible
        ),
        "empty": Case("AnsiballZ: a module that does nothing", [python, program("empty", "empty", {})], base),
        "carried": Case("AnsiballZ: facts, nvidia-ml-py carried", [python, carries], base),
        "found": Case("AnsiballZ: facts, nvidia-ml-py found on the node", [python, plain], having(base)),
        "smi": Case(
            "AnsiballZ: facts, nvidia-smi -q -x without delay", [python, plain], with_nvidia_smi("fast", answer)
        ),
        "slow_smi": Case(
            f"AnsiballZ: facts, nvidia-smi -q -x after {REAL_NVIDIA_SMI_SECONDS * 1000:.0f} ms",
            [python, plain],
            with_nvidia_smi("slow", f"sleep {REAL_NVIDIA_SMI_SECONDS}\n{answer}"),
        ),
        "file_carried": Case(
            "plain file: facts, nvidia-ml-py carried", [python, module, parameters("carrying", carrying)], with_ansible
        ),
        "file_found": Case(
            "plain file: facts, nvidia-ml-py found",
            [python, module, parameters("plain", options)],
            having(with_ansible),
        ),
    }


def check(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    """Refuse to measure what does not give the right facts; returns the probes of each row."""
    probes = {}
    for name, source in (
        ("carried", "nvml"),
        ("found", "nvml"),
        ("file_carried", "nvml"),
        ("file_found", "nvml"),
        ("smi", "nvidia_smi"),
        ("slow_smi", "nvidia_smi"),
    ):
        facts = cases[name].facts()
        if facts["usable_count"] != len(facts["devices"]) or len(facts["devices"]) != len(eight_h100().gpus):
            raise SystemExit(f"{cases[name].title}: {facts['usable_count']} GPUs are usable: {facts['errors']}")
        if facts["probes"][source]["status"] != "ok":
            raise SystemExit(f"{cases[name].title}: {source} did not answer: {facts['probes'][source]}")
        probes[name] = facts["probes"]
    return probes


def report(cases: dict[str, Case], probes: dict[str, dict[str, Any]], peaks: dict[str, float]) -> None:
    """Print the table and how the goals are met."""
    bases = dict.fromkeys(("carried", "found", "smi", "slow_smi"), "empty")
    bases |= dict.fromkeys(("file_carried", "file_found"), "basic")
    work = {name: beyond(cases[name], cases[base]) for name, base in bases.items()}
    print(f"{'':52}{'median':>9}{'fastest':>9}{'own work':>12}{'of fastest':>12}")
    for name, case in cases.items():
        own = f"{work[name]:>12.1f}{min(case.ms) - min(cases[bases[name]].ms):>12.1f}" if name in work else ""
        print(f"{case.title:52}{statistics.median(case.ms):>9.1f}{min(case.ms):>9.1f}{own}")
    print(
        "\nMilliseconds. Own work is what a run took longer than, in the same round, the module that does nothing"
        "\n(AnsiballZ) or Python with the imports of every module (plain file): the median, and of the fastest runs."
    )
    print(f"\nGoals\n  own work under {GOAL_MS} ms, as Ansible runs it: {_verdict(work['carried'] < GOAL_MS)}")
    print(f"    {work['carried']:.1f} ms with nvidia-ml-py carried, {work['found']:.1f} ms with it found")
    print(f"    {beyond(cases['carried'], cases['python']):.1f} ms beyond Python alone, all of Ansible's own included")
    print(
        f"    {work['file_carried']:.1f} ms with byte code; the rest compiles the module's sources, as for every module"
    )
    took = sorted(((probe["ms"], source) for source, probe in probes["carried"].items()), reverse=True)
    sources = ", ".join(f"{source} {ms}" for ms, source in took if ms)
    print(f"    what took longest, partly at the same time: {sources} ms")
    ratios = {name: work[name] / work["carried"] for name in ("smi", "slow_smi")}
    print(f"  {GOAL_RATIO} times faster than through nvidia-smi -q -x: {_verdict(ratios['slow_smi'] >= GOAL_RATIO)}")
    print(f"    {ratios['slow_smi']:.1f} times, if nvidia-smi takes as long for eight GPUs as measured for one")
    print(f"    {ratios['smi']:.1f} times, if it took no time at all: starting it and reading the document alone")
    nvml = probes["carried"]["nvml"]["ms"]
    asked = [probes[name]["nvidia_smi"]["ms"] for name in ("smi", "slow_smi")]
    print(f"    the sources alone: NVML {nvml} ms, nvidia-smi {asked[0]} ms and, with the delay, {asked[1]} ms")
    print(f"  memory under {GOAL_MB} MB: {_verdict(max(peaks.values()) < GOAL_MB)}")
    for name, peak in peaks.items():
        print(f"    {peak:.1f} MB, {cases[name].title}")


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    seen = subprocess.run(
        [arguments.python, "-c", "import importlib.util; print(importlib.util.find_spec('pynvml') is None)"],
        capture_output=True,
        text=True,
        check=True,
    )
    if seen.stdout.strip() != "True":
        raise SystemExit(f"nvidia-ml-py is installed for {arguments.python}; choose another interpreter with --python.")
    with tempfile.TemporaryDirectory(prefix="facts-") as name:
        try:
            cases = make_cases(Path(name), arguments.python)
        except NoCompilerError as problem:
            raise SystemExit(str(problem)) from problem
        probes = check(cases)
        for _ in range(arguments.rounds):
            for case in cases.values():
                case.measure()
        peaks = {row: cases[row].peak_mb(arguments.python) for row in ("empty", "carried", "found", "smi")}
        print(f"{arguments.rounds} rounds, {arguments.python}, {os.cpu_count()} processors\n")
        report(cases, probes, peaks)
        if arguments.json:
            arguments.json.write_text(json.dumps({row: case.ms for row, case in cases.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
