"""A journal accepts nothing that was not written: cut or changed at any byte, held twice, torn."""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align.errors import DataError, MachineError, NumericalError, RecipeError
from align.runs import ledger as ledger_module
from align.runs.ledger import Ledger, read_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def written(path: Path, count: int) -> bytes:
    with Ledger(path) as ledger:
        for i in range(count):
            ledger.append("judge", 0.5, {"i": i, "ä": [1.5, None, "x\ny"]})
    return path.read_bytes()


def numbers(path: Path) -> list[int]:
    return [record["i"] for record in read_records(path)]


def test_a_line_is_the_record_with_a_checksum_of_it(path: Path, monkeypatch) -> None:
    monkeypatch.setattr("align.runs.ledger.time.time", lambda: 12.3456)
    with Ledger(path) as ledger:
        ledger.append("train", 1.23456, {"b": 1, "a": "é"})
        ledger.append("train", None, {})
        assert [record["seconds"] for record in ledger.records()] == [1.235, None]
    # printf '%s' '{"a": "\u00e9", "at": 12.346, "b": 1, "seconds": 1.235, "step": "train"}'
    #   | sha256sum | cut -c1-16
    assert path.read_text().splitlines()[0] == (
        '{"sha256": "6b85c6658f8dc2f0", "a": "\\u00e9", "at": 12.346, "b": 1, '
        '"seconds": 1.235, "step": "train"}'
    )


@pytest.fixture
def each_line_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict is a function of the line's bytes; thousands of files share theirs."""
    monkeypatch.setattr(ledger_module, "_record", functools.cache(ledger_module._record))


@pytest.mark.usefixtures("each_line_judged_once")
def test_cut_at_any_byte_it_keeps_the_whole_lines_and_goes_on(path: Path, caplog) -> None:
    whole = written(path, 100)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 100
    for cut in range(len(whole), -1, -1):
        os.truncate(path, cut)
        kept = sum(end <= cut for end in ends)
        assert numbers(path) == list(range(kept)), cut
        if cut % 97 == 0:
            caplog.clear()
            path = path.with_name(f"{cut}.jsonl")
            path.write_bytes(whole[:cut])
            with Ledger(path) as ledger:
                ledger.append("judge", 0.5, {"i": -1})
            assert numbers(path) == [*range(kept), -1], cut
            is_torn = cut not in (0, *ends)
            assert ("dropped an unfinished last line" in caplog.text) == is_torn, cut
            path.write_bytes(whole[:cut])


def put(path: Path, position: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([byte]))


@pytest.mark.usefixtures("each_line_judged_once")
def test_every_flipped_bit_is_found_and_its_line_named(path: Path) -> None:
    whole = written(path, 20)
    for i, byte in enumerate(whole):
        line = 1 + whole[:i].count(b"\n")
        for bit in range(8):
            put(path, i, byte ^ 1 << bit)
            if i == len(whole) - 1:
                # Without its end the last line is an unfinished one.
                assert numbers(path) == list(range(19))
                continue
            seen = []
            with pytest.raises(DataError) as damage:
                seen += (record["i"] for record in read_records(path))
            assert f"{path}:{line}:" in str(damage.value), (i, bit)
        put(path, i, byte)


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[]", b"3", b'{"sha256": "x"}', b'{"sha256": {}}', b"[" * 10_000, b"\xff\0"],
)
def test_a_line_of_another_form_is_damage_and_no_other_exception(path: Path, line: bytes) -> None:
    whole = written(path, 3)
    path.write_bytes(whole + line + b"\n" + whole)
    with pytest.raises(DataError, match=r"ledger\.jsonl:4: .* delete line 4 and run the same"):
        Ledger(path)
    # The refused one lets go of the lock.
    path.write_bytes(whole)
    assert numbers(path) == [0, 1, 2]
    Ledger(path).close()


def test_the_same_values_written_another_way_are_no_record(path: Path) -> None:
    """A checksum over values alone would accept a key given twice, or other white space."""
    whole = written(path, 1)
    for changed in (
        whole.replace(b', "i"', b',  "i"'),
        whole.replace(b'"i": 0', b'"i": 7, "i": 0'),
    ):
        assert changed != whole
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r":1:"):
            list(read_records(path))


def test_a_number_that_is_not_finite_is_refused_and_nothing_written(path: Path) -> None:
    whole = written(path, 2)
    with Ledger(path) as ledger, pytest.raises(NumericalError, match="line of 'train'"):
        ledger.append("train", 1.0, {"loss": float("nan")})
    assert path.read_bytes() == whole


def test_a_second_writer_is_refused_and_told_who_writes(path: Path) -> None:
    with Ledger(path):
        with pytest.raises(
            RecipeError, match=rf"being written by process {os.getpid()} on .* Wait"
        ):
            Ledger(path)
        assert list(read_records(path)) == []
    Ledger(path).close()


def test_the_lock_of_a_killed_writer_is_found_stale_and_taken(path: Path, caplog) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom align.runs.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\nledger.append('judge', 0.5, {'i': 0})\n"
        "os.write(1, b'held')\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.read(4) == b"held"
        with pytest.raises(RecipeError, match=f"process {other.pid} on"):
            Ledger(path)
        other.send_signal(signal.SIGKILL)
    with caplog.at_level(logging.WARNING), Ledger(path) as ledger:
        ledger.append("judge", 0.5, {"i": 1})
    assert f"was left by process {other.pid} on" in caplog.text
    assert numbers(path) == [0, 1]
    caplog.clear()
    Ledger(path).close()
    assert not caplog.text


def test_a_line_that_does_not_fit_on_the_disk_is_taken_back(path: Path, monkeypatch) -> None:
    real = os.write
    with Ledger(path) as ledger:
        ledger.append("judge", 0.5, {"i": 0})
        room = [9]

        def write(descriptor: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(28, "No space left on device")
            count = real(descriptor, data[: room[0]])
            room[0] -= count
            return count

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            with pytest.raises(OSError, match="No space left"):
                ledger.append("judge", 0.5, {"i": 1})
        assert numbers(path) == [0]
        ledger.append("judge", 0.5, {"i": 2})
    assert numbers(path) == [0, 2]


def test_a_disk_that_takes_a_line_in_pieces_gets_all_of_it(path: Path, monkeypatch) -> None:
    real = os.write
    with Ledger(path) as ledger:
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:5]))
        ledger.append("judge", 0.5, {"i": 0})
    assert numbers(path) == [0]


def test_a_line_is_on_disk_before_it_is_acknowledged(path: Path, monkeypatch) -> None:
    done: list[str] = []
    with Ledger(path) as ledger:
        real_write, real_fsync = os.write, os.fsync
        monkeypatch.setattr(os, "write", lambda *a: (done.append("write"), real_write(*a))[1])
        monkeypatch.setattr(os, "fsync", lambda f: (done.append("fsync"), real_fsync(f))[1])
        ledger.append("judge", 0.5, {"i": 0})
        monkeypatch.undo()
    assert done == ["write", "fsync"]


def test_a_disk_that_cannot_lock_is_told(path: Path, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("align.runs.ledger.fcntl.flock", flock)
    with pytest.raises(MachineError, match=r"cannot be locked \(No locks available\)"):
        Ledger(path)


def test_importing_it_loads_neither_torch_nor_pydantic() -> None:
    code = "import sys, align.runs.ledger as x; print(json.dumps([m for m in ('torch', 'pydantic')"
    code = "import json; " + code + " if m in sys.modules]))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert json.loads(said.stdout) == []
