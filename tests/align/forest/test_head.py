"""The chunked head gives the log-probs and gradients of a log-softmax over full logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import align.forest.head
from align.forest.head import EdgeStatistics, edge_logps
from align.forest.lm_head import Head, LayerHead, head_of

EDGES, WIDTH, VOCABULARY = 7, 5, 11
# Name: (bias, scale, softcap)
HEADS: dict[str, tuple[bool, float, float | None]] = {
    "plain": (False, 1.0, None),
    "bias": (True, 1.0, None),
    "scale": (False, 0.3, None),
    "softcap": (False, 1.0, 2.0),
    "all": (True, 1.7, 2.5),
}
# Logits in a chunk: one row of them, three, all seven and more.
CHUNKS = (1, 3 * VOCABULARY, 10**6)


def parts(
    bias: bool, *, seed: int = 0, edges: int = EDGES, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Hidden states, weight, bias, targets; two edges have one hidden state, two one target."""
    source = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(dtype)

    hidden, weight = draw(edges, WIDTH), draw(VOCABULARY, WIDTH)
    target = torch.randint(VOCABULARY, (edges,), generator=source)
    if edges > 1:
        hidden[1], target[-1] = hidden[0], target[0]
    tensors = (hidden, weight, draw(VOCABULARY) if bias else None)
    hidden, weight, its_bias = (None if t is None else t.requires_grad_() for t in tensors)
    assert hidden is not None
    assert weight is not None
    return hidden, weight, its_bias, target


def full_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    logits = scale * nn.functional.linear(hidden, weight, bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def of_targets(logits: Tensor, target: Tensor) -> Tensor:
    return logits.log_softmax(dim=1)[torch.arange(len(target)), target]


def upstream(edges: int = EDGES) -> Tensor:
    return torch.randn(edges, generator=torch.Generator().manual_seed(9)).double()


def chunk(monkeypatch: pytest.MonkeyPatch, size: int) -> list[Tensor]:
    """Sets the size of a chunk; the list gets the logits of each that is made."""
    made: list[Tensor] = []
    original = align.forest.head.matrix_logits

    def spy(*arguments: Any) -> Tensor:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(align.forest.head, "CHUNK", size)
    monkeypatch.setattr(align.forest.head, "matrix_logits", spy)
    return made


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("name", HEADS)
def test_values_and_gradients(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bias, scale, softcap = HEADS[name]
    made = chunk(monkeypatch, size)
    hidden, weight, its_bias, target = parts(bias)
    tensors = [t for t in (hidden, weight, its_bias) if t is not None]
    expected = of_targets(full_logits(hidden, weight, its_bias, scale, softcap), target)
    found, statistics = edge_logps(hidden, target, Head(weight, its_bias, scale, softcap))
    assert statistics is None
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, atol=1e-13, rtol=0)
    pairs = zip(
        torch.autograd.grad(found, tensors, upstream()),
        torch.autograd.grad(expected, tensors, upstream()),
        strict=True,
    )
    for gradient, its in pairs:
        assert its.norm() > 0
        assert torch.allclose(gradient, its, atol=1e-13, rtol=0)
    rows = [len(logits) for logits in made]
    once = {1: [1] * 7, 3 * VOCABULARY: [3, 3, 1], 10**6: [7]}[size]
    # Made once forward, once backward.
    assert rows == once * 2


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("name", HEADS)
def test_a_frozen_head_makes_its_logits_once(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias, scale, softcap = HEADS[name]
    made = chunk(monkeypatch, size)
    hidden, weight, its_bias, target = parts(bias)
    weight = weight.detach()
    its_bias = None if its_bias is None else its_bias.detach()
    found, _ = edge_logps(hidden, target, Head(weight, its_bias, scale, softcap))
    forward = len(made)
    (gradient,) = torch.autograd.grad(found, hidden, upstream())
    assert len(made) == forward
    expected = of_targets(full_logits(hidden, weight, its_bias, scale, softcap), target)
    assert torch.allclose(found, expected, atol=1e-13, rtol=0)
    (its,) = torch.autograd.grad(expected, hidden, upstream())
    assert torch.allclose(gradient, its, atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    "trained",
    ["hidden", "weight", "bias", "hidden weight", "hidden bias", "weight bias"],
)
@pytest.mark.parametrize("name", ["bias", "all"])
def test_only_some_of_them_are_trained(name: str, trained: str) -> None:
    _, scale, softcap = HEADS[name]
    hidden, weight, bias, target = parts(True)
    assert bias is not None
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    for other, leaf in leaves.items():
        leaf.requires_grad_(other in trained.split())
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    expected = of_targets(full_logits(hidden, weight, bias, scale, softcap), target)
    found, _ = edge_logps(hidden, target, Head(weight, bias, scale, softcap))
    for gradient, its in zip(
        torch.autograd.grad(found, wanted, upstream()),
        torch.autograd.grad(expected, wanted, upstream()),
        strict=True,
    ):
        assert torch.allclose(gradient, its, atol=1e-13, rtol=0)


def test_nothing_is_kept_for_a_gradient_nobody_wants() -> None:
    hidden, weight, bias, target = parts(True)
    with torch.no_grad():
        found, _ = edge_logps(hidden, target, Head(weight, bias))
    assert not found.requires_grad
    assert torch.allclose(found, of_targets(full_logits(hidden, weight, bias, 1, None), target))


@pytest.mark.parametrize("kind", ["matrix", "frozen matrix", "layer"])
def test_no_edges(kind: str) -> None:
    hidden, weight, _, target = parts(False, edges=0)
    weight.requires_grad_(kind != "frozen matrix")
    layer = nn.Linear(WIDTH, VOCABULARY, bias=False).double()
    head = LayerHead(layer) if kind == "layer" else Head(weight)
    found, statistics = edge_logps(hidden, target, head, True)
    assert found.shape == (0,)
    assert statistics is not None
    assert statistics.entropy.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, WIDTH)
    assert weight.grad is None or weight.grad.count_nonzero() == 0


def statistics_of(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {
        "entropy": torch.distributions.Categorical(logits=logits).entropy(),
        "mean_logits": logits.mean(dim=1),
        "is_top1": (logits.argmax(dim=1) == target).double(),
    }


def check(found: EdgeStatistics | None, expected: dict[str, Tensor]) -> None:
    assert found is not None
    for name, value in expected.items():
        its = getattr(found, name)
        assert not its.requires_grad, name
        assert torch.allclose(its, value, atol=1e-13, rtol=0), name


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_statistics(name: str, frozen: bool, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk(monkeypatch, size)
    bias, scale, softcap = HEADS[name]
    hidden, weight, its_bias, target = parts(bias)
    if frozen:
        weight = weight.detach()
        its_bias = None if its_bias is None else its_bias.detach()
    logits = full_logits(hidden, weight, its_bias, scale, softcap)
    # Some of each.
    target[:3] = logits[:3].argmax(dim=1)
    head = Head(weight, its_bias, scale, softcap)
    found, statistics = edge_logps(hidden, target, head, True)
    expected = statistics_of(logits, target)
    assert set(expected["is_top1"].tolist()) == {0.0, 1.0}
    check(statistics, expected)
    # They change neither values nor gradients.
    without, _ = edge_logps(hidden, target, head)
    assert torch.equal(found, without)
    (gradient,) = torch.autograd.grad(found, hidden, upstream())
    (its,) = torch.autograd.grad(of_targets(logits, target), hidden, upstream())
    assert torch.allclose(gradient, its, atol=1e-13, rtol=0)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_gives_float32(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align.forest.head, "CHUNK", VOCABULARY)
    hidden, weight, bias, target = parts(True, edges=400, dtype=torch.bfloat16)
    assert bias is not None
    for leaf in (weight, bias):
        leaf.requires_grad_(not frozen)
    found, statistics = edge_logps(hidden, target, Head(weight, bias), True)
    assert statistics is not None
    assert {found.dtype, statistics.entropy.dtype, statistics.mean_logits.dtype} == {torch.float32}
    # Logits are bfloat16, as the model's own are; from there on nothing more is lost.
    logits = (hidden @ weight.T + bias).double()
    assert torch.allclose(found.double(), of_targets(logits, target), atol=2e-6, rtol=0)
    leaves = [hidden] if frozen else [hidden, weight, bias]
    wide = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    exact = of_targets(full_logits(*wide, 1.0, None), target)
    grads = torch.autograd.grad(found, leaves, upstream(400).float())
    exact_grads = torch.autograd.grad(exact, wide, upstream(400))
    assert [g.dtype for g in grads] == [torch.bfloat16] * len(leaves)
    # One rounding to 8 bits, and not one per chunk.
    assert all(relative(g, e) < 0.006 for g, e in zip(grads, exact_grads, strict=False))


@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_computes_logits_as_a_layer_would(frozen: bool) -> None:
    hidden, weight, bias, target = parts(True, dtype=torch.float32)
    assert bias is not None
    leaves = [hidden] if frozen else [hidden, weight, bias]
    for leaf in (weight, bias):
        leaf.requires_grad_(not frozen)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = edge_logps(hidden, target, Head(weight, bias))
        logits = (hidden @ weight.T) + bias.bfloat16()
    assert logits.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert torch.allclose(found, of_targets(logits.float(), target), atol=2e-6, rtol=0)
    grads = torch.autograd.grad(found, leaves, upstream().float())
    wide = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight, bias)]
    exact = torch.autograd.grad(of_targets(full_logits(*wide, 1.0, None), target), wide, upstream())
    assert [g.dtype for g in grads] == [torch.float32] * len(leaves)
    assert all(relative(g, e) < 0.02 for g, e in zip(grads, exact, strict=False))


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_a_layer(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bias, scale, softcap = HEADS[name]
    monkeypatch.setattr(align.forest.head, "CHUNK", size)
    hidden, weight, its_bias, target = parts(bias)
    rows: list[int] = []

    class Layer(nn.Module):
        out_features = VOCABULARY

        def forward(self, states: Tensor) -> Tensor:
            rows.append(len(states))
            return nn.functional.linear(states, weight, its_bias)

    tensors = [t for t in (hidden, weight, its_bias) if t is not None]
    head = LayerHead(Layer(), scale, softcap)
    found, statistics = edge_logps(hidden, target, head, True)
    logits = full_logits(hidden, weight, its_bias, scale, softcap)
    expected = of_targets(logits, target)
    assert torch.allclose(found, expected, atol=1e-13, rtol=0)
    check(statistics, statistics_of(logits.detach(), target))
    assert edge_logps(hidden, target, head)[1] is None
    rows.clear()
    found, _ = edge_logps(hidden, target, head)
    for gradient, its in zip(
        torch.autograd.grad(found, tensors, upstream()),
        torch.autograd.grad(expected, tensors, upstream()),
        strict=True,
    ):
        assert torch.allclose(gradient, its, atol=1e-13, rtol=0)
    once = {1: [1] * 7, 3 * VOCABULARY: [3, 3, 1], 10**6: [7]}[size]
    # Made once forward and again, from the last chunk on, for the gradient.
    assert rows == once + once[::-1]


TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "Phi, bias": ("Phi", {}),
    "Cohere, logit_scale": ("Cohere", {"logit_scale": 0.4}),
    "Granite, logits_scaling": ("Granite", {"logits_scaling": 4.0}),
    "HyperCLOVAX, logits_scaling": ("HyperCLOVAX", {"logits_scaling": 4.0}),
    "Gemma2, final_logit_softcapping": (
        "Gemma2",
        {"head_dim": 4, "num_key_value_heads": 1, "final_logit_softcapping": 3.0},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_head_of_a_model(name: str) -> None:
    cls, config = MODELS[name]
    torch.manual_seed(0)
    built = getattr(transformers, f"{cls}Config")(**TINY | config)
    model: Any = getattr(transformers, f"{cls}ForCausalLM")(built).double().eval()
    with torch.no_grad():
        for parameter in model.lm_head.parameters():
            parameter.normal_(std=2)
    ids = torch.tensor([[1, 5, 3, 8]])
    hidden = model.base_model(ids).last_hidden_state[0]
    logits = model(ids).logits[0].double()
    head = head_of(model)
    assert isinstance(head, Head)
    found, statistics = edge_logps(hidden[:-1], ids[0, 1:], head, True)
    # Its own norms are float32.
    assert torch.allclose(found, of_targets(logits[:-1], ids[0, 1:]), atol=1e-6, rtol=0)
    assert statistics is not None
    assert torch.allclose(statistics.mean_logits, logits[:-1].mean(dim=1), atol=1e-6, rtol=0)
    assert head.weight is model.lm_head.weight


def llama() -> Any:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**TINY)).double()
    nn.init.normal_(model.lm_head.weight)
    return model


def with_lora(base: Any) -> None:
    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(base, config).double()
    nn.init.normal_(base.lm_head.lora_B["default"].weight)


class Own(nn.Linear):
    """A layer that stores a weight and computes something else with it, as quantised ones do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


Own.__name__ = "Linear"


def with_own_layer(base: Any) -> None:
    own = Own(8, VOCABULARY, bias=False).double()
    nn.init.normal_(own.weight)
    base.set_output_embeddings(own)


@pytest.mark.parametrize("change", [with_lora, with_own_layer])
def test_head_of_a_model_whose_head_is_more_than_a_matrix(change: Callable[[Any], None]) -> None:
    """The class's name does not give it away: PEFT calls its own layer Linear too."""
    model = llama()
    change(model)
    layer = model.get_output_embeddings()
    assert type(layer).__name__ == "Linear"
    hidden, _, _, target = parts(False, edges=6)
    hidden = torch.cat([hidden, hidden[:, :3]], dim=1).detach()
    head = head_of(model)
    found, _ = edge_logps(hidden, target, head)
    expected = of_targets(layer(hidden), target)
    assert torch.allclose(found, expected, atol=1e-12, rtol=0)
    trained = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    assert trained
    for gradient, its in zip(
        torch.autograd.grad(found.sum(), list(trained.values())),
        torch.autograd.grad(expected.sum(), list(trained.values())),
        strict=True,
    ):
        assert its.norm() > 0
        assert torch.allclose(gradient, its, atol=1e-12, rtol=0)


def test_a_subclass_that_computes_what_a_linear_layer_does_is_a_matrix() -> None:
    """As FSDP2 makes them."""
    model = llama()
    model.lm_head.__class__ = type("FSDPLinear", (nn.Linear,), {})
    head = head_of(model)
    assert isinstance(head, Head)
    assert head.weight is model.lm_head.weight
