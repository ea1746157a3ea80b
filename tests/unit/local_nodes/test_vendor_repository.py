# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for a vendor's packages, and the signed repositories that offer them."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.fleet.inference.plugins.filter.openpgp_fingerprints import FilterModule
from local_nodes.vendor_packages import NVIDIA_VERSIONS, nvidia_packages, repositories
from local_nodes.vendor_repository import Package, Repository, build

needs_tools = pytest.mark.skipif(not (shutil.which("dpkg-deb") and shutil.which("gpg")), reason="no dpkg-deb or gpg")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("driver", NVIDIA_VERSIONS)
def test_every_dependency_is_a_package_of_the_repository(driver: str) -> None:
    packages = nvidia_packages(driver)
    names = {package.name for package in packages} | {"dkms"}
    assert len(names) == len(packages) + 1
    for package in packages:
        for field in ("Depends", "Recommends"):
            wanted = re.split(r"\s*[,|]\s*", package.relations.get(field, ""))
            assert {word.partition(" ")[0] for word in wanted if word} <= names, package.name


def test_fabric_manager_carries_the_branch_in_its_name_up_to_575() -> None:
    names = {
        driver: [item.name for item in nvidia_packages(driver) if "fabric" in item.name] for driver in NVIDIA_VERSIONS
    }
    assert names["570.172.08"] == ["nvidia-fabricmanager-570"]
    assert names["580.95.05"] == ["nvidia-fabricmanager"]


def test_no_two_repositories_are_in_one_place() -> None:
    places = [(item.path, item.suite) for item in repositories()]
    assert len(places) == len(set(places))


@needs_tools
def test_a_repository_is_signed_by_the_key_that_it_hands_out(cache: Path) -> None:
    package = Package("thing", "1:2.0-1", {"Depends": "dkms"}, {"/usr/bin/thing": "#!/bin/sh\n", "/etc/thing": "x\n"})
    folder = build(
        [
            Repository("flat", (package,)),
            Repository("suites", (package,), suite="noble"),
            Repository("forged", (package,), signer="second"),
        ]
    )
    listing = (folder / "flat" / "Packages").read_bytes()
    assert b"Package: thing\nVersion: 1:2.0-1\n" in listing
    assert b"Filename: ./thing_2.0-1_amd64.deb\n" in listing
    assert (
        f" {hashlib.sha256(listing).hexdigest()} {len(listing)} Packages\n" in (folder / "flat" / "Release").read_text()
    )
    assert b"Filename: pool/thing" in (folder / "suites/dists/noble/main/binary-amd64/Packages").read_bytes()
    content = subprocess.check_output(["dpkg-deb", "--contents", folder / "flat" / "thing_2.0-1_amd64.deb"], text=True)
    assert re.search(r"^-rwxr-xr-x root/root .*\./usr/bin/thing$", content, re.MULTILINE)
    assert re.search(r"^-rw-r--r-- root/root .*\./etc/thing$", content, re.MULTILINE)

    def signed(place: str, key: str) -> bool:
        home = cache / "verify" / key
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--no-autostart"]
        subprocess.run([*gpg, "--import", str(cache / "inference-fleet/vendor-keys" / key / "key.asc")], check=True)
        return subprocess.run([*gpg, "--verify", str(folder / place)], check=False, capture_output=True).returncode == 0

    assert signed("flat/InRelease", "first")
    assert signed("suites/dists/noble/InRelease", "first")
    assert signed("forged/InRelease", "second")
    assert not signed("forged/InRelease", "first")
    assert (folder / "forged" / "key.asc").read_text() == (folder / "flat" / "key.asc").read_text()
    fingerprints = FilterModule().filters()["openpgp_fingerprints"]
    assert len(fingerprints((folder / "flat" / "key.asc").read_text())) == 1


@needs_tools
def test_the_same_repositories_are_built_once(cache: Path) -> None:
    wanted = [Repository("flat", (Package("thing", "1"),))]
    first = build(wanted)
    stamp = (first / "flat" / "InRelease").stat().st_mtime_ns
    assert build(wanted) == first
    assert (first / "flat" / "InRelease").stat().st_mtime_ns == stamp
