"""A published folder is whole and verified, or not there, whatever happens in between."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from align.runs.manifest import damage, file_digest, publish, read_about
from align.trainers.checkpoints import newest_whole_checkpoint

ABOUT = {"run": {"seed": 3, "rate": 0.1}, "step": 4}


def written(folder: Path, text: str = "weights") -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "model.bin").write_text(text)
    (folder / "deep" / "manifest.json").write_text("a file of this name further down is content")
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    publish(written(tmp_path / "partial"), tmp_path / "shelf" / "final", ABOUT)
    return tmp_path / "shelf" / "final"


def test_a_published_folder_is_whole_and_says_what_it_was_told(published: Path) -> None:
    assert damage(published) is None
    assert read_about(published) == ABOUT
    assert (published / "model.bin").read_text() == "weights"
    assert [path.name for path in published.parent.iterdir()] == ["final"]
    assert not (published.parent.parent / "partial").exists()


@pytest.mark.parametrize("name", ["model.bin", "deep/manifest.json"])
def test_each_kind_of_damage_is_said_in_words(published: Path, name: str) -> None:
    path = published / name
    content = path.read_bytes()
    path.unlink()
    assert damage(published) == f"{name} is missing"
    path.write_bytes(content[:-1])
    assert damage(published) == f"{name} has {len(content) - 1} bytes instead of {len(content)}"
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert damage(published) == f"the content of {name} has changed"
    path.write_bytes(content)
    assert damage(published) is None


def test_a_folder_without_manifest_never_finished(published: Path, tmp_path: Path) -> None:
    (published / "manifest.json").unlink()
    assert damage(published) == "it has no manifest.json, so its writing never finished"
    assert "no manifest.json" in str(damage(tmp_path / "nowhere"))


def test_every_flipped_bit_and_every_cut_of_the_manifest_is_found(published: Path) -> None:
    """White space aside, which carries nothing."""
    path = published / "manifest.json"
    content = path.read_bytes()
    for i, byte in enumerate(content):
        path.write_bytes(content[:i])
        assert damage(published) is not None, i
        if not chr(byte).isspace():
            path.write_bytes(content[:i] + bytes([byte ^ 1]) + content[i + 1 :])
            assert damage(published) is not None, (i, chr(byte))


@pytest.mark.parametrize("text", ["[]", "3", '{"seal": 1}', '{"seal": 1, "files": 2}', "\udc80"])
def test_a_manifest_of_another_form_is_damage_and_no_exception(published: Path, text: str) -> None:
    (published / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert damage(published) == "its manifest.json is damaged"


def test_a_number_that_is_none_is_refused_before_anything_appears(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        publish(written(tmp_path / "partial"), tmp_path / "final", {"loss": float("nan")})
    assert not (tmp_path / "final").exists()


def test_a_folder_in_the_way_is_replaced_whole(published: Path, tmp_path: Path) -> None:
    (published / "left_over").write_text("of the old one")
    publish(written(tmp_path / "second", "other weights"), published, {"step": 5})
    assert damage(published) is None
    assert read_about(published) == {"step": 5}
    assert not (published / "left_over").exists()
    assert [path.name for path in published.parent.iterdir()] == ["final"]


class PowerCut(BaseException):
    pass


def cut_power_at_rename(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = os.replace, []

    def replace(*args: Path) -> None:
        calls.append(args)
        if len(calls) == number:
            raise PowerCut
        original(*args)

    monkeypatch.setattr(os, "replace", replace)


def test_a_crash_before_the_rename_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        cut_power_at_rename(1, patch)
        with pytest.raises(PowerCut):
            publish(written(tmp_path / "partial"), tmp_path / "final", ABOUT)
    assert not (tmp_path / "final").exists()


@pytest.mark.parametrize("rename", [1, 2])
def test_a_crash_while_replacing_never_shows_a_mixture(
    rename: int, tmp_path: Path, monkeypatch
) -> None:
    """Before the first rename the old checkpoint stands; between the two none does, and the one
    before it is taken. What was put aside is not listed as a checkpoint and goes next time.
    """
    for step in (4, 6):
        publish(written(tmp_path / "partial"), tmp_path / f"checkpoint-{step}", {"step": step})
    with monkeypatch.context() as patch:
        cut_power_at_rename(rename, patch)
        with pytest.raises(PowerCut):
            publish(written(tmp_path / "partial", "new"), tmp_path / "checkpoint-6", {"step": 6})
    newest = newest_whole_checkpoint(tmp_path)
    assert newest == tmp_path / {1: "checkpoint-6", 2: "checkpoint-4"}[rename]
    assert (newest / "model.bin").read_text() == "weights"
    listed = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert listed == {1: ["checkpoint-4", "checkpoint-6"], 2: ["checkpoint-4"]}[rename]

    publish(written(tmp_path / "again", "new"), tmp_path / "checkpoint-6", {"step": 6})
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    assert not list(tmp_path.glob(".*"))


def test_the_manifest_lists_every_file_with_size_and_sha256(published: Path) -> None:
    manifest = json.loads((published / "manifest.json").read_text())
    assert manifest["files"].keys() == {"model.bin", "deep/manifest.json"}
    # printf weights | sha256sum
    expected = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert manifest["files"]["model.bin"] == {"bytes": 7, "sha256": expected}


def test_hashing_counts_a_mebibyte_at_a_time(tmp_path: Path, phases) -> None:
    content = os.urandom(2**20 + 1)
    (tmp_path / "model.bin").write_bytes(content)
    assert file_digest(tmp_path / "model.bin") == hashlib.sha256(content).hexdigest()
    assert phases == [("hash model.bin", "MiB", 2, [1, 2], 0)]
