"""No forward pass makes the device wait for the host, and none multiplies whole numbers."""

from collections import Counter
from typing import Any

import pytest
import torch

from align.errors import DataError, NumericalError
from align.trainers import GroupConfig, GroupTrainer, PreferenceConfig, PreferenceTrainer
from tests.align.trainers.groups_in_code import Centred, make_groups, settings
from tests.align.trainers.syncs_in_code import Watched

STEPS = 2
# Three batches make a step, and each of them several passes.
SPLIT = {"max_steps": STEPS, "gradient_accumulation_steps": 3, "token_budget": 24}
SPLIT |= {"logging_steps": 1000, "per_device_train_batch_size": 4}

# What a run without logs waits for. Everything else would come with each pass.
ONCE_A_STEP = {
    # Losses, refused values, whether anything is asked for, and the gradient's norm, in one read
    # before the optimizer moves a weight.
    ("align/trainers/bad_numbers.py", "_look", "tolist"): STEPS,
    # The weights that the optimizer left, before they can reach a checkpoint.
    ("align/trainers/guards.py", "on_optimizer_step", "_local_scalar_dense"): STEPS,
}
OTHERWISE = {
    # transformers begins to add losses up.
    ("transformers/trainer.py", "_inner_training_loop", "tensor"): 1,
    # The last step is logged: sums, their means and the tokens read; its loss.
    ("align/trainers/metrics.py", "_read", "tolist"): 1,
    ("align/trainers/metrics.py", "means", "tensor"): 1,
    ("align/trainers/metrics.py", "means", "tolist"): 1,
    ("align/trainers/records.py", "_tokens_read", "_local_scalar_dense"): 1,
    ("align/trainers/records.py", "_tokens_read", "tensor"): 1,
    ("align/trainers/records.py", "_tokens_read", "tolist"): 1,
    ("transformers/trainer.py", "_finalize_training", "_local_scalar_dense"): 1,
}


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(objective: Any, *, groups: bool = False, rows: Any = None, **changes: Any) -> Any:
        trainer, config = (
            (GroupTrainer, GroupConfig) if groups else (PreferenceTrainer, PreferenceConfig)
        )
        roles = changes.pop("roles", None)
        return trainer(
            tiny_folder,
            args=config(**settings(str(tmp_path / "out"), **(SPLIT | changes))),
            train_dataset=rows or (make_groups(12) if groups else pairs),
            processing_class=tiny_tokenizer,
            objective=objective,
            roles=roles,
        )

    return build


def watched(trainer: Any) -> tuple[Watched, int]:
    """What was asked for, and the forward passes with gradient."""
    passes = 0
    forward = trainer._logps

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += torch.is_grad_enabled()
        return forward(*args, **kwargs)

    trainer._logps = counted
    with Watched() as seen:
        trainer.train()
    return seen, passes


SCORED = {"chosen_score": [1.0, 0.75] * 6, "rejected_score": [0.0, 0.25] * 6}


@pytest.mark.parametrize(
    ("objective", "roles", "groups"),
    [
        ({"name": "dpo", "beta": 0.3}, None, False),
        ({"name": "spo", "tau": 0.0}, {"previous": "start"}, False),
        ({"name": "odpo"}, None, False),
        ({"name": "group_relative"}, {"previous": "start"}, True),
        ({"name": "gepo"}, None, True),
        ({"name": "anchored_zero_unpaired"}, None, True),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) and "name" in value else None,
)
def test_a_run_waits_once_for_the_losses_of_a_step(make, pairs, objective, roles, groups) -> None:
    rows = pairs
    for name, column in SCORED.items():
        rows = rows.add_column(name, column)
    scored = None if groups else rows if objective["name"] != "dpo" else pairs
    seen, passes = watched(make(objective, groups=groups, rows=scored, roles=roles))
    assert passes >= 5 * STEPS, "the budget should split every batch"
    assert seen.products == Counter()
    assert dict(seen.syncs) == ONCE_A_STEP | OTHERWISE


def test_a_step_that_is_measured_first_waits_for_that_once_too(make) -> None:
    """A loss that looks at its whole step: the rows that count, each of them once, are sorted."""
    seen, passes = watched(make(Centred(), groups=True))
    assert passes >= 5 * STEPS
    measured = {
        # One look at what was refused and one at what was measured.
        ("align/objectives/refusals.py", "tell", "_local_scalar_dense"): STEPS,
        ("align/trainers/bad_numbers.py", "_stop_on_bad_loss", "_local_scalar_dense"): STEPS,
        ("align/trainers/metrics.py", "once_in_order", "index"): 2 * STEPS,
    }
    assert dict(seen.syncs) == ONCE_A_STEP | OTHERWISE | measured


def test_the_watch_sees_what_it_should() -> None:
    """The negative control, one line for each thing that waits."""
    values, whole = torch.randn(4), torch.arange(4)
    with Watched() as seen:
        values[0].item()
        bool(values.any())
        values.tolist()
        values.index_put((values > 0,), values[0])
        whole.repeat_interleave(whole)
        whole.unique()
        torch.equal(values, values)
        values.new_tensor([1.0])
        torch.dot(whole, whole)
    assert sum(seen.syncs.values()) == 8
    assert sum(seen.products.values()) == 1


def test_a_bad_loss_in_any_pass_of_a_step_stops_before_it_and_names_the_rows(make, pairs) -> None:
    """Rows 4 and 9 are in different batches of one step, and in passes with other rows."""
    trainer = make({"name": "dpo", "beta": 0.3}, train_sampling_strategy="sequential")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    formula = type(trainer.objective).__call__
    loss_of = trainer.compute_loss

    def poisoned(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        bad = (inputs["row_index"] == 4) | (inputs["row_index"] == 9)

        class Poisoned:
            def __call__(self, read: Any) -> Any:
                found = formula(objective, read)
                loss = found.loss + torch.where(bad, torch.inf, 0.0)
                return type(found)(loss, found.reward, found.metrics)

            def __getattr__(self, name: str) -> Any:
                return getattr(objective, name)

        objective, trainer.objective = trainer.objective, Poisoned()
        try:
            return loss_of(model, inputs, *args, **kwargs)
        finally:
            trainer.objective = objective

    trainer.compute_loss = poisoned
    with pytest.raises(NumericalError, match=r"Step 1: the loss of 2 pair\(s\) .*row 4, .*row 9\."):
        trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_value_that_a_formula_refuses_stops_before_the_step(make, pairs) -> None:
    """A win rate of 1.5 in the last batch of the first step."""
    rows = pairs.add_column("chosen_score", [0.9] * 11 + [1.5])
    rows = rows.add_column("rejected_score", [0.1] * 12)
    trainer = make(
        {"name": "spo", "tau": 0.0},
        rows=rows,
        roles={"previous": "start"},
        train_sampling_strategy="sequential",
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(DataError, match=r"has 1\.5, but `chosen_score` must be a win rate"):
        trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]), name
