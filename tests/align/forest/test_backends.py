"""A backend is chosen by what it gives, and refused with a sentence, never wrongly."""

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from align.errors import RecipeError
from align.forest import (
    PADDED,
    TREE,
    TREE_FLEX,
    TREE_VARLEN,
    TokenRow,
    attention,
    backends,
    choose_backend,
)
from align.forest.model import add_edge_head

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def rows() -> list[TokenRow]:
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(3, 60, (n,), generator=generator).tolist()

    prompts = [tokens(20), tokens(30)]
    return [TokenRow(prompt, tokens(9)) for _ in range(2) for prompt in prompts]


def sharpened(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    add_edge_head(model)
    return model


@pytest.fixture
def llama() -> nn.Module:
    torch.manual_seed(0)
    return sharpened(LlamaForCausalLM(LlamaConfig(**SIZES)))


def test_a_llama_gets_the_tree_and_is_left_as_it_was(llama) -> None:
    llama.train()
    before = llama.config._attn_implementation
    choice = choose_backend(llama, rows())
    assert choice.backend is TREE
    assert choice.gap is not None
    assert 0 <= choice.gap < 1e-5
    assert "`tree`" in choice.reason
    assert llama.training
    assert llama.config._attn_implementation == before


def test_attention_that_is_computed_wrongly_is_noticed(llama, monkeypatch) -> None:
    """Every chain sees only itself: rejected completions lose their prompt."""

    def forgetful(*args, tree, **kwargs):
        lonely = attention.SegmentedChains(tree.sizes, tree.queries, ((),) * len(tree.keys))
        return attention.tree_attention(*args, tree=lonely, **kwargs)

    attention.AttentionInterface.register("tree", forgetful)
    try:
        choice = choose_backend(llama, rows())
    finally:
        attention.AttentionInterface.register("tree", attention.tree_attention)
    assert choice.backend is PADDED
    assert choice.gap is not None
    assert choice.gap > 1e-2
    assert "changes tokens' log-probs" in choice.reason


def test_a_head_that_is_computed_wrongly_is_noticed() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))

    def wrong(hidden, target, head, statistics):
        from align.forest.head import edge_logps

        logps, extra = edge_logps(hidden, target, head, statistics)
        return logps + 0.01, extra

    add_edge_head(model, wrong)
    assert choose_backend(model, rows()).backend is PADDED


def test_softcapped_attention_is_refused_by_name() -> None:
    model = sharpened(Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)))
    choice = choose_backend(model, rows())
    assert choice.backend is PADDED
    assert "softcap" in choice.reason


def test_a_state_space_model_is_refused() -> None:
    config = MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=8)
    choice = choose_backend(sharpened(MambaForCausalLM(config)), rows())
    assert choice.backend is PADDED
    assert choice.gap is None
    assert "MambaForCausalLM" in choice.reason


def test_layers_that_are_no_plain_attention_are_refused(llama) -> None:
    """A chunk or a window longer than the rows that are tried out would not show in them."""
    llama.config.layer_types = ["chunked_attention", "full_attention"]
    choice = choose_backend(llama, rows())
    assert choice.backend is PADDED
    assert "chunked_attention" in choice.reason


def test_a_window_that_layers_keep_to_themselves_is_refused(llama) -> None:
    """Llama's layers hand no window on; with one in the config, longer rows would go wrong."""
    llama.config.sliding_window = 512
    choice = choose_backend(llama, rows())
    assert choice.backend is PADDED
    assert "sliding windows" in choice.reason


@pytest.mark.parametrize(
    ("family", "config"),
    [
        (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=512)),
        (
            Qwen2ForCausalLM,
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=512, max_window_layers=1),
        ),
        (Qwen2ForCausalLM, Qwen2Config(**SIZES, use_sliding_window=False, sliding_window=512)),
    ],
    ids=["mistral", "qwen2-half", "qwen2-off"],
)
def test_windows_that_reach_attention_are_fine(family, config) -> None:
    torch.manual_seed(0)
    assert choose_backend(sharpened(family(config)), rows()).backend is TREE


def test_pictures_are_refused(llama) -> None:
    llama.config.vision_config = object()
    choice = choose_backend(llama, rows())
    assert choice.backend is PADDED
    assert "pictures" in choice.reason


def test_what_fits_where(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = (torch.bfloat16, torch.float16)
    for dtype in (torch.float64, torch.float32, *narrow):
        assert backends.fitting("cpu", dtype) == (TREE,)
    assert backends.fitting("cuda", torch.float64) == (TREE,)
    assert backends.fitting("cuda", torch.float32) == (TREE_FLEX, TREE)
    for dtype in narrow:
        assert backends.fitting("cuda", dtype) == (TREE_VARLEN, TREE_FLEX)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    for dtype in narrow:
        assert backends.fitting("cuda", dtype) == (TREE_FLEX, TREE_VARLEN)


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
def test_the_next_backend_is_taken_where_the_first_refuses(monkeypatch) -> None:
    monkeypatch.setattr(backends, "fitting", lambda device, dtype: (TREE_VARLEN, TREE_FLEX))
    model = sharpened(Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)))
    choice = choose_backend(model, rows())
    assert choice.backend is TREE_FLEX
    assert choice.gap is not None
    assert choice.gap < 1e-5
    assert "`tree_flex`, within" in choice.reason
    assert choice.reason.endswith("taken because of attention with softcap")
    monkeypatch.setattr(backends, "fitting", lambda device, dtype: (TREE_VARLEN, TREE))
    choice = choose_backend(model, rows())
    assert choice.backend is PADDED
    assert choice.reason.count("softcap") == 2


class _OfTheBackwardPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        from torch._dynamo.exc import TorchDynamoException

        raise TorchDynamoException("No valid configuration.")


def test_a_backward_pass_that_cannot_be_compiled_is_noticed(
    llama, by_matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward pass, which is compared, compiles for itself and may do so alone."""

    def kernel(query, key, value, **told):
        return _OfTheBackwardPass.apply(by_matrix(query, key, value, **told))

    monkeypatch.setattr("align.forest.flex._kernel", lambda device: kernel)
    monkeypatch.setattr(backends, "fitting", lambda device, dtype: (TREE_FLEX, TREE))
    choice = choose_backend(llama, rows())
    assert choice.backend is TREE
    assert choice.reason.endswith("could not compile here (No valid configuration.)")
    assert all(parameter.grad is None for parameter in llama.parameters())
    # One that is only asked for log-probs never goes back.
    choice = choose_backend(llama.requires_grad_(False), rows())
    assert choice.backend is TREE_FLEX


@pytest.mark.usefixtures("slow_varlen", "slow_flex")
def test_varlen_comes_first_where_it_can(llama, monkeypatch) -> None:
    monkeypatch.setattr(backends, "fitting", lambda device, dtype: (TREE_VARLEN, TREE_FLEX))
    choice = choose_backend(llama, rows())
    assert choice.backend is TREE_VARLEN
    assert "taken because" not in choice.reason


def test_a_named_backend_is_taken_or_an_error_says_why_not(llama) -> None:
    assert choose_backend(llama, rows(), "tree").backend is TREE
    choice = choose_backend(llama, rows(), "padded")
    assert (choice.backend, choice.gap) == (PADDED, None)
    assert choice.reason == "padded rows, as asked for"
    with pytest.raises(RecipeError, match="no forest backend 'flex'; there are tree, tree_varlen"):
        choose_backend(llama, rows(), "flex")
    for name in ("tree_varlen", "tree_flex"):
        with pytest.raises(RecipeError, match=f"{name} was asked for .* on cpu, and it needs CUDA"):
            choose_backend(llama, rows(), name)
    capped = sharpened(Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)))
    with pytest.raises(RecipeError, match=r"tree was asked for .* of attention with softcap"):
        choose_backend(capped, rows(), "tree")
    llama.config.vision_config = object()
    with pytest.raises(RecipeError, match=r"tree was asked for .* pictures"):
        choose_backend(llama, rows(), "tree")
