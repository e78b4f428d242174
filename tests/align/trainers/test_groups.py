"""Groups of completions: the loss of padded full logits, whatever the layout and the split."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, TrainerCallback

from align.errors import DataError, RecipeError
from align.forest import backends
from align.objectives import DAPO, DPO, KTO, ReinforcePP
from align.trainers import GroupConfig, GroupTrainer
from align.types import GroupInputs, Logps
from tests.align.trainers.groups_in_code import Centred, Listwise, make_groups, settings


@pytest.fixture
def groups() -> Dataset:
    return make_groups(12)


@pytest.fixture
def built(tiny_folder, tiny_tokenizer, groups, tmp_path):
    def build(objective: Any = None, rows: Dataset | None = None, **changes: Any):
        given = {k: changes.pop(k) for k in ("callbacks", "roles", "peft_config") if k in changes}
        return GroupTrainer(
            # float64, because Adam's first steps make much of a gradient's last bits.
            AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64),
            args=GroupConfig(**settings(str(tmp_path / "out"), **changes)),
            train_dataset=groups if rows is None else rows,
            eval_dataset=groups.select(range(11)),
            processing_class=tiny_tokenizer,
            objective=objective or Listwise(),
            **given,
        )

    return build


class Gradients(TrainerCallback):
    """The gradient that each optimizer step sees."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        parameters = kwargs["model"].parameters()
        self.found.append(torch.cat([p.grad.flatten().clone() for p in parameters]))


def steps_of(trainer) -> list[dict[str, float]]:
    names = ("loss", "grad_norm", "kl", "rewards/mean", "rewards/chosen", "rewards/accuracies")
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return [{name: row[name] for name in names if name in row} for row in rows]


def own_logps(model, rows: list[tuple[list[int], list[int]]]) -> Logps:
    """From the full logits of each row alone."""
    found = []
    for prompt, completion in rows:
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, :-1]
        logps = logits.log_softmax(dim=1)[torch.arange(len(logits)), [*prompt, *completion][1:]]
        found.append(logps[len(prompt) - 1 :])
    width = max(map(len, found))
    mask = torch.tensor([[t < len(one) for t in range(width)] for one in found])
    return Logps(torch.stack([pad(one, (0, width - len(one))) for one in found]), mask)


def by_hand(tiny_folder, groups: list[dict], objective) -> tuple[float, torch.Tensor]:
    """Mean loss over completions, and its gradient at the start, by the model's own forward."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.9)
    rows = [(row["prompt_ids"], ids) for row in groups for ids in row["completions_ids"]]
    with torch.no_grad():
        frozen = own_logps(reference, rows)
    sizes = torch.tensor([len(row["completions_ids"]) for row in groups])
    read = GroupInputs(
        policy=own_logps(model, rows),
        group=torch.arange(len(groups)).repeat_interleave(sizes),
        reference=frozen,
        previous=frozen,
        score=torch.tensor([score for row in groups for score in row["scores"]]),
    )
    loss = objective(read).loss
    assert len(loss) == int(sizes.sum())
    loss.mean().backward()
    return loss.mean().item(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.fixture
def reference(tiny_folder):
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.9)
    return model


@pytest.mark.parametrize("backend", ["tree", "padded"])
@pytest.mark.parametrize(
    ("batch", "accumulation", "budget"),
    [(12, 1, None), (5, 3, None), (12, 1, 70), (1, 12, None), (7, 2, 40)],
)
def test_a_step_is_the_mean_over_completions_of_full_logits(
    built, tiny_folder, groups, reference, batch, accumulation, budget, backend, monkeypatch
) -> None:
    """12 groups of 1 to 4: 30 completions, each of them one thirtieth, in every split."""
    if backend == "padded":
        monkeypatch.setattr(backends, "refused", lambda model: "the test asks for it")
    loss, gradient = by_hand(tiny_folder, groups.to_list(), Listwise())
    look = Gradients()
    trainer = built(
        roles={"reference": reference},
        callbacks=[look],
        max_steps=1,
        max_grad_norm=0.0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        token_budget=budget,
    )
    assert trainer.backend.backend.name == backend
    trainer.train()
    # The reference's scores are kept in float32.
    assert steps_of(trainer)[0]["loss"] == pytest.approx(loss, abs=2e-6)
    assert gradient.norm() > 0.1
    torch.testing.assert_close(look.found[0], gradient, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("batch", "accumulation", "budget"), [(2, 3, None), (6, 1, 50), (3, 2, 40)]
)
@pytest.mark.parametrize("objective", [Centred(), DAPO(kl_beta=0.1), ReinforcePP()])
def test_the_whole_step_of_groups_is_seen_whatever_its_passes(
    built, groups, tiny_folder, reference, objective, batch, accumulation, budget
) -> None:
    """Every completion is given its own number of the step, at its own place."""
    look = Gradients()
    trainer = built(
        objective,
        roles=dict.fromkeys(objective.needs & {"reference", "previous"}, reference),
        callbacks=[look],
        max_steps=1,
        max_grad_norm=0.0,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        token_budget=budget,
    )
    trainer.train()
    loss, gradient = by_hand(tiny_folder, groups.to_list()[:6], objective)
    assert steps_of(trainer)[0]["loss"] == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(look.found[0], gradient, rtol=0, atol=2e-5)


def test_the_records_are_sums_over_completions(built, groups, reference, tiny_folder) -> None:
    trainer = built(KTO(), roles={"reference": reference}, max_steps=1)
    trainer.train()
    first = next(row for row in trainer.state.log_history if "loss" in row)
    rows = groups.to_list()[:6]
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64)
    flat = [(row["prompt_ids"], ids) for row in rows for ids in row["completions_ids"]]
    with torch.no_grad():
        logps = own_logps(model, flat).total()
        rho = logps - own_logps(reference, flat).total()
    label = torch.tensor([one for row in rows for one in row["labels"]])
    score = torch.tensor([one for row in rows for one in row["scores"]])
    owner = torch.tensor([i for i, row in enumerate(rows) for _ in row["labels"]])
    assert first["logps/chosen"] == pytest.approx(logps[label].mean().item(), abs=1e-4)
    assert first["rewards/rejected"] == pytest.approx(0.1 * rho[~label].mean().item(), abs=1e-5)
    margin = 0.1 * (rho[label].mean() - rho[~label].mean())
    assert first["rewards/margins"] == pytest.approx(margin.item(), abs=1e-5)
    pairs = [
        (rho[i] > rho[j]).item()
        for i in range(len(flat))
        for j in range(len(flat))
        if owner[i] == owner[j] and score[i] > score[j]
    ]
    assert first["rewards/accuracies"] == pytest.approx(sum(pairs) / len(pairs))
    total = sum(len(prompt) + len(ids) for prompt, ids in flat)
    assert first["num_tokens"] == total


def test_a_group_shares_its_prompt_and_is_never_torn(tiny_folder, built) -> None:
    """One prompt of 20 tokens with 4 answers of 3 (and an end): 36 tokens instead of 96."""
    prompt = list(range(4, 24))
    rows = Dataset.from_list(
        [
            {
                "prompt_ids": prompt,
                "completions_ids": [[5, 6 + k, 7, 2] for k in range(4)],
                "scores": [0.0, 1.0, 2.0, 3.0],
            }
        ]
        * 2
    )
    trainer = built(rows=rows, max_steps=1, token_budget=10, per_device_train_batch_size=2)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 1)])
    assert [part["place"].tolist() for part in batch["parts"]] == [[0], [1]]
    # The common first token of the answers is shared too.
    assert [part["pack"].computed_tokens for part in batch["parts"]] == [33, 33]
    assert [part["tokens"].tolist() for part in batch["parts"]] == [[96], [96]]


def test_an_evaluation_does_not_depend_on_the_batch_size(built, reference) -> None:
    found = [
        built(
            roles={"reference": reference}, per_device_eval_batch_size=size, token_budget=budget
        ).evaluate()
        for size, budget in ((1, None), (4, None), (11, 50))
    ]
    names = ("eval_loss", "eval_rewards/chosen", "eval_rewards/accuracies", "eval_entropy")
    for other in found[1:]:
        for name in names:
            assert other[name] == pytest.approx(found[0][name], abs=1e-6), name


def test_compute_metrics_is_given_the_rewards_of_all_completions(built, reference, groups) -> None:
    """In the data set's order, whatever the passes; beside labels, or else scores."""
    held_out = groups.select(range(11))
    sizes = [len(row) for row in held_out["labels"]]
    seen = []

    def metrics(given):
        seen.append(given)
        return {"n": len(given.predictions)}

    for size, budget in ((11, None), (3, None), (11, 50)):
        trainer = built(
            roles={"reference": reference}, per_device_eval_batch_size=size, token_budget=budget
        )
        trainer.compute_metrics = metrics
        assert trainer.evaluate(held_out)["eval_n"] == sum(sizes)
    one, few, packed = seen
    rows = trainer._evaluable(held_out, "eval")
    batch = trainer._prepare_inputs(trainer._layout([rows[i] for i in range(11)]))
    wanted = {}
    with torch.no_grad():
        for part in batch["parts"]:
            policy, _ = trainer._logps(trainer.model.eval(), part)
            frozen = trainer.kind.stored("reference", part, policy)
            ratios = (policy.total() - frozen.total()).split(part["sizes"].tolist())
            wanted |= dict(zip(part["place"].tolist(), ratios, strict=True))
    rewards = trainer.objective.beta * torch.cat([wanted[i] for i in range(11)])
    for given in (one, few, packed):
        assert given.predictions.tolist() == pytest.approx(rewards.tolist(), abs=1e-5)
        assert given.label_ids.tolist() == [int(one) for row in held_out["labels"] for one in row]
    assert len(set(one.predictions.tolist())) == sum(sizes)
    trainer.evaluate(held_out.remove_columns("labels"))
    scores = [one for row in held_out["scores"] for one in row]
    assert seen[-1].label_ids.tolist() == pytest.approx(scores, abs=1e-6)


def test_new_groups_and_a_stream_are_evaluated_as_those_of_the_start(built, groups) -> None:
    trainer = built(max_steps=2)
    trainer.train()
    wanted = trainer.evaluate()
    assert wanted["eval_loss"] != pytest.approx(0.0)
    new = trainer.evaluate(groups.select(range(11)))
    assert new["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-6)
    stream = trainer.evaluate(groups.select(range(11)).to_iterable_dataset())
    assert stream["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-6)


def test_rows_of_one_completion_are_gathered_by_prompt(built) -> None:
    rows = [
        {"prompt_ids": [1, p], "completion_ids": [c, 2], "score": float(c)}
        for p, c in ((4, 5), (6, 7), (4, 8), (4, 9))
    ]
    trainer = built(rows=Dataset.from_list(rows), max_steps=1, per_device_train_batch_size=1)
    table = trainer.train_dataset
    assert table["completions_ids"][:] == [[[5, 2], [8, 2], [9, 2]], [[7, 2]]]
    assert table["scores"][:] == [[5.0, 8.0, 9.0], [7.0]]
    apart = [row | {"group_id": str(i % 2)} for i, row in enumerate(rows)]
    trainer = built(rows=Dataset.from_list(apart), max_steps=1, per_device_train_batch_size=1)
    assert trainer.train_dataset["scores"][:] == [[5.0, 8.0], [7.0], [9.0]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": [1.0]}, "2 completions and 1 scores"),
        ({"completions_ids": [[5, 2], []]}, "no completion tokens"),
        ({"labels": [True, None]}, "none of them null"),
        ({"token_weights": [[1.0, 1.0], [1.0]]}, "a number for each token"),
    ],
)
def test_what_does_not_fit_together_is_named(built, changes, said) -> None:
    row = {
        "prompt_ids": [1, 4],
        "completions_ids": [[5, 2], [6, 2]],
        "scores": [0.0, 1.0],
        "labels": [True, False],
        "token_weights": [[1.0, 1.0], [1.0, 1.0]],
    }
    with pytest.raises(DataError, match=f"Row 1 of the train data.*{said}"):
        built(rows=Dataset.from_list([row, row | changes]))


def test_losses_over_pairs_and_missing_columns_are_refused(built, groups) -> None:
    with pytest.raises(RecipeError, match="'dpo', a loss over preference pairs"):
        built(DPO())
    with pytest.raises(DataError, match=r"listwise needs the column\(s\) scores"):
        built(rows=groups.remove_columns("scores"))


def test_a_resumed_run_is_the_uninterrupted_one(built, tmp_path: Path) -> None:
    class Killed(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    saving["train_sampling_strategy"] = "random"
    straight = built(output_dir=str(tmp_path / "straight"), **saving)
    straight.train()
    killed = built(output_dir=str(tmp_path / "cut"), callbacks=[Killed()], **saving)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = built(output_dir=str(tmp_path / "cut"), **saving)
    resumed.train(resume_from_checkpoint=True)
    assert steps_of(resumed) == steps_of(straight)
    found, wanted = (trainer.model.state_dict() for trainer in (resumed, straight))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
