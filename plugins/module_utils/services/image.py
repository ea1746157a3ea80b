# SPDX-License-Identifier: Apache-2.0
"""Image references, and what an engine's message about one means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List

DEFAULT_REGISTRY = "docker.io"
_UNREACHABLE = re.compile(
    r"connection refused|no such host|no route|timeout|deadline exceeded|ran longer|eof|unreachable"
)
_PORT_TAKEN = re.compile(r"[^\n]*(?:port is already allocated|address already in use)")
_ENDPOINT = re.compile(r"(?:\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:]+\]):\d+")


@dataclass(frozen=True)
class Reference:
    """The parts of `[registry/]repository[:tag][@digest]` (grammar: the distribution project's `reference` package)."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def version(self) -> str:
        """What pins the image: its digest, else its tag."""
        return self.digest or self.tag


def parse_reference(text: str) -> Reference:
    """Split an image reference; without a registry it is docker.io, without tag and digest the tag is `latest`."""
    rest, _, digest = text.partition("@")
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, rest = first, remainder
    else:
        registry = DEFAULT_REGISTRY
    repository, colon, tag = rest.rpartition(":")
    if not colon:
        repository, tag = rest, "" if digest else "latest"
    return Reference(registry, repository, tag, digest)


def explain_pull(image: str, message: str) -> str:
    """One clause for a failed pull: the image, the image registry, the reason and the remedy."""
    reference = parse_reference(image)
    text = message.lower()
    named = f"image {reference.repository} {reference.version}"
    registry = f"image registry {reference.registry}"
    if re.search(r"gave http response to https client", text):
        return (
            f"{registry} speaks plain HTTP: add {reference.registry} to inference_insecure_registries, or give it TLS"
        )
    if (
        re.search(r"unauthorized|authentication required|denied: requested access|no basic auth", text)
        and "pull access denied" not in text
    ):
        return (
            f"{registry} refuses {named} without a login: log in on the node with `docker login {reference.registry}`"
        )
    if re.search(
        r"manifest unknown|not found|does not exist|name unknown|invalid reference|no matching manifest", text
    ):
        return f"{named} is not in {registry}: correct the tag or digest in inference_engines, or push the image there"
    if "no space left on device" in text:
        return f"{named} does not fit on the disk of the node: free space below /var/lib/docker"
    if re.search(r"x509|certificate", text):
        return f"{registry} has no trusted certificate: install its CA below /etc/docker/certs.d/{reference.registry}"
    if _UNREACHABLE.search(text):
        return f"{registry} cannot be reached for {named}: start it, or name another in inference_image_registries"
    reason = message.strip() or "no reason given"
    return f"{named} could not be pulled from {registry} ({reason}): try `docker pull {image}` on the node"


def explain_start(lines: List[str]) -> str:
    """The cause of a failed start in one clause, from the last lines of its journal; empty when none is recognised."""
    text = "\n".join(lines)
    found = _PORT_TAKEN.search(text)
    if found:
        endpoint = _ENDPOINT.search(found.group(0))
        where = endpoint.group(0) if endpoint else "its port"
        return f"{where} is already used by something else on the node: choose another port, or stop what uses it"
    found = re.search(r"listen tcp\d? ([0-9a-fA-F.:\[\]]+):\d+[^\n]*cannot assign requested address", text)
    if found:
        return f"the node has no address {found.group(1)}: set inference_address to one of its own"
    found = re.search(r"unresolvable CDI devices ([^\n]+)", text)
    if found:
        return (
            f"the engine knows no device {found.group(1).strip()}: renew the CDI specification, or correct the devices"
        )
    if re.search(r"could not select device driver|error gathering device information", text):
        return "a device of the service is missing on the node: check the driver and the devices"
    found = re.search(r"bind source path does not exist: ([^\n]+)", text)
    if found:
        return f"the path {found.group(1).strip()} is missing on the node: put it there first"
    found = re.search(r"invalid device: (\S+)|Failed to infer device type|No accelerator \(", text)
    if found:
        named = f" ({found.group(1)})" if found.group(1) else ""
        return f"the engine sees no GPU{named} in its container: check the driver, and that it suits the image"
    if re.search(r"is less than desired GPU memory utilization", text):
        return "less GPU memory is free than the plan gives it: stop what else uses the GPU"
    if re.search(r"Not enough memory\. Please try to increase --mem-fraction-static", text):
        return "its share of the GPU memory does not hold the model: stop what else uses the GPU, or give it more"
    if re.search(r"LocalEntryNotFoundError|OfflineModeIsEnabled|couldn't find them in the cached files", text):
        return "the model is not whole in the model store: run the role model_store again"
    if re.search(r"No such image", text):
        return "the image is not on the node any more: run again with pull: missing"
    if re.search(
        r"out of memory|oom-kill|cudaErrorMemoryAllocation|failed to allocate|cannot allocate memory",
        text,
        re.IGNORECASE,
    ):
        return "it ran out of memory: choose a smaller model, context or quantization"
    found = re.search(r"not ready: ([^\n]+)", text)
    return found.group(1).strip() if found else ""
