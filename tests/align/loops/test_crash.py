"""A loop that dies at any write, flush, rename or removal ends as if it had not, byte by byte."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from align.runs.manifest import damage

PARTS = 6


class Lab:
    """Runs the loop of `fake_loop` on a `faulty_disk`, and knows how it ends without faults."""

    def __init__(
        self, root: Path, fake: ModuleType, disk: ModuleType, patch: pytest.MonkeyPatch
    ) -> None:
        self.root, self.fake, self.disk, self.patch = root, fake, disk, patch
        straight = root / "straight"
        with disk.FaultyDisk(straight).attached(patch) as healthy:
            fake.run(straight)
        self.points = healthy.points
        self.expected = fake.files(straight)
        self.history = fake.history(straight)
        self.served = fake.served(straight).read_text().splitlines()

    def die(self, folder: Path, point: int, fault: str) -> str:
        """Runs until the fault; says where it came."""
        disk = self.disk.FaultyDisk(folder, point, fault)
        with disk.attached(self.patch), pytest.raises(self.disk.PowerCut):
            self.fake.run(folder)
        return f"{fault} at {point}, {disk.points[point - 1]}"

    def check_visible(self, folder: Path, where: str) -> None:
        """What a reader can see is whole."""
        for stage in folder.glob("rounds/*/[0-9]*"):
            assert damage(stage) is None, (where, stage.name)

    def finish(self, folder: Path, where: str, deaths: int = 1) -> None:
        """Goes on to the end and compares everything with the uninterrupted run."""
        with self.disk.FaultyDisk(folder).attached(self.patch):
            self.fake.run(folder)
        assert self.fake.files(folder) == self.expected, where
        assert self.fake.history(folder) == self.history, where
        served = self.fake.served(folder).read_text().splitlines()
        assert list(dict.fromkeys(served)) == self.served, where
        # Only the call in flight may be asked again, once per death.
        assert len(served) <= len(self.served) + deaths, where
        shutil.rmtree(folder)
        self.fake.served(folder).unlink()


@pytest.fixture(scope="module")
def lab(fake_loop: ModuleType, faulty_disk: ModuleType) -> Iterator[Lab]:
    # Memory where there is one that looks like a disk: SQLite's flushes take most of the time.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as root, pytest.MonkeyPatch.context() as patch:
        yield Lab(Path(root), fake_loop, faulty_disk, patch)


def test_the_enumeration_sees_every_kind_of_change(lab: Lab) -> None:
    kinds = {point.rpartition(" ")[0] for point in lab.points}
    assert kinds >= {"open for w", "write", "fsync", "rename", "mkdir", "rmdir", "unlink", "create"}
    # 3 rounds of 4 stages, each with a manifest and a rename into place, and one retention.
    assert lab.points.count("open for w manifest.json") == 3 * 4 + 1
    assert sum(point.startswith("rename 0") for point in lab.points) == 3 * 4 + 1
    # Each round: itself, 4 stages with a manifest, 9 files and folders of small kinds; the last two
    # also a policy of 3. 3 * (1 + 8 + 9) + 2 * 3 = 60
    assert len(lab.expected) == 60


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("fault", ["cut", "lost"])
def test_death_at_every_point_changes_nothing(lab: Lab, fault: str, part: int) -> None:
    for point in range(1 + part, len(lab.points) + 1, PARTS):
        folder = lab.root / f"{fault}-{point}"
        where = lab.die(folder, point, fault)
        lab.check_visible(folder, where)
        lab.finish(folder, where)


def test_death_in_the_middle_of_every_write_changes_nothing(lab: Lab) -> None:
    writes = [i for i, point in enumerate(lab.points, 1) if point.startswith(("open", "write"))]
    assert len(writes) > 40
    for point in writes:
        folder = lab.root / f"torn-{point}"
        where = lab.die(folder, point, "torn")
        lab.check_visible(folder, where)
        lab.finish(folder, where)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_full_disk_at_every_point_is_told_and_changes_nothing(lab: Lab, part: int) -> None:
    """The process lives on; what it cannot remove it leaves to the next run."""
    survived = set()
    for point in range(1 + part, len(lab.points) + 1, PARTS):
        folder = lab.root / f"full-{point}"
        disk = lab.disk.FaultyDisk(folder, point, "full")
        with disk.attached(lab.patch):
            try:
                lab.fake.run(folder)
                survived.add(disk.points[point - 1].partition(" ")[0])
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - the other outcome is fine too
        where = f"full at {point}, {disk.points[point - 1]}"
        lab.check_visible(folder, where)
        lab.finish(folder, where)
    assert survived <= {"unlink", "rmdir"}


def test_a_second_death_during_recovery_changes_nothing(lab: Lab) -> None:
    """The first at every 20th point, the second at every 9th of the recovery."""
    tried = 0
    for first in range(10, len(lab.points), 20):
        second = 1 + first % 9
        while True:
            folder = lab.root / f"double-{first}-{second}"
            where = lab.die(folder, first, "lost")
            disk = lab.disk.FaultyDisk(folder, second, "lost")
            try:
                with disk.attached(lab.patch):
                    lab.fake.run(folder)
            except lab.disk.PowerCut:
                where += f", then {disk.points[second - 1]}"
            lab.check_visible(folder, where)
            lab.finish(folder, where, deaths=2)
            if not disk.is_dead:
                break
            tried += 1
            second += 40
    assert tried > 40


def copied(source: Path, target: Path) -> None:
    """A rename as somebody would write it who does not think of crashes."""
    if Path(source).is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
        shutil.rmtree(source)
    else:
        shutil.copyfile(source, target)
        os.unlink(source)


def deaths_seen(lab: Lab, name: str, fault: str) -> int:
    """How many of every 7th death are noticed by a reader or change the result; ours: none."""
    with lab.disk.FaultyDisk(lab.root / name).attached(lab.patch) as healthy:
        lab.fake.run(lab.root / name)
    seen = 0
    for point in range(1, len(healthy.points), 7):
        folder = lab.root / f"{name}-{point}"
        where = lab.die(folder, point, fault)
        try:
            lab.check_visible(folder, where)
            lab.finish(folder, where)
        except AssertionError:
            seen += 1
    return seen


def test_without_the_rename_the_same_check_fails(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.runs.manifest.os", Without(os, replace=copied))
    assert deaths_seen(lab, "copied", "cut") > 3


def test_without_the_flush_the_same_check_fails(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("align.runs.manifest._flush", lambda path: None)
    assert deaths_seen(lab, "unflushed", "lost") > 3


class Without:
    """A module with some of its functions replaced."""

    def __init__(self, module: ModuleType, **replaced: object) -> None:
        self.__dict__.update(replaced)
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)
