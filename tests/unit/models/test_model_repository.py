# SPDX-License-Identifier: Apache-2.0
"""Repositories of the Hub in the store, against a stand-in of the Hub on the loopback address."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.fleet.inference.plugins.module_utils.models import keeper
from ansible_collections.fleet.inference.plugins.module_utils.models.blobs import Patience, StoreError
from ansible_collections.fleet.inference.plugins.module_utils.models.download import read
from ansible_collections.fleet.inference.plugins.module_utils.models.sources import Hub, Sources
from images.model_hub.model_hub_stand_in import git_checksum
from model_sources import COMMIT, FILES, WEIGHTS, HubStandIn, repository

WANTED = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "tokenizer/vocab file.txt",
]
TOKEN = "hf_planted"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setenv("no_proxy", "*")
    hub = HubStandIn()
    yield hub
    hub.close()


def sources(hub: HubStandIn, token: str | None = None, retries: int = 3) -> Sources:
    return Sources(Hub(hub.url, token), patience=Patience(5, retries, sleep=lambda seconds: None))


def keep(hub: HubStandIn, model: dict[str, Any], root: Path, token: str | None = None, **options: Any) -> keeper.Visit:
    """Visit the store once."""
    found = sources(hub, token)
    visit = keeper.inspect([model], str(root), found)
    keeper.bring(visit, found, **options)
    return visit


def test_the_layout_of_the_cache(hub: HubStandIn, tmp_path: Path) -> None:
    visit = keep(hub, repository(tmp_path), tmp_path)
    folder = tmp_path / "huggingface" / "models--org--name"
    snapshot = folder / "snapshots" / COMMIT
    files = sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_symlink())
    assert files == WANTED and {name: (snapshot / name).read_bytes() for name in files} == {
        name: FILES[name] for name in WANTED
    }
    assert str((snapshot / "config.json").readlink()) == f"../../blobs/{git_checksum(FILES['config.json'])}"
    blobs = {path.name for path in (folder / "blobs").iterdir()}
    large, small = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), WANTED[::3]
    assert blobs == {hashlib.sha256(FILES[name]).hexdigest() for name in large} | {
        git_checksum(FILES[name]) for name in small
    }
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in (folder / "blobs").iterdir())
    assert visit.added == [f"{folder}@main"] and visit.wanted[0].total_bytes == sum(len(FILES[n]) for n in WANTED)


def test_a_placed_revision_asks_nobody_and_reads_nothing(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(hub, repository(tmp_path), tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(
        "ansible_collections.fleet.inference.plugins.module_utils.models.blobs.checksum",
        lambda *arguments: pytest.fail("a file was read again"),
    )
    assert keep(hub, repository(tmp_path), tmp_path).missing == [] and hub.requests == []
    same = keeper.describe([repository(tmp_path)], str(tmp_path), sources(hub))
    assert [Path(path).parent.name for entry in same.values() for path in entry["files"]] == ["blobs"] * 4


@pytest.mark.parametrize("harm", ["blob", "link", "reference", "receipt"])
def test_what_is_harmed_is_repaired(hub: HubStandIn, tmp_path: Path, harm: str) -> None:
    keep(hub, repository(tmp_path), tmp_path)
    folder = tmp_path / "huggingface" / "models--org--name"
    link = folder / "snapshots" / COMMIT / "model-00001-of-00002.safetensors"
    hub.storage_requests.clear()
    if harm == "blob":
        link.resolve().write_bytes(b"x" * len(WEIGHTS))
    elif harm == "link":
        link.unlink()
    elif harm == "reference":
        (folder / "refs" / "main").unlink()
    else:
        (tmp_path / ".receipts" / "huggingface" / "models--org--name.json").unlink()
    assert keep(hub, repository(tmp_path), tmp_path).added == [f"{folder}@main"]
    assert link.read_bytes() == WEIGHTS and (folder / "refs" / "main").read_text() == COMMIT
    assert [name for name, _range in hub.storage_requests] == ([link.name] if harm == "blob" else [])


def test_a_commit_has_no_reference_and_shares_its_files(hub: HubStandIn, tmp_path: Path) -> None:
    keep(hub, repository(tmp_path, revision=COMMIT), tmp_path)
    assert not (tmp_path / "huggingface" / "models--org--name" / "refs").exists()
    hub.storage_requests.clear()
    assert keep(hub, repository(tmp_path, revision="pr/1"), tmp_path).added and hub.storage_requests == []
    assert (tmp_path / "huggingface" / "models--org--name" / "refs" / "pr" / "1").read_text() == COMMIT


def test_only_the_wanted_files(hub: HubStandIn, tmp_path: Path) -> None:
    model = repository(tmp_path, files=["*.json", "model-00001*"])
    keep(hub, model, tmp_path)
    snapshot = tmp_path / "huggingface" / "models--org--name" / "snapshots" / COMMIT
    names = sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_symlink())
    assert names == ["config.json", "model-00001-of-00002.safetensors", "original/params.json"]
    assert keeper.inspect([model], str(tmp_path), sources(hub)).missing == []
    assert keeper.inspect([repository(tmp_path)], str(tmp_path), sources(hub)).missing != []


def test_resume(hub: HubStandIn, tmp_path: Path) -> None:
    hub.cuts = [100_000]
    keep(hub, repository(tmp_path), tmp_path, parallel=1)
    first = hub.storage_requests[0][0]
    assert hub.storage_requests[:2] == [(first, None), (first, "bytes=100000-")]


def test_pauses_and_goes_on(hub: HubStandIn, tmp_path: Path) -> None:
    left = []
    for _visit in range(50):
        clock = iter(range(1000))
        visit = keep(hub, repository(tmp_path), tmp_path, parallel=1, seconds=3, clock=lambda: float(next(clock)))  # noqa: B023
        left.append(visit.wanted[0].left_bytes)
        if visit.added:
            break
    assert len(left) > 2 and left == sorted(left, reverse=True) and left[-1] == 0
    # What has arrived is not asked for again.
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        offsets = [int((offset or "bytes=0-")[6:-1]) for asked, offset in hub.storage_requests if asked == name]
        assert offsets == sorted(offsets) and offsets[-1] > 0


def test_several_at_a_time_and_no_more(hub: HubStandIn, tmp_path: Path) -> None:
    hub.repository.files = {f"model-{number}.safetensors": WEIGHTS + bytes([number]) for number in range(6)}
    lock, now, most = threading.Lock(), 0, 0

    def meet() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1

    hub.on_file = meet
    keep(hub, repository(tmp_path), tmp_path, parallel=3)
    assert most == 3


def test_token_goes_to_the_hub_alone(hub: HubStandIn, tmp_path: Path) -> None:
    hub.repository.gated, hub.repository.token = True, TOKEN
    keep(hub, repository(tmp_path), tmp_path, TOKEN)
    # The storage asserts that it gets none.
    assert hub.storage_requests and {sent for _path, sent in hub.requests} == {f"Bearer {TOKEN}"}
    written = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert written == []


def refusal(hub: HubStandIn, model: dict[str, Any], root: Path, found: Sources) -> str:
    with pytest.raises(StoreError) as error:
        keeper.bring(keeper.inspect([model], str(root), found), found)
    text = str(error.value)
    assert "\n" not in text and TOKEN not in text
    return text


@pytest.mark.parametrize(
    ("token", "why", "remedy"),
    [
        (None, "there is no token", "and set inference_huggingface_token"),
        (TOKEN, "the token's account may not read it", "with the account of inference_huggingface_token"),
    ],
)
def test_gated_model_is_refused_before_anything_is_written(
    hub: HubStandIn, tmp_path: Path, token: str | None, why: str, remedy: str
) -> None:
    hub.repository.gated, hub.repository.token = True, "another"
    assert refusal(hub, repository(tmp_path), tmp_path, sources(hub, token)) == (
        f"org/name asks for its licence to be accepted and {why}; accept it at https://huggingface.co/org/name {remedy}"
    )
    assert list(tmp_path.iterdir()) == [] and hub.storage_requests == []


def test_unknown_revision_and_repository(hub: HubStandIn, tmp_path: Path) -> None:
    assert refusal(hub, repository(tmp_path, revision="v9"), tmp_path, sources(hub)) == (
        f"org/name has no revision v9 at {hub.url}; correct revision in the model's entry of inference_models"
    )
    assert refusal(hub, repository(tmp_path, repository="org/nmae"), tmp_path, sources(hub)) == (
        f"org/nmae is not at {hub.url}, or not for everybody (401); correct repository in the model's entry of "
        "inference_models, or set inference_huggingface_token if it is private"
    )
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes(hub: HubStandIn, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.wrong = {name: b"y" * len(WEIGHTS)}
    text = refusal(hub, repository(tmp_path), tmp_path, sources(hub))
    assert text.startswith(f"org/name/{name} has the SHA-256 ") and "inference_huggingface_endpoint" in text
    folder = tmp_path / "huggingface" / "models--org--name"
    assert not (folder / "snapshots").exists()
    assert hashlib.sha256(WEIGHTS).hexdigest() not in {path.stem for path in (folder / "blobs").iterdir()}


def test_repository_without_safetensors(hub: HubStandIn, tmp_path: Path) -> None:
    del (
        hub.repository.files["model-00001-of-00002.safetensors"],
        hub.repository.files["model-00002-of-00002.safetensors"],
    )
    assert refusal(hub, repository(tmp_path), tmp_path, sources(hub)) == (
        "org/name at main has no safetensors; name a repository that has some in the model's entry of inference_models"
    )


@pytest.mark.parametrize("name", ["../../outside.safetensors", "/etc/x.safetensors", "a/../../b.safetensors"])
def test_a_name_that_leads_elsewhere(hub: HubStandIn, tmp_path: Path, name: str) -> None:
    hub.repository.files = {name: WEIGHTS}
    assert "as no Hugging Face Hub does" in refusal(hub, repository(tmp_path), tmp_path, sources(hub))
    # Nor when what the controller hands over is wrong.
    manifest = {"commit": COMMIT, "files": {name: [1, "0" * 64, "sha256"]}}
    key = f"{tmp_path}/huggingface/models--org--name@main"
    with pytest.raises(ValueError, match="the file name"):
        keeper.inspect([repository(tmp_path)], str(tmp_path), sources(hub), manifests={key: manifest})


@pytest.mark.parametrize(
    ("hub", "words"),
    [
        (
            Hub("http://mirror.example", TOKEN),
            "inference_huggingface_endpoint is http://mirror.example, where the token",
        ),
        (Hub("mirror.example"), "inference_huggingface_endpoint is 'mirror.example'; give an http or https address"),
        (Hub(token="hf_a b"), "inference_huggingface_token has blanks"),
    ],
)
def test_endpoints_and_tokens_that_are_refused(hub: Hub, words: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        keeper.inspect([], str(tmp_path), Sources(hub))
    assert words in str(error.value) and "hf_" not in str(error.value)


def test_room_is_checked_for_what_the_hub_says(
    hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def check(blobs: list[Any], root: str, **options: Any) -> None:
        asked.append(sum(blob.size_bytes for blob in blobs))
        raise StoreError("no room")

    monkeypatch.setattr(keeper, "check_space", check)
    with pytest.raises(StoreError, match="no room"):
        keeper.inspect([repository(tmp_path, size_bytes=1)], str(tmp_path), sources(hub))
    assert asked == [sum(len(FILES[name]) for name in WANTED)] and list(tmp_path.iterdir()) == []


def test_check_mode_writes_nothing(hub: HubStandIn, tmp_path: Path) -> None:
    visit = keeper.inspect([repository(tmp_path)], str(tmp_path), sources(hub), record=False)
    assert visit.missing and list(tmp_path.iterdir()) == []


def test_gguf_files_of_the_hub_come_from_the_mirror(hub: HubStandIn, tmp_path: Path) -> None:
    content = b"GGUF" + WEIGHTS
    hub.repository.files["model.gguf"] = content
    hub.repository.gated, hub.repository.token = True, TOKEN
    model = {
        "path": str(tmp_path / "gguf" / "model.gguf"),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "source": {"url": f"https://huggingface.co/org/name/resolve/{COMMIT}/model.gguf"},
    }
    keep(hub, model, tmp_path, TOKEN)
    assert Path(model["path"]).read_bytes() == content
    assert hub.requests == [(f"/org/name/resolve/{COMMIT}/model.gguf", f"Bearer {TOKEN}")]


def test_the_plan_s_receipt_is_readable(hub: HubStandIn, tmp_path: Path) -> None:
    keep(hub, repository(tmp_path), tmp_path)
    receipt = json.loads((tmp_path / ".receipts" / "huggingface" / "models--org--name.json").read_text())
    assert receipt["revisions"]["main"]["commit"] == COMMIT and len(receipt["blobs"]) == 4


def test_a_busy_hub_is_given_the_time_that_it_asks_for(hub: HubStandIn, tmp_path: Path) -> None:
    hub.busy = [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=55'}, {"Retry-After": "86400"}]
    pauses: list[float] = []
    found = Sources(Hub(hub.url), patience=Patience(5, 3, sleep=pauses.append))
    keeper.inspect([repository(tmp_path)], str(tmp_path), found)
    assert pauses == [7, 55, 300]


def test_the_token_goes_along_to_a_new_name(hub: HubStandIn, tmp_path: Path) -> None:
    hub.repository.gated, hub.repository.token = True, TOKEN
    answer, _page = read(f"{hub.url}/api/models/org/former-name/revision/main", token=TOKEN)
    assert json.loads(answer)["sha"] == COMMIT
    assert [sent for _path, sent in hub.requests] == [f"Bearer {TOKEN}"] * 2
