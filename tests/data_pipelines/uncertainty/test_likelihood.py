import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.data.messages import Message
from align.errors import DataError
from align.judges.base import Comparison, JudgeFailed
from align.worlds.additions import sums_tokenizer
from align_data.uncertainty.likelihood import LikelihoodEstimator, fit_likelihood, fitted_scale
from align_data.uncertainty.settings import Likelihood

TOKENIZER = sums_tokenizer()
ASKED = (Message(role="user", content="1+2?"),)
ITEMS = [Comparison(ASKED, *sides, "") for sides in [("3", "4"), ("12", "3"), ("4", "1+2=3\n3")]]


@pytest.fixture(scope="module")
def model(backbone):
    return AutoModelForCausalLM.from_pretrained(backbone).eval()


def estimator(model, scale=1.0, seed=0, **settings):
    settings = Likelihood(max_length=40, **settings)
    return LikelihoodEstimator(model, TOKENIZER, settings, scale=scale, seed=seed)


def total(model, answer):
    """By hand, one row, one token after the other."""
    prompt = TOKENIZER.encode("<bos><user>1+2?<end><assistant>", add_special_tokens=False)
    rest = TOKENIZER.encode(f"{answer}<end>", add_special_tokens=False)
    with torch.no_grad():
        logps = model(torch.tensor([prompt + rest])).logits[0].log_softmax(1)
    return sum(logps[len(prompt) - 1 + n, token].item() for n, token in enumerate(rest))


@pytest.mark.parametrize("batch_rows", [1, 32])
def test_the_likelier_response_wins_by_its_log_probs(model, batch_rows):
    found = estimator(model, scale=0.7, batch_rows=batch_rows).read(ITEMS, [None])
    for item, (p,) in zip(ITEMS, found, strict=True):
        gap = 0.7 * (total(model, item.first) - total(model, item.second))
        assert p == pytest.approx(1 / (1 + math.exp(-gap)), abs=1e-5)


def test_networks_differ_and_position_does_not_matter(model):
    some = estimator(model)
    back = [Comparison(i.prompt, i.second, i.first, "") for i in ITEMS]
    there, again = some.read(ITEMS, [0, 1]), some.read(back, [0, 1])
    assert abs(there[0][0] - there[0][1]) > 1e-4
    for one, other in zip(there, again, strict=True):
        assert one == pytest.approx([1 - p for p in other], abs=1e-6)


def test_what_is_too_long_has_its_reason(model):
    found = estimator(model).read([Comparison(ASKED, "1" * 40, "2", ""), ITEMS[0]], [None])
    assert isinstance(found[0], JudgeFailed)
    assert found[0].reason == "too_long"
    assert isinstance(found[1], tuple)


def test_the_scale_is_the_likeliest_one():
    # Labels 3 of 4 right at a gap of 2; drawn in: p = (3 + 1) / (4 + 2) in the mean = 2/3.
    # sigmoid(2 s) = 2/3: s = log(2) / 2 = .34657
    scale, loss = fitted_scale([2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 0.0])
    assert scale == pytest.approx(math.log(2) / 2, abs=1e-9)
    # -(3 log(2/3) + log(1/3)) / 4
    assert loss == pytest.approx((3 * math.log(1.5) + math.log(3)) / 4, abs=1e-9)


def test_pairs_that_are_all_told_apart_ask_for_a_finite_scale():
    scale, _ = fitted_scale([1.0] * 8, [1.0] * 8)
    # sigmoid(s) = 9/10
    assert scale == pytest.approx(math.log(9), abs=1e-9)
    assert fitted_scale([-1.0] * 8, [1.0] * 8)[0] == pytest.approx(-math.log(9), abs=1e-9)


def test_fitting_measures_on_pairs_that_were_held_out(model, labelled):
    scale, fit = fit_likelihood(model, TOKENIZER, labelled, Likelihood(held_out=0.2))
    assert math.isfinite(scale)
    assert fit.pairs + fit.held_out == len(labelled)
    assert 0 < fit.held_out < fit.pairs
    assert fit.first_wins == pytest.approx(1 - fit.first_wins_swapped)
    assert fit.last_loss <= math.log(2) + 1e-3


def test_no_pair_to_fit_is_refused(model, labelled):
    answer = (Message(role="assistant", content="1" * 16),)
    long = labelled[0].model_copy(update={"chosen": answer})
    with pytest.raises(DataError, match="None of the 1 labelled pairs"):
        fit_likelihood(model, TOKENIZER, [long], Likelihood(max_length=16, held_out=0))


def test_the_identity_knows_scale_and_seed(model):
    found = {estimator(model, **k).identity for k in ({}, {"scale": 2.0}, {"seed": 1})}
    assert len(found) == 3
