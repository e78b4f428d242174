from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerBase

from align.app.check import CheckReport, check
from align.app.cost import (
    Lengths,
    Machine,
    count_parameters,
    estimate_disk,
    estimate_memory,
    optimizer_steps,
)
from align.app.fitting import broken_invariant
from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.row_report import RowReport
from align.errors import DataError, MachineError, RecipeError
from align.objectives import objective_from
from align.recipe import Data, Evaluate, Model, Recipe, Roles, Train
from align.tokens.encoding import encode_pairs
from align.tokens.tokenized_pair import TokenizedPair
from align.worlds.bytes import bytes_tokenizer

HIDDEN, LAYERS, WIDE = 8, 2, 16
ROOMY = Machine(free_disk=10**12, free_memory=10**12, memory_of="this machine")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return bytes_tokenizer(512)


@pytest.fixture(scope="module")
def config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )


def row(number: int, prompt: str, chosen: str, rejected: str, **columns: Any) -> PreferencePair:
    return PreferencePair(
        prompt=(Message(role="user", content=prompt),),
        chosen=(Message(role="assistant", content=chosen),),
        rejected=(Message(role="assistant", content=rejected),),
        source="rows.jsonl",
        row=number,
        **columns,
    )


def encoded(
    tokenizer: PreTrainedTokenizerBase, *pairs: PreferencePair
) -> tuple[list[TokenizedPair], RowReport]:
    report = RowReport()
    return encode_pairs(pairs, tokenizer, Data(pairs="rows.jsonl"), report), report


@pytest.fixture
def pairs(tokenizer: PreTrainedTokenizerBase) -> list[TokenizedPair]:
    return encoded(
        tokenizer,
        row(1, "zqx", "yes", "no"),
        row(2, "What?", "I do not know that", "no"),
        row(3, "Why is it so?", "because", "nobody can tell you that, my friend"),
    )[0]


def recipe(objective: Mapping[str, Any] | None = None, **sections: Any) -> Recipe:
    given = {
        "model": Model(model_name_or_path="a/b"),
        "roles": Roles(reference="start"),
        "data": Data(pairs="rows.jsonl"),
        "objective": objective_from(objective or {"name": "dpo"}),
    }
    return Recipe(**(given | sections))


def checked(
    recipe: Recipe,
    pairs: list[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    **options: Any,
) -> CheckReport:
    report = RowReport(read=len(pairs), kept=len(pairs))
    given: dict[str, Any] = {"held_out": pairs[:1], "machine": ROOMY, "run_dir": Path("outputs/x")}
    return check(
        recipe, train=pairs, report=report, tokenizer=tokenizer, model_config=config,
        **(given | options),
    )  # fmt: skip


def test_lengths() -> None:
    # 20 lengths 1..20: the median lies between 10 and 11, p95 is the 19th of them.
    assert Lengths.of(range(20, 0, -1)) == Lengths(1, 10.5, 19, 20)
    assert Lengths.of([7]) == Lengths(7, 7, 7, 7)


@pytest.mark.parametrize(
    ("train", "processes", "steps"),
    [
        (Train(per_device_train_batch_size=8, num_train_epochs=1), 1, 13),  # 100 / 8 = 12.5
        (Train(per_device_train_batch_size=8, num_train_epochs=1), 2, 7),  # 100 / 16 = 6.25
        (Train(num_train_epochs=2, gradient_accumulation_steps=4), 1, 8),  # 13 / 4 -> 4, twice
        (Train(num_train_epochs=1, dataloader_drop_last=True), 1, 12),
        (Train(num_train_epochs=0.5), 1, 7),  # half of 13
        (Train(max_steps=5), 1, 5),
    ],
)
def test_optimizer_steps(train: Train, processes: int, steps: int) -> None:
    assert optimizer_steps(train, 100, processes) == steps


# Per layer: q, k, v, o of 8 x 8, gate and up and down of 8 x 16, two norms of 8.
LINEAR = LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * WIDE)
NORMS = (2 * LAYERS + 1) * HIDDEN


def test_parameters_full_adapter_and_quantised(config: LlamaConfig) -> None:
    embeddings = 2 * config.vocab_size * HIDDEN
    total = embeddings + LINEAR + NORMS
    full = count_parameters(recipe(), config)
    assert (full.total, full.trained, full.adapter, full.quantised) == (total, total, 0, 0)
    # peft adapts q and v of a Llama: r (in + out) each.
    adapter = LAYERS * 2 * 4 * (HIDDEN + HIDDEN)
    lora = Model(model_name_or_path="a/b", use_peft=True, lora_r=4)
    found = count_parameters(recipe(model=lora), config)
    assert (found.total, found.trained, found.adapter, found.quantised) == (
        total + adapter,
        adapter,
        adapter,
        0,
    )
    # The output layer is not quantised.
    qlora = Model(model_name_or_path="a/b", use_peft=True, lora_r=4, load_in_4bit=True)
    assert count_parameters(recipe(model=qlora), config).quantised == LINEAR


def test_tied_embeddings_count_once() -> None:
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=16)
    # wte 50 x 8, wpe 16 x 8; attention 8 x 24 + 24 and 8 x 8 + 8; mlp 8 x 32 + 32 and 32 x 8 + 8;
    # three layer norms of 16.
    assert count_parameters(recipe(), config).total == 400 + 128 + 216 + 72 + 288 + 264 + 48


def test_memory_of_full_training(config: LlamaConfig, pairs: list[TokenizedPair]) -> None:
    train = Train(per_device_train_batch_size=2, gradient_checkpointing=False)
    full = recipe(train=train)
    parameters = count_parameters(full, config)
    memory = estimate_memory(full, pairs, parameters, config)
    assert memory.weights == 4 * parameters.total
    assert memory.gradients == 4 * parameters.total
    assert memory.optimizer == 8 * parameters.total  # AdamW: two float32 each
    sizes = sorted(
        len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs
    )
    tokens = sizes[-1] + sizes[-2]
    assert memory.activations == tokens * LAYERS * 34 * HIDDEN * 2  # twice 34 h in float32
    assert memory.logits == tokens * config.vocab_size * 8
    assert memory.total == sum(
        (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.logits)
    )
    saving = recipe(train=train.model_copy(update={"gradient_checkpointing": True}))
    less = estimate_memory(saving, pairs, parameters, config).activations
    assert less == tokens * (LAYERS * HIDDEN * 4 + 34 * HIDDEN * 2)
    for budget, bound in ((tokens - 1, tokens - 1), (16, sizes[-1]), (10**6, tokens)):
        bounded = recipe(train=train.model_copy(update={"token_budget": budget}))
        found = estimate_memory(bounded, pairs, parameters, config).activations
        assert found == bound * LAYERS * 34 * HIDDEN * 2
    half = recipe(train=train, model=Model(model_name_or_path="a/b", dtype="bfloat16"))
    memory = estimate_memory(half, pairs, parameters, config)
    assert memory.weights == 2 * parameters.total
    assert memory.optimizer == 4 * parameters.total
    assert memory.activations == tokens * LAYERS * 34 * HIDDEN


def test_a_reference_whose_distributions_are_compared_stays_in_memory(
    config: LlamaConfig, pairs: list[TokenizedPair], tmp_path: Path
) -> None:
    def weights(objective: dict[str, Any], **sections: Any) -> tuple[int, Any]:
        one = recipe(objective, **sections)
        parameters = count_parameters(one, config)
        return estimate_memory(one, pairs, parameters, config).weights, parameters

    found, parameters = weights({"name": "tdpo"})
    assert found == 2 * 4 * parameters.total
    assert weights({"name": "wpo", "alignment": "sampled"})[0] == 4 * parameters.total
    lora = {"model": Model(model_name_or_path="a/b", use_peft=True, lora_r=4)}
    found, parameters = weights({"name": "tdpo"}, **lora)
    assert found == 4 * parameters.total
    other = {"roles": Roles(reference=str(tmp_path))}
    found, parameters = weights({"name": "tdpo"}, **lora, **other)
    assert found == 4 * parameters.total + 4 * (parameters.total - parameters.adapter)


@pytest.mark.parametrize(
    ("optim", "bytes_each"),
    [("adamw_8bit", 2), ("sgd", 0), ("lion_32bit", 4), ("adafactor", 0), ("paged_adamw_32bit", 8)],
)
def test_memory_of_the_optimizer(
    config: LlamaConfig, pairs: list[TokenizedPair], optim: Any, bytes_each: int
) -> None:
    full = recipe(train=Train(optim=optim))
    parameters = count_parameters(full, config)
    memory = estimate_memory(full, pairs, parameters, config)
    assert memory.optimizer == bytes_each * parameters.total


def test_memory_of_qlora(config: LlamaConfig, pairs: list[TokenizedPair]) -> None:
    model = Model(model_name_or_path="a/b", use_peft=True, load_in_4bit=True, dtype="bfloat16")
    qlora = recipe(model=model)
    parameters = count_parameters(qlora, config)
    memory = estimate_memory(qlora, pairs, parameters, config)
    plain = 2 * config.vocab_size * HIDDEN + NORMS
    # 4 bits and a float32 scale per 64: 0.5625 bytes; the rest bfloat16; the adapter float32.
    assert memory.weights == 0.5625 * LINEAR + 2 * plain + 4 * parameters.adapter
    assert memory.gradients == 4 * parameters.adapter
    assert memory.optimizer == 8 * parameters.adapter


@pytest.mark.parametrize(
    ("train", "kept"),
    [
        (Train(save_strategy="no"), 0),
        (Train(save_strategy="epoch", num_train_epochs=3), 3),
        (Train(save_steps=30), 4),  # 30, 60, 90 and the last
        (Train(save_steps=0.5), 2),
        (Train(save_steps=10, save_total_limit=2), 3),  # the third is whole before the first goes
    ],
)
def test_checkpoints_on_disk(
    config: LlamaConfig, pairs: list[TokenizedPair], train: Train, kept: int
) -> None:
    full = recipe(train=train)
    parameters = count_parameters(full, config)
    disk = estimate_disk(full, pairs, parameters, config, steps=100)
    assert disk.checkpoints == kept
    assert disk.model == 4 * parameters.total
    assert disk.checkpoint == 12 * parameters.total
    ids = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    completions = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    assert disk.caches == 8 * ids + 4 * completions  # one role's log-probs in float32
    assert disk.total == kept * disk.checkpoint + disk.model + disk.caches


def test_report(
    config: LlamaConfig, pairs: list[TokenizedPair], tokenizer: PreTrainedTokenizerBase
) -> None:
    text = str(checked(recipe(), pairs, tokenizer, config))
    assert "rows: 3 rows read, 3 kept\n" in text
    assert "pairs: 3 to train on, 1 held out, 3 steps" in text  # one batch an epoch, three epochs
    shortest = min(len(pair.rejected_ids) for pair in pairs)
    assert f"rejected tokens: min {shortest}, " in text
    assert "1 TB free on this machine" in text
    assert "because" not in text
    shown = str(checked(recipe(), pairs, tokenizer, config, show_example=True))
    end = tokenizer.decode(pairs[0].chosen_ids[-1:])
    assert f"tokens) ---\nyes{end}\n--- rejected" in shown
    assert shown.startswith(text)


def test_warnings(
    config: LlamaConfig, pairs: list[TokenizedPair], tokenizer: PreTrainedTokenizerBase
) -> None:
    calm = Train(per_device_train_batch_size=1)
    assert checked(recipe(train=calm), pairs, tokenizer, config).warnings == ()
    scored = [
        replace(p, pair=p.pair.model_copy(update={"chosen_score": 1.0, "rejected_score": 0.0}))
        for p in pairs
    ]
    found = "\n".join(
        checked(
            recipe(train=Train(learning_rate=5e-5, warmup_steps=3)),
            scored,
            tokenizer,
            config,
            held_out=[],
            machine=replace(ROOMY, free_memory=1000),
        ).warnings
    )
    assert "train.learning_rate: 5e-05 is beyond" in found
    assert "train.per_device_train_batch_size: 8 on 1 processes is more than all 3 pairs" in found
    assert "evaluate.suite: no pair is held out" in found
    assert "train.warmup_steps: warm-up lasts as long as the whole run of 3 steps" in found
    assert "more than the 1 kB free on this machine" in found
    assert "chosen_score, rejected_score: dpo does not read them" in found
    assert len(found.splitlines()) == 6


def test_pad_token_that_is_the_end_token(config: LlamaConfig, pairs: list[TokenizedPair]) -> None:
    tokenizer = bytes_tokenizer(512)
    tokenizer.pad_token = tokenizer.eos_token
    said = checked(recipe(train=Train(per_device_train_batch_size=1)), pairs, tokenizer, config)
    assert [warning[:35] for warning in said.warnings] == ["the pad token is the end token; mas"]


def test_disk_that_does_not_suffice(
    config: LlamaConfig, pairs: list[TokenizedPair], tokenizer: PreTrainedTokenizerBase
) -> None:
    needed = checked(recipe(), pairs, tokenizer, config).disk.total
    enough = replace(ROOMY, free_disk=needed)
    checked(recipe(), pairs, tokenizer, config, machine=enough)
    with pytest.raises(MachineError, match=r"needs about .* of disk .* train\.save_total_limit"):
        checked(recipe(), pairs, tokenizer, config, machine=replace(enough, free_disk=needed - 1))


def test_no_pair(config: LlamaConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"No pair is left to train on: 0 rows read.*data\.pairs"):
        checked(recipe(), [], tokenizer, config)


def test_role_without_a_folder(
    config: LlamaConfig,
    pairs: list[TokenizedPair],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    def of(source: str) -> Recipe:
        return recipe(roles=Roles(reference=source))

    with pytest.raises(RecipeError, match=r"roles\.reference: .*'org/model'.* `org/model@main`"):
        checked(of("org/model"), pairs, tokenizer, config)
    checked(of("org/model@main"), pairs, tokenizer, config)
    checked(of(str(tmp_path)), pairs, tokenizer, config)


def test_columns_that_do_not_suit_the_objective(
    config: LlamaConfig, pairs: list[TokenizedPair], tokenizer: PreTrainedTokenizerBase
) -> None:
    sppo = recipe({"name": "sppo"}, roles=Roles(previous="start"))
    with pytest.raises(DataError, match=r"`sppo` needs scores, and 3 of 3 .*rows\.jsonl:1"):
        checked(sppo, pairs, tokenizer, config)
    soft = [replace(p, pair=p.pair.model_copy(update={"preference": 0.7})) for p in pairs]
    checked(recipe(), soft, tokenizer, config)
    with pytest.raises(DataError, match=r"carry `preference`, and objective `cdpo`"):
        checked(recipe({"name": "cdpo"}), soft, tokenizer, config)


def test_token_invariants_hold_on_encoded_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: list[TokenizedPair]
) -> None:
    policy = Data(pairs="x")
    assert [broken_invariant(p, tokenizer, policy, len(tokenizer)) for p in pairs] == [None] * 3
    plain = PreferencePair(prompt="The sky is ", chosen="blue", rejected="green", source="x", row=1)
    [row] = encoded(tokenizer, plain)[0]
    assert broken_invariant(row, tokenizer, policy, len(tokenizer)) is None
    cut = Data(pairs="x", max_length=20, on_too_long="cut_completion")
    long = PreferencePair(prompt="a", chosen="b" * 50, rejected="c" * 50, source="x", row=1)
    [row] = encode_pairs([long], tokenizer, cut, RowReport())
    assert broken_invariant(row, tokenizer, cut, len(tokenizer)) is None


def test_every_token_invariant_is_seen_when_it_breaks(
    tokenizer: PreTrainedTokenizerBase, pairs: list[TokenizedPair]
) -> None:
    good = pairs[0]
    policy = Data(pairs="x", max_length=64, min_completion_tokens=2)
    bos, end = tokenizer.bos_token_id, good.chosen_ids[-1]
    assert isinstance(bos, int)
    weighted = good.pair.model_copy(update={"rejected_token_weight": (1.0,)})
    broken: dict[str, TokenizedPair] = {
        "the prompt has no token": replace(good, prompt_ids=[]),
        "not those that generation would see": replace(good, prompt_ids=[*good.prompt_ids[:-1], 9]),
        "begins with two BOS tokens": replace(
            good, prompt_ids=[bos, *good.prompt_ids], notes=("cut_prompt",)
        ),
        "chosen has 1 tokens, fewer than": replace(good, chosen_ids=[end]),
        "more tokens than data.max_length": replace(good, rejected_ids=[9] * 64 + [end]),
        "rejected holds a BOS token": replace(good, rejected_ids=[9, bos, end]),
        "chosen does not end with an end token": replace(good, chosen_ids=[9, 10]),
        "rejected holds its end token more than once": replace(good, rejected_ids=[9, end, end]),
        "rejected has fewer token weights": replace(good, pair=weighted),
        "token id 70000 has no row": replace(good, chosen_ids=[70000, end]),
        "are the same tokens": replace(good, rejected_ids=good.chosen_ids),
    }
    for said, row in broken.items():
        found = broken_invariant(row, tokenizer, policy, len(tokenizer))
        assert found is not None, said
        assert said in found


def test_a_beginning_may_not_end(tokenizer: PreTrainedTokenizerBase) -> None:
    policy = Data(pairs="x")
    [made] = encoded(tokenizer, row(1, "What?", "because", "no", rejected_ends=False))[0]
    assert broken_invariant(made, tokenizer, policy, len(tokenizer)) is None
    ended = replace(made, rejected_ids=[*made.rejected_ids, made.chosen_ids[-1]])
    found = broken_invariant(ended, tokenizer, policy, len(tokenizer))
    assert found == "rejected is the beginning of an answer and holds a control token"
    # The other side still has to end.
    open_too = replace(made, chosen_ids=made.chosen_ids[:-1])
    found = broken_invariant(open_too, tokenizer, policy, len(tokenizer))
    assert found == "chosen does not end with an end token"


def test_the_example_says_which_side_goes_on(
    config: LlamaConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    first, _ = encoded(tokenizer, row(1, "What?", "because", "no", rejected_ends=False))
    others, _ = encoded(tokenizer, row(2, "A?", "b", "c"), row(3, "D?", "e", "f"))
    shown = str(checked(recipe(), [*first, *others], tokenizer, config, show_example=True))
    assert "--- rejected (2 tokens, a beginning without end token) ---\nno" in shown
    assert "--- chosen (5 tokens) ---\nbecause<end>" in shown


def test_a_broken_row_is_named(
    config: LlamaConfig, pairs: list[TokenizedPair], tokenizer: PreTrainedTokenizerBase
) -> None:
    pairs[1] = replace(pairs[1], chosen_ids=pairs[1].chosen_ids[:-1])
    with pytest.raises(
        DataError, match=r"1 of 4 pairs break .* rows\.jsonl:2: chosen does not end"
    ):
        checked(recipe(evaluate=Evaluate(n=3)), pairs, tokenizer, config)


def test_this_machine(tmp_path: Path) -> None:
    here = Machine.here(tmp_path / "not" / "yet", use_cpu=True)
    assert here.free_disk > 0
    assert here.free_memory > 0
    assert here.memory_of == "this machine"
