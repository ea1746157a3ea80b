# SPDX-License-Identifier: Apache-2.0
"""Debian package sources for the images, taken from this machine's own configuration."""

from __future__ import annotations

import re
from pathlib import Path

_APT = Path("/etc/apt")
_DEBIAN_SUITES = ("bookworm", "trixie", "forky", "sid", "stable", "testing")


def _stanzas(apt: Path) -> list[tuple[str, list[str]]]:
    """(address, suites) of every enabled binary source, from one-line and deb822 files."""
    found: list[tuple[str, list[str]]] = []
    for file in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]:
        if not file.is_file():
            continue
        for line in file.read_text().splitlines():
            match = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", line.strip())
            if match:
                found.append((match.group(1), [match.group(2)]))
    for file in sorted((apt / "sources.list.d").glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields: dict[str, str] = {}
            for line in stanza.splitlines():
                if ":" in line and not line.startswith(("#", " ")):
                    name, _, value = line.partition(":")
                    fields[name.strip().lower()] = value.strip()
            if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() != "no":
                found += [(address, fields.get("suites", "").split()) for address in fields.get("uris", "").split()]
    return found


def debian_sources(release: str, apt: Path = _APT) -> list[str]:
    """Lines of a sources.list for ``release`` (``trixie``, ``bookworm``, ``forky``).

    The archive and security addresses are those this machine uses for its own Debian packages. On a machine with none
    (Ubuntu, say) the list is empty, and mmdebstrap uses Debian's default archive.
    """
    archive = security = None
    for address, suites in _stanzas(apt):
        for suite in suites:
            if not suite.startswith(_DEBIAN_SUITES):
                continue
            if suite.endswith("-security"):
                security = security or address
            elif "-" not in suite:
                archive = archive or address
    if archive is None:
        return []
    lines = [f"deb {archive} {release} main"]
    if release in ("bookworm", "trixie"):
        lines.append(f"deb {archive} {release}-updates main")
        if security:
            lines.append(f"deb {security} {release}-security main")
    return lines
