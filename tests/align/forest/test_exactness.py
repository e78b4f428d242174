"""A forest gives the log-probs and gradients of padded rows with full logits, to rounding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from align.forest import TokenRow
from align.forest.attention import attending
from align.forest.model import add_edge_head, read_pack
from align.forest.pack import Pack, padded_pack, tree_flex_pack, tree_pack, tree_varlen_pack

COMMON: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON)),
    "Llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=True)),
    "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=16)),
    "Mistral, window 8": lambda: MistralForCausalLM(MistralConfig(**COMMON, sliding_window=8)),
}
EVERYTHING, NOTHING = 1, 10**6
LAYOUTS: dict[str, Callable[[Sequence[TokenRow]], Pack]] = {
    "padded": padded_pack,
    "tree": tree_pack,
    "tree, all shared": partial(tree_pack, shortest_shared=EVERYTHING),
    "tree, none shared": partial(tree_pack, shortest_shared=NOTHING),
    "varlen": tree_varlen_pack,
    "varlen, all shared": partial(tree_varlen_pack, shortest_shared=EVERYTHING),
    "varlen, none shared": partial(tree_varlen_pack, shortest_shared=NOTHING),
    "flex": tree_flex_pack,
    "flex, none shared": partial(tree_flex_pack, shortest_shared=NOTHING),
}
CASES = (
    "pairs",
    "four of a prompt",
    "nested steps",
    "copies and shared openings",
    "turns of a conversation",
    "no prompt",
)

Gradients = dict[str, Tensor]


class WideRMSNorm(nn.Module):
    """RMSNorm in the dtype of its input; transformers computes it in float32 always."""

    def __init__(self, narrow: Any):
        super().__init__()
        self.weight, self.epsilon = narrow.weight, narrow.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def new_model(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype).eval()
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):
                setattr(parent, child_name, WideRMSNorm(child))
    with torch.no_grad():
        # Far from uniform, so that context matters.
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model


@cache
def model_of(name: str, dtype: torch.dtype) -> nn.Module:
    """One that no test changes."""
    model = new_model(name, dtype)
    add_edge_head(model)
    return model


@pytest.fixture(scope="module", autouse=True)
def _free_models() -> Iterator[None]:
    yield
    model_of.cache_clear()


def weights_of(rows: Sequence[TokenRow], device: Any = "cpu") -> list[Tensor]:
    """A weight for the log-prob of each scored token; the loss is their weighted sum."""
    source = random.Random(len(rows))
    lengths = [len(row) - max(len(row.prompt_ids), 1) for row in rows]
    return [torch.tensor([source.gauss(0, 1) for _ in range(n)], device=device) for n in lengths]


def gradients(model: nn.Module) -> Gradients:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def by_itself(model: nn.Module, rows: Sequence[TokenRow], own_logps) -> tuple[Tensor, Gradients]:
    logps = own_logps(model, rows)
    device = logps[0].device
    weighted = [w.to(p.dtype) @ p for w, p in zip(weights_of(rows, device), logps, strict=True)]
    torch.stack(weighted).sum().backward()
    return torch.cat(logps).detach(), gradients(model)


def by_pack(model: nn.Module, rows: Sequence[TokenRow], pack: Pack) -> tuple[Tensor, Gradients]:
    device = next(model.parameters()).device
    pack = pack.to(device)
    # The backward pass of a checkpointed layer attends again.
    with attending(model, pack.implementation):
        found = pack.rows(0, len(rows), read_pack(model, pack).logps)
        logps = [token[mask] for token, mask in zip(found.token, found.mask, strict=True)]
        weighted = [w.to(p.dtype) @ p for w, p in zip(weights_of(rows, device), logps, strict=True)]
        torch.stack(weighted).sum().backward()
    return torch.cat(logps).detach(), gradients(model)


def worst_gradient(found: Gradients, expected: Gradients) -> float:
    """Largest error of a parameter's gradient, relative to that gradient's norm."""
    assert found.keys() == expected.keys()
    errors = {}
    for name, gradient in expected.items():
        assert gradient.norm() > 0, f"{name} has no gradient to compare"
        errors[name] = float((found[name] - gradient).norm() / gradient.norm())
    return max(errors.values())


@pytest.fixture(scope="module")
def expected(every_row, cases, own_logps) -> Callable[..., tuple[Tensor, Gradients]]:
    """Log-probs and gradients of padded rows, of a case or of all of them."""

    @cache
    def compute(name: str, dtype: torch.dtype, case: str | None = None) -> tuple[Tensor, Gradients]:
        rows = every_row if case is None else cases[case]
        return by_itself(model_of(name, dtype), rows, own_logps)

    return compute


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_float64(name: str, case: str, layout: str, cases, expected) -> None:
    rows = cases[case]
    logps, grads = expected(name, torch.float64, case)
    found, found_grads = by_pack(model_of(name, torch.float64), rows, LAYOUTS[layout](rows))
    assert found.dtype == torch.float64
    assert float((found - logps).abs().max()) < 1e-12
    assert worst_gradient(found_grads, grads) < 1e-10


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_float32_and_all_cases_in_one_forest(name: str, layout: str, every_row, expected) -> None:
    logps, grads = expected(name, torch.float32)
    pack = LAYOUTS[layout](every_row)
    found, found_grads = by_pack(model_of(name, torch.float32), every_row, pack)
    assert found.dtype == torch.float32
    assert float(((found - logps) / logps.abs().clamp(min=1)).abs().max()) < 1e-5
    assert worst_gradient(found_grads, grads) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_cases_share_what_their_names_say(case: str, cases) -> None:
    rows = cases[case]
    computed = [tree_pack(rows, shared).computed_tokens for shared in (EVERYTHING, 8, NOTHING)]
    distinct = {(*row.prompt_ids, *row.completion_ids) for row in rows}
    assert computed[2] == sum(map(len, distinct))
    assert computed[0] <= computed[1] < computed[2] < padded_pack(rows).computed_tokens


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("layout", ["tree", "varlen, all shared", "flex"])
@pytest.mark.parametrize("name", ["Llama", "Mistral, window 8"])
def test_gradient_checkpointing(
    name: str, layout: str, reentrant: bool, every_row, expected
) -> None:
    logps, grads = expected(name, torch.float64)
    model: Any = new_model(name, torch.float64)
    add_edge_head(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    attended = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: attended.append(1))
    found, found_grads = by_pack(model, every_row, LAYOUTS[layout](every_row))
    assert len(attended) == 2 * 3
    assert float((found - logps).abs().max()) < 1e-12
    assert worst_gradient(found_grads, grads) < 1e-10


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
@pytest.mark.parametrize("layout", ["padded", "tree", "varlen, all shared"])
@pytest.mark.parametrize("targets", ["layers", "layers and head"])
def test_lora(targets: str, layout: str, cases, own_logps) -> None:
    rows = cases["copies and shared openings"] + cases["nested steps"]
    base = new_model("Llama", torch.float64)
    add_edge_head(base)
    modules = ["q_proj", "k_proj", "v_proj", "down_proj"]
    config = LoraConfig(
        r=4,
        target_modules=modules + ["lm_head"] * (targets == "layers and head"),
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(base, config).double()
    torch.manual_seed(1)
    with torch.no_grad():
        # PEFT starts B at zero, where A has no gradient.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    logps, grads = by_itself(model, rows, own_logps)
    assert len(grads) == 2 * 3 * 4 + 2 * (targets == "layers and head")
    found, found_grads = by_pack(model, rows, LAYOUTS[layout](rows))
    assert float((found - logps).abs().max()) < 1e-12
    assert worst_gradient(found_grads, grads) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_the_layout_without_its_attention_is_wrong(name: str, cases, own_logps) -> None:
    """Transformers' own attention takes a position that jumps back for a new document."""
    model, rows = model_of(name, torch.float64), cases["pairs"]
    expected = torch.cat(own_logps(model, rows)).detach()
    pack = tree_pack(rows)
    with torch.no_grad():
        found = pack.rows(0, len(rows), read_pack(model, pack).logps)
    assert float((found.token[found.mask] - expected).abs().max()) > 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "layout", ["varlen", "varlen, all shared", "varlen, none shared", "flex", "flex, none shared"]
)
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral, window 8"])
def test_the_cuda_kernel_is_as_exact_as_padded_rows(
    name: str, layout: str, every_row, own_logps
) -> None:
    torch.manual_seed(0)
    narrow = MODELS[name]().eval().to("cuda", torch.bfloat16)
    with torch.no_grad():
        for parameter in narrow.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    add_edge_head(narrow)
    wide = MODELS[name]().eval().to("cuda")
    wide.load_state_dict(narrow.state_dict())
    logps, grads = by_itself(wide, every_row, own_logps)

    def errors(found: Tensor, found_grads: Gradients) -> tuple[float, float]:
        squares = [(found_grads[n].float() - g).square().sum() for n, g in grads.items()]
        return (
            float((found.float() - logps).square().mean().sqrt()),
            float(torch.stack(squares).sum().sqrt()),
        )

    padded = errors(*by_pack(narrow, every_row, padded_pack(every_row)))
    forest = errors(*by_pack(narrow, every_row, LAYOUTS[layout](every_row)))
    size = float(torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt())
    # Rounding, and not some other computation.
    assert padded[0] < 0.05
    assert padded[1] < 0.05 * size
    assert forest[0] <= 1.5 * padded[0]
    assert forest[1] <= 1.5 * padded[1]
