"""What scripts for `trl.DPOTrainer` do beside settings: rows, callbacks, checkpoints, methods."""

import logging

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tokenizers import processors
from transformers import AutoTokenizer, GenerationConfig
from trl import LogCompletionsCallback
from trl.trainer.dpo_trainer import DPOTrainer as TRLTrainer

from align.data.problems import RowProblem
from align.errors import DataError, RecipeError
from align.tokens.encoder import check_completion_ids
from align.trainers import DPOConfig, DPOTrainer
from align.trainers.group_kind import GROUPS
from align.trainers.pair_kind import PAIRS
from align.trainers.pair_rows import tokenised
from align.worlds import world

SETTINGS = {
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
    "max_length": None,
}
CHAT = (
    "{% for m in messages %}{{ m['role'][0] + ' ' }}"
    "{% if m.get('reasoning_content') %}{{ m['reasoning_content'] + ' ' }}{% endif %}"
    "{{ m['content'] + ' ' }}{% if m['role'] == 'assistant' %}{{ '</s> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
)
LORA = LoraConfig(r=2, target_modules=["q_proj"])


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(trainer=DPOTrainer, rows=pairs, **given):
        changes = SETTINGS | given.pop("changes", {})
        kind = DPOConfig if "on_control_tokens" in changes else trl.DPOConfig
        out = str(tmp_path / trainer.__module__)
        return trainer(
            tiny_folder,
            args=kind(out, **changes),
            train_dataset=rows,
            processing_class=tiny_tokenizer,
            **given,
        )

    return build


@pytest.fixture
def chat(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHAT
    yield tiny_tokenizer
    tiny_tokenizer.chat_template = None


def words(*rows: tuple[str, str, str]) -> Dataset:
    names = ("prompt", "chosen", "rejected")
    return Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])


def talk(first: str, answer: str, **more: str) -> dict[str, list[dict[str, str]]]:
    def said(text):
        return [{"role": "assistant", "content": text, **more}]

    prompt = [{"role": first, "content": "x"}, {"role": "user", "content": "y"}]
    return {"prompt": prompt, "chosen": said(answer), "rejected": said("c")}


def spelled(tokenizer, row) -> tuple[str, str]:
    return tokenizer.decode(row["prompt_ids"]), tokenizer.decode(row["chosen_ids"])


def test_a_developer_turn_and_reasoning_reach_the_template(make, chat) -> None:
    rows = [talk("developer", "b"), talk("system", "b", reasoning_content="r")]
    first, second = make(rows=Dataset.from_list(rows)).train_dataset
    assert spelled(chat, first) == ("d x u y a", "b </s>")
    assert spelled(chat, second) == ("s x u y a", "r b </s>")


def test_one_row_that_needs_the_template_may_stand_anywhere(make, chat) -> None:
    """Here behind a thousand plain ones."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    plain = [talk("system", f"{a} {b}") for a in letters for b in letters] * 2
    made = make(rows=Dataset.from_list([*plain, talk("developer", "b")])).train_dataset
    assert len(made) == 2 * 26 * 26 + 1
    assert spelled(chat, made[len(made) - 1]) == ("d x u y a", "b </s>")


def test_rows_that_spell_control_tokens_are_named(tmp_path, caplog) -> None:
    bytewise = AutoTokenizer.from_pretrained(str(world("bytes").base_model()))
    end = bytewise.eos_token
    rows = words(("a", " b", " c"), (f"a {end}", " b", " d"))
    with caplog.at_level(logging.WARNING):
        made = tokenised(rows, bytewise, DPOConfig(str(tmp_path), bf16=False), "train")
    assert "Row 2 of the train data spells control tokens" in caplog.text
    assert bytewise.eos_token_id not in made[1]["prompt_ids"]
    caplog.clear()
    keep = DPOConfig(str(tmp_path), bf16=False, on_control_tokens="keep")
    with caplog.at_level(logging.WARNING):
        made = tokenised(rows, bytewise, keep, "train")
    assert "control tokens" not in caplog.text
    assert made[1]["prompt_ids"][-1] == bytewise.eos_token_id


@pytest.mark.parametrize("bos", [None, "<s>"], ids=["bare", "with-bos"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_an_empty_prompt_is_trained_on_as_in_trl(bos, layout, tiny_folder, tmp_path) -> None:
    """Without a token that opens a text, the first token of a completion is context."""
    rows = words(
        ("", "b c d", "c e f g"), ("a b", " b", " c d"), ("", "d", "e f"), ("", "d e", "d a")
    )
    found = []
    for trainer in (trl.DPOTrainer, DPOTrainer):
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        backend = tokenizer.backend_tokenizer
        if bos is None:
            backend.post_processor = processors.TemplateProcessing(single="$A")
        else:
            single = f"{bos} $A"
            opening = [(bos, tokenizer.convert_tokens_to_ids(bos))]
            backend.post_processor = processors.TemplateProcessing(
                single=single, special_tokens=opening
            )
        noise = {"neftune_noise_alpha": 1e-9} if layout == "padded" else {}
        own = {"train_sampling_strategy": "sequential", "beta": 0.5, "max_steps": 3}
        made = trainer(
            tiny_folder,
            args=trl.DPOConfig(str(tmp_path / trainer.__module__), **(SETTINGS | own | noise)),
            train_dataset=rows,
            processing_class=tokenizer,
        )
        made.train()
        history = [row["loss"] for row in made.state.log_history if "loss" in row]
        found.append((history, made.train_dataset["prompt_ids"][:], made))
    (wanted, trls, _), (ours, ids, made) = found
    assert ids == trls
    assert [len(one) for one in ids] == ([0, 2, 0, 0] if bos is None else [1, 3, 1, 1])
    assert ours == pytest.approx(wanted, abs=1e-5)
    assert made.backend.backend.name == ("padded" if layout == "padded" else "tree")


def test_without_a_prompt_one_token_teaches_nothing(make, tiny_folder, caplog) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    rows = [{"prompt_ids": [], "chosen_ids": [5], "rejected_ids": [6, 2]}]
    with pytest.raises(DataError, match="no completion tokens"):
        make(rows=Dataset.from_list(rows))
    with caplog.at_level(logging.INFO):
        make(rows=words(("", "b c", "c"), ("", "d", "a")))
    assert "no_prompt" in caplog.text
    with pytest.raises(RowProblem, match="one token and no prompt"):
        check_completion_ids([], [5], "chosen", ends=False)


def test_numbers_per_token_belong_to_the_tokens_that_are_scored(make) -> None:
    """Without a prompt the first weight has no log-prob to weigh."""
    weights = {"chosen_token_weight": [9.0, 2.0, 3.0], "rejected_token_weight": [9.0, 4.0]}
    row = {"row_index": 0, "prompt_ids": [], "chosen_ids": [5, 6, 2], "rejected_ids": [7, 2]}
    columns = PAIRS.columns([row | weights])
    assert columns["chosen_token_weight"].tolist() == [[2.0, 3.0]]
    assert columns["rejected_token_weight"].tolist() == [[4.0]]
    one = {"token_weights": [[9.0, 2.0], [9.0, 3.0, 4.0]], "completions_ids": [[5, 2], [6, 7, 2]]}
    assert GROUPS.columns([row | one])["token_weights"].tolist() == [[2.0, 0.0], [3.0, 4.0]]
    beside = GROUPS.columns([row | one | {"prompt_ids": [1]}])
    assert beside["token_weights"].tolist() == [[9.0, 2.0, 0.0], [9.0, 3.0, 4.0]]


def test_completions_are_logged_by_trls_callback(make) -> None:
    rows = words(("a b", " c d", " e"), ("f g", " h", " i"))
    changes = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = make(rows=rows, eval_dataset=rows, changes=changes)
    how = GenerationConfig(max_new_tokens=2, pad_token_id=0, eos_token_id=2)
    logged = LogCompletionsCallback(trainer, generation_config=how, freq=1)
    trainer.add_callback(logged)
    trainer.train()
    assert [line[:2] for line in logged.table] == [
        (step, prompt) for step in ("1", "2") for prompt in ("a b", "f g")
    ]


@pytest.mark.parametrize("adapter", [None, LORA])
def test_reference_log_probs_are_trls(make, adapter) -> None:
    rows = words(("a b", " c d", " e"), ("f", " h", " i k l m"), ("n o p", " q", " r s"))
    theirs = make(TRLTrainer, rows=rows, peft_config=adapter)
    ours = make(rows=rows, peft_config=adapter)
    wanted = theirs.compute_ref_log_probs(theirs.model, batch_of(theirs))
    found = ours.compute_ref_log_probs(ours.model, batch_of(ours))
    for mine, other in zip(found, wanted, strict=True):
        assert mine.tolist() == pytest.approx(other.tolist(), abs=1e-4)
    if adapter is not None:
        ours.train()
        again = ours.compute_ref_log_probs(ours.model, batch_of(ours))
        torch.testing.assert_close(again, found)


def batch_of(trainer):
    names = ("prompt_ids", "chosen_ids", "rejected_ids", "row_index")
    table = trainer.train_dataset
    rows = table.select_columns([name for name in names if name in table.column_names])
    return trainer._prepare_inputs(trainer.data_collator(list(rows)))


def test_reference_log_probs_of_another_batch_are_refused(make) -> None:
    trainer = make()
    with pytest.raises(RecipeError, match="no batch of this trainer's collator"):
        trainer.compute_ref_log_probs(trainer.model, {"input_ids": torch.ones(2, 3).long()})


def test_trls_checkpoint_is_not_taken_for_a_broken_one(make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    rows = words(("a b", " c d", " e"), ("f", " h", " i k l m"))
    theirs = make(TRLTrainer, rows=rows, changes=saving)
    theirs.train()
    ours = make(rows=rows, changes=saving)
    ours.args.output_dir = theirs.args.output_dir
    with pytest.raises(RecipeError, match=r"checkpoint-2 was written by another trainer"):
        ours.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", ["all", "non_padding"])
def test_input_tokens_are_counted_as_trl_counts_them(make, kind) -> None:
    rows = words(("a b", " c d", " e"), ("f", " h", " i k l m"), ("n o p", " q", " r s"))
    # Padded rows, as TRL's: a forest computes fewer.
    changes = {"include_num_input_tokens_seen": kind, "neftune_noise_alpha": 1e-9}
    seen = []
    for trainer in (TRLTrainer, DPOTrainer):
        made = make(trainer, rows=rows, changes=changes)
        made.train()
        seen.append(made.state.num_input_tokens_seen)
    # By hand, non_padding: 3 rows' prompts twice and completions with their end tokens, 2 steps:
    # 2 * (2*(2+1+3) + (3+2) + (2+5) + (2+3)) = 58.
    assert seen == ([58, 58] if kind == "non_padding" else [2 * 6 * 6] * 2)


def test_prediction_loss_only_leaves_compute_metrics_out(make, pairs) -> None:
    seen = []

    def metrics(given):
        seen.append(given)
        return {"mine": float(np.mean(given.predictions))}

    for only in (True, False):
        changes = {"prediction_loss_only": only}
        found = make(eval_dataset=pairs, compute_metrics=metrics, changes=changes).evaluate()
        assert ("eval_mine" in found) is not only
    assert len(seen) == 1
