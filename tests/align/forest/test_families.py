"""Every family of models: a forest's log-probs are its own, or its attention is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface

from align.forest import TokenRow
from align.forest.attention import UnsupportedAttention, attending, tree_attention
from align.forest.model import add_edge_head, read_pack
from align.forest.pack import Pack, padded_pack, tree_flex_pack, tree_pack, tree_varlen_pack

WINDOW = 8
SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SHAPE | {"num_key_value_heads": 2, "intermediate_size": 64}
SOME_SLIDE = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.01}
GEMMA = GROUPED | SOME_SLIDE | {"head_dim": 16, "query_pre_attn_scalar": 16}

# Family: (its name in transformers, config).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", GROUPED),
    "SmolLM": ("Llama", GROUPED | {"tie_word_embeddings": True}),
    "SmolLM3": (
        "SmolLM3",
        GROUPED | SOME_SLIDE | {"use_sliding_window": True, "no_rope_layers": [0, 1]},
    ),
    "Qwen2": ("Qwen2", GROUPED | SOME_SLIDE | {"use_sliding_window": True}),
    "Qwen3": ("Qwen3", GROUPED | SOME_SLIDE | {"use_sliding_window": True, "head_dim": 8}),
    "Qwen3-MoE": (
        "Qwen3Moe",
        GROUPED
        | EXPERTS
        | {
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
    "Mistral": ("Mistral", GROUPED | {"sliding_window": WINDOW}),
    "Mixtral": ("Mixtral", GROUPED | EXPERTS | {"num_local_experts": 4, "sliding_window": WINDOW}),
    "Gemma2, no softcap in attention": ("Gemma2", GEMMA | {"attn_logit_softcapping": None}),
    "Gemma3": ("Gemma3", GEMMA),
    "Gemma3, softcap on logits": ("Gemma3", GEMMA | {"final_logit_softcapping": 5.0}),
    "Phi-3": ("Phi3", GROUPED | {"sliding_window": WINDOW}),
    "GPT-2": ("GPT2", SHAPE),
    "GPT-NeoX": ("GPTNeoX", SHAPE | {"intermediate_size": 64}),
    "OPT": ("OPT", SHAPE | {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    "Cohere, scaled logits": ("Cohere", GROUPED | {"logit_scale": 2.5}),
    "Granite, scaled logits": (
        "Granite",
        GROUPED | {"logits_scaling": 0.3, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    ),
    "Phi, bias on logits": ("Phi", GROUPED),
}
SLIDING = tuple(name for name, (_, config) in FAMILIES.items() if "sliding_window" in config)
OF_EXPERTS = ("Mixtral", "Qwen3-MoE")
# Family: (its name in transformers, config, the name of what is refused).
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Gemma2": ("Gemma2", GEMMA, "softcap"),
    "gpt-oss": (
        "GptOss",
        GROUPED | SOME_SLIDE | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        "s_aux",
    ),
}
LAYOUTS: dict[str, Callable[[list[TokenRow]], Pack]] = {
    "padded": padded_pack,
    "tree": tree_pack,
    "tree, all shared": partial(tree_pack, shortest_shared=1),
    "varlen": tree_varlen_pack,
    "flex": tree_flex_pack,
}


def _rows() -> list[TokenRow]:
    source = random.Random(3)

    def some(n: int) -> list[int]:
        return [source.randrange(3, 100) for _ in range(n)]

    prompt, way, other = some(20), some(15), some(3)
    first = some(12)
    return [
        TokenRow(prompt, first),
        TokenRow(prompt, first[:5] + some(9)),
        TokenRow(prompt + first, some(6)),
        TokenRow(prompt + first, some(11)),
        TokenRow(way, some(7)),
        TokenRow(way, some(13)),
        TokenRow(other, some(4)),
        TokenRow(other, some(21)),
    ]


ROWS = _rows()


def build(name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    cls = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    model = cls(getattr(transformers, config_name)(**config)).eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        # Far from uniform, so that context matters; biases and norms differ from their start.
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(6)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    add_edge_head(model)
    return model


@cache
def family(name: str) -> Any:
    return build(*FAMILIES[name])


@pytest.fixture(scope="module", autouse=True)
def _free_models() -> Iterator[None]:
    yield
    family.cache_clear()


@torch.no_grad()
def by_pack(model: nn.Module, pack: Pack, implementation: str | None) -> Tensor:
    with attending(model, implementation):
        found = pack.rows(0, len(ROWS), read_pack(model, pack).logps)
    return found.token[found.mask]


def error(found: Tensor, expected: Tensor) -> float:
    """Largest error of a token's log-prob, relative above one nat."""
    return float(((found - expected) / expected.abs().clamp(min=1)).abs().max())


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_are_the_models_own(name: str, layout: str, own_logps) -> None:
    model, pack = family(name), LAYOUTS[layout](ROWS)
    with torch.no_grad():
        expected = torch.cat(own_logps(model, ROWS))
    assert float(expected.std()) > 0.3
    assert error(by_pack(model, pack, pack.implementation), expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_own_attention_on_a_forest_is_wrong(name: str, own_logps) -> None:
    """What the test above must notice: the layout is right, what is visible is not."""
    model = family(name)
    with torch.no_grad():
        expected = torch.cat(own_logps(model, ROWS))
    assert error(by_pack(model, tree_pack(ROWS), "sdpa"), expected) > 0.01


@pytest.mark.parametrize("name", SLIDING)
def test_the_window_binds(name: str, own_logps, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_window(*args: Any, **asked: Any) -> Any:
        windows.add(asked.pop("sliding_window"))
        return tree_attention(*args, **asked)

    windows: set[int | None] = set()
    assert min(map(len, ROWS[:6])) > 2 * WINDOW
    model = family(name)
    with torch.no_grad():
        expected = torch.cat(own_logps(model, ROWS))
    monkeypatch.setitem(AttentionInterface._global_mapping, "tree", without_window)
    assert error(by_pack(model, tree_pack(ROWS), "tree"), expected) > 0.01
    assert windows == ({WINDOW, None} if "layer_types" in FAMILIES[name][1] else {WINDOW})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OF_EXPERTS)
@pytest.mark.usefixtures("slow_varlen", "slow_flex")
def test_experts_are_balanced_as_with_padded_rows(name: str, layout: str) -> None:
    model, pack, padded = family(name), LAYOUTS[layout](ROWS), padded_pack(ROWS)
    model.zero_grad()
    expected = model(
        input_ids=padded.input_ids, attention_mask=padded.attention_mask, output_router_logits=True
    ).aux_loss
    expected.backward()
    gates = {n: p.grad.clone() for n, p in model.named_parameters() if n.endswith("gate.weight")}
    assert len(gates) == 2
    model.zero_grad()
    with attending(model, pack.implementation):
        found = read_pack(model, pack, router_logits=True).aux_loss
        found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name_, parameter in model.named_parameters():
        if name_ in gates:
            assert gates[name_].norm() > 0
            assert (parameter.grad - gates[name_]).norm() < 1e-4 * gates[name_].norm()
    model.zero_grad()


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
@pytest.mark.parametrize("layout", ["tree", "varlen"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused(name: str, layout: str) -> None:
    cls, config, what = REFUSED[name]
    model, pack = build(cls, config), LAYOUTS[layout](ROWS)
    with pytest.raises(UnsupportedAttention, match=f"attention with {what}"):
        by_pack(model, pack, pack.implementation)
    # Its padded rows are scored all the same.
    assert bool(by_pack(model, padded_pack(ROWS), None).isfinite().all())


@pytest.mark.usefixtures("slow_flex")
@pytest.mark.parametrize("name", REFUSED)
def test_flex_computes_what_the_others_refuse(name: str, own_logps) -> None:
    cls, config, _ = REFUSED[name]
    model, pack = build(cls, config), tree_flex_pack(ROWS)
    with torch.no_grad():
        expected = torch.cat(own_logps(model, ROWS))
    assert float(expected.std()) > 0.3
    assert error(by_pack(model, pack, pack.implementation), expected) < 1e-5
