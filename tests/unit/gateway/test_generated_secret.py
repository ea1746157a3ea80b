# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible.errors import AnsibleError
from ansible_collections.fleet.inference.plugins.lookup.generated_secret import secret

ROOT = Path(__file__).resolve().parents[3]


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key"
    value = secret(path, "sk-")
    assert re.fullmatch("sk-[A-Za-z0-9]{48}", value)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert secret(path, "sk-") == value
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_a_given_secret_is_kept_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-mine\n")
    path.chmod(0o644)
    assert secret(path, "sk-") == "sk-mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_check_mode_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key"
    assert secret(path, check_mode=True, prefix="sk-").startswith("sk-")
    assert not path.parent.exists()


def test_runs_at_the_same_time_agree(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: secret(path, length=12), range(16)))) == 1


def test_an_empty_file_and_a_directory_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch()
    with pytest.raises(AnsibleError, match=r"key is empty; delete it"):
        secret(path)
    with pytest.raises(AnsibleError, match=r"can not be read \(Is a directory\)"):
        secret(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) & 0o100
    with pytest.raises(AnsibleError, match=r"can not be made \(File exists\)"):
        secret(path / "below")


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_ansible_finds_it_and_knows_check_mode(tmp_path: Path, check: list[str]) -> None:
    path = tmp_path / "key"
    look_up = f"lookup('fleet.inference.generated_secret', '{path}', prefix='sk-', length=20)"
    command = [sys.executable, "-m", "ansible", "adhoc", "localhost", *check, "-i", "localhost,", "-m", "debug"]
    done = subprocess.run(
        [*command, "-a", f"msg='{{{{ {look_up} | length }}}}'"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.exists() is not bool(check)
    assert check or "23" in done.stdout
