"""Collision and divergence of the chunked head are those of dense distributions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import align.forest.head
import align.forest.lm_head
from align.errors import RecipeError
from align.forest import TREE, TokenRow
from align.forest.attention import attending
from align.forest.head import EdgeValues, edge_logps, edge_values
from align.forest.lm_head import AnyHead, Head, LayerHead, Predictions, head_of, kept
from align.forest.model import add_edge_head, read_pack

EDGES, WIDTH, VOCABULARY = 7, 5, 11
# Name: (bias, scale, softcap)
HEADS: dict[str, tuple[bool, float, float | None]] = {
    "plain": (False, 1.0, None),
    "bias": (True, 1.0, None),
    "scale": (False, 0.3, None),
    "softcap": (False, 1.0, 2.0),
    "all": (True, 1.7, 2.5),
}
# Logits of policy and reference in a chunk: of one edge each, of three, of all and more.
CHUNKS = {1: [1] * 7, 6 * VOCABULARY: [3, 3, 1], 10**6: [7]}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class Layer(nn.Module):
    """A head that is no matrix, though it multiplies with one."""

    out_features = VOCABULARY

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight, self.bias)


def dense(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """[E, V] nats."""
    logits = scale * nn.functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(dim=1)


class Case:
    """A policy and a reference with heads of one form, and what dense float64 says of both."""

    def __init__(self, name: str, kind: str, reference_kind: str = "matrix") -> None:
        has_bias, scale, softcap = HEADS[name]
        self.hidden = drawn(EDGES, WIDTH, seed=0).requires_grad_()
        weight = drawn(VOCABULARY, WIDTH, seed=1)
        bias = drawn(VOCABULARY, seed=2) if has_bias else None
        trained = [weight, *([] if bias is None else [bias])]
        if kind == "frozen matrix":
            trained = []
        for one in trained:
            one.requires_grad_()
        self.leaves = [self.hidden, *trained]
        self.target = torch.randint(
            VOCABULARY, (EDGES,), generator=torch.Generator().manual_seed(3)
        )
        self.head = self.made(kind, weight, bias, scale, softcap)
        its_hidden, its_weight = drawn(EDGES, WIDTH, seed=4), drawn(VOCABULARY, WIDTH, seed=5)
        its_bias = drawn(VOCABULARY, seed=6) if has_bias else None
        its_head = self.made(reference_kind, its_weight, its_bias, scale, softcap)
        self.reference = Predictions(its_hidden, its_head)
        log_p = dense(self.hidden, weight, bias, scale, softcap)
        log_q = dense(its_hidden, its_weight, its_bias, scale, softcap)
        self.logps = log_p[torch.arange(EDGES), self.target]
        self.collision = log_p.exp().square().sum(dim=1).log()
        self.divergence = nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(
            dim=1
        )

    @staticmethod
    def made(
        kind: str, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
    ) -> AnyHead:
        if kind == "layer":
            return LayerHead(Layer(weight, bias), scale, softcap)
        return Head(weight, bias, scale, softcap)

    def found(self, **asked: Any) -> EdgeValues:
        return edge_values(self.hidden, self.target, self.head, **asked)


def same(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert torch.allclose(found, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("reference_kind", ["matrix", "layer"])
@pytest.mark.parametrize("kind", ["matrix", "frozen matrix", "layer"])
@pytest.mark.parametrize("name", HEADS)
def test_values_and_gradients(
    name: str, kind: str, reference_kind: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(align.forest.head, "CHUNK", size)
    case = Case(name, kind, reference_kind)
    found = case.found(collision=True, reference=case.reference, statistics=True)
    same(found.logps, case.logps)
    same(found.collision, case.collision)
    same(found.divergence, case.divergence)
    assert found.collision is not None
    assert found.divergence is not None
    assert not found.collision.requires_grad
    assert case.divergence.min() > 0.05
    up, beside = drawn(EDGES, seed=7), drawn(EDGES, seed=8)
    losses = {
        "both": lambda logps, divergence: (up * logps + beside * divergence).sum(),
        "divergence": lambda logps, divergence: (beside * divergence).sum(),
        "logps": lambda logps, divergence: (up * logps).sum(),
    }
    for which, loss in losses.items():
        pairs = zip(
            torch.autograd.grad(
                loss(found.logps, found.divergence), case.leaves, retain_graph=True
            ),
            torch.autograd.grad(loss(case.logps, case.divergence), case.leaves, retain_graph=True),
            strict=True,
        )
        for gradient, its in pairs:
            assert its.norm() > 0, which
            assert torch.allclose(gradient, its, atol=1e-12, rtol=0), which


@pytest.mark.parametrize("kind", ["matrix", "frozen matrix"])
@pytest.mark.parametrize("size", CHUNKS)
def test_no_more_logits_than_of_one_chunk(
    size: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, list[int]] = {"policy": [], "reference": []}
    for whose, module in (("policy", align.forest.head), ("reference", align.forest.lm_head)):

        def spy(*given: Any, whose: str = whose, made: Any = module.matrix_logits) -> Tensor:
            rows[whose].append(len(given[0]))
            return made(*given)

        monkeypatch.setattr(module, "matrix_logits", spy)
    monkeypatch.setattr(align.forest.head, "CHUNK", size)
    case = Case("plain", kind)
    found = case.found(reference=case.reference)
    assert found.divergence is not None
    (found.logps + found.divergence).sum().backward()
    # A frozen head makes them once; another one again for the gradient.
    wanted = CHUNKS[size] * (1 if kind == "frozen matrix" else 2)
    assert rows == {"policy": wanted, "reference": wanted}


@pytest.mark.parametrize("kind", ["matrix", "frozen matrix", "layer"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equal_predictions_diverge_by_exactly_nothing(kind: str, dtype: torch.dtype) -> None:
    hidden, weight = (
        drawn(EDGES, WIDTH, seed=0).to(dtype),
        drawn(VOCABULARY, WIDTH, seed=1).to(dtype),
    )
    head = Case.made(kind, weight.requires_grad_(kind != "frozen matrix"), None, 1.7, 2.5)
    target = torch.zeros(EDGES, dtype=torch.int64)
    reference = Predictions(hidden.clone(), kept(head) if kind != "layer" else head)
    found = edge_values(hidden.requires_grad_(), target, head, reference=reference).divergence
    assert found is not None
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert found.tolist() == [0.0] * EDGES
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert gradient.abs().max() < 1e-6


def test_autocast_computes_both_as_layers_would() -> None:
    case = Case("bias", "matrix", "layer")
    narrow = [leaf.detach().float() for leaf in case.leaves]
    its: Any = case.reference.head
    layer = Layer(its.layer.weight.float(), its.layer.bias.float())
    reference = Predictions(case.reference.hidden.float(), LayerHead(layer))
    hidden, weight, bias = (one.requires_grad_() for one in narrow)
    with torch.autocast("cpu", torch.bfloat16):
        found = edge_values(hidden, case.target, Head(weight, bias), reference=reference)
        log_p = ((hidden @ weight.T) + bias.bfloat16()).float().log_softmax(dim=1)
        log_q = layer(reference.hidden).float().log_softmax(dim=1)
    assert found.divergence is not None
    wanted = (log_q.exp() * (log_q - log_p)).sum(dim=1)
    assert torch.allclose(found.divergence, wanted, atol=2e-6, rtol=0)
    assert not torch.allclose(found.divergence, case.divergence.float(), atol=1e-4, rtol=0)
    # Outside of autocast, where the layer's states are still what they were inside.
    grads = torch.autograd.grad(found.divergence.sum(), [hidden, weight, bias])
    for gradient, exact in zip(
        grads, torch.autograd.grad(case.divergence.sum(), case.leaves), strict=True
    ):
        assert (gradient - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("kind", ["matrix", "frozen matrix", "layer"])
def test_no_edges(kind: str) -> None:
    case = Case("plain", kind)
    none = Predictions(case.reference.hidden[:0], case.reference.head)
    hidden = case.hidden[:0]
    found = edge_values(hidden, case.target[:0], case.head, collision=True, reference=none)
    assert found.divergence is not None
    assert found.collision is not None
    assert found.divergence.shape == found.collision.shape == (0,)
    found.divergence.sum().backward()


def test_what_is_not_asked_for_is_not_there() -> None:
    case = Case("all", "matrix")
    found = case.found()
    assert (found.statistics, found.collision, found.divergence) == (None, None, None)
    assert torch.equal(found.logps, edge_logps(case.hidden, case.target, case.head)[0])


def test_another_vocabulary_is_refused() -> None:
    case = Case("plain", "matrix")
    wide = Predictions(case.reference.hidden, Head(drawn(VOCABULARY + 1, WIDTH, seed=1)))
    with pytest.raises(RecipeError, match=r"12 tokens and the policy to 11.*roles\.reference"):
        case.found(reference=wide)


def tiny() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model: Any = LlamaForCausalLM(config).double().eval()
    nn.init.normal_(model.lm_head.weight)
    return model


def test_a_head_with_an_adapter_is_kept_as_it_was() -> None:
    model = tiny()
    add_edge_head(model)
    lora = LoraConfig(r=2, target_modules=["lm_head"], lora_dropout=0.5, task_type="CAUSAL_LM")
    policy: Any = get_peft_model(model, lora).double()
    up = model.lm_head.lora_B["default"].weight
    states, target = drawn(EDGES, 8, seed=0), torch.zeros(EDGES, dtype=torch.int64)
    nn.init.normal_(up)
    policy.eval()
    was = kept(head_of(model))
    before, _ = edge_logps(states, target, head_of(model))
    up.data = up.data * 2
    after, _ = edge_logps(states, target, head_of(model))
    policy.train()  # dropout is the policy's alone
    again, _ = edge_logps(states, target, was)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(again, before)
    assert all(module.training for module in model.lm_head.modules())
    assert not again.requires_grad


def test_over_a_pack_each_token_of_each_row_has_its_own() -> None:
    """Two rows that share their beginning, against the model's own logits."""
    policy, reference = tiny(), tiny()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    rows = [TokenRow([1, 4, 5, 6], [7, 8, 2]), TokenRow([1, 4, 5, 6], [7, 9])]
    pack = TREE.lay_out(rows)
    for model in (policy, reference):
        add_edge_head(model)
    with attending(reference, pack.implementation), torch.no_grad():
        asked: Any = read_pack(reference, pack, hidden=True).hidden
    with attending(policy, pack.implementation):
        found = read_pack(
            policy,
            pack,
            collision=True,
            reference=Predictions(asked, kept(head_of(reference))),
        )
    assert found.logps is not None
    assert found.collision is not None
    assert found.divergence is not None
    of_rows = pack.rows(
        0, 2, found.logps, {"collision": found.collision, "divergence": found.divergence}
    )
    for r, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        log_p, log_q = (
            model(ids).logits[0, 3 : len(row) - 1].log_softmax(dim=1)
            for model in (policy, reference)
        )
        length = len(row.completion_ids)
        assert of_rows.collision is not None
        assert of_rows.divergence is not None
        wanted = (log_q.exp() * (log_q - log_p)).sum(dim=1)
        assert torch.allclose(of_rows.divergence[r, :length], wanted, atol=1e-9)
        wanted = log_p.exp().square().sum(dim=1).log()
        assert torch.allclose(of_rows.collision[r, :length], wanted, atol=1e-9)
    assert of_rows.divergence is not None
    assert of_rows.divergence[1, 2] == 0
