# SPDX-License-Identifier: Apache-2.0
"""How a recording reaches the facts: as an option, or as the tree of files that such a machine would show.

Each adapter takes an empty machine, the folder of recordings and the row, and returns the options of `facts`.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import nvml_stand_in
import yaml

from .expected import Row

NODES = "sys/class/kfd/kfd/topology/nodes"
# NVML's numbers of architectures.
ARCHITECTURES = {"turing": 6, "ampere": 7, "ada": 8, "hopper": 9, "blackwell": 10}
# What NVML calls the far end of a link to a Power CPU.
PEER_NPU = 1
Options = dict[str, Any]

# The product's PCI ids, for what a detector or a table prints the name of only.
DEVICE_IDS = {
    "NVIDIA H100 80GB HBM3": "2330",
    "NVIDIA H200": "2335",
    "NVIDIA GeForce RTX 4080 SUPER": "2702",
    "NVIDIA GeForce RTX 4090": "2684",
    "NVIDIA GeForce RTX 4090 D": "2685",
    "NVIDIA GeForce RTX 5090 D": "2b87",
    "NVIDIA GB10": "2e12",
    "AMD Instinct MI300X OAM": "74a1",
    "AMD Instinct MI308X OAM": "74a2",
    "AMD Radeon RX 7800 XT": "747e",
}


# Outputs of nvidia-smi


def smi_document(_machine: Any, folder: Path, row: Row) -> Options:
    """An XML document or the text of `nvidia-smi -q`, as it is."""
    return {"nvidia_smi_xml": str(folder / row.path)}


def smi_capture(machine: Any, folder: Path, row: Row) -> Options:
    """The text of `nvidia-smi -q` out of a capture, taken while the GPU was idle."""
    text = (folder / row.path).read_text(errors="replace")
    section = text.split("# idle :: query (-q)\n", 1)[1].split("\n# idle :: ", 1)[0]
    return {"nvidia_smi_xml": str(machine.write("capture.txt", "\n".join(section.splitlines()[2:-1])))}


def _element(tag: str, *content: str | None) -> str:
    return f"<{tag}>{''.join(part or '' for part in content)}</{tag}>"


def _gpu_element(bus: str, **values: Any) -> str:
    """One GPU as nvidia-smi writes it; what is None is N/A."""

    def text(tag: str, key: str, unit: str = "") -> str:
        value = values.get(key)
        return _element(tag, "N/A" if value is None else escape(str(value)) + unit)

    memory = values.get("memory")
    sizes = [_element(tag, size) for tag, size in memory.items()] if memory else []
    instances = "".join(_instance_element(index, **found) for index, found in enumerate(values.get("instances", ())))
    fabric = values.get("fabric")
    return (
        f'<gpu id="{bus}">'
        + text("product_name", "name")
        + text("product_architecture", "architecture")
        + text("persistence_mode", "persistence")
        + text("addressing_mode", "addressing")
        + _element("mig_mode", text("current_mig", "mig"), text("pending_mig", "mig"))
        + (_element("mig_devices", instances) if instances else _element("mig_devices", "None"))
        + text("uuid", "uuid")
        + text("minor_number", "minor")
        + _element(
            "pci",
            _element("pci_bus_id", bus),
            text("pci_device_id", "device"),
            text("pci_sub_system_id", "subsystem"),
            _element("pci_gpu_link_info", values.get("link", "")),
        )
        + _element("fb_memory_usage", *sizes)
        + _element("bar1_memory_usage", text("total", "bar", " MiB"))
        + _element("gpu_virtualization_mode", text("virtualization_mode", "virtualization"))
        + _element("ecc_mode", text("current_ecc", "ecc"), text("pending_ecc", "ecc"))
        + _element("fabric", *(_element(tag, value) for tag, value in fabric.items()) if fabric else ())
        + _element(
            "gpu_power_readings",
            *(_element(f"{name}_power_limit", watts) for name, watts in (values.get("power") or {}).items()),
        )
        + "</gpu>"
    )


def _instance_element(index: int, group: int, compute: int, mib: int, processors: int) -> str:
    return _element(
        "mig_device",
        _element("index", str(index)),
        _element("gpu_instance_id", str(group)),
        _element("compute_instance_id", str(compute)),
        _element("device_attributes", _element("shared", _element("multiprocessor_count", str(processors)))),
        _element("fb_memory_usage", _element("total", f"{mib} MiB")),
    )


def _document(machine: Any, version: str | None, cuda: str | None, gpus: list[str]) -> Options:
    body = (
        '<?xml version="1.0" ?><nvidia_smi_log>'
        + _element("driver_version", version or "N/A")
        + _element("cuda_version", cuda or "N/A")
        + _element("attached_gpus", str(len(gpus)))
        + "".join(gpus)
        + "</nvidia_smi_log>"
    )
    return {"nvidia_smi_xml": str(machine.write("smi.xml", body))}


NOT_SUPPORTED = {"total": "Not Supported", "used": "Not Supported", "free": "Not Supported"}
_TABLE_GPU = re.compile(r"^\|\s+\d+\s{2}(\S.*?)\s{2,}(On|Off|N/A)\s+\|\s+(\S+)", re.MULTILINE)


def smi_table(machine: Any, folder: Path, row: Row) -> Options:
    """nvidia-smi's table, its CSV or NVML's own words of a GPU without memory of its own, as the XML that says so."""
    text = (folder / row.path).read_text()
    assert re.search(r"Not Supported|\[N/A\]|NOT_SUPPORTED", text)
    memory = re.search(r"MemTotal:\s+(\d+) kB", text)
    if memory:
        machine.write("proc/meminfo", f"MemTotal: {memory[1]} kB\nMemAvailable: {memory[1]} kB\n")
    version = re.search(r"(?:Driver Version|driver *): *(\S+)", text)
    cuda = re.search(r"CUDA Version: (\S+)", text)
    gpu = _TABLE_GPU.search(text)
    name, persistence, bus = gpu.groups() if gpu else ("NVIDIA GB10", "N/A", "N/A")
    modes = {"On": "Enabled", "Off": "Disabled", "N/A": None}
    element = _gpu_element(bus, name=name, persistence=modes[persistence], memory=NOT_SUPPORTED)
    return _document(machine, version[1] if version else None, cuda[1] if cuda else None, [element])


def gb10_root(machine: Any, folder: Path, row: Row) -> Options:
    """The recorded root of a GB10, and the document that its nvidia-smi would print."""
    with tarfile.open(folder / row.path) as archive:
        for member in archive.getmembers():
            if member.isfile() and (content := archive.extractfile(member)):
                path = member.name.partition("/")[2]
                machine.write(path, content.read().decode("utf-8", "replace"))
    gpu = _gpu_element("0000000F:01:00.0", name="NVIDIA GB10", persistence="Enabled", memory=NOT_SUPPORTED)
    return _document(machine, "580.126.09", "13.0", [gpu])


def proc_information(machine: Any, folder: Path, row: Row) -> Options:
    """What the kernel module says of a GPU, at its place."""
    text = (folder / row.path).read_text()
    place = re.search(r"Bus Location:\s+(\S+)", text)
    assert place
    machine.write(f"proc/driver/nvidia/gpus/{place[1]}/information", text)
    return {}


# Trees


def sysfs_tree(machine: Any, folder: Path, row: Row) -> Options:
    """Cards below sys/class/drm and kfd's topology, without the PCI bus."""
    for place in (folder / row.path).iterdir():
        if place.name.startswith("card"):
            machine.link(f"sys/class/drm/{place.name}", str(place))
        elif place.name == "kfd":
            machine.link("sys/class/kfd/kfd", str(place))
    return {}


def kfd_tree(machine: Any, folder: Path, row: Row) -> Options:
    """kfd's topology alone."""
    machine.link("sys/class/kfd/kfd", str(folder / row.path / "kfd"))
    return {}


class Bus:
    """A PCI bus that is written device by device, as sysfs has it: real folders under sys/devices, links elsewhere."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine

    def add(self, bus: str, parent: str | None = None, driver: str | None = None, **attributes: Any) -> str:
        """Add a device below the folder `parent`, or below a host bridge of its own, and return its folder."""
        folder = f"{parent or 'sys/devices/pci' + bus[:7]}/{bus}"
        for name, value in attributes.items():
            if value is not None:
                self.machine.write(f"{folder}/{name}", f"{value}\n")
        if driver:
            (self.machine.root / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True, exist_ok=True)
            self.machine.link(f"{folder}/driver", str(self.machine.root / f"sys/bus/pci/drivers/{driver}"))
        self.machine.link(f"sys/bus/pci/devices/{bus}", str(self.machine.root / folder))
        return folder


def _properties(machine: Any, path: str, **values: Any) -> None:
    machine.write(f"{path}/properties", "".join(f"{key} {value}\n" for key, value in values.items()))


def _kfd_cpu(machine: Any, number: int) -> None:
    _properties(machine, f"{NODES}/{number}", cpu_cores_count=32, simd_count=0, gfx_target_version=0, location_id=0)


def _kfd_gpu(
    machine: Any,
    number: int,
    bus: str,
    target: int,
    units: int,
    *,
    unique: int,
    memory: int = 0,
    cpu: int = 0,
    device: int = 0,
    render: int = 0,
    peers: tuple[int, ...] = (),
) -> None:
    domain, where, rest = bus.split(":")
    slot, function = rest.split(".")
    folder = f"{NODES}/{number}"
    _properties(
        machine,
        folder,
        cpu_cores_count=0,
        simd_count=units * 4,
        simd_per_cu=4,
        num_xcc=1,
        gfx_target_version=target,
        vendor_id=0x1002,
        device_id=device,
        location_id=int(where, 16) << 8 | int(slot, 16) << 3 | int(function),
        domain=int(domain, 16),
        drm_render_minor=render or 126 + number,
        hive_id=0,
        unique_id=unique,
    )
    if memory:
        _properties(machine, f"{folder}/mem_banks/0", heap_type=1, size_in_bytes=memory)
    links = [(2, cpu, 20), *((11, peer, 15) for peer in peers)]
    for index, (kind, peer, weight) in enumerate(links):
        _properties(machine, f"{folder}/io_links/{index}", type=kind, node_from=number, node_to=peer, weight=weight)


def _target(name: str) -> int:
    """Return kfd's number of a gfx target: gfx90a is 90010."""
    digits = name.removeprefix("gfx")
    return int(digits[:-2]) * 10000 + int(digits[-2], 16) * 100 + int(digits[-1], 16)


def _cpulist(mask: str) -> str:
    """Return a mask of CPUs (words of 32 bits, highest first) as a list of ranges."""
    bits = 0
    for word in mask.split(","):
        bits = bits << 32 | int(word or "0", 16)
    there = [index for index in range(bits.bit_length()) if bits >> index & 1]
    ranges: list[list[int]] = []
    for index in there:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def rccl_topology(machine: Any, folder: Path, row: Row) -> Options:
    """RCCL's topology as the PCI tree and the kfd topology that it was made from."""
    root = ElementTree.parse(folder / row.path).getroot()
    bus = Bus(machine)
    gpus: list[tuple[str, ElementTree.Element, int, int]] = []

    def descend(element: ElementTree.Element, parent: str | None, node: int, cpus: str) -> None:
        for child in element.findall("pci"):
            place, gpu = child.attrib["busid"], child.find("gpu")
            found = bus.add(
                place,
                parent,
                "amdgpu" if gpu is not None else None,
                vendor=child.get("vendor", "0x1002" if gpu is not None else "0x1000"),
                device=child.get("device"),
                **{"class": child.attrib["class"]},
                numa_node=node,
                local_cpulist=cpus,
                max_link_speed=child.get("link_speed"),
                max_link_width=child.get("link_width"),
            )
            if gpu is not None:
                gpus.append((place, gpu, node, int(child.get("device", "0"), 16)))
            descend(child, found, node, cpus)

    for cpu in root.findall("cpu"):
        node = int(cpu.attrib["numaid"])
        _kfd_cpu(machine, node)
        descend(cpu, None, node, _cpulist(cpu.attrib["affinity"]))
    first = max(int(cpu.attrib["numaid"]) for cpu in root.findall("cpu")) + 1
    numbers = {place: first + index for index, (place, _, _, _) in enumerate(gpus)}
    targets = {"906": "gfx906", "908": "gfx908", "910": "gfx90a", "940": "gfx940"}
    for place, gpu, node, device in gpus:
        gcn = gpu.attrib["gcn"]
        _kfd_gpu(
            machine,
            numbers[place],
            place,
            _target(targets.get(gcn, gcn)),
            int(gpu.attrib["sm"]),
            unique=0x100 + numbers[place],
            cpu=node,
            device=device,
            peers=tuple(numbers[link.attrib["target"]] for link in gpu.findall("xgmi")),
        )
    return {}


def hwloc(machine: Any, folder: Path, row: Row) -> Options:
    """hwloc's topology as the PCI bus and the NUMA nodes; what it had from NVML and CUDA, as NVML's answers."""
    root = ElementTree.parse(folder / row.path).getroot()
    bus = Bus(machine)
    # One recording has an address twice.
    seen: set[str] = set()
    gpus: dict[str, nvml_stand_in.Gpu] = {}
    nodes = [element for element in root.iter("object") if element.get("type") == "NUMANode"]
    distances = _numbers(root.findall("distances2/u64values"))
    for position, element in enumerate(nodes):
        number, size = element.attrib["os_index"], int(element.attrib["local_memory"]) >> 10
        place = f"sys/devices/system/node/node{number}"
        machine.write(f"{place}/cpulist", _cpulist(element.attrib["cpuset"].replace("0x", "")) + "\n")
        machine.write(f"{place}/meminfo", f"Node {number} MemTotal: {size} kB\nNode {number} MemFree: {size} kB\n")
        own = distances[position * len(nodes) : (position + 1) * len(nodes)]
        machine.write(f"{place}/distance", " ".join(map(str, own)) + "\n")

    def descend(element: ElementTree.Element, parent: str | None, node: str, cpus: str) -> None:
        near = element.find("object[@type='NUMANode']")
        if near is not None:
            node, cpus = near.attrib["os_index"], _cpulist(near.attrib["cpuset"].replace("0x", ""))
        for child in element.findall("object"):
            identity = re.match(r"(\w{4}) \[(\w{4}):(\w{4})\] \[(\w{4}):(\w{4})\] (\w\w)", child.get("pci_type", ""))
            found = parent
            if identity and child.attrib["pci_busid"] not in seen:
                seen.add(child.attrib["pci_busid"])
                kind, vendor, device, other, board, revision = identity.groups()
                model = child.find("object[@subtype='NVML']")
                found = bus.add(
                    child.attrib["pci_busid"],
                    parent,
                    "nvidia" if model is not None else None,
                    vendor=f"0x{vendor}",
                    device=f"0x{device}",
                    **{"class": f"0x{kind}00"},
                    subsystem_vendor=f"0x{other}",
                    subsystem_device=f"0x{board}",
                    revision=f"0x{revision}",
                    numa_node=node,
                    local_cpulist=cpus,
                )
                if model is not None:
                    gpus[child.attrib["pci_busid"]] = _hwloc_gpu(child, model)
            descend(child, found, node, cpus)

    descend(root, None, "-1", "")
    if not gpus:
        return {}
    rates, places = _numbers(root.findall("distances2hetero/u64values")), list(gpus)
    ends = len(places) + len(nodes)
    assert len(rates) == ends**2
    for index, described in enumerate(gpus.values()):
        described.links = []
        for column in range(ends):
            # MB/s; an NVLink of this generation has 20 GB/s, and the diagonal is no link.
            wide = 0 if column == index else rates[index * ends + column] // 20000
            peer = places[column] if column < len(places) else None
            kind = nvml_stand_in.PEER_GPU if peer else PEER_NPU
            described.links += [nvml_stand_in.Link(peer, kind, version=1) for _ in range(wide)]
    return _library(machine, nvml_stand_in.NvmlMachine(None, None, None, gpus=list(gpus.values())))


def _numbers(elements: list[ElementTree.Element]) -> list[int]:
    return [int(number) for element in elements for number in (element.text or "").split()]


def _hwloc_gpu(device: ElementTree.Element, model: ElementTree.Element) -> nvml_stand_in.Gpu:
    known = {info.attrib["name"]: info.attrib["value"] for info in (*device.iter("info"), *model.iter("info"))}
    units, cores = int(known["CUDAMultiProcessors"]), int(known["CUDACoresPerMP"])
    return nvml_stand_in.Gpu(
        device.attrib["pci_busid"],
        known["NVIDIAUUID"],
        known["GPUModel"],
        pci_ids=("0x15f910de", "0x116b10de"),
        # hwloc does not say it; it is what P100 means.
        capability=(6, 0),
        cores=units * cores,
        memory=(int(known["CUDAGlobalMemorySize"].removesuffix("KiB")) << 10, 0, 0),
    )


# AMD's tools


def smi_json(_machine: Any, folder: Path, row: Row) -> Options:
    """The JSON of amd-smi or rocm-smi, as it is."""
    return {"amd_smi_json": str(folder / row.path)}


def amd_smi_text(machine: Any, folder: Path, row: Row) -> Options:
    """The text of `amd-smi static`, or of `amd-smi partition` as a part of it, as the JSON of `amd-smi static`."""
    text = (folder / row.path).read_text()
    if text.startswith("CURRENT_PARTITION"):
        found = re.findall(r"^(\d+)\s+(\S+)\s+(\S+)", text, re.MULTILINE)
        gpus = [
            {
                "gpu": int(gpu),
                "asic": {"market_name": "N/A", "vendor_id": "0x1002", "device_id": "N/A"},
                "partition": {"accelerator_partition": kind, "memory_partition": memory},
            }
            for gpu, memory, kind in found
        ]
        return {"amd_smi_json": str(machine.write("smi.json", json.dumps({"gpu_data": gpus})))}
    gpus = []
    section: dict[str, Any] = {}
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "GPU":
            gpus.append({"gpu": int(value)})
        elif not value:
            section = gpus[-1].setdefault(key.lower(), {})  # type: ignore[assignment]
        else:
            number, _, unit = value.partition(" ")
            scalar: Any = int(value) if value.isdigit() else value
            section[key.lower()] = {"value": int(number), "unit": unit} if unit == "GT/s" else scalar
    return {"amd_smi_json": str(machine.write("smi.json", json.dumps({"gpu_data": gpus})))}


def partition_ids(machine: Any, folder: Path, row: Row) -> Options:
    """The addresses of partitions, as the JSON of the tool that printed them."""
    text = (folder / row.path).read_text()
    listed = re.findall(r"^ID: (\d+)\s+\| BDF: (\S+)\s+\| UUID: (\S+)", text, re.MULTILINE)
    content: Any = [
        {"gpu": int(index), "asic": {"device_id": "0x74a1", "vendor_id": "0x1002"}, "bus": {"bdf": bus}, "uuid": uuid}
        for index, bus, uuid in listed
    ]
    if not listed:
        places = re.findall(r"^GPU\[(\d+)\]\s*: PCI Bus: (\S+)", text, re.MULTILINE)
        content = {f"card{index}": {"PCI Bus": bus} for index, bus in places}
    return {"amd_smi_json": str(machine.write("smi.json", json.dumps(content)))}


def rocm_texts(machine: Any, folder: Path, row: Row) -> Options:
    """rocminfo or deviceQuery as the kfd topology that they read, and rocm-smi's text as its JSON."""
    text = (folder / row.path).read_text(errors="replace")
    _kfd_cpu(machine, 0)
    _kfd_cpu(machine, 1)
    if "deviceQuery" in row.path:
        known = {
            key: re.search(rf"^\[GPU 0\] (\S+): {pattern}", text, re.MULTILINE)
            for key, pattern in (
                ("units", "Number of multi-processors"),
                ("mib", r"Total Global Memory \(MB\)"),
                ("bus", "PCI Bus ID"),
                ("target", "AMD GCN Arch Name"),
            )
        }
        values = {key: match[1] for key, match in known.items() if match}
        target = re.search(r"\[GPU 0\] (gfx\w+)", text)
        assert target
        bus = f"0000:{int(values['bus']):02x}:00.0"
        size = int(values["mib"]) << 20
        _kfd_gpu(machine, 2, bus, _target(target[1]), int(values["units"]), unique=0x100, memory=size)
        tool = {"card0": {"PCI Bus": bus, **_table_card((folder / row.also[0]).read_text())}}
    else:
        agents = [agent for agent in re.split(r"^Agent \d+", text, flags=re.MULTILINE) if "Uuid:  " in agent]
        for number, agent in enumerate(agent for agent in agents if re.search(r"Name:\s+gfx", agent)):
            where = int(_found(r"BDFID:\s+(\d+)", agent))
            _kfd_gpu(
                machine,
                number + 2,
                f"0000:{where >> 8:02x}:{where >> 3 & 31:02x}.{where & 7}",
                _target(_found(r"Name:\s+(gfx\w+)", agent)),
                int(_found(r"Compute Unit:\s+(\d+)", agent)),
                unique=int(_found(r"Uuid:\s+GPU-(\w+)", agent), 16),
                memory=int(_found(r"Size:\s+(\d+)\(\w+\) KB", agent)) << 10,
            )
        tool = {}
        for gpu, key, value in re.findall(
            r"^GPU\[(\d+)\]\s+: ([^:]+): +\t*(.+?)\s*$", (folder / row.also[0]).read_text(), re.MULTILINE
        ):
            tool.setdefault(f"card{gpu}", {})[key] = value
    return {"amd_smi_json": str(machine.write("rocm-smi.json", json.dumps(tool)))}


def _table_card(table: str) -> dict[str, str]:
    found = re.search(r"^0\s+\[(0x\w+) : \S+\].*\n\s+(\S.*?)\s*$", table, re.MULTILINE)
    assert found
    return {"Device ID": found[1], "Card series": found[2]}


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, pattern
    return match[1]


# Detectors


def _mapped(folder: Path, row: Row, count: int) -> tuple[list[str | None], list[list[int]]]:
    """What the detector's topology says: CPUs and distances, where the row has one."""
    if not row.also:
        return [None] * count, [[0] * count for _ in range(count)]
    found = json.loads((folder / row.also[0]).read_text())[0]
    return found["devices_cpu_affinities"], found["devices_distances"]


def detector_nvidia(machine: Any, folder: Path, row: Row) -> Options:
    """A detector's description as NVML answers, beside a PCI bus with the NUMA nodes and CPUs it names."""
    found = json.loads((folder / row.path).read_text())
    divided = any("mig_devices" in gpu["appendix"] for gpu in found)
    cpus, distances = _mapped(folder, row, len(found))
    names = [gpu["name"] for gpu in found if "name" in gpu]
    bus, gpus = Bus(machine), []
    for index, gpu in enumerate(found):
        name, more = gpu.get("name", names[0]), gpu["appendix"]
        node, parts = more.get("numa", ""), more.get("mig_devices", ())
        bus.add(
            more["bdf"],
            f"sys/devices/pci0000:{int(node):02x}" if node.isdigit() else "sys/devices/pci0000:00",
            driver="nvidia",
            vendor="0x10de",
            device="0x" + DEVICE_IDS[name],
            **{"class": "0x030200"},
            numa_node=node if node.isdigit() else -1,
            # The detector's order with MIG is that of instances, not of GPUs.
            local_cpulist=None if divided else cpus[index],
        )
        capability = tuple(map(int, gpu["compute_capability"].split(".")))
        watts = gpu["power"] and gpu["power"] * 1000
        described = nvml_stand_in.Gpu(
            more["bdf"],
            gpu.get("uuid"),
            name,
            pci_ids=(f"0x{DEVICE_IDS[name]}10DE", "0x000010DE"),
            minor=more.get("minor_number", index),
            capability=capability,
            architecture=ARCHITECTURES[more["arch_family"].partition("-")[0].lower()],
            # Some versions of the detector count multiprocessors, some CUDA's cores.
            cores=gpu["cores"] if gpu.get("cores", 0) > 1000 else gpu.get("cores", 132) * 128,
            memory=(gpu.get("memory", 81559) << 20, 0, gpu.get("memory_used", 0) << 20),
            power_limit=watts,
            virtualization=None,
            numa_node=int(node) if node.isdigit() else None,
            migs=[_mig(name, part) for part in parts],
            mig_mode=(int(more["mig"]), int(more["mig"])) if capability == (9, 0) else None,
            mig_max=7 if parts else None,
        )
        if name == "NVIDIA GB10":
            described.memory, described.addressing_mode = None, nvml_stand_in.ADDRESSING_ATS
        if "fabric_clique_id" in more:
            described.fabric = (nvml_stand_in.FABRIC_COMPLETED, 0, more["fabric_clique_id"], 0, 0)
        if not parts and 5 in distances[-1]:
            described.links = [nvml_stand_in.Link(None, nvml_stand_in.PEER_SWITCH) for _ in range(18)]
        if not divided:
            ancestors = {f"ancestor.{peer}": way for peer, way in enumerate(distances[index]) if way >= 10}
            described.extra.update(ancestors)
        gpus.append(described)
    major, minor = map(int, found[0]["runtime_version"].split("."))
    version = found[0]["driver_version"]
    return _library(
        machine, nvml_stand_in.NvmlMachine(version, f"{major}.{version}", major * 1000 + minor * 10, gpus=gpus)
    )


def _mig(name: str, part: dict[str, Any]) -> nvml_stand_in.Mig:
    more = part["appendix"]
    return nvml_stand_in.Mig(
        part["uuid"],
        f"{name} MIG {part['name']}",
        more["gpu_instance_id"],
        more["compute_instance_id"],
        (part["memory"] << 20, 0, part["memory_used"] << 20),
        (part["cores"], 1, 1, 0, 1, 0, 1, 1, part["memory"]),
    )


def _library(machine: Any, shown: nvml_stand_in.NvmlMachine) -> Options:
    """Let the stand-in NVML show a machine, beside the kernel module of its driver."""
    if shown.driver_version:
        machine.nvidia_driver(str(shown.driver_version))
    return {"nvml": shown}


def detector_amd(machine: Any, folder: Path, row: Row) -> Options:
    """A detector's description as amdgpu's sysfs and kfd's topology."""
    found = json.loads((folder / row.path).read_text())
    cpus, distances = _mapped(folder, row, len(found))
    bus = Bus(machine)
    _kfd_cpu(machine, 0)
    _kfd_cpu(machine, 1)
    for index, gpu in enumerate(found):
        more = gpu["appendix"]
        unique, memory = int(gpu["uuid"].removeprefix("GPU-"), 16), gpu["memory"] << 20
        place = bus.add(
            more["bdf"],
            driver="amdgpu",
            vendor="0x1002",
            device="0x" + DEVICE_IDS[gpu["name"]],
            **{"class": "0x030000" if "Radeon" in gpu["name"] else "0x120000"},
            numa_node=more["numa"],
            local_cpulist=cpus[index],
            mem_info_vram_total=memory,
            mem_info_vram_used=gpu["memory_used"] << 20,
            mem_info_gtt_total=64 << 30,
            mem_info_vram_vendor="samsung",
            product_name=gpu["name"],
            unique_id=f"{unique:016x}",
        )
        (machine.root / place / "drm" / f"renderD{more['renderd_id']}").mkdir(parents=True)
        _kfd_gpu(
            machine,
            index + 2,
            more["bdf"],
            _target(gpu["compute_capability"]),
            gpu["cores"],
            unique=unique,
            memory=memory,
            cpu=int(more["numa"]),
            device=int(DEVICE_IDS[gpu["name"]], 16),
            render=more["renderd_id"],
            # 5 is what the detector calls the distance over xGMI.
            peers=tuple(peer + 2 for peer, distance in enumerate(distances[index]) if distance == 5),
        )
    machine.write("sys/module/amdgpu/version", found[0]["driver_version"] + "\n")
    machine.write("opt/rocm/.info/version", found[0]["runtime_version_original"] + "\n")
    return {}


def xpu_discovery(machine: Any, folder: Path, row: Row) -> Options:
    """xpu-smi's discovery as the tree of the device that it found."""
    found = json.loads((folder / row.path).read_text())
    device = found.get("device_list", [found])[0]
    number = int(_found(r"\[0x(\w+)\]", device["device_name"]), 16)
    size = device.get("memory_physical_size_byte")
    bus = device.get("pci_bdf_address", "0000:03:00.0")
    place = Bus(machine).add(
        bus,
        driver="xe" if size else "i915",
        vendor="0x8086",
        device=f"0x{number:04x}",
        **{"class": "0x030000" if size else "0x038000"},
        numa_node=0,
    )
    if size:
        machine.write(f"{place}/tile0/physical_vram_size_bytes", f"{size}\n")
        (machine.root / place / "drm" / "card0").mkdir(parents=True)
        (machine.root / place / "drm" / "renderD128").mkdir(parents=True)
        machine.link("sys/class/drm/card0", str(machine.root / place / "drm" / "card0"))
        machine.link(f"{place}/drm/card0/device", str(machine.root / place))
    return {}


def nvml_words(machine: Any, folder: Path, row: Row) -> Options:
    """What a program printed of NVML's answers, as these answers."""
    text = (folder / row.path).read_text()
    assert text.count("NVML_ERROR_NOT_SUPPORTED") == 2
    for key in ("MemTotal", "MemAvailable"):
        size = _found(rf"{key}:\s+(\d+) kB", text)
        with (machine.root / "proc/meminfo").open("a" if key == "MemAvailable" else "w") as stream:
            stream.write(f"{key}: {size} kB\n")
    gpu = nvml_stand_in.Gpu(None, None, _found("device : (.*)", text), minor=None)
    return _library(machine, nvml_stand_in.NvmlMachine(_found("driver : (.*)", text), None, None, gpus=[gpu]))


def nvml_model(machine: Any, folder: Path, row: Row) -> Options:
    """A model of a machine as NVML answers, beside its PCI bus."""
    model = yaml.safe_load((folder / row.path).read_text())
    common, links = model["device_defaults"], model.get("nvlink") or {}
    nodes = {
        place: complex_["numa_node"]
        for complex_ in model["pcie_topology"]["root_complexes"]
        for place in complex_["devices"]
    }
    switches = [switch["bdf"] for switch in links.get("switches", ())]
    ids = [f"0x{common['pci'][f'{key}_id']:08x}" for key in ("device", "subsystem")]
    bus, gpus = Bus(machine), []
    for switch in switches:
        bus.add(switch, vendor="0x10de", device="0x22a3", **{"class": "0x068000"}, numa_node=0)
    memory, power, fabric = common["memory"], common["power"], common.get("fabric")
    for gpu in model["devices"]:
        place = gpu["pci"]["bus_id"]
        bus.add(
            place.lower(),
            driver="nvidia",
            vendor="0x10de",
            device=ids[0][:6],
            **{"class": "0x030200"},
            numa_node=nodes[place],
        )
        described = nvml_stand_in.Gpu(
            place,
            gpu["uuid"],
            common["name"],
            pci_ids=tuple(ids),
            minor=gpu["minor_number"],
            capability=(common["compute_capability"]["major"], common["compute_capability"]["minor"]),
            architecture=ARCHITECTURES[common["architecture"]],
            cores=common["num_gpu_cores"],
            memory=(memory["total_bytes"], memory["reserved_bytes"], memory["used_bytes"]),
            bar1=(common["bar1_memory"]["total_bytes"], 0),
            persistence=int(common["persistence_mode"] == "enabled"),
            compute_mode=0,
            ecc_mode=(1, 1) if common["ecc"]["mode_current"] == "enabled" else (0, 0),
            power_limit=power["enforced_limit_mw"],
            power_default_limit=power["default_limit_mw"],
            power_limits=(power["min_limit_mw"], power["max_limit_mw"]),
            pcie_generation_max=common["pcie"]["max_link_gen"],
            pcie_generation=common["pcie"]["current_link_gen"],
            pcie_width_max=common["pcie"]["max_link_width"],
            pcie_width=common["pcie"]["current_link_width"],
            virtualization=0,
            mig_mode=(0, 0),
            numa_node=nodes[place],
            c2c_mode=1 if links.get("c2c_enabled") else None,
        )
        if fabric:
            registered = nvml_stand_in.FABRIC_COMPLETED, 0, fabric["clique_id"], 0, nvml_stand_in.FABRIC_HEALTHY
            described.fabric, described.fabric_cluster = registered, fabric["cluster_uuid"].replace("-", "")
        if switches:
            described.links = [
                nvml_stand_in.Link(switches[number % len(switches)], nvml_stand_in.PEER_SWITCH)
                for number in range(links["links_per_gpu"])
            ]
        gpus.append(described)
    system = model["system"]
    cuda = system["cuda_version_major"] * 1000 + system["cuda_version_minor"] * 10
    shown = nvml_stand_in.NvmlMachine(system["driver_version"], system["nvml_version"], cuda, gpus=gpus)
    return _library(machine, shown)
