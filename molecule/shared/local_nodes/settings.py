# SPDX-License-Identifier: Apache-2.0
"""Where local nodes keep things, and the addresses that they use."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

#: Prefix of every container, volume, image and network made here, so that all of it can be found and removed.
PREFIX = "inference-fleet"
#: Label with the set's name on each node's container.
SET_LABEL = "inference-fleet.set"

PROJECT_ROOT = Path(__file__).resolve().parents[3]
RUN_DIR = Path("/run/inference-fleet")


def cache_dir() -> Path:
    """Folder for what is costly to make (images, models, the SSH key); shared by all checkouts of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / PREFIX


def subnet() -> ipaddress.IPv4Network:
    """Network of the local nodes; ``INFERENCE_FLEET_SUBNET`` moves it where another network has the default.

    The committed inventories carry addresses of the default network.
    """
    return ipaddress.IPv4Network(os.environ.get("INFERENCE_FLEET_SUBNET", "10.214.77.0/24"))


def registry_address() -> str:
    """Host and port of the local image registry, as the nodes and this machine reach it."""
    return f"{subnet()[2]}:5000"


def vendor_repository_address() -> str:
    """Address of the server of stand-in vendor repositories, as the nodes and this machine reach it."""
    return str(subnet()[3])


def model_hub_address() -> str:
    """Address of the stand-in model hub, as the nodes and this machine reach it."""
    return str(subnet()[4])


def ssh_key() -> Path:
    """Private key, made for the local nodes alone."""
    return cache_dir() / "ssh" / "id_ed25519"


def known_hosts() -> Path:
    """Host keys of the local nodes, rewritten when a node is created."""
    return cache_dir() / "ssh" / "known_hosts"
