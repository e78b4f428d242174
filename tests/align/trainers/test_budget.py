"""`token_budget: auto` finds the largest budget that fits and never tries one that cannot."""

import pytest
import torch
from datasets import Dataset

from align.errors import MachineError, RecipeError
from align.forest.budget import SAFE_SHARE, WORTH_TRYING, largest_budget
from align.trainers import PreferenceConfig, PreferenceTrainer, budget


class Machine:
    """Passes take `fixed + per_token * tokens` bytes; what was tried is kept."""

    def __init__(self, per_token: int, fixed: int = 0) -> None:
        self.per_token, self.fixed = per_token, fixed
        self.tried: list[int] = []

    def __call__(self, tokens: int) -> int:
        self.tried.append(tokens)
        return self.fixed + self.per_token * tokens


def test_everything_fits() -> None:
    machine = Machine(per_token=10)
    assert largest_budget(machine, free=10**9, smallest=100, largest=5_000) == 5_000
    assert machine.tried == [100, 200, 400, 800, 1600, 3200, 5000]


@pytest.mark.parametrize("fixed", [0, 3_000, 40_000])
@pytest.mark.parametrize("free", [50_000, 61_234, 99_999])
def test_the_largest_that_fits_is_found_without_going_over(free: int, fixed: int) -> None:
    machine = Machine(per_token=10, fixed=fixed)
    found = largest_budget(machine, free=free, smallest=64, largest=10**6)
    best = (SAFE_SHARE * free - fixed) / 10
    if best < 64:
        assert found is None
        return
    assert found is not None
    assert found <= best
    # All but a tenth of the memory that may be taken is taken.
    assert fixed + 10 * found >= SAFE_SHARE * free / WORTH_TRYING
    # Memory that is asked for in vain gets a process killed where there is no such thing as an
    # error for it.
    assert all(fixed + 10 * tokens <= SAFE_SHARE * free for tokens in machine.tried)
    assert len(machine.tried) < 20


def test_growth_that_no_rule_foresaw_is_survived() -> None:
    """From 1,000 tokens on every pass fails, though memory had promised 4,000."""

    def peak(tokens: int) -> int | None:
        return None if tokens >= 1_000 else 10 * tokens

    found = largest_budget(peak, free=50_000, smallest=10, largest=10**6)
    assert found is not None
    assert 800 <= found < 1_000


def test_not_even_the_longest_pair() -> None:
    assert largest_budget(Machine(per_token=100), free=1_000, smallest=50, largest=500) is None


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(**changes) -> PreferenceTrainer:
        settings = {
            "output_dir": str(tmp_path / "out"),
            "token_budget": "auto",
            "per_device_train_batch_size": 4,
            "max_steps": 1,
            "logging_steps": 1,
            "bf16": False,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
        }
        return PreferenceTrainer(
            tiny_folder,
            args=PreferenceConfig(**settings | changes),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
            objective={"name": "dpo", "beta": 0.1},
        )

    return build


def longest(pairs: Dataset, n: int) -> list[int]:
    """Tokens of the n longest pairs; their prompts are too short to be shared."""
    sizes = [
        2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in pairs
    ]
    return sorted(sizes, reverse=True)[:n]


def test_a_tiny_model_gets_its_whole_batch_and_leaves_no_trace(make, pairs) -> None:
    state = torch.get_rng_state()
    trainer = make()
    assert trainer.data_collator.token_budget == sum(longest(pairs, 4))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    torch.set_rng_state(state)
    plain = make(token_budget=None)
    for one in (trainer, plain):
        one.train()
    logs = [
        next(row for row in one.state.log_history if "grad_norm" in row) for one in (trainer, plain)
    ]
    assert logs[0]["grad_norm"] == logs[1]["grad_norm"]


def test_little_memory_means_a_small_budget(make, pairs, monkeypatch) -> None:
    """A pass takes 1,000 bytes a token; there is room for the longest pair and a half."""
    one = longest(pairs, 1)[0]
    monkeypatch.setattr(budget, "free_memory", lambda device: 10**12)

    def peak(self, rows, tokens):
        return 1_000 * tokens

    monkeypatch.setattr(PreferenceTrainer, "_peak", peak)
    monkeypatch.setattr(budget, "LATER_BYTES", 0)
    monkeypatch.setattr(budget, "free_memory", lambda device: int(1.5 * one * 1_000 / SAFE_SHARE))
    found = make().data_collator.token_budget
    assert 1.3 * one <= found <= 1.5 * one


def test_no_memory_at_all_is_said(make, monkeypatch) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device: 1_000)
    with pytest.raises(MachineError, match=r"the longest pair .* does not fit"):
        make()


def test_an_error_that_is_not_about_memory_is_not_taken_for_one(make, monkeypatch) -> None:
    def broken(self, part):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(PreferenceTrainer, "_try", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        make()


@pytest.mark.parametrize("text", ["4k", "-1", "none"])
def test_a_budget_that_is_no_number_is_refused(tmp_path, text: str) -> None:
    with pytest.raises(RecipeError, match="token_budget"):
        PreferenceConfig(output_dir=str(tmp_path), use_cpu=True, token_budget=text)
    taken = PreferenceConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, token_budget="4096"
    )
    assert taken.token_budget == 4096


@pytest.mark.parametrize("mixed", [True, False])
def test_mixed_precision_keeps_no_copy_of_the_weights(make, mixed) -> None:
    """With autocast's cache a pass would end with 16-bit copies of all float32 weights."""
    trainer = make(token_budget=None, bf16=mixed)
    seen = set()
    for layer in trainer.model.model.layers:
        layer.register_forward_hook(
            lambda *args: seen.add(
                (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled())
            )
        )
    trainer.train()
    assert seen == ({(True, False)} if mixed else {(False, True)})
