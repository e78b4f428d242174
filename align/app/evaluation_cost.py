"""What the evaluation before and after training takes of a device's memory, estimated.

In bytes, for `preference` and whatever reads the start policy's weights beside the policy's:

    weights      as in training; twice where a second model is read and no adapter spares it
    activations  tokens of the fullest pass x 34 x hidden, twice that in float32, of one layer: no
                 backward pass wants the others
    head         scored tokens x vocabulary x 2 float32 of one chunk of the LM head at most. Where
                 rows are padded: all tokens x vocabulary in the model's type, and one chunk

Texts that are generated, by worlds and benchmarks, are not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from align.app.memory import Memory, Parameters, loaded_width, weight_bytes
from align.evaluation import Measurement
from align.forest.backends import refused
from align.forest.head import CHUNK
from align.forest.padded import EDGES
from align.policies.loading import reads_images
from align.recipe import Recipe
from align.tokens.tokenized_pair import TokenizedPair

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FLOAT32 = 4


def evaluation_memory(
    recipe: Recipe,
    held_out: Sequence[TokenizedPair],
    parameters: Parameters,
    model_config: PreTrainedConfig,
) -> Memory | None:
    """Bytes that the evaluation takes on one device; None where no pair and no start is read."""
    nodes = [node for node in recipe.evaluate.nodes() if isinstance(node, Measurement)]
    pairs = held_out if any(node.needs_pairs for node in nodes) else ()
    reads_start = any(node.reads_start for node in nodes)
    if not pairs and not reads_start:
        return None
    weights = weight_bytes(recipe, parameters, model_config)
    config = model_config.get_text_config()
    # Mixed precision is the trainer's; policies are measured in the type that they are loaded in.
    width = loaded_width(recipe, model_config)
    shares = _shares_prefixes(recipe, model_config)
    tokens = _most_tokens(recipe, pairs, shares=shares) if pairs else 0
    scored = min(tokens, sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs))
    logits = min(scored * config.vocab_size, CHUNK) * 2 * _FLOAT32
    if not shares:
        logits = config.vocab_size * (tokens * width + min(scored, EDGES) * 2 * _FLOAT32)
    return Memory(
        weights=weights * (1 + (reads_start and not recipe.model.use_peft)),
        gradients=0,
        optimizer=0,
        activations=tokens * 34 * config.hidden_size * width // 2,
        head=logits,
    )


def _most_tokens(recipe: Recipe, pairs: Sequence[TokenizedPair], *, shares: bool) -> int:
    """Of the fullest forward pass: the prompt of a pair once, or both rows padded."""
    train = recipe.train
    if shares:
        sizes = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
    else:
        sizes = [
            2 * (len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids))) for p in pairs
        ]
    longest = sorted(sizes, reverse=True)
    if isinstance(train.token_budget, int):
        return min(max(train.token_budget, longest[0]), sum(longest))
    together = longest[: train.per_device_eval_batch_size]
    return sum(together) if shares else len(together) * longest[0]


def _shares_prefixes(recipe: Recipe, model_config: PreTrainedConfig) -> bool:
    """As far as the model's class and config say."""
    if reads_images(model_config):
        return False
    kind: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(
            model_config,
            attn_implementation="eager",
            trust_remote_code=recipe.model.trust_remote_code,
        )
    return refused(model) is None
