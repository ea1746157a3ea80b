# SPDX-License-Identifier: Apache-2.0
"""The change of packages, with apt's answers as text; the real apt is in the Molecule scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.drivers import apt

BLAME = {
    "repository": "nvidia_driver_repository_url",
    "key": "ABCD",
    "packages": "nvidia_driver_source vendor",
    "version": "nvidia_driver_version",
    "remedy": "set nvidia_driver_branch to one that is there",
}
URL = "http://192.0.2.9/cuda"


class Apt:
    """Answers for the commands of apt and dpkg, by what they begin with; every command is remembered."""

    def __init__(self, **answers: tuple[int, str, str]) -> None:
        self.answers = answers
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str]) -> tuple[int, str, str]:
        words = [word for word in command if not word.startswith("-") and "=" not in word and "/" not in word]
        self.commands.append(command)
        name = "simulate" if "--simulate" in command else "_".join(words[:2]).replace("-", "_")
        return self.answers.get(name, (0, "", ""))


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Apt's folders, below a temporary one."""
    for name, folder in {"SOURCES": "sources.list.d", "PREFERENCES": "preferences.d", "LISTS": "lists"}.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(apt, name, str(tmp_path / folder))
    for name, folder in {"WORKPLACE": "work", "JOURNAL": "journal"}.items():
        (tmp_path / folder).mkdir()
        monkeypatch.setattr(apt, name, str(tmp_path / folder))
    return tmp_path


def request(**changes: Any) -> apt.Request:
    """Return a request to install one package, with changes."""
    base: dict[str, Any] = {
        "install": ["nvidia-driver-cuda"],
        "remove": [],
        "hold": ["nvidia-.*"],
        "owned": ["nvidia-.*"],
        "files": [],
        "absent": [],
        "components": [],
        "components_path": None,
        "url": URL,
        "same_version": [],
        "repair": False,
        "blame": BLAME,
    }
    return apt.Request(**{**base, **changes})


INSTALLS = """Inst nvidia-driver-cuda [580.65.06-1] (580.95.05-1 NVIDIA [amd64])
Inst nvidia-fabricmanager (580.95.05-1 NVIDIA [amd64])
Remv nvidia-kernel-dkms [580.65.06-1]
Conf nvidia-driver-cuda (580.95.05-1 NVIDIA [amd64])
"""


def test_the_forecast_tells_what_comes_and_goes(places: Path) -> None:
    expected = apt.forecast(request(), Apt(simulate=(0, INSTALLS, "")))
    assert expected.install["nvidia-driver-cuda"] == ("580.65.06-1", "580.95.05-1")
    assert expected.remove == {"nvidia-kernel-dkms": "580.65.06-1"}
    assert list((places / "work").iterdir()) == [], "the temporary folder is gone"


def test_the_forecast_is_made_with_the_wanted_sources_and_without_the_old_ones(places: Path) -> None:
    (places / "sources.list.d" / "old.sources").write_text("old")
    (places / "sources.list.d" / "other.sources").write_text("other")
    (places / "lists" / "deb.example_InRelease").write_text("signed")
    key, source = str(places / "key.asc"), str(places / "sources.list.d" / "new.sources")
    seen: dict[str, str] = {}

    def run(command: list[str]) -> tuple[int, str, str]:
        for folder in (places / "work").iterdir():
            for path in folder.rglob("*"):
                if path.is_file():
                    seen[path.name] = path.read_text()
        return 0, "", ""

    wanted = request(
        files=[{"path": key, "content": "the key"}, {"path": source, "content": f"Signed-By: {key}"}],
        absent=[str(places / "sources.list.d" / "old.sources")],
    )
    assert [entry["path"] for entry in apt.forecast(wanted, run).files] == [key, source]
    assert "old.sources" not in seen and seen["other.sources"] == "other"
    assert seen["deb.example_InRelease"] == "signed" and seen["key.asc"] == "the key"
    assert key not in seen["new.sources"] and seen["new.sources"].endswith("key.asc")
    assert not Path(key).exists() and not Path(source).exists()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            f"W: GPG error: {URL} InRelease: The following signatures couldn't be verified because NO_PUBKEY A4B4\n"
            f"E: The repository '{URL} InRelease' is not signed.",
            "which is not signed by the key ABCD",
        ),
        (
            f"Err:1 {URL} InRelease\n  Could not connect to 192.0.2.9:80\n"
            f"W: Failed to fetch {URL}/InRelease  Could not connect to 192.0.2.9:80",
            "which can't be used (Failed to fetch",
        ),
    ],
)
def test_a_repository_that_cannot_be_trusted_or_reached(said: str, sentence: str) -> None:
    with pytest.raises(apt.AptError) as error:
        apt.forecast(request(), Apt(apt_get_update=(100, "", said)))
    assert str(error.value).startswith(f"nvidia_driver_repository_url is {URL}, {sentence}")


def test_other_repositories_that_fail_are_none_of_its_business() -> None:
    said = "E: Failed to fetch http://203.0.113.1/debian/InRelease"
    assert apt.forecast(request(), Apt(apt_get_update=(100, "", said), simulate=(0, INSTALLS, ""))).install


@pytest.mark.parametrize(
    ("err", "sentence"),
    [
        (
            "E: Unable to locate package nvidia-driver-cuda",
            "needs nvidia-driver-cuda, which this host's package sources",
        ),
        (
            "E: Version '580.99-*' for 'nvidia-driver-cuda' was not found",
            "needs version 580.99 of nvidia-driver-cuda, which this host's package sources do not offer; they have "
            "580.95.05; set nvidia_driver_branch",
        ),
        ("E: Unable to locate package linux-headers-6.1.0-1-amd64", "linux-headers-6.1.0-1-amd64 is not offered"),
        (
            " nvidia-open-kernel-dkms : Depends: nvidia-open-kernel-support--v1\nE: held broken packages.",
            "can't be installed together (nvidia-open-kernel-dkms : Depends: nvidia-open-kernel-support--v1)",
        ),
    ],
)
def test_what_cannot_be_installed(err: str, sentence: str) -> None:
    madison = "nvidia-driver-cuda | 580.95.05-1 | http://192.0.2.9/cuda Packages\n"
    run = Apt(simulate=(100, "", err), apt_cache_madison=(0, madison, ""))
    with pytest.raises(apt.AptError, match=r"offer|together") as error:
        apt.forecast(request(), run)
    assert sentence in str(error.value)
    assert not any("--yes" in command for command in run.commands)


def test_packages_of_others_are_not_taken_away() -> None:
    said = f"{INSTALLS}Remv postgresql [17]\n"
    with pytest.raises(apt.AptError, match="would take postgresql away"):
        apt.forecast(request(), Apt(simulate=(0, said, "")))


def test_pitfall_6_versions_that_must_be_the_same() -> None:
    names = ["nvidia-driver-cuda", "nvidia-fabricmanager"]
    assert apt.forecast(request(same_version=names), Apt(simulate=(0, INSTALLS, ""))).install
    other = INSTALLS.replace("fabricmanager (580.95.05-1", "fabricmanager (580.65.06-1")
    with pytest.raises(apt.AptError, match=r"nvidia-driver-cuda 580\.95\.05 and nvidia-fabricmanager 580\.65\.06"):
        apt.forecast(request(same_version=names), Apt(simulate=(0, other, "")))


def test_sections_of_the_distribution_are_added_where_a_package_needs_them(places: Path) -> None:
    targets = "\n".join(
        f"http://deb.example/debian/dists/{release}/x|http://deb.example/debian|{release}|{component}|{key}|Debian"
        for release, component, key in (
            ("trixie", "main", "/usr/share/keyrings/debian.gpg"),
            ("trixie-updates", "main", ""),
            ("trixie-updates", "non-free", ""),
        )
    )
    answers = iter([(100, "", "E: Unable to locate package nvidia-smi"), (0, INSTALLS, "")])
    rest = Apt(apt_get_indextargets=(0, targets, ""))

    def run(command: list[str]) -> tuple[int, str, str]:
        if "--simulate" in command:
            return next(answers)
        return (0, targets, "") if "indextargets" in command else rest(command)

    path = str(places / "sources.list.d" / "components.sources")
    expected = apt.forecast(request(components=["contrib", "non-free"], components_path=path), run)
    (added,) = expected.files
    assert added["path"] == path and not Path(path).exists()
    assert (
        "Suites: trixie\nComponents: contrib non-free\nSigned-By: /usr/share/keyrings/debian.gpg\n" in added["content"]
    )
    assert "Suites: trixie-updates\nComponents: contrib\n" in added["content"]


def test_what_goes_leaves_in_the_same_step_and_what_is_there_is_held(places: Path) -> None:
    (places / "journal" / "0001").write_text("")
    there = "nvidia-smi|1|installed|install\nnvidia-old|1|config-files|deinstall\nnvidia-held|1|installed|hold\n"
    there += "bash|1|installed|install\n"
    run = Apt(dpkg_query=(0, there, ""))
    wanted = request(remove=["nvidia-open-kernel-dkms"], repair=True)
    assert apt.apply(wanted, apt.Forecast({}, {}, []), run) == ["nvidia-smi"]
    change = next(command for command in run.commands if "--yes" in command)
    assert change[-3:] == ["install", "nvidia-driver-cuda", "nvidia-open-kernel-dkms-"]
    assert ["apt-mark", "hold", "nvidia-smi"] in run.commands
    assert run.commands[0][:2] == ["dpkg", "--configure"]


def test_a_build_that_fails_is_told_with_its_reason() -> None:
    there = "nvidia-kernel-open-dkms|1|half-configured|install\n"
    out = "Building module(s)...(bad exit status: 2)\nError! Bad return status for module build on kernel: 6.12.1\n"

    def run(command: list[str]) -> tuple[int, str, str]:
        if "--yes" in command:
            return 100, out, "E: Sub-process /usr/bin/dpkg returned an error code (1)"
        return (0, there, "") if command[0] == "dpkg-query" else (0, "", "")

    with pytest.raises(
        apt.AptError, match=r"left nvidia-kernel-open-dkms half-done .*Bad return status.* the next run takes"
    ):
        apt.apply(request(), apt.Forecast({}, {}, []), run)


def test_files_are_written_and_deleted(places: Path) -> None:
    old, new = places / "sources.list.d" / "old.sources", places / "keyrings" / "new.asc"
    old.write_text("old")
    entry = {"path": str(new), "content": "key", "mode": "0644"}
    wanted = request(install=[], files=[entry], absent=[str(old)])
    apt.apply(wanted, apt.Forecast({}, {}, apt.changed_files(wanted)), Apt())
    assert new.read_text() == "key" and new.stat().st_mode & 0o777 == 0o644 and not old.exists()
    assert apt.changed_files(wanted) == []
