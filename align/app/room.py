"""What to change where a training run would not fit into a device's memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from align.app.cost import Machine, in_units
from align.app.launch import Launch
from align.app.memory import Memory, count_parameters, estimate_memory
from align.forest.rows import TokenRow
from align.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of a device's free memory; the rest is for fragmentation and what the estimate misses.
ROOM = 0.85
SMALLEST_BUDGET = 1024  # tokens

Variant = tuple[str, Recipe, Launch]


def would_fit(
    recipe: Recipe,
    units: Sequence[Sequence[TokenRow]],
    memory: Memory,
    model_config: PreTrainedConfig,
    launch: Launch,
    machine: Machine,
) -> Iterator[str]:
    """A warning where a run would not fit, with each change that would make it fit.

    Args:
        recipe: what would be trained.
        units: the rows of each unit (pair, group).
        memory: the estimate of it.
        model_config: of the policy.
        launch: the devices.
        machine: what is free on one of them.
    """
    if memory.total <= machine.free_memory:
        return
    fitting = list[str]()
    for change, changed, launched in _variants(recipe, units, launch):
        parameters = count_parameters(changed, model_config)
        total = estimate_memory(changed, units, parameters, model_config, launched).total
        if total <= ROOM * machine.free_memory:
            fitting.append(f"{change} ({in_units(total)})")
    yield (
        f"memory: about {in_units(memory.total)} is more than the "
        f"{in_units(machine.free_memory)} free on {machine.memory_of}; "
        + (
            f"by estimate it would fit with {', or with '.join(fitting)}"
            if fitting
            else "nothing that was tried makes it fit: take more devices, or a smaller model"
        )
    )


def _variants(
    recipe: Recipe, units: Sequence[Sequence[TokenRow]], launch: Launch
) -> Iterator[Variant]:
    """Changes that save memory, the least of them first, each on top of those before."""
    train, model = recipe.train, recipe.model
    done = list[str]()

    def on_top(change: str, changed: Recipe, launched: Launch) -> Variant:
        done.append(change)
        return " and ".join(done), changed, launched

    longest = max(len(row) for unit in units for row in unit)
    if not train.gradient_checkpointing:
        recipe = _with(recipe, "train", gradient_checkpointing=True)
        yield on_top("train.gradient_checkpointing: true", recipe, launch)
    budget = max(SMALLEST_BUDGET, 2 * longest)
    if not isinstance(train.token_budget, int) or train.token_budget > budget:
        recipe = _with(recipe, "train", token_budget=budget)
        yield on_top(f"train.token_budget: {budget}", recipe, launch)
    if launch.processes > 1 and launch.split != "weights":
        split = replace(launch, split="weights", keeps_float32=False)
        yield on_top(
            "weights split over the devices (recipes/accelerate/fsdp2.yaml)", recipe, split
        )
        done.pop()
    if not model.use_peft:
        recipe = _with(
            recipe, "model", use_peft=True, lora_r=16, lora_target_modules=("all-linear",)
        )
        yield on_top("an adapter (model.use_peft: true)", recipe, launch)
    elif model.lora_r > 16:
        recipe = _with(recipe, "model", lora_r=16)
        yield on_top("model.lora_r: 16", recipe, launch)
    if not model.load_in_4bit:
        recipe = _with(recipe, "model", load_in_4bit=True, load_in_8bit=False)
        yield on_top("model.load_in_4bit: true", recipe, launch)


def _with(recipe: Recipe, section: str, **keys: object) -> Recipe:
    old = getattr(recipe, section)
    return recipe.model_copy(update={section: old.model_copy(update=keys)})
