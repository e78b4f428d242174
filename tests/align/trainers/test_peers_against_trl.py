"""Where TRL has the loss of a peer, six steps of ours are six steps of TRL's, full and LoRA.

All chosen completions are equally long, because TRL takes likelihoods as one mean over the batch's
tokens and we take one per pair. ORPO's prompts are the begin token alone, because TRL counts the
prompt's tokens into its likelihood.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from align.trainers import PreferenceConfig, PreferenceTrainer

STEPS = 6
MIXTURE = [
    {"weight": 0.8, "objective": {"name": "dpo", "beta": 0.3}},
    {"weight": 0.2, "objective": {"name": "chosen_nll"}},
]
WEIGHTED_IPO = {
    "pair_weight": "wpo",
    "objective": {"name": "ipo", "tau": 0.3, "length_normalised": True},
}
# Not hinge nor sft: TRL 1.16 multiplies in place what their backward pass still needs, and raises.
WEIGHTED = [
    {"weight": 0.8, "objective": {"name": "anchored_down", "beta": 0.3}},
    {"weight": 0.2, "objective": {"name": "nca", "beta": 0.3}},
]
# Ours -> what TRL's DPOTrainer is told.
DPO_FAMILY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hinge": ({"name": "hinge"}, {"loss_type": ["hinge"]}),
    "exo": (
        {"name": "exo", "label_smoothing": 0.1},
        {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    ),
    "nca": ({"name": "nca"}, {"loss_type": ["nca_pair"]}),
    "anchored_zero": ({"name": "anchored_zero"}, {"loss_type": ["apo_zero"]}),
    "anchored_down": ({"name": "anchored_down"}, {"loss_type": ["apo_down"]}),
    "discopop": (
        {"name": "discopop", "tau": 0.1},
        {"loss_type": ["discopop"], "discopop_tau": 0.1},
    ),
    "aot": ({"name": "aot"}, {"loss_type": ["aot"]}),
    "aot_unpaired": (
        {"name": "aot_unpaired", "label_smoothing": 0.1},
        {"loss_type": ["aot_unpaired"], "label_smoothing": 0.1},
    ),
    "bco": ({"name": "bco", "shift": "zero"}, {"loss_type": ["bco_pair"]}),
    "ld_dpo": ({"name": "ld_dpo", "alpha": 0.4}, {"loss_type": ["sigmoid"], "ld_alpha": 0.4}),
    "dpo_norm": ({"name": "dpo", "length_normalised": True}, {"loss_type": ["sigmoid_norm"]}),
    "forward_kl": (
        {"name": "dpo", "f_divergence": "forward_kl"},
        {"f_divergence_type": "forward_kl"},
    ),
    "js": (
        {"name": "dpo", "f_divergence": "js_divergence"},
        {"f_divergence_type": "js_divergence"},
    ),
    "alpha": (
        {"name": "dpo", "f_divergence": "alpha_divergence", "alpha": 0.7},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    ),
    "sum": (
        {"name": "sum", "of": MIXTURE},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]},
    ),
    "wpo": ({"name": "wpo", "alignment": "sampled"}, {"use_weighting": True}),
    "weighted_ipo": (
        {"name": "sum", "of": [WEIGHTED_IPO]},
        {"loss_type": ["ipo"], "use_weighting": True},
    ),
    "weighted_sum": (
        {"name": "sum", "of": [part | {"pair_weight": "wpo"} for part in WEIGHTED]},
        {"loss_type": ["apo_down", "nca_pair"], "loss_weights": [0.8, 0.2], "use_weighting": True},
    ),
}
WITHOUT_REFERENCE: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "cpo": ({"name": "cpo", "beta": 0.3, "alpha": 0.5}, CPOConfig, {"cpo_alpha": 0.5}),
    "simpo": (
        {"name": "simpo", "beta": 0.3, "gamma": 0.2},
        CPOConfig,
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.2},
    ),
    "alphapo": (
        {"name": "alphapo", "beta": 0.3, "gamma": 0.2, "alpha": 0.25},
        CPOConfig,
        {"loss_type": "alphapo", "cpo_alpha": 0.0, "simpo_gamma": 0.2, "alpha": 0.25},
    ),
    "orpo": ({"name": "orpo", "beta": 0.3}, ORPOConfig, {}),
}


class TakesTokens(trl.DPOTrainer):
    """TRL's trainer on rows that are tokenised already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


def as_trl_rows(row: dict[str, Any]) -> dict[str, Any]:
    """A tokenised row in the columns of TRL's experimental trainers."""
    found = {"prompt_input_ids": row["prompt_ids"]}
    found["prompt_attention_mask"] = [1] * len(row["prompt_ids"])
    for side in ("chosen", "rejected"):
        ids = [*row["prompt_ids"], *row[f"{side}_ids"]]
        found[f"{side}_input_ids"] = ids
        found[f"{side}_attention_mask"] = [1] * len(ids)
        found[f"{side}_labels"] = [-100] * len(row["prompt_ids"]) + row[f"{side}_ids"]
    return found


class CPOOfTokens(CPOTrainer):
    def tokenize_row(self, feature, model=None):
        return as_trl_rows(feature)


class ORPOOfTokens(ORPOTrainer):
    def tokenize_row(self, feature, model=None):
        return as_trl_rows(feature)


def rows(with_prompt: bool) -> Dataset:
    """24 pairs whose chosen completions have seven tokens, and rejected three to nine."""
    generator = torch.Generator().manual_seed(3)

    def tokens(n: int) -> list[int]:
        return torch.randint(4, 30, (n,), generator=generator).tolist()

    return Dataset.from_list(
        [
            {
                "prompt_ids": [1, *(tokens(2 + k % 4) if with_prompt else [])],
                "chosen_ids": [*tokens(6), 2],
                "rejected_ids": [*tokens(2 + k % 7), 2],
            }
            for k in range(24)
        ]
    )


@pytest.fixture(scope="module")
def prompted() -> Dataset:
    return rows(with_prompt=True)


@pytest.fixture(scope="module")
def bare() -> Dataset:
    return rows(with_prompt=False)


def settings(folder: Path, kind: str) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "learning_rate": 2e-3 if kind == "full" else 5e-3,
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def adapter(kind: str) -> dict[str, Any]:
    targets = ["q_proj", "v_proj"]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0)
    return {"peft_config": lora} if kind == "lora" else {}


def steps_of(trainer: Any) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    assert len(log) == STEPS
    return [(row["loss"], row["grad_norm"]) for row in log]


def assert_one_trajectory(ours: Any, theirs: Any) -> None:
    found, wanted = steps_of(ours), steps_of(theirs)
    for mine, trls in zip(found, wanted, strict=True):
        assert mine == pytest.approx(trls, abs=1e-5, rel=1e-5)
    losses = [loss for loss, _ in found]
    assert max(losses) - min(losses) > 2e-4, "nothing was learned"


def ours_of(
    objective: dict[str, Any], kind: str, data: Dataset, folder: str, tokenizer: Any, place: Path
) -> PreferenceTrainer:
    return PreferenceTrainer(
        folder,
        args=PreferenceConfig(**settings(place / "ours", kind)),
        train_dataset=data,
        processing_class=tokenizer,
        objective=objective,
        **adapter(kind),
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("loss", DPO_FAMILY)
def test_same_steps_as_trl(loss, kind, tiny_folder, tiny_tokenizer, prompted, tmp_path) -> None:
    objective, told = DPO_FAMILY[loss]
    beta = {} if objective["name"] == "sum" else {"beta": 0.3}
    theirs = TakesTokens(
        tiny_folder,
        args=trl.DPOConfig(**settings(tmp_path / "trl", kind), beta=0.3, **told),
        train_dataset=prompted,
        processing_class=tiny_tokenizer,
        **adapter(kind),
    )
    ours = ours_of(objective | beta, kind, prompted, tiny_folder, tiny_tokenizer, tmp_path)
    assert_one_trajectory(ours, theirs)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("loss", WITHOUT_REFERENCE)
def test_same_steps_as_trl_without_reference(
    loss, kind, tiny_folder, tiny_tokenizer, prompted, bare, tmp_path
) -> None:
    from transformers import AutoModelForCausalLM

    objective, config, told = WITHOUT_REFERENCE[loss]
    data = bare if loss == "orpo" else prompted
    texts = data.map(lambda row: {"prompt": "a", "chosen": "b", "rejected": "c"})
    common = settings(tmp_path / "trl", kind) | {"remove_unused_columns": False}
    theirs = (ORPOOfTokens if loss == "orpo" else CPOOfTokens)(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        args=config(**common, beta=0.3, **told),
        train_dataset=texts,
        processing_class=tiny_tokenizer,
        **adapter(kind),
    )
    ours = ours_of(objective, kind, data, tiny_folder, tiny_tokenizer, tmp_path)
    assert ours.identities == {}, "no reference is scored"
    assert ours.probe is None
    assert not [name for name in ours.train_dataset.column_names if name.startswith("reference")]
    assert_one_trajectory(ours, theirs)


def test_a_reference_that_nobody_reads_is_refused(tiny_folder, tiny_tokenizer, bare, tmp_path):
    from align.errors import RecipeError

    with pytest.raises(RecipeError, match=r"roles\.reference: objective simpo does not read it"):
        PreferenceTrainer(
            tiny_folder,
            args=PreferenceConfig(**settings(tmp_path, "full")),
            train_dataset=bare,
            processing_class=tiny_tokenizer,
            objective={"name": "simpo"},
            roles={"reference": "start"},
        )
