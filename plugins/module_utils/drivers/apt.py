# SPDX-License-Identifier: Apache-2.0
"""apt as a whole change: what it would do is found out in a temporary folder before anything is touched.

Runs on nodes. The wanted repository, key and preferences are laid beside the node's own in that folder, its package
lists are brought up to date there, and the change is simulated with them.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

Run = Callable[[List[str]], Tuple[int, str, str]]

SOURCES = "/etc/apt/sources.list.d"
PREFERENCES = "/etc/apt/preferences.d"
LISTS = "/var/lib/apt/lists"
WORKPLACE = "/var/lib/apt"
JOURNAL = "/var/lib/dpkg/updates"
_PREFIX = "inference-fleet."
# Hooks that other packages have for an update would act on the node itself.
_SETTINGS = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Stats;
#clear APT::Update::Post-Invoke-Success;
Acquire::Retries "2";
APT::Sandbox::User "root";
Debug::NoLocking "true";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::preferencesparts "{folder}/preferences.d";
Dir::Etc::sourceparts "{folder}/sources.list.d";
Dir::State::lists "{folder}/lists/";
"""
_HALF_DONE = ("half-configured", "half-installed", "unpacked", "triggers-awaited", "triggers-pending")
_INSTALL = re.compile(r"^Inst (\S+)(?: \[([^\]]+)\])? \((\S+)", re.MULTILINE)
_REMOVE = re.compile(r"^(?:Remv|Purg) (\S+)(?: \[([^\]]+)\])?", re.MULTILINE)
_NOT_OFFERED = re.compile(
    r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate"
    r"|Version '([^']+)' for '([^']+)' was not found"
)
_UNSIGNED = re.compile(
    r"NO_PUBKEY|is not signed|invalid signature|BADSIG|EXPKEYSIG|KEYEXPIRED|sqv returned an error|Missing key",
    re.IGNORECASE,
)


class AptError(ValueError):
    """apt can't do what is wanted; a clause ``<what> is <so>; <what would be right>`` without the host."""


class Request(NamedTuple):
    """What is wanted of apt.

    `files` are entries of path, content and mode; `url` is the repository among them; `owned` and `hold` are regular
    expressions of packages that may go, and that are held afterwards; `blame` are the variables that sentences name.
    """

    install: List[str]
    remove: List[str]
    hold: List[str]
    owned: List[str]
    files: List[Dict[str, str]]
    absent: List[str]
    components: List[str]
    components_path: Optional[str]
    url: Optional[str]
    same_version: List[str]
    repair: bool
    blame: Dict[str, str]


class Forecast(NamedTuple):
    """What apt would do: the versions that packages get and had, and the files that are written."""

    install: Dict[str, Tuple[Optional[str], str]]
    remove: Dict[str, Optional[str]]
    files: List[Dict[str, str]]


def upstream(version: str) -> str:
    """Return a version without epoch and revision."""
    return version.split(":", 1)[-1].rsplit("-", 1)[0]


def changed_files(request: Request) -> List[Dict[str, str]]:
    """Return the files that are not there with the wanted content."""
    return [entry for entry in request.files if read(entry["path"]) != entry["content"]]


def forecast(request: Request, run: Run) -> Forecast:
    """Return what the change would do; raises AptError when it can't be done. Changes nothing."""
    files = changed_files(request)
    if not (request.install or request.remove or files):
        return Forecast({}, {}, files)
    for left in glob.glob(f"{WORKPLACE}/{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_PREFIX, dir=WORKPLACE)
    try:
        return _forecast(request, files, folder, run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forecast(request: Request, files: List[Dict[str, str]], folder: str, run: Run) -> Forecast:
    options = _prepare(request, folder)
    fresh = bool(request.install) or any(entry["path"].startswith(SOURCES) for entry in files)
    said = _update(request, options, run) if fresh else ""
    try:
        install, remove = _simulate(request, options, said, run)
    except AptError:
        # A distribution keeps drivers in sections that a machine need not have.
        added = _components(request, options, run)
        if added is None:
            raise
        with open(os.path.join(folder, "sources.list.d", os.path.basename(added["path"])), "w") as stream:
            stream.write(added["content"])
        said = _update(request, options, run)
        install, remove = _simulate(request, options, said, run)
        files = [*files, added]
    _refuse_strangers(request, remove)
    _refuse_versions(request, install, run)
    return Forecast(install, remove, files)


def _prepare(request: Request, folder: str) -> List[str]:
    """Lay the wanted sources and preferences beside the node's own; return the options that make apt read them."""
    wanted = {entry["path"]: entry["content"] for entry in request.files}
    keys = {}
    for path, content in wanted.items():
        if not path.startswith((SOURCES, PREFERENCES, "/etc/apt/apt.conf.d")):
            keys[path] = os.path.join(folder, os.path.basename(path))
            _write(keys[path], content)
    for place in (SOURCES, PREFERENCES):
        target = os.path.join(folder, os.path.basename(place))
        os.mkdir(target)
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
            path = f"{place}/{name}"
            if os.path.isfile(path) and path not in request.absent and path not in wanted:
                shutil.copy(path, f"{target}/{name}")
        for path, content in wanted.items():
            if os.path.dirname(path) == place:
                text = content
                for key, copy in keys.items():
                    text = text.replace(key, copy)
                _write(f"{target}/{os.path.basename(path)}", text)
    _copy_lists(f"{folder}/lists")
    _write(f"{folder}/forecast.conf", _SETTINGS.format(folder=folder))
    # What is read last is in force.
    return ["-c", f"{folder}/forecast.conf"]


def _copy_lists(target: str) -> None:
    """Begin with the lists that are there, so that only what is new is fetched; apt replaces files as a whole."""
    os.makedirs(f"{target}/partial")
    for path in glob.glob(f"{LISTS}/*_*"):
        if os.path.isfile(path):
            os.link(path, f"{target}/{os.path.basename(path)}")


def _update(request: Request, options: List[str], run: Run) -> str:
    """Bring the lists up to date and return what apt complained of; raises AptError about the wanted repository."""
    rc, out, err = run(["apt-get", *options, "update"])
    complaints = [line.strip() for line in (err + "\n" + out).splitlines() if re.match(r"(Err|E|W):", line)]
    if request.url is not None:
        bare = re.sub(r"^https?://", "", request.url)
        ours = [line for line in complaints if bare in line]
        if ours:
            raise AptError(_repository_sentence(request, ours))
    return " ".join(complaints[:2]) if rc else ""


def _repository_sentence(request: Request, ours: List[str]) -> str:
    variable = request.blame["repository"]
    # "Err" only counts the lines of its list; what went wrong is in the others.
    telling = [line for line in ours if not line.startswith("Err")] or ours
    reason = re.sub(r"^(Err|E|W):?[0-9]* ?", "", telling[0])
    if _UNSIGNED.search(" ".join(ours)):
        return (
            f"{variable} is {request.url}, which is not signed by the key {request.blame['key']} ({reason}); "
            f"correct {variable}, or the key's address and fingerprint after you have checked the new key"
        )
    return f"{variable} is {request.url}, which can't be used ({reason}); correct it, or have this host reach it"


def _arguments(request: Request) -> List[str]:
    """Return apt-get's command for the change: what goes leaves in the same step as what comes."""
    if not request.install:
        return ["purge", *request.remove]
    return ["install", *request.install, *(f"{name}-" for name in request.remove)]


# The holds are this module's own; without --ignore-hold the rest of a driver would not follow what is named.
_ALLOWED = ["--purge", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages"]
_ALLOWED += ["--ignore-hold", "--fix-broken"]


def _simulate(
    request: Request, options: List[str], said: str, run: Run
) -> Tuple[Dict[str, Tuple[Optional[str], str]], Dict[str, Optional[str]]]:
    if not (request.install or request.remove):
        return {}, {}
    rc, out, err = run(["apt-get", *options, *_ALLOWED, "--simulate", *_arguments(request)])
    if rc:
        raise AptError(_simulation_sentence(request, options, out + err, f" (apt: {said})" if said else "", run))
    install = {match[1].split(":")[0]: (match[2], match[3]) for match in _INSTALL.finditer(out)}
    remove = {match[1].split(":")[0]: match[2] for match in _REMOVE.finditer(out)}
    return install, {name: version for name, version in remove.items() if name not in install}


def _simulation_sentence(request: Request, options: List[str], output: str, because: str, run: Run) -> str:
    missing = _NOT_OFFERED.search(output)
    if missing is not None:
        name = next(group for group in (missing[4], missing[1], missing[2]) if group)
        if name.startswith("linux-headers-"):
            return (
                f"{name} is not offered by this host's package sources{because}, so no module can be built for that "
                "kernel; upgrade the kernel first, or give the host a source that has its headers"
            )
        versions = _offered(name, options, run)
        there = f"; they have {', '.join(versions)}" if versions else because
        wanted = f"version {missing[3].split('-*')[0]} of {name}" if missing[3] else name
        return (
            f"{request.blame['packages']} needs {wanted}, which this host's package sources do not offer{there}; "
            f"{request.blame['remedy']}"
        )
    unmet = re.findall(r"^ (\S+ : .+)$", output, re.MULTILINE) or re.findall(r"^E: (.+)$", output, re.MULTILINE)
    reason = "; ".join(" ".join(line.split()) for line in unmet[:3])
    return (
        f"{request.blame['packages']} needs packages that can't be installed together ({reason}){because}; "
        f"{request.blame['remedy']}"
    )


def _offered(name: str, options: List[str], run: Run) -> List[str]:
    """Return the upstream versions of a package that apt knows, the newest first."""
    rc, out, _err = run(["apt-cache", *options, "madison", name])
    found = [line.split("|")[1].strip() for line in out.splitlines() if line.count("|") >= 2] if rc == 0 else []
    return list(dict.fromkeys(upstream(version) for version in found))


def _components(request: Request, options: List[str], run: Run) -> Optional[Dict[str, str]]:
    """Return a file with the missing sections of the distribution's own sources, None when nothing is missing."""
    path = request.components_path
    if not request.components or path is None or os.path.exists(path):
        return None
    columns = "$(REPO_URI)|$(SITE)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)|$(ORIGIN)"
    rc, out, _err = run(["apt-get", *options, "indextargets", "--format", columns, "Created-By: Packages"])
    have: Dict[Tuple[str, str, str], List[str]] = {}
    for line in out.splitlines() if rc == 0 else []:
        uri, site, release, component, signed_by, origin = line.split("|", 5)
        if origin == "Debian" and release:
            address = (uri or site).split("/dists/")[0].rstrip("/")
            have.setdefault((address, release, signed_by), []).append(component)
    stanzas = []
    for (address, release, signed_by), there in sorted(have.items()):
        lacking = [name for name in request.components if name not in there]
        if "main" in there and lacking:
            lines = ["Types: deb", f"URIs: {address}", f"Suites: {release}", f"Components: {' '.join(lacking)}"]
            lines += [f"Signed-By: {signed_by}"] if signed_by.startswith("/") else []
            stanzas.append("\n".join(lines) + "\n")
    if not stanzas:
        return None
    head = "# Written by Ansible for the inference fleet: the sections of the distribution that have drivers.\n"
    return {"path": path, "content": head + "\n".join(stanzas), "mode": "0644"}


def _refuse_strangers(request: Request, remove: Dict[str, Optional[str]]) -> None:
    own = [name for name in remove if name in request.remove or _matches(name, request.owned)]
    strangers = sorted(set(remove) - set(own))
    if strangers:
        raise AptError(
            f"{request.blame['packages']} would take {', '.join(strangers)} away; remove these packages first if "
            f"nothing needs them, or {request.blame['remedy']}"
        )


def _refuse_versions(request: Request, install: Dict[str, Tuple[Optional[str], str]], run: Run) -> None:
    if len(request.same_version) < 2:
        return
    versions = {}
    for name in request.same_version:
        found = install[name][1] if name in install else (_installed(run).get(name) or ("", "", ""))[0]
        versions[name] = upstream(found)
    if len(set(versions.values())) > 1:
        listed = " and ".join(f"{name} {version or 'none'}" for name, version in versions.items())
        raise AptError(
            f"{request.blame['packages']} brings {listed}, which have to be of the same version; set "
            f"{request.blame['version']} to one that both have"
        )


def apply(request: Request, expected: Forecast, run: Run) -> List[str]:
    """Make the change; return the packages that were held. Raises AptError when dpkg leaves something half-done."""
    for entry in expected.files:
        os.makedirs(os.path.dirname(entry["path"]), mode=0o755, exist_ok=True)
        _write(entry["path"], entry["content"], int(entry.get("mode", "0644"), 8))
    for path in request.absent:
        if os.path.lexists(path):
            os.unlink(path)
    if request.repair and (os.listdir(JOURNAL) or not (request.install or request.remove)):
        # apt-get goes on with half-configured packages by itself, but not with dpkg's journal of an interrupted run.
        # This may well fail again; the packages that come now are then what heals it.
        run(["dpkg", "--configure", "-a", "--force-confdef", "--force-confold"])
    said = ""
    if request.install or expected.files:
        run(["apt-get", "-o", "Acquire::Retries=2", "update"])
    if request.install or request.remove:
        options = ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
        options += ["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=2", "--yes"]
        rc, out, err = run(["apt-get", *options, *_ALLOWED, *_arguments(request)])
        said = _last_words(out, err) if rc else ""
    held = to_hold(request, run)
    if held:
        run(["apt-mark", "hold", *held])
    there = _installed(run)
    broken = sorted(
        name for name, (_v, state, _w) in there.items() if state in _HALF_DONE and _matches(name, request.owned)
    )
    if said or broken:
        left = f"{', '.join(broken)} half-done" if broken else "an error"
        raise AptError(
            f"apt left {left} ({said or 'see /var/log/dpkg.log'}); {request.blame['remedy']}, and run again: the "
            "next run takes up from here"
        )
    return held


def to_hold(request: Request, run: Run) -> List[str]:
    """Return the installed packages that are to be held and are not."""
    return [
        name
        for name, (_version, state, want) in sorted(_installed(run).items())
        if state == "installed" and want != "hold" and _matches(name, request.hold)
    ]


def _installed(run: Run) -> Dict[str, Tuple[str, str, str]]:
    """Return version, state and selection of every package that dpkg knows."""
    columns = "${Package}|${Version}|${db:Status-Status}|${db:Status-Want}\\n"
    _rc, out, _err = run(["dpkg-query", "--show", f"--showformat={columns}"])
    found = {}
    for line in out.splitlines():
        name, version, state, want = line.split("|", 3)
        found[name] = (version, state, want)
    return found


def _last_words(out: str, err: str) -> str:
    """Return what explains a failure of apt-get: the build's own error where a module did not build."""
    lines = [line.strip() for line in (out + "\n" + err).splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"^Error!|Bad return status|Consult .*make\.log|^E: ", line)]
    return "; ".join((telling or lines)[-3:])


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def read(path: str) -> Optional[str]:
    """Return a file's content, None when it is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None


def _write(path: str, content: str, mode: int = 0o644) -> None:
    """Replace the file in one step."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".inference-fleet.")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(content)
    os.chmod(temporary, mode)
    os.rename(temporary, path)


def summary(expected: Forecast, held: List[str], absent: List[str]) -> Dict[str, Any]:
    """Return the change as the module's result tells it."""
    lines = [f"{name} {old or '-'} -> {new}" for name, (old, new) in sorted(expected.install.items()) if old != new]
    lines += [f"{name} {version or '-'} -> -" for name, version in sorted(expected.remove.items())]
    return {
        "changed": bool(expected.install or expected.remove or expected.files or held or absent),
        "packages": lines,
        "written": [entry["path"] for entry in expected.files],
        "deleted": absent,
        "held": held,
    }
