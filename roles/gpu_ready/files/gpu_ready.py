#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Whether this node's GPUs can be used, and their settings; standard library only, Python 3.8 or later.

`gpu-ready check` waits until everything is as the configuration says, mends what it can (loads modules, makes device
nodes, renews the CDI specification), writes a report, and ends with 0, or with 1 and a sentence for each problem.
`gpu-ready settings` applies the MIG layouts and power limits, which a GPU forgets when the machine restarts.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

CONFIGURATION = "/etc/inference-fleet/gpu-ready.json"
REPORT = "/run/inference-fleet/gpu-ready.json"
# A driver that hangs keeps its programs for ever, and a killed one may not end; nobody waits for either.
COMMAND_SECONDS = 30.0
PAUSE_SECONDS = 2.0
# nvidia-smi rounds the limit to hundredths of a watt, and some boards to whole ones.
WATTS_TOLERANCE = 1.0
CDI_FOLDERS = ("etc/cdi", "var/run/cdi")
CDI_OUTPUT = "/var/run/cdi/nvidia.yaml"
CDI_ENVIRONMENT = "etc/nvidia-container-toolkit/nvidia-cdi-refresh.env"
QUERY = "pci.bus_id,uuid,power.limit,mig.mode.current,mig.mode.pending"
# The version of the driver's libraries that a CDI specification mounts: libcuda.so.580.95.05.
LIBRARY = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.([0-9]{3,4}(?:\.[0-9]+)+)\b")
MIG_DEVICE = re.compile(r"^[ \t]+MIG (\S+)\s+Device\s+[0-9]+:\s+\(UUID: ([^)]+)\)", re.MULTILINE)
PROFILE_SIZE = re.compile(r"([0-9]+)g\.([0-9]+)gb")


class Row(NamedTuple):
    """What nvidia-smi says of a GPU; `address` as it prints it, `instances` are (profile, UUID)."""

    address: str
    uuid: str
    power_limit_watts: Optional[float]
    mig: Optional[bool]
    mig_pending: Optional[bool]
    instances: List[Tuple[str, str]]


class Node:
    """The machine: files below `root`, and programs."""

    def __init__(self, root: str, deadline: float) -> None:
        self.root = Path(root)
        self.deadline = deadline

    def path(self, *parts: str) -> Path:
        """Return where a path of the machine lies."""
        return self.root.joinpath(*(part.lstrip("/") for part in parts))

    def text(self, *parts: str) -> str:
        """Return a file's text, empty when it cannot be read."""
        try:
            return self.path(*parts).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def link(self, *parts: str) -> str:
        """Return the name that a link leads to, empty when it is none."""
        try:
            return os.path.basename(os.readlink(self.path(*parts)))  # noqa: PTH115, PTH119
        except OSError:
            return ""

    def run(self, *argv: str, environment: Optional[Dict[str, str]] = None) -> Tuple[int, str]:
        """Run a program; returns its status (127: not installed, 124: no answer in time) and all that it printed."""
        program = shutil.which(argv[0])
        if program is None:
            return 127, f"{argv[0]} is not installed"
        seconds = max(1.0, min(COMMAND_SECONDS, self.deadline - time.monotonic()))
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
        try:
            output = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            return 124, f"{argv[0]} gave no answer within {seconds:.0f} s"
        return process.returncode, output.decode("utf-8", "replace")


def first_line(text: str) -> str:
    """Return the first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no output")


def number(text: str) -> Optional[float]:
    """Return the number in a field, None for [N/A] and other words."""
    try:
        return float(text)
    except ValueError:
        return None


def switched(text: str) -> Optional[bool]:
    """Return Enabled and Disabled as yes and no, None for [N/A]."""
    return {"Enabled": True, "Disabled": False}.get(text)


def address_of(text: str) -> str:
    """Return a PCI address as the kernel writes it; nvidia-smi's domain has eight upper-case digits."""
    domain, _, rest = text.strip().lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if re.fullmatch(r"[0-9a-f]{4,8}", domain) else text


def ask_nvidia_smi(node: Node) -> Tuple[Dict[str, Row], str]:
    """Return what nvidia-smi lists by PCI address, and why it lists nothing."""
    status, output = node.run("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
    if status != 0:
        return {}, first_line(output)
    rows: Dict[str, Row] = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(QUERY.split(",")):
            mig = switched(fields[3])
            rows[address_of(fields[0])] = Row(fields[0], fields[1], number(fields[2]), mig, switched(fields[4]), [])
    if any(row.mig for row in rows.values()):
        listing = node.run("nvidia-smi", "-L")[1]
        for block in re.split(r"^(?=GPU )", listing, flags=re.MULTILINE):
            found = re.search(r"\(UUID: (GPU-[^)]+)\)", block)
            for row in rows.values():
                if found and row.uuid == found.group(1):
                    row.instances.extend(MIG_DEVICE.findall(block))
    return rows, "" if rows else "nvidia-smi lists no GPU"


# -- settings ----------------------------------------------------------------------------------------------------------


def apply_settings(node: Node, configuration: Dict[str, Any]) -> List[str]:
    """Give each NVIDIA GPU its MIG layout and power limit; returns what could not be done."""
    wanted = [gpu for gpu in configuration["gpus"] if gpu["vendor"] == "nvidia"]
    wanted = [gpu for gpu in wanted if gpu["mig"] is not None or gpu["power_limit_watts"] is not None]
    if not wanted:
        return []
    load_nvidia(node, configuration["gpus"])
    rows, reason = ask_nvidia_smi(node)
    if reason:
        return [f"the settings of the GPUs cannot be applied: {reason}"]
    problems = []
    for gpu in wanted:
        row = rows.get(gpu["pci_bus_id"])
        if row is None:
            problems.append(f"GPU {gpu['pci_bus_id']} is not listed by nvidia-smi, so it keeps its settings")
            continue
        problems += apply_power(node, gpu, row) + apply_mig(node, gpu, row)
    return problems


def apply_power(node: Node, gpu: Dict[str, Any], row: Row) -> List[str]:
    """Set the power limit if it is another."""
    watts = gpu["power_limit_watts"]
    if watts is None or power_agrees(gpu, row):
        return []
    status, output = node.run("nvidia-smi", "-i", row.address, "-pl", f"{watts:g}")
    if status != 0:
        return [f"GPU {gpu['pci_bus_id']}: the power limit of {watts:g} W is refused: {first_line(output)}"]
    return []


def power_agrees(gpu: Dict[str, Any], row: Row) -> bool:
    """Say whether the limit in force is the wanted one."""
    watts = gpu["power_limit_watts"]
    if watts is None:
        return True
    return row.power_limit_watts is not None and abs(row.power_limit_watts - watts) < WATTS_TOLERANCE


def mig_agrees(gpu: Dict[str, Any], row: Row) -> bool:
    """Say whether the GPU is divided as wanted."""
    wanted = gpu["mig"]
    if wanted is None:
        return True
    if not wanted:
        return not row.mig
    return bool(row.mig) and sorted(profile for profile, _ in row.instances) == sorted(wanted)


def apply_mig(node: Node, gpu: Dict[str, Any], row: Row) -> List[str]:
    """Divide the GPU as wanted. The mode survives a restart on some generations, the instances on none."""
    wanted = gpu["mig"]
    if mig_agrees(gpu, row):
        return []
    name = f"GPU {gpu['pci_bus_id']}"
    if row.mig is None:
        return [f"{name} has no MIG; take it out of nvidia_driver_mig"]
    if row.instances:
        for arguments in (("mig", "-dci"), ("mig", "-dgi")):
            status, output = node.run("nvidia-smi", *arguments, "-i", row.address)
            if status != 0:
                return [f"{name}: its MIG instances cannot be removed ({first_line(output)}); stop what uses them"]
    if row.mig is not bool(wanted):
        status, output = node.run("nvidia-smi", "-i", row.address, "-mig", "1" if wanted else "0")
        now = ask_nvidia_smi(node)[0].get(gpu["pci_bus_id"])
        if status != 0 or now is None:
            return [f"{name}: MIG cannot be switched: {first_line(output)}"]
        if now.mig is not bool(wanted):
            return [f"{name}: MIG is switched at the next reset of the GPU; restart the node"]
    if not wanted:
        return []
    # The largest first: smaller ones leave no gap that it fits into.
    profiles = sorted(wanted, key=profile_size, reverse=True)
    status, output = node.run("nvidia-smi", "mig", "-cgi", ",".join(profiles), "-C", "-i", row.address)
    if status != 0:
        return [f"{name}: the MIG layout {', '.join(profiles)} is refused: {first_line(output)}"]
    return []


def profile_size(profile: str) -> Tuple[int, int]:
    """Return slices and gigabytes of a profile, 3g.40gb."""
    match = PROFILE_SIZE.search(profile)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


# -- readiness ---------------------------------------------------------------------------------------------------------


def load_nvidia(node: Node, gpus: List[Dict[str, Any]]) -> None:
    """Load NVIDIA's modules and make their device nodes, which nothing else does before the first CUDA program."""
    minors = [
        minor for minor in (minor_of(node, gpu["pci_bus_id"]) for gpu in gpus if gpu["vendor"] == "nvidia") if minor
    ]
    missing = [name for name in ("nvidia", "nvidia_uvm") if not node.path("sys/module", name).exists()]
    nodes = ["dev/nvidiactl", "dev/nvidia-uvm", *(f"dev/nvidia{minor}" for minor in minors)]
    if not missing and all(node.path(name).exists() for name in nodes):
        return
    if shutil.which("nvidia-modprobe"):
        # `-c` makes nodes of the GPUs, `-u` loads nvidia-uvm and, with `-c 0`, makes its nodes: nvidia-modprobe(1).
        node.run("nvidia-modprobe", *(word for minor in minors or ["0"] for word in ("-c", minor)))
        node.run("nvidia-modprobe", "-u", "-c", "0")
        return
    for name in missing:
        node.run("modprobe", name.replace("_", "-"))


def minor_of(node: Node, address: str) -> Optional[str]:
    """Return the number in the name of the GPU's device node."""
    match = re.search(
        r"^Device Minor:\s*([0-9]+)", node.text("proc/driver/nvidia/gpus", address, "information"), re.MULTILINE
    )
    return match.group(1) if match else None


def bus_problem(node: Node, gpu: Dict[str, Any], driver: str) -> Optional[str]:
    """Say what keeps the GPU from being the driver's."""
    address = gpu["pci_bus_id"]
    folder = f"sys/bus/pci/devices/{address}"
    if not node.path(folder).exists():
        return (
            f"GPU {address} is not on the PCI bus; look at the kernel's log and the card, or set gpu_ready_expected to "
            "the addresses that are there"
        )
    bound = node.link(folder, "driver")
    if bound != driver:
        what = f"bound to {bound}" if bound else "bound to no driver"
        return f"GPU {address} is {what} instead of {driver}; see `journalctl -k -g {driver}` on the node"
    return None


def nvidia_problems(node: Node, configuration: Dict[str, Any]) -> List[str]:
    """Return what NVIDIA's GPUs lack."""
    gpus = [gpu for gpu in configuration["gpus"] if gpu["vendor"] == "nvidia"]
    if not gpus:
        return []
    load_nvidia(node, gpus)
    problems = []
    for name in ("nvidia", "nvidia_uvm"):
        if not node.path("sys/module", name).exists():
            problems.append(f"the kernel module {name} is not loaded; see `journalctl -k -g nvidia` on the node")
    problems += filter(None, (bus_problem(node, gpu, "nvidia") for gpu in gpus))
    if problems:
        return problems
    nodes = ["nvidiactl", "nvidia-uvm", *(f"nvidia{minor_of(node, gpu['pci_bus_id']) or '?'}" for gpu in gpus)]
    problems += [f"the device node /dev/{name} is not there" for name in nodes if not node.path("dev", name).exists()]
    rows, reason = ask_nvidia_smi(node)
    if reason:
        return [*problems, f"the driver does not answer: {reason}"]
    for gpu in gpus:
        row = rows.get(gpu["pci_bus_id"])
        problems += [f"GPU {gpu['pci_bus_id']} is not listed by nvidia-smi"] if row is None else listed(gpu, row)
    if configuration["fabric"]:
        problems += fabric_problems(node, gpus)
    return problems or cdi_problems(node, list(rows.values()))


def listed(gpu: Dict[str, Any], row: Row) -> List[str]:
    """Return how a GPU that answers differs from what is wanted of it."""
    name = f"GPU {gpu['pci_bus_id']}"
    problems = []
    if not power_agrees(gpu, row):
        now = "unknown" if row.power_limit_watts is None else f"{row.power_limit_watts:g} W"
        problems.append(f"{name} has the power limit {now} instead of {gpu['power_limit_watts']:g} W")
    if not mig_agrees(gpu, row):
        now = ", ".join(sorted(profile for profile, _ in row.instances)) or ("no instance" if row.mig else "MIG off")
        problems.append(f"{name} has the MIG layout {now} instead of {', '.join(sorted(gpu['mig'])) or 'MIG off'}")
    return problems


def fabric_problems(node: Node, gpus: List[Dict[str, Any]]) -> List[str]:
    """Return the GPUs that Fabric Manager has not joined to the NVSwitch fabric: CUDA fails on them with error 802."""
    status, output = node.run("nvidia-smi", "--query-gpu=pci.bus_id,fabric.state", "--format=csv,noheader")
    if status != 0:
        # Drivers before 535 have no such field.
        return []
    states = {}
    for line in output.splitlines():
        address, _, state = line.partition(",")
        states[address_of(address)] = state.strip()
    return [
        f"GPU {gpu['pci_bus_id']} has not joined the NVSwitch fabric ({states[gpu['pci_bus_id']]}); see "
        "`systemctl status nvidia-fabricmanager` on the node"
        for gpu in gpus
        if states.get(gpu["pci_bus_id"], "Completed") not in ("Completed", "[N/A]", "N/A")
    ]


def cdi_problems(node: Node, rows: List[Row]) -> List[str]:
    """Return what is wrong with NVIDIA's CDI specification, after it was made anew if it is stale.

    The toolkit's own nvidia-cdi-refresh.service can't do this: it runs after multi-user.target, which services that
    want this program come before, and not at all for Debian's open modules (it looks for nvidia.ko and
    nvidia-current.ko), nor after a change of the MIG layout.
    """
    problem = cdi_problem(node, rows)
    if problem is None or shutil.which("nvidia-ctk") is None:
        return [problem] if problem else []
    environment = dict(
        line.split("=", 1) for line in node.text(CDI_ENVIRONMENT).splitlines() if re.match(r"[A-Z_]+=", line)
    )
    output = node.path(environment.get("NVIDIA_CTK_CDI_OUTPUT_FILE_PATH") or CDI_OUTPUT)
    output.parent.mkdir(parents=True, exist_ok=True)
    status, text = node.run("nvidia-ctk", "cdi", "generate", f"--output={output}", environment=environment)
    if status != 0:
        return [f"{problem}, and nvidia-ctk cannot make it anew: {first_line(text)}"]
    problem = cdi_problem(node, rows)
    return [problem] if problem else []


def cdi_problem(node: Node, rows: List[Row]) -> Optional[str]:
    """Say in which way the CDI specifications differ from the driver and its GPUs."""
    effective: Dict[str, Tuple[str, str]] = {}
    for folder in CDI_FOLDERS:
        place = node.path(folder)
        for file in sorted(place.iterdir()) if place.is_dir() else []:
            text = node.text(folder, file.name)
            if file.suffix in (".json", ".yaml", ".yml") and re.search(r"\bkind\"?:\s*[\"']?nvidia\.com/gpu\b", text):
                for name in re.findall(r"\bname\"?:\s*[\"']?([^\s\"',}]+)", text):
                    # Of two specifications of one device that of the later folder counts.
                    effective[name] = (f"/{folder}/{file.name}", text)
    if not effective:
        return "there is no CDI specification of the GPUs" if shutil.which("nvidia-ctk") else None
    loaded = node.text("sys/module/nvidia/version")
    for path, text in dict.fromkeys(effective.values()):
        version = LIBRARY.search(text)
        if version and loaded and version.group(1) != loaded:
            return f"{path} is for the driver {version.group(1)}, and {loaded} is loaded"
        for device in re.findall(r"\bpath\"?:\s*[\"']?(/dev/[^\s\"',}]+)", text):
            if not node.path(device).exists():
                return f"{path} names {device}, which is not there"
    names = set(effective)
    uuids = [uuid for row in rows for uuid in ([u for _, u in row.instances] if row.mig else [row.uuid])]
    # nvidia-ctk can be told to name devices by index alone.
    if any(name.startswith(("GPU-", "MIG-")) for name in names):
        for uuid in uuids:
            if uuid not in names:
                return f"the CDI specification has no device {uuid}"
    return None


def amd_problems(node: Node, configuration: Dict[str, Any]) -> List[str]:
    """Return what AMD's GPUs lack."""
    gpus = [gpu for gpu in configuration["gpus"] if gpu["vendor"] == "amd"]
    if not gpus:
        return []
    if not node.path("sys/module/amdgpu").exists():
        node.run("modprobe", "amdgpu")
    problems = []
    for gpu in gpus:
        address = gpu["pci_bus_id"]
        problem = bus_problem(node, gpu, "amdgpu")
        if problem is not None:
            problems.append(problem)
            continue
        folder = node.path("sys/bus/pci/devices", address, "drm")
        names = sorted(path.name for path in folder.glob("renderD*"))
        if not names:
            problems.append(f"GPU {address} has no render node; see `journalctl -k -g amdgpu` on the node")
        elif not node.path("dev/dri", names[0]).exists():
            problems.append(f"the device node /dev/dri/{names[0]} is not there")
    if not node.path("dev/kfd").exists():
        problems.append("the device node /dev/kfd is not there, without which ROCm can't run")
    return problems


def check(node: Node, configuration: Dict[str, Any], clock: Any = time) -> List[str]:
    """Look until nothing is missing or the deadline is over; returns what is missing then."""
    while True:
        problems = nvidia_problems(node, configuration) + amd_problems(node, configuration)
        if not problems or clock.monotonic() + PAUSE_SECONDS >= node.deadline:
            return problems
        clock.sleep(PAUSE_SECONDS)


def write_report(path: str, problems: List[str], **told: Any) -> None:
    """Write the report in one step, so that nobody reads half of it."""
    report = {"ready": not problems, "problems": problems, **told}
    place = Path(path)
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.new")
    new.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    new.chmod(0o644)
    new.replace(place)


def main(arguments: List[str]) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="Whether this node's GPUs can be used, and their settings.")
    parser.add_argument("action", choices=["check", "settings"])
    parser.add_argument("--configuration", default=CONFIGURATION, help="the configuration (default: %(default)s)")
    parser.add_argument("--report", default=REPORT, help="where check writes its report (default: %(default)s)")
    parser.add_argument("--root", default="/", help="the folder that /sys, /proc, /dev and CDI are looked for in")
    options = parser.parse_args(arguments)
    try:
        content = Path(options.configuration).read_bytes()
        configuration = json.loads(content.decode("utf-8"))
        seconds = float(configuration["deadline_seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{options.configuration} cannot be used ({error}); run the role gpu_ready again", file=sys.stderr)
        return 1
    node = Node(options.root, time.monotonic() + seconds)
    if options.action == "settings":
        problems = apply_settings(node, configuration)
    else:
        problems = check(node, configuration)
        write_report(
            options.report,
            problems,
            configuration_sha256=hashlib.sha256(content).hexdigest(),
            boot_id=Node("/", 0).text("proc/sys/kernel/random/boot_id"),
            expected=configuration["gpus"],
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
