"""Supervised fine-tuning: the completion's tokens and nothing else."""

import pytest
import torch
import trl
from datasets import Dataset

from align.trainers.sft import NO_LABEL
from tests.align.trainers.classifiers_in_code import ARGUMENTS, losses, trainer_of
from tests.align.trainers.test_reward import SAVING, KilledAtStep, history


def completions(n: int = 12, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(4, 30, (length,), generator=generator).tolist()

    prompts = [[1, *tokens(2, 7)] for _ in range(n)]
    answers = [[*tokens(2, 9), 2] for _ in range(n)]
    return Dataset.from_dict(
        {
            "input_ids": [p + a for p, a in zip(prompts, answers, strict=True)],
            "labels": [[NO_LABEL] * len(p) + a for p, a in zip(prompts, answers, strict=True)],
            "source": ["rows.jsonl"] * n,
            "row": list(range(1, n + 1)),
        }
    )


def policy(folder: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_first_loss_is_the_mean_over_completion_tokens(
    tiny_folder, tiny_tokenizer, tmp_path
) -> None:
    rows, model = completions(4), policy(tiny_folder)
    nats, count = 0.0, 0
    with torch.no_grad():
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scored = [i for i, label in enumerate(labels) if label != NO_LABEL]
            nats -= sum(float(logps[i - 1, ids[i]]) for i in scored)
            count += len(scored)
    assert count < sum(map(len, rows["input_ids"])) - 4, "prompts are there and left out"
    trainer = trainer_of("sft", model, tiny_tokenizer, rows, tmp_path, max_steps=1)
    trainer.train()
    assert losses(trainer) == [pytest.approx(nats / count, abs=1e-4)]


def test_same_trajectory_as_trl(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    ours = trainer_of("sft", policy(tiny_folder), tiny_tokenizer, completions(), tmp_path / "ours")
    theirs = trl.SFTTrainer(
        policy(tiny_folder),
        args=trl.SFTConfig(str(tmp_path / "theirs"), max_length=None, **ARGUMENTS),
        train_dataset=completions().remove_columns(["source", "row"]),
        processing_class=tiny_tokenizer,
    )
    for trainer in (ours, theirs):
        trainer.train()
    assert losses(ours) == losses(theirs)
    assert max(losses(ours)) - min(losses(ours)) > 1e-3, "nothing was learned"


def test_resumed_equals_uninterrupted_bitwise(tiny_folder, tiny_tokenizer, tmp_path) -> None:
    def made(out):
        return trainer_of("sft", policy(tiny_folder), tiny_tokenizer, completions(), out, **SAVING)

    straight = made(tmp_path / "straight")
    straight.train()
    killed = made(tmp_path / "cut")
    killed.add_callback(KilledAtStep(3))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = made(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    found = resumed.model.state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, found[name]), name
    assert history(resumed) == history(straight)
