"""Every objective, one step under bf16 autocast and in pure bf16, beside float32.

How far a step's gradient turns by 16 bits is told as 1 - cosine with the float32 gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import torch
from gpu_stand import Setting, text_of

from align.forest import Choice, Pack, choose_backend
from align.forest.attention import attending
from align.forest.lm_head import Predictions, head_of, kept
from align.forest.model import EdgeOutput, add_edge_head, read_pack
from align.objectives import AnyGroupObjective, AnyObjective
from align.objectives.groups.base import GroupObjective
from align.types import OF_VOCABULARY, GroupInputs, Logps, Pair, PairInputs

WAYS = ("float32", "autocast", "pure")


def measure(setting: Setting) -> dict[str, Any]:
    from pydantic import ValidationError

    pairs = 4
    (specification,) = setting.models("qwen2.5-0.5b").values()
    shape = dict(specification.shape) | ({} if setting.tiny else {"num_hidden_layers": 4})
    specification = type(specification)(specification.kind, shape, torch.float32)
    rows = setting.rows("hh", pairs, specification.vocabulary)
    model = specification.build(setting.device, setting.seed)
    add_edge_head(model)
    found = setting.table()
    choices: dict[str, Choice] = {}
    members = [get_args(get_args(union)[0]) for union in (AnyObjective, AnyGroupObjective)]
    for member in (one for union in members for one in union):
        try:
            objective = member()
        except ValidationError:
            # One that only exists as a sum of others.
            continue
        row: dict[str, Any] = {"objective": objective.name}
        directions = {}
        for way in WAYS:
            try:
                with _in(model, way, setting.device):
                    if way not in choices:
                        choices[way] = choose_backend(model, rows)
                    pack = choices[way].backend.lay_out(rows).to(setting.device)
                    row[f"loss_{way}"], directions[way] = _step(model, pack, pairs, objective)
            except Exception as error:
                row[f"why_{way}"] = text_of(error)
        for way in WAYS[1:]:
            if way in directions and "float32" in directions:
                one, other = directions[way], directions["float32"]
                row[f"turned_{way}"] = 1 - float(one @ other / one.norm() / other.norm())
        found.append(row)
    failed = [row["objective"] for row in found if any(key.startswith("why") for key in row)]
    backends = {way: choice.reason for way, choice in choices.items()}
    return {"backends": backends, "failed": failed, "objectives": found}


def _step(model: Any, pack: Pack, pairs: int, objective: Any) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients as one vector."""
    with attending(model, pack.implementation):
        whole = objective.vocabulary
        reference = _off(model, pack) if "divergence" in whole else None
        found = read_pack(model, pack, collision="collision" in whole, reference=reference)
        if isinstance(objective, GroupObjective):
            inputs: Any = _of_groups(_logps(pack, found, slice(0, 2 * pairs)), objective)
        else:
            sides = slice(0, pairs), slice(pairs, 2 * pairs)
            inputs = _of_pairs(Pair(*(_logps(pack, found, side) for side in sides)), objective)
        result: Any = objective(inputs)
        loss = result.loss.mean()
        loss.backward()
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ArithmeticError("a gradient is not finite")
    return float(loss.detach()), torch.cat(gradients)


def _logps(pack: Pack, found: EdgeOutput, rows: slice) -> Logps:
    """Log-probs of some rows, with what of the whole vocabulary was asked for."""
    edges: Any = found.logps
    logps = pack.rows(rows.start, rows.stop, edges)
    others = {name: getattr(found, name) for name in OF_VOCABULARY}
    return replace(
        logps,
        **{
            name: pack.rows(rows.start, rows.stop, edge).token
            for name, edge in others.items()
            if edge is not None
        },
    )


def _off(model: Any, pack: Pack) -> Predictions:
    """What a reference predicts that is a little off the policy."""
    with torch.no_grad():
        hidden: Any = read_pack(model, pack, hidden=True).hidden
    noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    off = hidden + 0.1 * hidden.std() * noise.to(hidden)
    return Predictions(off, kept(head_of(model)))


@contextlib.contextmanager
def _in(model: Any, way: str, device: str) -> Iterator[None]:
    """The model in pure 16 bits and back, or under autocast."""
    if way == "autocast":
        with torch.autocast(device, torch.bfloat16):
            yield
    elif way == "pure":
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.to(torch.bfloat16)
        try:
            yield
        finally:
            model.to(torch.float32)
            model.load_state_dict(kept)
    else:
        yield


ROLES = ("reference", "previous", "earlier", "guide", "anchor")


def _of_pairs(policy: Pair[Logps], objective: Any) -> PairInputs:
    """All that an objective may read: roles a little off the policy, scores within [0, 1]."""
    source = torch.Generator().manual_seed(0)
    count, device = policy.chosen.token.shape[0], policy.chosen.token.device
    given: dict[str, Any] = {
        role: Pair(_near(policy.chosen, source), _near(policy.rejected, source)) for role in ROLES
    }
    given["score"] = Pair(
        0.55 + 0.4 * _some(count, source, device), 0.05 + 0.4 * _some(count, source, device)
    )
    given["pair_kind"] = torch.zeros(count, dtype=torch.int64, device=device)
    read = objective.needs | objective.accepts
    return PairInputs(policy=policy, **{k: v for k, v in given.items() if k in read})


def _of_groups(policy: Logps, objective: Any) -> GroupInputs:
    """The same: the two sides of a pair are a group, the chosen one desirable."""
    source = torch.Generator().manual_seed(0)
    count, device = policy.token.shape[0], policy.token.device
    given: dict[str, Any] = {role: _near(policy, source) for role in ROLES}
    is_chosen = torch.arange(count, device=device) < count // 2
    # Verdicts, for those that read nothing else.
    given["score"] = is_chosen.float()
    given["label"] = is_chosen
    given["advantage"] = given["score"] - given["score"].mean()
    given["token_advantage"] = given["advantage"][:, None] * policy.mask
    given["token_weight"] = policy.mask.to(torch.float32)
    given["mismatched"] = _some(count, source, device) - 0.5
    read = objective.needs | objective.accepts
    group = torch.arange(count, device=device) % (count // 2)
    return GroupInputs(policy=policy, group=group, **{k: v for k, v in given.items() if k in read})


def _near(side: Logps, source: torch.Generator) -> Logps:
    noise = 0.1 * torch.randn(side.token.shape, generator=source).to(side.token.device)
    return Logps((side.token.detach() + noise).masked_fill(~side.mask, 0.0), side.mask)


def _some(count: int, source: torch.Generator, device: torch.device) -> torch.Tensor:
    return torch.rand(count, generator=source).to(device)
