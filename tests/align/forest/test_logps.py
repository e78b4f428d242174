"""`forest_logps`: the model's own log-probs and gradients, each shared beginning computed once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import align.forest.logps
from align.forest import PADDED, TREE, Choice, TokenRow, forest_logps
from align.types import Logps

PROMPT, OTHER = list(range(3, 23)), list(range(40, 52))
# Two prompts, rows of both mixed, lengths mixed; unique tokens: 20 + 4 + 2 + 7 and 12 + 3 + 5.
ROWS = [
    (PROMPT, [30, 31, 32, 33]),
    (OTHER, [60, 61, 62]),
    (PROMPT, [34, 35]),
    (OTHER, [63, 64, 65, 66, 67]),
    (PROMPT, [36, 37, 38, 39, 30, 31, 32]),
]
UNIQUE = 33 + 20
# Of the check, which is made once.
CHECKED: Any = align.forest.logps._chosen


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
        )
    )
    return model.to(dtype).eval()


def own(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> Logps:
    """Padded rows, full logits, nothing of ours."""
    whole = [[*prompt, *completion] for prompt, completion in rows]
    width = max(map(len, whole))
    ids = torch.tensor([row + [7] * (width - len(row)) for row in whole])
    seen = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in whole])
    logps = model(input_ids=ids, attention_mask=seen, use_cache=False).logits.log_softmax(dim=2)
    longest = max(len(completion) for _, completion in rows)
    token = torch.zeros(len(rows), longest, dtype=logps.dtype)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for r, (prompt, completion) in enumerate(rows):
        places = torch.arange(len(prompt) - 1, len(whole[r]) - 1)
        mask[r, : len(completion)] = True
        token[r, : len(completion)] = logps[r, places, torch.tensor(completion)]
    return Logps(token, mask)


def gradients(model: Any, logps: Logps) -> dict[str, Tensor]:
    model.zero_grad()
    # Another weight for every row, so that an exchange of rows would be seen.
    (logps.total() * torch.arange(1.0, len(logps.token) + 1)).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def computed(model: Any, call: Any) -> list[int]:
    """Tokens of each forward pass, padding included."""
    passes: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, inputs, __: passes.append(inputs[0].numel())
    )
    call()
    hook.remove()
    return passes


BUDGETS = (None, 1, 30, 40, 10_000)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("padded", [False, True])
def test_log_probs_and_gradients_are_the_models_own(budget, padded, monkeypatch) -> None:
    model = llama()
    if padded:
        choice = Choice(PADDED, "asked for", None)
        monkeypatch.setattr(align.forest.logps, "choose_backend", lambda *_: choice)
    found = forest_logps(model, ROWS, token_budget=budget)
    expected = own(model, ROWS)
    torch.testing.assert_close(found.token, expected.token, atol=1e-5, rtol=0)
    assert found.token.dtype == torch.float32
    assert torch.equal(found.mask, expected.mask)
    assert found.token[~found.mask].eq(0).all()
    ((now, choice),) = CHECKED[model].items()
    assert (now, choice.backend) == (("cpu", torch.float32), PADDED if padded else TREE)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4)


def test_shared_prompts_are_computed_once() -> None:
    model = llama()
    forest_logps(model, ROWS)  # with the check
    assert computed(model, lambda: forest_logps(model, ROWS)) == [UNIQUE]
    # Copies of a row cost nothing.
    assert computed(model, lambda: forest_logps(model, ROWS * 3)) == [UNIQUE]
    alone = [sum(map(len, row)) for row in ROWS]
    assert sum(alone) > 1.5 * UNIQUE


@pytest.mark.parametrize("padded", [False, True])
def test_a_pass_stays_within_the_budget(padded, monkeypatch) -> None:
    model = llama()
    if padded:
        choice = Choice(PADDED, "asked for", None)
        monkeypatch.setattr(align.forest.logps, "choose_backend", lambda *_: choice)
    forest_logps(model, ROWS)
    for budget in (30, 40, 60):
        passes = computed(
            model, lambda budget=budget: forest_logps(model, ROWS, token_budget=budget)
        )
        assert len(passes) > 1 or budget >= UNIQUE
        assert max(passes) <= budget
    # As many rows of one length as there is room for.
    alike = [(PROMPT, [n, n, n, n]) for n in range(30, 34)]
    passes = computed(model, lambda: forest_logps(model, alike, token_budget=48))
    assert passes == ([48, 48] if padded else [36])


def test_the_order_is_that_of_the_rows() -> None:
    model = llama()
    by_row = {tuple(row[1]): forest_logps(model, [row]).token[0] for row in ROWS}
    for order in itertools.islice(itertools.permutations(ROWS), 0, 120, 17):
        for budget in (None, 30):
            found = forest_logps(model, order, token_budget=budget)
            for row, token in zip(order, found.token, strict=True):
                expected = by_row[tuple(row[1])]
                torch.testing.assert_close(token[: len(expected)], expected, atol=1e-5, rtol=0)


def test_token_rows_and_tuples_are_the_same() -> None:
    model = llama()
    a = forest_logps(model, ROWS)
    b = forest_logps(model, [TokenRow(*row) for row in ROWS])
    assert torch.equal(a.token, b.token)


def test_no_gradient_where_grad_mode_is_off() -> None:
    model = llama()
    with torch.no_grad():
        assert not forest_logps(model, ROWS).token.requires_grad
    assert forest_logps(model, ROWS).token.requires_grad


def test_float64_stays_float64() -> None:
    model = llama(torch.float64)
    assert forest_logps(model, ROWS).token.dtype == torch.float64


def test_the_check_is_made_once_for_a_model(monkeypatch) -> None:
    model = llama()
    forest_logps(model, ROWS)
    monkeypatch.delattr(align.forest.logps, "choose_backend")
    forest_logps(model, ROWS)


def test_the_check_shares_beginnings_whatever_the_rows_are(monkeypatch) -> None:
    asked: list[Any] = []
    choice = Choice(PADDED, "asked for", None)
    monkeypatch.setattr(
        align.forest.logps, "choose_backend", lambda *rows: asked.extend(rows[1:]) or choice
    )
    forest_logps(llama(), [([5], [6]), ([8, 9], [10, 11])])
    [found] = asked
    for a, b in zip(found[::2], found[1::2], strict=True):
        assert list(a.prompt_ids) == list(b.prompt_ids)
        assert len(a.prompt_ids) >= 8
        assert a.completion_ids[0] != b.completion_ids[0]


def test_checkpointed_layers_attend_again_so_rows_are_padded() -> None:
    plain, checkpointed = llama(), llama().train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    ours = gradients(checkpointed, forest_logps(checkpointed, ROWS))
    theirs = gradients(plain, own(plain, ROWS))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4)
    # Without a backward pass there is nothing to attend again.
    with torch.no_grad():
        passes = computed(checkpointed, lambda: forest_logps(checkpointed, ROWS))
    assert passes[-1] == UNIQUE


def test_the_model_is_given_back_as_it_came() -> None:
    for model in (llama(), llama().train()):
        was_training = model.training
        forest_logps(model, ROWS)
        assert model.training == was_training
        assert "forward" not in vars(model)
        # A copy answers with its own weights.
        reference = copy.deepcopy(model)
        before = reference(torch.tensor([PROMPT])).logits
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert torch.equal(reference(torch.tensor([PROMPT])).logits, before)


def test_a_forward_of_its_own_is_put_back() -> None:
    model: Any = llama()
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    model.forward = forward
    forest_logps(model, ROWS)
    assert model.forward is forward


def test_lora() -> None:
    model: Any = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    found, expected = forest_logps(model, ROWS), own(model, ROWS)
    torch.testing.assert_close(found.token, expected.token, atol=1e-5, rtol=0)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    assert all("lora" in name for name in ours)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4)


def test_a_model_that_cannot_share_is_padded(monkeypatch) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    monkeypatch.setattr(align.forest.logps, "refused", lambda _: "it says so")
    found = forest_logps(model, ROWS)
    torch.testing.assert_close(found.token, own(model, ROWS).token, atol=1e-5, rtol=0)
    assert computed(model, lambda: forest_logps(model, ROWS)) == [len(ROWS) * 27]


def test_a_head_that_its_config_does_not_tell_of_is_the_models_own() -> None:
    class Sharper(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = 3 * output.logits
            return output

    model = Sharper(llama().config).eval()
    found, expected = forest_logps(model, ROWS), own(model, ROWS)
    torch.testing.assert_close(found.token, expected.token, atol=1e-5, rtol=0)
    assert CHECKED[model]["cpu", torch.float32].backend is PADDED


@pytest.mark.parametrize(
    ("rows", "budget", "said"),
    [
        ([], None, "no row; give at least one"),
        ([*ROWS, (PROMPT, [])], None, "row 5 cannot be scored"),
        ([([], [1, 2])], None, "row 0 cannot be scored"),
        (ROWS, 0, "token_budget is 0"),
    ],
)
def test_what_cannot_be_scored_is_said(rows, budget, said) -> None:
    with pytest.raises(ValueError, match=said):
        forest_logps(llama(), rows, token_budget=budget)
