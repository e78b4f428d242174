import pytest
import torch

from align.policies.base import Sampling
from align.policies.drawing import draw

# Probabilities 0.1, 0.4, 0.2, 0.3.
LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
N = 1_000
# In the middle of N equal steps: shares come out to one step.
GRID = (torch.arange(N, dtype=torch.float64) + 0.5) / N


def shares(logits=LOGITS, **sampling):
    token = draw(logits.expand(N, -1), GRID, Sampling(max_new_tokens=1, **sampling))
    return (torch.bincount(token, minlength=logits.shape[1]) / N).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_token_has_its_probability(dtype):
    assert shares(LOGITS.to(dtype)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=5e-3)


def test_temperature_sharpens():
    # Squares .01, .16, .04, .09 of .30.
    assert shares(temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30], abs=2e-3)
    assert shares(temperature=0.0) == [0, 1, 0, 0]


def test_top_k_keeps_the_likeliest():
    # .4 and .3 of .7.
    assert shares(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=2e-3)
    assert shares(top_k=1) == [0, 1, 0, 0]
    assert shares(top_k=4) == shares(top_k=9) == shares()


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.3, [0, 1, 0, 0]),
        # .4 reaches .39 alone; .4 + .3 reaches .5 and .69; .9 takes three.
        (0.39, [0, 1, 0, 0]),
        (0.5, [0, 4 / 7, 0, 3 / 7]),
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.8, [0, 4 / 9, 2 / 9, 3 / 9]),
        (1.0, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, expected):
    assert shares(top_p=top_p) == pytest.approx(expected, abs=2e-3)


def test_top_k_comes_before_top_p():
    # Of .4 and .3 the first has 4/7 = .57 of what is left: enough for .5, and not for .5 of all.
    assert shares(top_k=2, top_p=0.5) == [0, 1, 0, 0]


def test_the_order_of_the_numbers_is_that_of_the_rows():
    uniform = torch.tensor([0.95, 0.05, 0.3], dtype=torch.float64)
    token = draw(LOGITS.expand(3, -1), uniform, Sampling(max_new_tokens=1))
    # Cumulative: .1, .5, .7, 1.
    assert token.tolist() == [3, 0, 1]


def test_an_impossible_token_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    token = draw(logits.expand(3, -1), uniform, Sampling(max_new_tokens=1))
    assert token.tolist() == [1, 3, 3]
