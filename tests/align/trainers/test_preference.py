"""The trainer's own promises: right means, exact metrics, a sure reference, loud failures."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback

from align.errors import DataError, NumericalError, RecipeError
from align.forest import TokenRow, score_rows
from align.trainers import (
    DPOConfig,
    DPOTrainer,
    PreferenceConfig,
    PreferenceTrainer,
    RDPOConfig,
    RDPOTrainer,
    RPOConfig,
    RPOTrainer,
)


def config(
    out: Path, kind: type[PreferenceConfig] = PreferenceConfig, **changes
) -> PreferenceConfig:
    settings = {
        "output_dir": str(out),
        "learning_rate": 5e-3,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    return kind(**(settings | changes))


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(model=tiny_folder, *, rows=pairs, objective=None, changes=None, **kwargs):
        return PreferenceTrainer(
            model,
            args=config(tmp_path / "out", **(changes or {})),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            objective=objective or {"name": "dpo", "beta": 0.3},
            **kwargs,
        )

    return build


def gradient(trainer: PreferenceTrainer) -> torch.Tensor:
    """The gradient that the first optimizer step sees."""
    found: list[torch.Tensor] = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.append(
                torch.cat([p.grad.flatten().double() for p in kwargs["model"].parameters()])
            )

    trainer.add_callback(Look())
    trainer.train()
    return found[0]


@pytest.mark.parametrize(("batch", "accumulation"), [(5, 1), (1, 5), (4, 2), (3, 2), (2, 3)])
def test_the_gradient_is_the_mean_over_the_pairs_however_they_are_split(
    make, pairs, batch: int, accumulation: int
) -> None:
    """5 rows as 4+1 or 3+2: TRL weighs the last one 4 times; here every pair weighs one fifth."""
    rows = pairs.select(range(5))
    common = {"max_steps": 1, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
    whole = gradient(make(rows=rows, changes=common | {"per_device_train_batch_size": 5}))
    split = gradient(
        make(
            rows=rows,
            changes=common
            | {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation},
        )
    )
    assert whole.norm() > 0.1
    assert torch.allclose(split, whole, atol=1e-6)


@pytest.mark.parametrize("backend", ["tree", "padded"])
@pytest.mark.parametrize("budget", [1, 40, 70, 10_000])
def test_a_token_budget_moves_the_borders_of_forward_passes_and_no_number(
    make, pairs, budget: int, backend: str, monkeypatch
) -> None:
    common = {"max_steps": 1, "max_grad_norm": 0.0, "per_device_train_batch_size": 12}
    whole = gradient(make(changes=common))
    cut = make(changes=common | {"token_budget": budget, "forest_backend": backend})
    assert cut.backend.backend.name == backend
    sizes = []
    original = type(cut)._logps

    def measured(self, model, part, **asked):
        sizes.append((len(part["place"]), part["pack"].computed_tokens))
        return original(self, model, part, **asked)

    monkeypatch.setattr(type(cut), "_logps", measured)
    assert torch.allclose(gradient(cut), whole, atol=1e-6)
    assert sum(pairs for pairs, _ in sizes) == 12
    assert all(tokens <= budget or pairs == 1 for pairs, tokens in sizes)
    assert (len(sizes) > 1) == (budget < 10_000)
    logged = [row["loss"] for row in cut.state.log_history if "loss" in row]
    assert logged == pytest.approx([0.6931472], abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"forest_backend": "trees"}, "forest_backend is 'trees'; it is auto, tree, tree_varlen"),
        ({"forest_backend": "tree_varlen"}, "tree_varlen was asked for .* needs CUDA"),
        (
            {"forest_backend": "tree", "neftune_noise_alpha": 5.0},
            "forest_backend is tree, and here .* because NEFTune's noise",
        ),
    ],
)
def test_a_named_backend_is_that_one_or_an_error(make, changes: dict, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        make(changes=changes)


def test_evaluation_does_not_depend_on_the_batch_size(make, pairs, tiny_folder) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        reference.lm_head.weight.add_(torch.randn(reference.lm_head.weight.shape).mul(0.3))
    rows = pairs.select(range(11))
    results = {}
    for batch in (1, 4, 5, 16):
        trainer = make(
            eval_dataset=rows,
            roles={"reference": reference},
            changes={"per_device_eval_batch_size": batch},
        )
        results[batch] = trainer.evaluate()
    # The same numbers by hand: rows scored one at a time by another forward pass.
    policy = AutoModelForCausalLM.from_pretrained(tiny_folder)
    rho = {}
    for side in ("chosen", "rejected"):
        tokens = [TokenRow(r["prompt_ids"], r[f"{side}_ids"]) for r in rows]
        rho[side] = (
            score_rows(policy, tokens, batch_size=1).total()
            - score_rows(reference, tokens, batch_size=1).total()
        )
    margin = 0.3 * (rho["chosen"] - rho["rejected"])
    for batch, found in results.items():
        assert found["eval_rewards/margins"] == pytest.approx(margin.mean().item(), abs=1e-5), batch
        assert found["eval_rewards/accuracies"] == pytest.approx(
            (margin > 0).double().mean().item()
        )
        loss = torch.nn.functional.softplus(-margin).mean().item()
        assert found["eval_loss"] == pytest.approx(loss, abs=1e-5), batch
        for name in ("eval_entropy", "eval_logps/chosen", "eval_mean_token_accuracy"):
            assert found[name] == pytest.approx(results[1][name], abs=1e-6), (batch, name)


def test_the_reference_is_the_policy_as_it_is_not_as_its_folder_says(make, tiny_folder) -> None:
    """TRL reloads the folder: a policy edited in memory would get another reference than itself."""
    edited = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        edited.lm_head.weight.mul_(0.5)
    trainer = make(edited)
    assert trainer.probe == {"margin": 0.0, "loss": pytest.approx(0.6931472, abs=1e-6)}
    trainer.train()
    first = next(row for row in trainer.state.log_history if "loss" in row)
    assert first["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)


def test_a_trained_adapter_is_its_own_reference(make, tiny_folder) -> None:
    """Under any adapter name; TRL knows only "default"."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_folder),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
        adapter_name="stage_one",
    )
    trainer = make(model)
    trainer.train()
    first, last = (row for row in trainer.state.log_history if "loss" in row)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert abs(last["rewards/margins"]) > 1e-4
    assert trainer.identities["reference"].source == "start"


def test_cached_scores_are_reused_and_another_policy_never_reads_them(
    make, tiny_folder, monkeypatch
) -> None:
    calls = []
    original = PreferenceTrainer._score
    monkeypatch.setattr(
        PreferenceTrainer, "_score", lambda self, *a: calls.append(1) or original(self, *a)
    )
    make()
    make()
    assert len(calls) == 1
    other = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        # One unit in the last place of one weight.
        weight = other.lm_head.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    make(other)
    assert len(calls) == 2


def test_a_stale_score_stops_the_run(make, monkeypatch) -> None:
    original = PreferenceTrainer._score

    def off_by_a_little(self, role, model, dataset):
        chosen, rejected = original(self, role, model, dataset)
        return [c + 0.01 for c in chosen], rejected

    monkeypatch.setattr(PreferenceTrainer, "_score", off_by_a_little)
    with pytest.raises(NumericalError, match=r"Step 0: the stored reference log-probs .* differ"):
        make()


@pytest.mark.parametrize(("off", "tokens", "stops"), [(0.12, 1, False), (0.12, None, True)])
def test_in_16_bits_one_token_may_be_rounded_but_not_all(
    make, monkeypatch, tiny_folder, off, tokens, stops
) -> None:
    """One logit's last place in bfloat16 is above the tolerance; the same on every token is not."""
    original = PreferenceTrainer._score

    def moved(self, role, model, dataset):
        chosen, rejected = original(self, role, model, dataset)
        for number, row in enumerate(chosen):
            if tokens is None or number == 0:
                row[:tokens] += off
        return chosen, rejected

    monkeypatch.setattr(PreferenceTrainer, "_score", moved)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    if not stops:
        assert make(model).probe is not None
        return
    with pytest.raises(NumericalError, match=r"differ .* 0\.1\d* nats a token"):
        make(model)


def test_active_dropout_stops_the_run_at_step_0(make) -> None:
    lora = LoraConfig(
        r=2,
        target_modules=["q_proj"],
        lora_dropout=0.5,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with pytest.raises(NumericalError, match="must be log 2"):
        make(peft_config=lora, changes={"disable_dropout": False})


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_rows(make, pairs) -> None:
    rows = pairs.add_column("chosen_score", [0.5] * 11 + [0.9]).add_column(
        "rejected_score", [0.1] * 12
    )
    trainer = make(
        rows=rows, objective={"name": "rpo"}, changes={"train_sampling_strategy": "sequential"}
    )
    before = trainer.model.lm_head.weight.detach().clone()
    embedding = trainer.model.get_input_embeddings()

    def poison(module, inputs, output):
        """The first token of the chosen completion of row 2, wherever it was laid out."""
        tokens, completion = inputs[0][0].tolist(), pairs[2]["chosen_ids"]
        n = len(completion)
        (at,) = [i for i in range(len(tokens)) if tokens[i : i + n] == completion]
        return output.index_put((torch.tensor(0), torch.tensor(at)), torch.tensor(float("nan")))

    embedding.register_forward_hook(poison)
    with pytest.raises(NumericalError, match=r"Step 1: the loss of 1 pair\(s\) .* row 2\."):
        trainer.train()
    assert torch.equal(trainer.model.lm_head.weight, before)


def test_a_huge_learning_rate_stops_instead_of_saving_nan(make) -> None:
    trainer = make(changes={"learning_rate": 1e30, "max_steps": 5, "max_grad_norm": 0.0})
    with pytest.raises(NumericalError):
        trainer.train()
    assert trainer.state.global_step <= 1


def test_a_gradient_of_zero_stops_the_run(make) -> None:
    trainer = make()
    trainer.model.lm_head.weight.requires_grad_(True)
    for parameter in trainer.model.parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(NumericalError, match="gradient's norm is exactly 0"):
        trainer.train()


def test_a_step_in_which_every_pair_is_clipped_is_no_fault(make, pairs) -> None:
    """The clip of P3O stops gradients on purpose: after one large step nothing is left to move."""
    rows = pairs.add_column("chosen_score", [1.0] * 12).add_column("rejected_score", [0.0] * 12)
    trainer = make(
        rows=rows,
        objective={"name": "p3o", "clip": 1e-6, "form": "joint"},
        roles={"previous": "start", "reference": "start"},
        changes={"max_steps": 3, "per_device_train_batch_size": 12, "learning_rate": 1e-3},
    )
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert steps[0]["grad_norm"] > 0
    assert (steps[1]["clipped"], steps[1]["grad_norm"]) == (1.0, 0.0)


def test_a_step_of_ties_between_equals_is_no_fault(make, pairs) -> None:
    """At the reference, P(chosen beats rejected) = 1/2 pulls with -(1/2 - sigma(0)) = 0."""
    trainer = make(
        rows=pairs.add_column("preference", [0.5] * 12),
        changes={"max_steps": 2, "per_device_train_batch_size": 12, "learning_rate": 1e-3},
    )
    trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["grad_norm"] for row in steps] == [0.0, 0.0]


def test_pairs_without_signal_are_refused(make, pairs) -> None:
    row = pairs[0] | {"rejected_ids": pairs[0]["chosen_ids"]}
    with pytest.raises(DataError, match=r"Row 12 .* same tokens"):
        make(rows=Dataset.from_list([*pairs, row]))


def test_a_missing_column_is_named(make) -> None:
    with pytest.raises(DataError, match="chosen_score, rejected_score"):
        make(objective={"name": "sppo"}, roles={"previous": "start"})


def test_a_role_that_is_not_read_or_missing_is_refused(make) -> None:
    with pytest.raises(RecipeError, match=r"roles\.guide: objective dpo does not read it"):
        make(roles={"guide": "start"})
    with pytest.raises(RecipeError, match=r"needs roles\.previous"):
        make(objective={"name": "sppo"})
    with pytest.raises(RecipeError, match="is not a role"):
        make(roles={"refrence": "start"})


def test_the_trained_model_itself_is_no_reference(make, tiny_folder) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with pytest.raises(RecipeError, match="ref_model is the model that is trained"):
        make(model=model, ref_model=model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss_type", ["ipo"]),
        ("ld_alpha", 0.5),
        ("f_divergence_type", "js_divergence"),
        ("use_weighting", True),
        ("label_smoothing", 0.1),
        ("beta", 0.5),
    ],
)
def test_trls_loss_switches_are_refused(tmp_path, name, value) -> None:
    with pytest.raises(RecipeError, match=rf"\.{name} = .*silently dead"):
        config(tmp_path, **{name: value})


def test_named_trainers_take_the_objective_from_their_config(
    tiny_folder, tiny_tokenizer, pairs, tmp_path
) -> None:
    cases = [
        (
            DPOTrainer,
            DPOConfig,
            {"beta": 0.4, "f_divergence": "alpha_divergence", "alpha": 0.3},
            {"name": "dpo", "beta": 0.4, "f_divergence": "alpha_divergence", "alpha": 0.3}
            | {"length_normalised": False},
        ),
        (
            RDPOTrainer,
            RDPOConfig,
            {"flip_probability": 0.3},
            {"name": "rdpo", "beta": 0.1, "flip_probability": 0.3},
        ),
        (
            RPOTrainer,
            RPOConfig,
            {"eta": 0.2, "form": "average"},
            {"name": "rpo", "beta": 0.1, "eta": 0.2, "form": "average"},
        ),
    ]
    for trainer, kind, fields, expected in cases:
        built = trainer(
            tiny_folder,
            args=config(tmp_path, kind, **fields),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
        )
        assert built.objective.model_dump() == expected
    with pytest.raises(RecipeError, match="RPOTrainer needs a RPOConfig"):
        RPOTrainer(
            tiny_folder,
            args=config(tmp_path, DPOConfig),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
        )


def test_raw_rows_in_trls_format_are_tokenised(make) -> None:
    rows = Dataset.from_list(
        [
            {"prompt": "a b c", "chosen": " d e", "rejected": " f g h"},
            {"prompt": "x y", "chosen": " z", "rejected": " w"},
        ]
    )
    trainer = make(rows=rows, changes={"per_device_train_batch_size": 2})
    first = trainer.train_dataset[0]
    assert first["prompt_ids"] == [4, 5, 6]
    assert first["chosen_ids"] == [7, 8, 2]
    assert first["rejected_ids"] == [9, 10, 11, 2]
    trainer.train()


def test_rows_with_texts_and_ids_are_checked_like_any(make) -> None:
    """A pipeline's Parquet file holds both, and the ids only where it drew them."""
    rows = [
        {"prompt": "a", "chosen": " b", "rejected": " c", **dict.fromkeys(IDS)} for _ in range(3)
    ]
    trainer = make(rows=Dataset.from_list(rows))
    assert all(row["prompt_ids"] for row in trainer.train_dataset)
    wrong = {"prompt_ids": [3], "chosen_ids": [1], "rejected_ids": [2]}
    with pytest.raises(DataError, match="template_mismatch"):
        make(rows=Dataset.from_list([row | wrong for row in rows]))


IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def test_scoring_a_role_says_how_far_it_is(make, pairs, phases):
    make(changes={"per_device_eval_batch_size": 2})
    [(_, unit, total, done, tokens)] = [p for p in phases if p[0] == "score reference"]
    assert (unit, total, done[:2], done[-1]) == ("pairs", len(pairs), [2, 4], len(pairs))
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert tokens == sum(len(row[name]) for row in pairs for name in columns)
