"""A causal language model that reads packs: backbone, then the LM head on scored edges."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.generic import ModelOutput

from align.forest.head import EdgeLogps, EdgeValues, edge_logps, edge_values
from align.forest.lm_head import Predictions, head_of
from align.forest.pack import Pack


@dataclass
class EdgeOutput(ModelOutput):
    """What a model says about a pack.

    Attributes:
        logps: [E] nats, float32 or wider.
        entropy: [E] nats, when statistics were asked for.
        mean_logits: [E], likewise.
        is_top1: [E], likewise.
        collision: [E] nats, log sum_v p(v)^2, when asked for.
        divergence: [E] nats, KL(reference || policy), when predictions of a reference were given.
        hidden: [E, d], the states that predict the edges, when asked for.
        aux_loss: load-balancing loss of a mixture of experts, when asked for.
    """

    logps: Tensor | None = None
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    collision: Tensor | None = None
    divergence: Tensor | None = None
    hidden: Tensor | None = None
    aux_loss: Tensor | None = None


def add_edge_head(model: nn.Module, score: EdgeLogps = edge_logps) -> None:
    """Teaches `model(..., pack=pack)` to return an `EdgeOutput`; without `pack` nothing changes.

    Call it before the model is wrapped (PEFT, DDP, FSDP): wrappers then see one ordinary forward
    pass, with all their hooks.

    Args:
        model: a transformers causal language model, not a wrapper.
        score: what computes the log-probs from hidden states; what is asked of the whole
            vocabulary is computed by `edge_values` in its place.
    """
    original = model.forward
    if getattr(original, "reads_packs", False):
        return

    # `generate` checks its arguments against the class's signature.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        pack: Pack | None = None,
        statistics: bool = False,
        collision: bool = False,
        reference: Predictions | None = None,
        hidden: bool = False,
        **inputs: Any,
    ) -> Any:
        if pack is None:
            return original(*args, **inputs)
        wanted = {name: value for name, value in inputs.items() if value is not None}
        # Backbone and head are looked up on each call: PEFT and FSDP replace them.
        body = self.base_model(*args, **wanted)
        states = body.last_hidden_state
        # Prompt-learning adapters put virtual tokens in front of the rows' own.
        states = states[:, -pack.input_ids.shape[1] :].reshape(-1, states.shape[-1])
        predictor = pack.predictor.to(states.device)
        at_edges, head = states[predictor], head_of(self)
        if collision or reference is not None:
            found = edge_values(
                at_edges,
                pack.target,
                head,
                statistics=statistics,
                collision=collision,
                reference=reference,
            )
        else:
            found = EdgeValues(*score(at_edges, pack.target, head, statistics))
        stats: Any = {} if found.statistics is None else vars(found.statistics)
        return EdgeOutput(
            logps=found.logps,
            collision=found.collision,
            divergence=found.divergence,
            hidden=at_edges if hidden else None,
            **stats,
            aux_loss=_aux_loss(self, body, pack, inputs),
        )

    bound: Any = types.MethodType(forward, model)
    forward.reads_packs = True  # type: ignore[attr-defined]
    model.forward = bound


def read_pack(
    model: Any,
    pack: Pack,
    *,
    statistics: bool = False,
    collision: bool = False,
    reference: Predictions | None = None,
    hidden: bool = False,
    router_logits: bool = False,
    pictures: Mapping[str, Tensor] | None = None,
) -> EdgeOutput:
    """One forward pass over a pack; the caller sets the attention (`attending`).

    Args:
        model: a model with an edge head, or a wrapper around one.
        pack: on the model's device.
        statistics: whether to compute entropy, mean logit and top-1 at the edges.
        collision: whether to compute log sum_v p(v)^2 at the edges.
        reference: what the divergence at the edges is from, predicted over this pack.
        hidden: whether to return the states that predict the edges.
        router_logits: whether to compute the load-balancing loss of a mixture of experts.
        pictures: what a vision-language model reads of them, for padded rows.
    """
    inputs: dict[str, Any] = dict(pictures or {})
    inputs |= {"input_ids": pack.input_ids, "use_cache": False, "pack": pack}
    if pack.tree is None:
        inputs["attention_mask"] = pack.attention_mask
    else:
        inputs |= {"position_ids": pack.position_ids, "tree": pack.tree}
    inputs |= {"statistics": True} if statistics else {}
    inputs |= {"collision": True} if collision else {}
    inputs |= {"hidden": True} if hidden else {}
    if reference is not None:
        inputs["reference"] = reference
    if router_logits:
        inputs["output_router_logits"] = True
    return model(**inputs)


def _aux_loss(model: Any, body: Any, pack: Pack, inputs: dict[str, Any]) -> Tensor | None:
    if not inputs.get("output_router_logits"):
        return None
    # Every family of experts takes its load-balancing loss from Mixtral's module. Weighing a slot
    # by the rows it stands for gives the padded rows' loss.
    config = model.config.get_text_config()
    loss: Any = load_balancing_loss_func(
        body.router_logits, config.num_experts, config.num_experts_per_tok, pack.multiplicity
    )
    return loss if isinstance(loss, torch.Tensor) else None
