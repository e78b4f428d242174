"""The estimate of training's memory, against what torch's allocator hands out."""

from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

from align.app import memory as memory_module
from align.app.cost import Machine
from align.app.launch import ALONE, Launch
from align.app.memory import Memory, count_parameters, estimate_memory, training_memory
from align.app.room import would_fit
from align.app.tracing import Moment, traced
from align.errors import RecipeError
from align.forest.attention import attending
from align.forest.model import add_edge_head, read_pack
from align.forest.pack import tree_pack
from align.forest.rows import TokenRow
from align.objectives import objective_from
from align.recipe import Data, Model, Recipe, Roles, Train
from align.stages.training import adapter_of

LAYERS = 7


@pytest.fixture(autouse=True)
def _toys_are_traced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "TOY", 0)


CONFIG = LlamaConfig(
    vocab_size=1500,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=LAYERS,
    num_attention_heads=6,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
LORA = {"use_peft": True, "lora_r": 8, "lora_target_modules": ("all-linear",)}


def units(count: int = 4, prompt: int = 60, completion: int = 30) -> list[list[TokenRow]]:
    def ids(length: int, start: int) -> list[int]:
        return [(start + 7 * i) % 1400 for i in range(length)]

    return [
        [
            TokenRow(ids(prompt, u), ids(completion, 3 * u + 1)),
            TokenRow(ids(prompt, u), ids(completion, 5 * u + 2)),
        ]
        for u in range(count)
    ]


def recipe(model: dict[str, Any] | None = None, **train: Any) -> Recipe:
    given: dict[str, Any] = {"gradient_checkpointing": False, "bf16": False} | train
    return Recipe(
        model=Model(model_name_or_path="a/b", **(model or {})),
        roles=Roles(reference="start"),
        data=Data(pairs="rows"),
        objective=objective_from({"name": "dpo"}),
        train=Train(**given),
    )


def with_layers(count: int) -> LlamaConfig:
    config = deepcopy(CONFIG)
    config.num_hidden_layers = count
    return config


def found(of: Recipe, config: Any = CONFIG, dtype: torch.dtype = torch.float32) -> Moment:
    moment = traced(of, units(), config, dtype, autocast=None, on_cuda=False)
    assert moment is not None
    return moment


def handed_out(of: Recipe) -> int:
    """Bytes that one pass really allocates at its fullest, beyond what was there."""
    kind: Any = AutoModelForCausalLM
    model = kind.from_config(CONFIG, attn_implementation="sdpa")
    add_edge_head(model)
    if of.train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if of.model.use_peft:
            model.enable_input_require_grads()
    if of.model.use_peft:
        from peft import get_peft_model

        model = get_peft_model(model, adapter_of(of.model))
    model.train()
    pack = tree_pack([row for unit in units() for row in unit])
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        attending(model, pack.implementation),
    ):
        logps: Any = read_pack(model, pack).logps
        pack.rows(0, pack.index.shape[0], logps).total().sum().backward()
    events: Any = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = [event for event in events if event.name() == "[memory]"]
    memory.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in memory))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model", [{}, LORA], ids=["full", "lora"])
def test_trace_is_what_the_allocator_hands_out(model: dict[str, Any], checkpointing: bool) -> None:
    of = recipe(model, gradient_checkpointing=checkpointing)
    assert found(of).total == pytest.approx(handed_out(of), rel=0.15)


def test_layers_make_the_difference_that_they_make() -> None:
    """A model of seven layers by extrapolation is one that was traced with seven."""
    at = {n: found(recipe(), with_layers(n)) for n in (4, 7, 14)}
    assert at[14].layers == pytest.approx(2 * at[7].layers, rel=1e-6)
    assert at[14].rest == at[7].rest == at[4].rest
    whole = at[7].layers + at[7].rest
    assert whole == pytest.approx(at[4].layers * 7 / 4 + at[4].rest, rel=1e-6)


def test_layers_below_the_lowest_adapter_keep_nothing() -> None:
    named = LORA | {"lora_target_modules": ("q_proj", "up_proj")}
    top = found(recipe(named | {"lora_layers_to_transform": (3, 5)}))
    assert top.layers == pytest.approx(found(recipe(named)).layers * 4 / 7, rel=1e-6)


def test_a_second_pass_finds_the_gradients_of_the_first() -> None:
    parameters = count_parameters(recipe(), CONFIG)
    assert found(recipe()).gradients < 4 * parameters.trained
    accumulated = found(recipe(gradient_accumulation_steps=2))
    assert accumulated.gradients == 4 * parameters.trained
    assert accumulated.total > found(recipe()).total


def test_a_budget_bounds_the_pass() -> None:
    whole, cut = (found(recipe(token_budget=budget)) for budget in (10**6, 120))
    assert cut.layers == pytest.approx(whole.layers / 4, rel=0.01)


def test_16_bits_are_half() -> None:
    assert found(recipe(), dtype=torch.bfloat16).layers < 0.6 * found(recipe()).layers


def of_llama(size: str, model: dict[str, Any], launch: Launch) -> Memory:
    hidden, wide, layers, heads = {"8b": (4096, 14336, 32, 32), "70b": (8192, 28672, 80, 64)}[size]
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    of = recipe(model, gradient_checkpointing=True, bf16=True, per_device_train_batch_size=8)
    parameters = count_parameters(of, config)
    # 2 pairs of a prompt of 2,048 and two completions of 1,024: 8,192 tokens with the prompt once.
    return estimate_memory(of, units(2, 2048, 1024), parameters, config, launch)


QLORA = LORA | {
    "lora_r": 64, "load_in_4bit": True, "use_bnb_nested_quant": True, "dtype": "bfloat16"
}  # fmt: skip


def test_llama_3_8b_beside_a_calculation_by_hand() -> None:
    memory = of_llama("8b", QLORA, Launch(on_cuda=True))
    # Per layer q and o 4096 x 4096, k and v 4096 x 1024, three of 4096 x 14336; 4 bits with a
    # nested scale per 64. Embedding and head of 128,256 x 4096 and 65 norms in bfloat16.
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    plain = 2 * 128256 * 4096 + 65 * 4096
    # r (in + out) of each of the seven matrices.
    adapter = 32 * 64 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    in_bits = linear * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert memory.weights == pytest.approx(in_bits + 2 * plain + 4 * adapter, rel=1e-6)
    assert memory.optimizer == 8 * adapter
    # What checkpointing keeps: the input of every layer in bfloat16.
    assert memory.activations == pytest.approx(32 * 8192 * 4096 * 2, rel=0.01)
    # The chosen layer once more, with its adapter's inputs, and one chunk of the head.
    layer = 8192 * 49.5 * 4096
    assert layer < memory.head < 4 * layer
    assert 13e9 < memory.total < 17e9


def test_llama_3_8b_whole_on_one_and_on_eight() -> None:
    one = of_llama("8b", {"dtype": "float32"}, Launch(on_cuda=True))
    assert one.weights == 4 * 8_030_261_248
    assert one.optimizer == 2 * one.weights
    assert one.total > 110e9
    eight = of_llama("8b", {"dtype": "float32"}, Launch(8, "weights", on_cuda=True))
    # Weights, gradients and two moments in float32, an eighth of each: 16 GB.
    states = eight.weights + eight.gradients + eight.optimizer
    assert states == pytest.approx(16 * 8_030_261_248 / 8, rel=1e-6)
    # Two layers of 218 million weights, embedding and head and their gradient, in bfloat16.
    ends = 2 * 128256 * 4096
    layer = (8_030_261_248 - ends) / 32
    assert eight.gathered == pytest.approx(2 * (2 * layer + 2 * ends), rel=1e-3)
    assert 20e9 < eight.total < 35e9
    ddp = of_llama("8b", {"dtype": "float32"}, Launch(8, on_cuda=True))
    assert ddp.buckets == 4 * 8_030_261_248
    assert ddp.gradients == ddp.buckets
    zero = Launch(8, "gradients", keeps_float32=True, on_cuda=True)
    two = of_llama("8b", {"dtype": "bfloat16"}, zero)
    assert two.weights == 2 * 8_030_261_248
    # Moments of the weights' type, and the float32 copy that DeepSpeed keeps.
    assert two.optimizer == (2 * 2 + 4) * 8_030_261_248 // 8


def test_llama_3_70b_in_4_bits_on_two() -> None:
    memory = of_llama("70b", QLORA, Launch(2, "weights", on_cuda=True))
    assert 40e9 < memory.total < 80e9
    alone = of_llama("70b", QLORA, Launch(on_cuda=True))
    assert memory.weights == alone.weights // 2


def test_launch_is_read_from_accelerates_files(tmp_path: Path) -> None:
    def of(text: str) -> Launch:
        path = tmp_path / "launch.yaml"
        path.write_text(text)
        return Launch.of(path)

    assert of("distributed_type: FSDP\nnum_processes: 8\n") == Launch(8, "weights", on_cuda=True)
    zero = "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config: {zero_stage: 2}\n"
    assert of(zero) == Launch(4, "gradients", keeps_float32=True, on_cuda=True)
    assert of("distributed_type: MULTI_GPU\nnum_processes: 2\nuse_cpu: true\n") == Launch(
        2, on_cuda=False
    )
    with pytest.raises(RecipeError, match="no `distributed_type`"):
        of("num_processes: 2\n")
    with pytest.raises(RecipeError, match="distributed_type XLA"):
        of("distributed_type: XLA\n")
    with pytest.raises(RecipeError, match="cannot be read"):
        Launch.of(tmp_path / "none.yaml")


def advice(of: Recipe, free: float, launch: Launch = ALONE) -> str:
    machine = Machine(10**12, round(free), "the GPU")
    parameters = count_parameters(of, CONFIG)
    memory = estimate_memory(of, units(), parameters, CONFIG, launch)
    (said,) = list(would_fit(of, units(), memory, CONFIG, launch, machine)) or [""]
    return said


def test_what_would_make_it_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "TOY", 10**9)  # by formula, for time
    of = recipe()
    total = estimate_memory(of, units(), count_parameters(of, CONFIG), CONFIG).total
    assert advice(of, total) == ""
    said = advice(of, 0.9 * total)
    assert "it would fit with train.gradient_checkpointing: true (" in said
    small = recipe(LORA | {"lora_r": 16}, gradient_checkpointing=True)
    needed = estimate_memory(small, units(), count_parameters(small, CONFIG), CONFIG).total
    said = advice(of, needed / 0.84)
    assert "fit with train.gradient_checkpointing: true and" in said
    assert "an adapter (model.use_peft: true)" in said
    assert "nothing that was tried" in advice(of, 1000)
    assert "weights split over the devices" in advice(of, needed / 0.6, Launch(8))


def test_trace_that_cannot_be_made_leaves_the_formula() -> None:
    of = recipe()
    parameters = count_parameters(of, CONFIG)
    strange = with_layers(LAYERS)
    strange.hidden_act = "no such activation"
    assert traced(of, units(), strange, torch.float32, autocast=None, on_cuda=False) is None
    by_formula = training_memory(of, 480, parameters, CONFIG)
    assert estimate_memory(of, units(), parameters, strange).activations == by_formula.activations
