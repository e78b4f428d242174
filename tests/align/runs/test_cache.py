import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from align.errors import MachineError
from align.runs.cache import cached_folder, content_key


@pytest.fixture
def align_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def writer(text, built):
    def build(folder):
        built.append(text)
        (folder / "weights").write_text(text)

    return build


def test_the_key_is_the_content_and_not_its_order():
    assert content_key({"a": 1, "b": {"c": 2}}) == content_key({"b": {"c": 2}, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    assert content_key({"a": 1}) != content_key({"a": "1"})
    assert len(content_key({})) == 16
    with pytest.raises(ValueError, match="JSON"):
        content_key({"a": float("nan")})


def test_a_second_call_builds_nothing(align_cache):
    built = []
    first = cached_folder("worlds/w", {"a": 1}, writer("one", built))
    second = cached_folder("worlds/w", {"a": 1}, writer("two", built))
    assert first == second == align_cache / "worlds" / "w" / content_key({"a": 1})
    assert (first / "weights").read_text() == "one"
    assert built == ["one"]


def test_a_changed_part_has_another_folder(align_cache):
    built = []
    first = cached_folder("worlds/w", {"a": 1}, writer("one", built))
    assert cached_folder("worlds/w", {"a": 2}, writer("two", built)) != first
    assert built == ["one", "two"]


def test_a_torn_build_is_never_handed_out(align_cache):
    def torn(folder):
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("worlds/w", {"a": 1}, torn)
    shelf = align_cache / "worlds" / "w"
    assert len(list(shelf.glob("*.partial-*"))) == 1
    folder = cached_folder("worlds/w", {"a": 1}, writer("whole", []))
    assert (folder / "weights").read_text() == "whole"
    assert not list(shelf.glob("*.partial-*"))


def test_a_damaged_folder_is_built_again(align_cache, caplog):
    folder = cached_folder("worlds/w", {"a": 1}, writer("one", []))
    (folder / "weights").write_text("on")
    cached_folder("worlds/w", {"a": 1}, writer("new", []))
    assert (folder / "weights").read_text() == "new"
    assert "weights has 2 bytes instead of 3" in caplog.text


def test_two_at_once_build_once(align_cache):
    # Two threads open the lock file twice, which excludes as between processes and starts faster.
    built = []

    def build(folder):
        time.sleep(0.2)
        writer("one", built)(folder)

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: cached_folder("worlds/w", {"a": 1}, build), range(2)))
    assert folders[0] == folders[1]
    assert built == ["one"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="ALIGN_CACHE") as caught:
        cached_folder("worlds/w", {"a": 1}, writer("one", []))
    assert caught.value.exit_code == 4
