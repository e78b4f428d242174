"""The call store: what an answer depends on, what is kept, and what survives."""

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet
import pytest

from align.errors import DataError, MachineError
from align.servers.calls import Answered, CallStore, calls_file, key_of

PARTS = {
    "prompt_bytes": b"What is 1+1?",
    "model": "judge",
    "revision": "abc",
    "parameters": {"temperature": 0.5, "max_tokens": 7},
    "template": "t-1",
    "parser": "p-1",
    "sample": 3,
}


@pytest.fixture
def store(tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        yield store


def test_a_shared_folder_can_have_its_store_on_a_local_disk(tmp_path, monkeypatch):
    monkeypatch.delenv("ALIGN_CALLS", raising=False)
    one, other = tmp_path / "shared" / "one", tmp_path / "shared" / "other"
    assert calls_file(one) == one / "calls.sqlite"
    monkeypatch.setenv("ALIGN_CALLS", str(tmp_path / "local"))
    assert calls_file(one).parent == calls_file(other).parent == tmp_path / "local"
    assert calls_file(one) != calls_file(other)
    assert calls_file(one) == calls_file(one / ".." / "one")
    with CallStore(calls_file(one)):
        assert calls_file(one).is_file()


def test_the_key_hashes_every_part_with_its_length_before_it():
    parts = [
        b"What is 1+1?",
        b"judge",
        b"abc",
        b'{"max_tokens":7,"temperature":0.5}',
        b"t-1",
        b"p-1",
        b"3",
    ]
    joined = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    assert key_of(**PARTS) == hashlib.sha256(joined).hexdigest()


def test_the_key_does_not_depend_on_the_order_of_the_parameters():
    turned = PARTS | {"parameters": {"max_tokens": 7, "temperature": 0.5}}
    assert key_of(**turned) == key_of(**PARTS)


def mutated(parts, rng):
    """`parts` with one component changed, or with a character moved between two neighbours."""
    name = rng.choice([*parts, "border"])
    if name == "border":
        left, right = rng.choice(
            [("model", "revision"), ("revision", "template"), ("template", "parser")]
        )
        moved = parts[left][-1]
        return parts | {left: parts[left][:-1], right: moved + parts[right]}
    value = parts[name]
    if name == "prompt_bytes":
        place = rng.randrange(len(value))
        return parts | {name: value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]}
    if name == "parameters":
        key = rng.choice(list(value))
        return parts | {name: value | {key: value[key] + 1}}
    if name == "sample":
        return parts | {name: value + rng.randrange(1, 100)}
    place = rng.randrange(len(value))
    return parts | {name: value[:place] + chr(ord(value[place]) + 1) + value[place + 1 :]}


def test_no_hit_after_any_single_change(store):
    rng = random.Random(0)
    false_hits = 0
    for row in range(100):
        # Prompts so different that none is another one with a single change.
        parts = PARTS | {"prompt_bytes": hashlib.sha256(b"%d" % row).digest()}
        store.put(key_of(**parts), {}, f"answer {row}")
        false_hits += sum(store.get(key_of(**mutated(parts, rng))) is not None for _ in range(100))
        assert store.get(key_of(**parts)) == f"answer {row}"
    assert false_hits == 0


def test_every_equal_input_hits_in_another_process_and_folder(store, tmp_path):
    answers = {key_of(**PARTS | {"sample": i}): f"answer {i} \u00e9\n" for i in range(200)}
    store.put_many([Answered(key, {"i": 1}, answer) for key, answer in answers.items()])
    store.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(store.path, elsewhere / "other.sqlite")
    program = (
        "import json, sys\nfrom pathlib import Path\n"
        "from align.servers.calls import CallStore, key_of\n"
        "with CallStore(Path('other.sqlite')) as store:\n"
        "    parts = dict(prompt_bytes=b'What is 1+1?', model='judge', revision='abc',\n"
        "        parameters={'temperature': 0.5, 'max_tokens': 7}, template='t-1', parser='p-1')\n"
        "    keys = [key_of(**parts, sample=i) for i in range(200)]\n"
        "    json.dump({key: store.get(key) for key in keys}, sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == answers


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_answer_is_refused_and_takes_nothing_with_it(store, empty):
    with pytest.raises(ValueError, match="not stored: k2"):
        store.put_many([Answered("k1", {}, "good"), Answered("k2", {}, empty)])
    assert store.get("k1") is None
    assert len(store) == 0


def test_the_first_answer_stands(store):
    assert store.put("k", {}, "first") == "first"
    assert store.put("k", {}, "second") == "first"
    assert store.get("k") == "first"


def test_writes_reach_the_disk_before_they_return(store):
    # 2 is FULL: the log is synchronised after each transaction (sqlite.org/pragma.html).
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


WRITER = """
import sys
from pathlib import Path
from align.servers.calls import CallStore
store = CallStore(Path(sys.argv[1]))
first, last, owner = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
for i in range(first, last):
    print(i, store.put(f"key {i}", {}, f"{owner} {i}"), flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path):
    path = tmp_path / "calls.sqlite"
    command = [sys.executable, "-c", WRITER, str(path), "0", "1000000", "it"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    whole = [line.split(maxsplit=1) for line in acknowledged if line.endswith("\n")]
    assert len(whole) >= 50
    with CallStore(path) as store:
        assert [store.get(f"key {i}") for i, _ in whole] == [a.rstrip("\n") for _, a in whole]


def test_processes_share_one_store_and_agree_on_every_answer(tmp_path):
    path = tmp_path / "calls.sqlite"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first), str(first + 60), owner],
            stdout=subprocess.PIPE,
            text=True,
        )
        for owner, first in (("a", 0), ("b", 0), ("c", 30))
    ]
    seen = {}
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0
        for line in output.splitlines():
            key, answer = line.split(maxsplit=1)
            assert seen.setdefault(key, answer) == answer
    with CallStore(path) as store:
        assert len(store) == len(seen) == 90


def test_threads_share_one_store(store):
    def write(owner):
        for i in range(40):
            store.put(f"key {i}", {}, f"{owner} {i}")

    threads = [threading.Thread(target=write, args=(owner,)) for owner in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 40


def test_a_changed_answer_is_named_and_not_handed_out(store):
    store.put("k", {}, "A is better")
    store.close()
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE calls SET answer = 'B is better'")
    connection.close()
    with (
        CallStore(store.path) as again,
        pytest.raises(DataError, match=r"key k: .* has changed"),
    ):
        again.get("k")


def test_a_file_that_is_no_store_is_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no database " * 100)
    with pytest.raises(DataError, match="no call store"):
        CallStore(text)
    assert text.read_text() == "no database " * 100
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    connection.close()
    with pytest.raises(DataError, match="no call store of layout"):
        CallStore(other)


def test_a_place_that_cannot_be_written_is_the_machines_trouble(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be used"):
        CallStore(tmp_path / "file" / "calls.sqlite")


def test_a_full_disk_loses_nothing_that_was_acknowledged(store):
    store.put("k1", {}, "kept")
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(MachineError, match="full"):
        store.put("k2", {}, "x" * 100_000)
    assert store.get("k1") == "kept"
    assert store.get("k2") is None
    store._connection.execute("PRAGMA max_page_count=1000000")
    assert store.put("k2", {}, "y") == "y"


def test_the_export_holds_every_call_whatever_their_order(tmp_path):
    tables = []
    rows = [Answered(f"key {i:04}", {"sample": i}, f"answer {i}") for i in range(2500)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        with CallStore(tmp_path / f"{name}.sqlite") as store:
            store.put_many(order)
            assert store.export_parquet(tmp_path / f"{name}.parquet") == 2500
        tables.append((tmp_path / f"{name}.parquet").read_bytes())
    assert tables[0] == tables[1]
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["key", "about", "answer"]
    assert table.to_pylist()[17] == {
        "key": "key 0017",
        "about": '{"sample": 17}',
        "answer": "answer 17",
    }
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


def test_the_export_of_an_empty_store_is_an_empty_table(store, tmp_path):
    assert store.export_parquet(tmp_path / "out" / "calls.parquet") == 0
    assert pyarrow.parquet.read_table(Path(tmp_path / "out" / "calls.parquet")).num_rows == 0
