"""TDPO's steps are those of a plain loop over dense logits, however rows are laid out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.functional import kl_div, softplus
from transformers import AutoModelForCausalLM

from align.errors import MachineError, RecipeError
from align.forest import backends
from align.objectives import Objective
from align.trainers import PreferenceConfig, PreferenceTrainer, TDPOTrainer
from align.types import ObjectiveOutput, Pair

STEPS, BATCH, RATE, BETA, ALPHA = 4, 4, 5e-3, 0.3, 0.7
TDPO = {"name": "tdpo", "beta": BETA, "alpha": ALPHA}
SETTINGS = {
    "learning_rate": RATE,
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "train_sampling_strategy": "sequential",
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "optim": "adamw_torch",
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}
# TRL refuses low-rank adapters on the head, and lets a head through that is trained whole.
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "lora and head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def policy_of(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def adapter(kind: str) -> Any:
    where = ADAPTERS[kind]
    return where and LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", **where)


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(kind: str = "full", objective: Any = TDPO, trainer: Any = None, **given: Any) -> Any:
        config = given.pop("config", PreferenceConfig)
        args = config(output_dir=str(tmp_path / "out"), **(SETTINGS | given.pop("changes", {})))
        torch.manual_seed(0)  # for the adapter
        return (trainer or PreferenceTrainer)(
            given.pop("model", None) or policy_of(tiny_folder),
            args=args,
            train_dataset=given.pop("rows", pairs),
            processing_class=tiny_tokenizer,
            peft_config=adapter(kind),
            **({} if objective is None else {"objective": objective}),
            **given,
        )

    return build


def steps_of(trainer: Any) -> list[tuple[float, ...]]:
    """Loss, and divergence of either side in nats, of each step."""
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    names = ("loss", "divergence/chosen", "divergence/rejected")
    return [tuple(row[name] for name in names) for row in log]


def dense(model: Any, row: dict[str, list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of all tokens [T, V] behind a completion's tokens, and these tokens [T]."""
    ids = torch.tensor([row["prompt_ids"] + row[side]])
    begin = len(row["prompt_ids"])
    return model(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(dim=1), ids[0, begin:]


def plain_steps(folder: str, kind: str, begin: Any, rows: Dataset) -> list[tuple[float, ...]]:
    """The same by a loop of its own: one row after another, no packs, no chunks, no trainer."""
    model, reference = policy_of(folder), policy_of(folder)
    if kind != "full":
        model = get_peft_model(model, adapter(kind))
    model.load_state_dict(begin)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    found = []
    for step in range(STEPS):
        first = step * BATCH % len(rows)
        losses, sums = [], {"chosen_ids": 0.0, "rejected_ids": 0.0}
        for row in rows.select(range(first, first + BATCH)).to_list():
            rho, far = {}, {}
            for side in sums:
                log_p, at = dense(model, row, side)
                with torch.no_grad():
                    log_q, _ = dense(reference, row, side)
                rho[side] = (log_p - log_q).gather(1, at[:, None]).sum()
                far[side] = kl_div(log_p, log_q, reduction="sum", log_target=True)
                sums[side] += far[side].item()
            gap = rho["chosen_ids"] - rho["rejected_ids"]
            gap = gap - ALPHA * (far["rejected_ids"] - far["chosen_ids"].detach())
            losses.append(softplus(-BETA * gap))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append((loss.item(), *(total / BATCH for total in sums.values())))
    return found


def assert_close(found: list[tuple[float, ...]], wanted: list[tuple[float, ...]]) -> None:
    assert len(found) == len(wanted) == STEPS
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    assert found[-1][1] > 1e-3, "nothing diverged"


@pytest.mark.parametrize("backend", ["tree", "padded"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_steps_are_those_of_a_plain_loop(
    make, kind, backend, tiny_folder, pairs, monkeypatch
) -> None:
    if backend == "padded":
        monkeypatch.setattr(backends, "refused", lambda model: "the test asks for it")
    trainer = make(kind)
    assert trainer.backend.backend.name == backend
    assert trainer.probe["divergence"] == 0.0
    assert trainer.identities["reference"] == trainer._start
    assert not [name for name in trainer.train_dataset.column_names if "logps" in name]
    begin = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found = steps_of(trainer)
    assert found[0][1:] == (0.0, 0.0)
    assert_close(found, plain_steps(tiny_folder, kind, begin, pairs))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("full", {"token_budget": 24}),
        ("full", {"token_budget": "auto"}),
        (
            "lora and head",
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        ),
        ("lora and head", {"gradient_checkpointing": True, "token_budget": 24}),
    ],
)
def test_the_borders_of_passes_move_nothing(make, kind, changes) -> None:
    assert_close(steps_of(make(kind, changes=changes)), steps_of(make(kind)))


def test_a_stream_takes_the_same_steps(make, pairs) -> None:
    stream = steps_of(make(rows=pairs.to_iterable_dataset()))
    assert_close(stream, steps_of(make()))


@pytest.mark.parametrize("kind", ["full", "lora and head"])
def test_evaluations_know_the_reference_whenever_they_come(make, kind, pairs) -> None:
    """Of known rows, of new ones and of a stream, in passes of any size."""
    held_out = pairs.select(range(5))
    known = make(kind, eval_dataset=held_out, changes={"per_device_eval_batch_size": 8})
    before = known.evaluate()
    assert before["eval_divergence/chosen"] == 0.0
    known.train()
    trained = {name: p.detach().clone() for name, p in known.model.named_parameters()}
    wanted = known.evaluate()
    assert wanted["eval_divergence/chosen"] > 1e-3
    new = make(kind, changes={"per_device_eval_batch_size": 2})
    new.train()
    for rows in (held_out, held_out.to_iterable_dataset()):
        found = new.evaluate(rows)
        for name in ("eval_loss", "eval_divergence/chosen", "eval_rewards/margins"):
            assert found[name] == pytest.approx(wanted[name], abs=1e-6), name
    assert all(torch.equal(p, trained[name]) for name, p in known.model.named_parameters())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_again_still_compares_with_the_beginning(make, kind) -> None:
    trainer = make(kind)
    trainer.train()
    trainer.train()
    first = next(r for r in trainer.state.log_history if "divergence/chosen" in r)
    assert first["step"] == 1
    assert first["divergence/chosen"] > 1e-3


def test_a_resumed_run_compares_with_the_same_reference(make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = make(changes=saving)
    wanted = steps_of(whole)
    again = make(changes=saving)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    log = [row for row in again.state.log_history if "loss" in row]
    assert [row["loss"] for row in log] == pytest.approx([step[0] for step in wanted], abs=1e-9)


def other_of(folder: str, place: Path, vocabulary: int | None = None) -> str:
    model = policy_of(folder)
    if vocabulary is not None:
        model.resize_token_embeddings(vocabulary)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(place / "other")
    return str(place / "other")


def test_the_reference_may_be_another_model(make, tiny_folder, tmp_path) -> None:
    other = other_of(tiny_folder, tmp_path)
    named, given = make(roles={"reference": other}), make(ref_model=policy_of(other))
    assert named.probe is None
    assert named.identities["reference"].source == other
    assert named.identities["reference"].weights != named._start.weights
    found = steps_of(named)
    assert found[0][1] > 1e-3
    assert_close(found, steps_of(given))
    wide = other_of(tiny_folder, tmp_path, vocabulary=64)
    with pytest.raises(RecipeError, match="64 tokens and the policy to 30"):
        make(roles={"reference": wide}).train()


def test_a_reference_that_is_renewed_is_compared_as_it_is(make, tiny_folder) -> None:
    renewed = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    found = steps_of(make(model=tiny_folder, changes=renewed))
    assert [step[1] == 0.0 for step in found] == [True, False, True, False]


def test_a_reference_that_cannot_be_asked_is_refused(make, tiny_folder, tmp_path) -> None:
    with pytest.raises(
        RecipeError, match="precompute_ref_log_probs=True: Objective tdpo needs div"
    ):
        make(changes={"precompute_ref_log_probs": True})
    folder = tmp_path / "adapter"
    get_peft_model(policy_of(tiny_folder), adapter("lora")).save_pretrained(folder)
    about = json.loads((folder / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = tiny_folder
    (folder / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(RecipeError, match="an adapter on the policy's own base, which cannot be"):
        make("lora", roles={"reference": str(folder)})


class Own(Objective, frozen=True):
    """A formula that holds nothing but what it is given of the vocabulary, and a likelihood."""

    name: str = "own"
    needs = frozenset({"reference"})
    vocabulary = frozenset({"divergence"})

    def __call__(self, inputs):
        policy = self.checked(inputs).policy
        chosen, rejected = (side.divergence.sum(dim=1) for side in (policy.chosen, policy.rejected))
        loss = -(chosen - rejected) + policy.chosen.total() * 0.1
        return ObjectiveOutput(loss, Pair(chosen.detach(), rejected.detach()), {})


class Alone(Own, frozen=True):
    needs = frozenset()


class Misspelt(Own, frozen=True):
    vocabulary = frozenset({"divergance"})


def test_a_formula_of_ones_own_is_given_what_it_declares(make) -> None:
    trainer = make(objective=Own())
    trainer.train()
    last = [row for row in trainer.state.log_history if "loss" in row][-1]
    assert last["rewards/chosen"] > 1e-3
    with pytest.raises(RecipeError, match="is from the reference: `needs` must name it"):
        make(objective=Alone())
    misspelt = make(objective=Misspelt())
    with pytest.raises(RecipeError, match="names divergance; there are collision and divergence"):
        misspelt.train()


def test_sharded_weights_are_refused_by_name(make, monkeypatch) -> None:
    for objective, sharded in ((TDPO, "is_fsdp_enabled"), (TDPO, "is_deepspeed_enabled")):
        trainer = make(objective=objective)
        setattr(trainer, sharded, True)
        with pytest.raises(MachineError, match="tdpo needs divergence over the whole vocabulary"):
            trainer._check_vocabulary()
    aligned = make(objective={"name": "wpo", "alignment": "sampled"})
    aligned.is_fsdp_enabled = True
    aligned._check_vocabulary()
    aligned.is_deepspeed_enabled = True
    with pytest.raises(MachineError, match="wpo needs collision"):
        aligned._check_vocabulary()


def test_only_who_asks_pays(make, monkeypatch) -> None:
    """A plain DPO run keeps no second model and asks the head for nothing beside log-probs."""
    import align.forest.model

    asked = []
    original = align.forest.model.edge_values
    monkeypatch.setattr(
        align.forest.model, "edge_values", lambda *a, **k: asked.append(k) or original(*a, **k)
    )
    plain = make(objective={"name": "dpo"})
    plain.train()
    assert (plain._live, asked) == ({}, [])
    aligned = make(objective={"name": "wpo", "alignment": "sampled"})
    aligned.train()
    assert aligned._live == {}
    assert asked
    assert all(k["collision"] and k["reference"] is None for k in asked)


def test_the_named_trainer_takes_the_same_steps(make) -> None:
    given = {"beta": BETA, "alpha": ALPHA}
    named = make(
        objective=None, trainer=TDPOTrainer, config=TDPOTrainer.config_class, changes=given
    )
    assert_close(steps_of(named), steps_of(make()))
