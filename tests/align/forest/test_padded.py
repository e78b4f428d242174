"""Padded log-probs equal a slow reference that scores one token at a time without padding."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.forest import TokenRow, pack, score_rows

VOCABULARY = 23
# Ragged on both sides, with the shortest possible row, and not in order of length.
ROWS = [
    TokenRow([1, 5, 9], [4, 2]),
    TokenRow([1], [7]),
    TokenRow([1, 3, 3, 8, 11, 20, 6], [2]),
    TokenRow([1, 12], [13, 14, 15, 16, 17, 18, 2]),
    TokenRow([1, 5, 9], [4, 4, 4, 2]),
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A random float64 model in training mode, far from uniform and with dropout to be caught."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    built = LlamaForCausalLM(config).double()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return built.train()


@torch.no_grad()
def token_by_token(model: LlamaForCausalLM, row: TokenRow) -> list[float]:
    """Log p of each completion token from a forward pass over exactly what stands before it."""
    model.eval()
    found = []
    for t, token in enumerate(row.completion_ids):
        before = torch.tensor([[*row.prompt_ids, *row.completion_ids[:t]]])
        found.append(model(before).logits[0, -1].log_softmax(dim=0)[token].item())
    model.train()
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_scores_are_those_of_one_token_at_a_time(model, batch_size: int) -> None:
    found = score_rows(model, ROWS, batch_size=batch_size)
    assert found.token.dtype == torch.float64
    assert found.mask.sum(dim=1).tolist() == [2, 1, 1, 7, 4]
    for r, row in enumerate(ROWS):
        n = len(row.completion_ids)
        assert found.mask[r].tolist() == [True] * n + [False] * (7 - n)
        assert found.token[r, :n].tolist() == pytest.approx(token_by_token(model, row), abs=1e-10)
        assert found.token[r, n:].tolist() == [0.0] * (7 - n)


def test_what_stands_in_the_padding_has_no_influence(model, monkeypatch) -> None:
    expected = score_rows(model, ROWS)
    for pad_id in (2, 7, VOCABULARY - 1):
        monkeypatch.setattr(pack, "PAD_ID", pad_id)
        found = score_rows(model, ROWS)
        assert torch.allclose(found.token, expected.token, atol=1e-12, rtol=0)


def test_the_model_comes_back_in_the_mode_it_had(model) -> None:
    score_rows(model, ROWS)
    assert model.training
    score_rows(model.eval(), ROWS)
    assert not model.training
    model.train()


def test_the_mode_comes_back_after_an_error_too(model) -> None:
    with pytest.raises(IndexError):
        score_rows(model, [TokenRow([1], [VOCABULARY])])
    assert model.training


@pytest.mark.parametrize("row", [TokenRow([], [3]), TokenRow([3], [])])
def test_a_row_that_cannot_be_scored_is_named(model, row: TokenRow) -> None:
    with pytest.raises(ValueError, match="row 1 cannot be scored"):
        score_rows(model, [ROWS[0], row])


def test_no_rows_give_no_scores(model) -> None:
    assert score_rows(model, []).token.shape == (0, 0)


def test_rows_are_padded_on_the_right() -> None:
    padded = pack.padded_pack([TokenRow([1, 5], [4, 2]), TokenRow([1], [7])])
    assert padded.input_ids.tolist() == [[1, 5, 4, 2], [1, 7, 0, 0]]
    assert padded.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    # Slots 1 and 2 of the first row and 0 of the second predict the tokens 4, 2 and 7.
    assert padded.predictor.tolist() == [1, 2, 4]
    assert padded.target.tolist() == [4, 2, 7]
    assert padded.index.tolist() == [[0, 1], [2, 0]]
    assert padded.mask.tolist() == [[True, True], [True, False]]
