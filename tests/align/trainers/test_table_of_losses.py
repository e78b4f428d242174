"""docs/losses.md names every loss that the installed TRL can be told to take."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import trl

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOTrainer

TRAINERS = (trl.DPOTrainer, trl.KTOTrainer, trl.GRPOTrainer, trl.SFTTrainer, CPOTrainer)
TOLD_OF_THE_TRAINER = {"nll", "chunked_nll"}  # SFT's own


def names(trainer: type) -> set[str]:
    """What its code compares `loss_type` with."""
    found = set[str]()
    for node in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(trainer)))):
        if not isinstance(node, ast.Compare) or not ast.unparse(node.left).endswith("loss_type"):
            continue
        for value in ast.walk(node):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.add(value.value)
    return found


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: t.__name__)
def test_every_loss_type_of_trl_is_named(trainer, root: Path) -> None:
    text = (root / "docs/losses.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`]+)`", text))
    found = names(trainer)
    assert len(found) >= 2, "TRL's code has changed: nothing was looked at"
    missing = found - told - TOLD_OF_THE_TRAINER
    assert not missing, f"docs/losses.md does not name {sorted(missing)} of {trainer.__name__}"


def test_every_trainer_of_trl_is_named(root: Path) -> None:
    text = (root / "docs/losses.md").read_text(encoding="utf-8")
    trainers = {name for name in dir(trl) if name.endswith("Trainer")}
    assert {"DPOTrainer", "GRPOTrainer"} <= trainers
    for name in trainers:
        assert name.removesuffix("Trainer") in text, name


def test_no_cell_that_matters_is_empty(root: Path) -> None:
    """A loss has a place here or a reason, and where it has a file, a check and a recipe."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (root / "docs/losses.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| ---")
    ]
    assert len(rows) > 60
    for cells in rows:
        assert cells[0]
        if any("[file](" in cell for cell in cells):
            assert all(cells[2:]), cells
        else:
            assert cells[2], cells
