"""The table of offline methods: its pairs, its differences, and all of it at a tiny size."""

import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from hh_measure import Measured  # noqa: E402
from hh_pairs import split_of, with_flips  # noqa: E402
from hh_table import in_parts, main  # noqa: E402

from align.data.messages import Message  # noqa: E402
from align.data.pairs import PreferencePair  # noqa: E402
from align.errors import DataError  # noqa: E402
from tests.tiny_models import build_llama  # noqa: E402


def dialogue(question: int, turns: int) -> PreferencePair:
    prompt = [Message(role="user", content=f"question {question}")]
    for turn in range(turns):
        prompt += [
            Message(role="assistant", content=f"answer {turn}"),
            Message(role="user", content="and?"),
        ]
    sides = {
        side: (Message(role="assistant", content=f"{side} {question} {turns}"),)
        for side in ("chosen", "rejected")
    }
    return PreferencePair(prompt=tuple(prompt), **sides, source="test", row=1)


def asked(pairs: list[PreferencePair]) -> set[str]:
    return {pair.prompt[0].content for pair in pairs}


@pytest.mark.parametrize("seed", range(5))
def test_no_dialogue_is_on_both_sides(seed: int) -> None:
    """Turns of one dialogue have different prompts, which hold each other's answers."""
    pairs = [dialogue(number, turns) for number in range(20) for turns in range(3)]
    split = split_of(pairs, train=40, held_out=15, seed=seed)
    assert len(split.held_out) == 15
    assert len(split.train) == 40
    assert not asked(split.train) & asked(split.held_out)
    assert split == split_of(pairs, train=40, held_out=15, seed=seed)
    assert split != split_of(pairs, train=40, held_out=15, seed=seed + 1)


def test_too_few_pairs_are_told() -> None:
    with pytest.raises(DataError, match="6 usable pairs are too few for 6 held out"):
        split_of([dialogue(n, 0) for n in range(6)], train=1, held_out=6, seed=0)


def test_flips_exchange_the_share_that_was_asked_for_and_nothing_else() -> None:
    pairs = [dialogue(number, 0) for number in range(50)]
    flipped = with_flips(pairs, share=0.3, seed=0)
    wrong = [b.chosen == a.rejected for a, b in zip(pairs, flipped, strict=True)]
    assert sum(wrong) == 15
    assert all(
        (b.rejected == a.chosen) if is_wrong else b == a
        for a, b, is_wrong in zip(pairs, flipped, wrong, strict=True)
    )
    assert flipped == with_flips(pairs, share=0.3, seed=0)


def of(margins: list[float]) -> Measured:
    return Measured(margins, [0.0] * len(margins), [0.0, 1.0], [3, 5], [True, False])


def test_differences_are_paired() -> None:
    ours, theirs = of([1.0, 2.0, -1.0, 4.0]), of([0.5, -2.0, -1.5, 3.5])
    # Margins: 0.5, 4, 0.5, 0.5. Hits: one more of four.
    found = ours.against(theirs)
    assert found["margin"].value == pytest.approx(5.5 / 4)
    assert found["accuracy"].value == pytest.approx(1 / 4)
    # What both have in common is not in the interval.
    same = of([100.0, -50.0, 3.0]).against(of([99.0, -51.0, 2.0]))["margin"]
    assert (same.low, same.value, same.high) == pytest.approx((1.0, 1.0, 1.0))
    # A tie is half a hit in a difference, and no pair of an accuracy.
    tied = of([0.0, 1.0])
    assert torch.equal(tied.hits, torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert tied.estimates()["accuracy"].n == 1


def test_a_step_of_likelihood_has_as_many_rows_as_the_others() -> None:
    for size, parts in ((16, (4, 4)), (8, (4, 2)), (6, (2, 3)), (3, (1, 3))):
        batch, steps = (int(change.partition("=")[2]) for change in in_parts(size))
        assert (batch, steps) == parts


def test_the_whole_table_at_a_tiny_size(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "hh.jsonl"
    rows = [
        {"chosen": f"{asked} It is {n}.", "rejected": f"{asked} W{'h' * (n % 5)}o?"}
        for n in range(24)
        if (asked := f"\n\nHuman: What is {n}?\n\nAssistant:")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = [
        f"--pairs={file}", f"--out={out}", "--train=16", "--held-out=4", "--answers=2",
        "--trl-steps=4", "--trl-batch=2", "--only", "dpo", "likelihood", "rdpo-flipped", "--",
        f"model.model_name_or_path={build_llama(tmp_path / 'model')}", "model.dtype=float32",
        "model.lora_layers_to_transform=null", "train.per_device_train_batch_size=4",
        "train.learning_rate=1e-3", "train.warmup_steps=0",
    ]  # fmt: skip
    assert main(command) == 0
    text = (out / "table.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "0.00 [0.00, 0.00]" in lines["start"]
    for name in ("dpo", "likelihood", "rdpo-flipped"):
        found = json.loads((out / "runs" / f"{name}.json").read_text())
        assert any(found["chosen"])
        assert len(found["chosen"]) == 4
        assert len(found["kl"]) == 2
    beside = json.loads((out / "trl.json").read_text())
    assert beside["losses"]["align"][0] == pytest.approx(0.693147, abs=1e-6)
    # The losses move, and move alike.
    assert abs(beside["losses"]["align"][-1] - 0.693147) > 1e-4
    assert beside["largest_difference"] < 1e-5
    # Nothing is made again; other pairs are another table.
    stamp = (out / "runs" / "dpo.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert (out / "runs" / "dpo.json").stat().st_mtime_ns == stamp
    assert main([*command[:2], "--train=16", "--held-out=5", *command[4:]]) == 2
    assert "holds a table of other pairs (held_out differs)" in capsys.readouterr().err
