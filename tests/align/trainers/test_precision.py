"""Weights that are trained can be moved: what is refused, what is not, and adapters in float32."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from align.errors import RecipeError
from align.policies.precision import least_rate, median_magnitude, refuse_rate
from align.trainers import PreferenceConfig, PreferenceTrainer, RewardConfig, RewardTrainer
from tests.align.trainers.groups_in_code import settings


def moved(dtype: torch.dtype, rate: float, steps: int = 200) -> tuple[float, float]:
    """Share of 20,000 weights of N(0, 0.02) that Adam changes, and how far they get of rate * n.

    The gradient is 1 throughout, so that every step is the learning rate.
    """
    torch.manual_seed(0)
    weight = torch.nn.Parameter((0.02 * torch.randn(20_000)).to(dtype))
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    share = float((weight.detach() != before).double().mean())
    distance = float((before.double() - weight.detach().double()).mean()) / (rate * steps)
    return share, distance


def test_what_the_refusal_is_for() -> None:
    """At a rate of 5e-7 about one weight in a hundred changes in bfloat16, and all in float32.

    A weight takes a step of 5e-7 up if it is within 256 to 512 steps: |w| < 1.3e-4 to 2.6e-4, and
    of N(0, 0.02) 2 * 1.3e-4 * 19.9 = 0.5 % to 1.0 % are.
    """
    share, distance = moved(torch.bfloat16, 5e-7)
    assert 0.004 < share < 0.013
    assert distance < 0.03
    share, distance = moved(torch.float32, 5e-7)
    assert share > 0.999
    assert distance == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_a_rate_just_below_leaves_half_of_the_weights_and_ten_times_it_moves_them(
    dtype, bits
) -> None:
    """|w| 2^-(bits + 1) at the median: N(0, 0.02) has |w| = 0.0135, and 0.0135 / 512 = 2.6e-5."""
    least = least_rate(0.6745 * 0.02, dtype)
    assert least == pytest.approx(0.6745 * 0.02 * 2.0 ** -(bits + 1))
    share, _ = moved(dtype, 0.99 * least, steps=3)
    assert share < 0.55
    share, _ = moved(dtype, 10 * least, steps=3)
    assert share > 0.95


def test_the_sentence_says_what_to_write() -> None:
    with pytest.raises(RecipeError) as caught:
        refuse_rate(5e-7, 0.0135, torch.bfloat16)
    said = str(caught.value)
    for part in ("learning_rate: 5e-07", "2.6e-05", "dtype: float32", "bf16: true", "use_peft"):
        assert part in said, part
    refuse_rate(2.7e-5, 0.0135, torch.bfloat16)
    # It asks for no movement.
    refuse_rate(0.0, 0.0135, torch.bfloat16)


def test_the_median_of_many_weights_is_that_of_a_part() -> None:
    torch.manual_seed(0)
    many = [torch.randn(3000, 2000), torch.randn(7)]
    assert median_magnitude(many) == pytest.approx(0.6745, abs=2e-3)
    assert median_magnitude([torch.tensor([-3.0, 1.0, 2.0])]) == 2.0


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(model: Any = None, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Any:
        given = {
            name: changes.pop(name) for name in ("peft_config", "optimizers") if name in changes
        }
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=dtype)
        return PreferenceTrainer(
            model,
            args=PreferenceConfig(**settings(str(tmp_path / "out"), **changes)),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
            objective={"name": "dpo", "beta": 0.3},
            **given,
        )

    return build


def test_16_bit_weights_with_a_rate_that_leaves_them_are_refused(make, monkeypatch) -> None:
    """Before a role is scored."""
    monkeypatch.setattr(PreferenceTrainer, "_score", lambda *_: pytest.fail("scored"))
    with pytest.raises(RecipeError, match=r"5e-07 cannot move weights .* bfloat16"):
        make(learning_rate=5e-7)


def test_a_ready_optimizer_is_asked_for_its_own_rate(make, tiny_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    adam = torch.optim.AdamW(model.parameters(), lr=5e-7)
    with pytest.raises(RecipeError, match="5e-07 cannot move"):
        make(model, learning_rate=0.1, optimizers=(adam, None))
    sgd = torch.optim.SGD(model.parameters(), lr=5e-7)
    make(model, learning_rate=5e-7, optimizers=(sgd, None))


@pytest.mark.parametrize(
    "fine",
    [
        {"dtype": torch.float32, "learning_rate": 5e-7},
        {"dtype": torch.bfloat16, "learning_rate": 0.1},
        # Its step is the gradient's size, which is not known.
        {"dtype": torch.bfloat16, "learning_rate": 5e-7, "optim": "sgd"},
        # Its sums are made up for.
        {"dtype": torch.bfloat16, "learning_rate": 5e-7, "optim": "stable_adamw"},
        {"dtype": torch.bfloat16, "learning_rate": 0.0},
        # peft keeps the adapter in float32.
        {
            "dtype": torch.bfloat16,
            "learning_rate": 5e-7,
            "peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        },
    ],
    ids=str,
)
def test_what_is_not_refused(make, fine) -> None:
    make(**fine)


def test_sharded_weights_under_mixed_precision_are_not_refused(make, monkeypatch) -> None:
    """accelerate widens them before it shards them; without mixed precision it does not."""
    from align.trainers import precision

    trainer = make(learning_rate=0.1)
    trainer.args.learning_rate = 5e-7
    with pytest.raises(RecipeError):
        precision.refuse_weights_that_stay(trainer)
    trainer.is_fsdp_enabled = True
    with pytest.raises(RecipeError):
        precision.refuse_weights_that_stay(trainer)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", property(lambda _: "bf16"))
    precision.refuse_weights_that_stay(trainer)


def test_a_trainer_of_rewards_refuses_too(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=1, dtype=torch.bfloat16
    )
    rows = Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}] * 4)
    args = RewardConfig(str(tmp_path), bf16=False, use_cpu=True, report_to=[], learning_rate=1e-6)
    with pytest.raises(RecipeError, match="cannot move"):
        RewardTrainer(model, args, train_dataset=rows, processing_class=tiny_tokenizer)


def test_full_fine_tuning_in_bfloat16_autocast_moves_every_weight(make) -> None:
    """What the refusal says to write; in float32, and every weight that has a gradient moves."""
    trainer = make(dtype=torch.float32, bf16=True, learning_rate=5e-7, max_steps=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert value.dtype == torch.float32
        if "proj" in name:
            assert float((value != before[name]).double().mean()) > 0.99, name
