# SPDX-License-Identifier: Apache-2.0
"""Repositories of the Hugging Face Hub in the cache layout that all its libraries share.

The layout (https://huggingface.co/docs/hub/local-cache): ``models--<org>--<name>`` with ``blobs/<checksum>``, the
SHA-256 of a file in large file storage and the git checksum of any other; ``snapshots/<commit>/<file>``, links to the
blobs; ``refs/<branch or tag>``, the commit that it stood for. The requests are those of huggingface_hub 2.4
(``snapshot_download``, ``auth_check``): ``/api/models/<repository>/revision/<revision>``, ``…/auth-check``,
``…/tree/<commit>`` and ``/<repository>/resolve/<commit>/<file>``.

Standard library only, Python 3.8+: this runs on the nodes.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Blob, Receipts, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.download import DownloadError, read, shown_url
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import ENDPOINT, Hub, Sources
from ansible_collections.fleet.inference.plugins.module_utils.services.files import write_text

#: What is left out beside safetensors: the same weights for other programs.
OTHER_WEIGHTS = (
    "*.bin",
    "*.ckpt",
    "*.gguf",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.onnx_data",
    "*.ot",
    "*.pt",
    "*.pth",
    "*.tflite",
    "original/*",
)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")


@dataclass(frozen=True)
class Manifest:
    """What a revision of a repository consists of: the commit, and of each file size, checksum and its kind."""

    commit: str
    files: Mapping[str, Tuple[int, str, str]]

    def to_json(self) -> Dict[str, Any]:
        """Return it as plain values."""
        return {"commit": self.commit, "files": {path: list(entry) for path, entry in self.files.items()}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Manifest:
        """Return what ``to_json`` returned; raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
        files = {
            str(path): (int(size), str(digest), str(kind)) for path, (size, digest, kind) in value["files"].items()
        }
        for path in files:
            _check_name(path)
        return Manifest(str(value["commit"]), files)


def folder_name(repository: str) -> str:
    """Return the name of a repository's folder in the cache."""
    return "models--" + repository.replace("/", "--")


def _check_name(path: str) -> str:
    """Return a file's name in a repository; raises ``ValueError`` for one that leads out of its folder."""
    if not path or path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"the file name '{path}'")
    return path


def _chosen(names: Sequence[str], patterns: Sequence[str], title: str) -> List[str]:
    """Return the files that are wanted of a repository."""
    if patterns:
        chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        chosen = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in OTHER_WEIGHTS)]
    if not any(name.endswith(".safetensors") for name in chosen):
        among = f" among the files {', '.join(patterns)}" if patterns else ""
        raise StoreError(
            f"{title} has no safetensors{among}; name a repository that has some in the model's entry of "
            "inference_models"
        )
    return chosen


class Repository:
    """One wanted revision of a repository and its place in the store."""

    #: Whether somebody must be asked what it consists of.
    needs_manifest = True

    def __init__(self, model: Mapping[str, Any], root: str, record: bool = True) -> None:
        """``model`` is an entry of the plan's models; ``record`` false writes no receipts (check mode)."""
        self.repository = str(model["repository"])
        self.revision = str(model["revision"])
        self.patterns = [str(pattern) for pattern in model.get("files") or []]
        self.title = f"{self.repository} at {self.revision}"
        self.folder = str(model["path"])
        receipt = os.path.join(root, ".receipts", "huggingface", os.path.basename(self.folder) + ".json")
        self.receipts = Receipts(receipt, record)

    @property
    def key(self) -> str:
        """What tells it from all other wanted models."""
        return f"{self.folder}@{self.revision}"

    def recorded(self) -> Optional[Dict[str, Any]]:
        """Return the manifest of the revision as it was placed; None when that is not known."""
        manifest = self.recorded_revision()
        return None if manifest is None else manifest.to_json()

    def recorded_revision(self) -> Optional[Manifest]:
        """Return what ``recorded`` returns as a manifest."""
        found = self.receipts.content.get("revisions", {}).get(self.revision)
        if not isinstance(found, dict) or found.get("patterns") != self.patterns:
            return None
        try:
            return Manifest.from_json(found)
        except (KeyError, TypeError, ValueError):
            return None

    def is_placed(self) -> bool:
        """Return whether every file of the revision is there, as it was verified; asks nobody and reads no weights."""
        manifest = self.recorded_revision()
        if manifest is None:
            return False
        links = all(
            os.path.realpath(self._link(manifest, name)) == os.path.realpath(blob.path) and self.receipts.vouches(blob)
            for name, blob in self._named_blobs(manifest, None).items()
        )
        return links and self._reference() in (None, manifest.commit)

    def manifest(self, sources: Sources) -> Dict[str, Any]:
        """Ask the Hub what the revision consists of; raises :class:`StoreError` with what is wrong, and the remedy."""
        hub = sources.hub
        answer = self._ask(hub, f"revision/{urllib.parse.quote(self.revision, safe='')}", sources)[0]
        commit = str(answer.get("sha") if isinstance(answer, dict) else None)
        if not _COMMIT.match(commit):
            raise self._strange(hub, "no commit")
        if answer.get("gated"):
            self._check_access(hub, sources)
        files: Dict[str, Tuple[int, str, str]] = {}
        page: Optional[str] = f"tree/{commit}?recursive=true&expand=false"
        while page is not None:
            entries, page = self._ask(hub, page, sources)
            try:
                files.update(_tree_files(entries))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise self._strange(hub, str(error)) from error
        chosen = _chosen(sorted(files), self.patterns, self.title)
        return Manifest(commit, {name: files[name] for name in chosen}).to_json()

    def blobs(self, content: Dict[str, Any], sources: Sources) -> List[Blob]:
        """Return the files of a manifest, each content once."""
        found = self._named_blobs(Manifest.from_json(content), sources.hub)
        return list({blob.path: blob for blob in found.values()}.values())

    def link(self, content: Dict[str, Any]) -> None:
        """Make the revision's folder of links, once all its blobs are there, and record it."""
        manifest = Manifest.from_json(content)
        try:
            for name, blob in self._named_blobs(manifest, None).items():
                link = self._link(manifest, name)
                target = os.path.relpath(blob.path, os.path.dirname(link))
                os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
                if not (os.path.islink(link) and os.readlink(link) == target):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(link + ".partial")
                    os.symlink(target, link + ".partial")
                    os.replace(link + ".partial", link)
            if not _COMMIT.match(self.revision):
                reference = os.path.join(self.folder, "refs", self.revision)
                os.makedirs(os.path.dirname(reference), mode=0o755, exist_ok=True)
                write_text(reference, manifest.commit)
        except OSError as error:
            raise StoreError(
                f"{self.title} can't be written to {self.folder}: {error.strerror or error}; see to that disk"
            ) from error
        self.receipts.keep("revisions", self.revision, {**manifest.to_json(), "patterns": self.patterns})

    def _reference(self) -> Optional[str]:
        """Return the commit that the cache has for a branch or tag, an empty text for none; None for a commit."""
        if _COMMIT.match(self.revision):
            return None
        try:
            with open(os.path.join(self.folder, "refs", self.revision), encoding="utf-8") as stream:
                return stream.read()
        except OSError:
            return ""

    def _link(self, manifest: Manifest, name: str) -> str:
        return os.path.join(self.folder, "snapshots", manifest.commit, name)

    def _named_blobs(self, manifest: Manifest, hub: Optional[Hub]) -> Dict[str, Blob]:
        found = {}
        base = None if hub is None else f"{hub.endpoint}/{self.repository}/resolve/{manifest.commit}"
        for name, (size, digest, kind) in manifest.files.items():
            found[name] = Blob(
                path=os.path.join(self.folder, "blobs", digest),
                size_bytes=size,
                checksum=digest,
                url=base and f"{base}/{urllib.parse.quote(name)}",
                title=self.repository,
                name=f"{self.repository}/{name}",
                kind=kind,
                token=hub.token if hub else None,
                remedy="run again, or read it from another inference_huggingface_endpoint",
            )
        return found

    def _ask(self, hub: Hub, path: str, sources: Sources) -> Tuple[Any, Optional[str]]:
        """Return an answer of the Hub's interface and the next page, as a path of it or an address."""
        url = path if "://" in path else f"{hub.endpoint}/api/models/{self.repository}/{path}"
        try:
            body, following = read(
                url,
                token=hub.token_for(url),
                stall_timeout=sources.patience.stall_timeout,
                retries=sources.patience.retries,
                sleep=sources.patience.sleep,
            )
            return json.loads(body.decode("utf-8")), following
        except DownloadError as error:
            raise self._refused(hub, error) from error
        except ValueError as error:
            raise self._strange(hub, "no JSON") from error

    def _check_access(self, hub: Hub, sources: Sources) -> None:
        """Refuse a repository whose files the Hub would not send; everybody may list them (``HfApi.auth_check``)."""
        url = f"{hub.endpoint}/api/models/{self.repository}/auth-check"
        patience = sources.patience
        try:
            read(
                url,
                token=hub.token,
                stall_timeout=patience.stall_timeout,
                retries=patience.retries,
                sleep=patience.sleep,
            )
        except DownloadError as error:
            # A mirror may not know the question.
            if error.status in (401, 403):
                raise self._refused(hub, DownloadError(str(error), error.status, "GatedRepo")) from error

    def _refused(self, hub: Hub, error: DownloadError) -> StoreError:
        """Say what an answer of the Hub means (huggingface_hub: ``hf_raise_for_status``)."""
        where = shown_url(hub.endpoint)
        if error.code == "RevisionNotFound":
            return StoreError(
                f"{self.repository} has no revision {self.revision} at {where}; correct revision in the model's entry "
                "of inference_models"
            )
        if error.code == "GatedRepo":
            if not hub.token:
                why, remedy = "there is no token", "and set inference_huggingface_token"
            else:
                why, remedy = "the token's account may not read it", "with the account of inference_huggingface_token"
            return StoreError(
                f"{self.repository} asks for its licence to be accepted and {why}; accept it at {ENDPOINT}/"
                f"{self.repository} {remedy}"
            )
        if error.code == "RepoNotFound" or error.status in (401, 403, 404):
            remedy = "set inference_huggingface_token if it is private"
            if hub.token:
                remedy = "check that inference_huggingface_token is valid and may read it"
            return StoreError(
                f"{self.repository} is not at {where}, or not for everybody ({error.status}); correct repository in "
                f"the model's entry of inference_models, or {remedy}"
            )
        return StoreError(f"{self.title}: {error}")

    def _strange(self, hub: Hub, what: str) -> StoreError:
        return StoreError(
            f"{shown_url(hub.endpoint)} answers for {self.title} as no Hugging Face Hub does ({what}); correct "
            "inference_huggingface_endpoint"
        )


def _tree_files(entries: Any) -> Dict[str, Tuple[int, str, str]]:
    """Return size, checksum and its kind of each file that a page of a tree lists."""
    files = {}
    for entry in entries:
        if entry["type"] != "file":
            continue
        lfs = entry.get("lfs")
        digest, kind = (str(lfs["oid"]), "sha256") if lfs else (str(entry["oid"]), "git")
        if not re.match(r"[0-9a-f]{64}\Z" if kind == "sha256" else r"[0-9a-f]{40}\Z", digest):
            raise ValueError(f"the checksum '{digest}'")
        size = int(lfs["size"] if lfs else entry["size"])
        files[_check_name(str(entry["path"]))] = (size, digest, kind)
    return files
