import pytest
import torch
from transformers import AutoModelForSequenceClassification

from align.data.messages import Message
from align.errors import RecipeError
from align.judges.base import Comparison, JudgeFailed
from align.worlds.additions import sums_tokenizer
from align_data.uncertainty.estimator import PairClassifier, estimates, padding_id

TOKENIZER = sums_tokenizer()
ASKED = (Message(role="user", content="1+2?"),)
ITEMS = [
    Comparison(ASKED, first, second, str(n))
    for n, (first, second) in enumerate([("3", "4"), ("123", "9"), ("0", "1+2=3\n3"), ("7", "77")])
]


@pytest.fixture(scope="module")
def model(backbone):
    torch.manual_seed(1)
    found = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=2, pad_token_id=0
    )
    with torch.no_grad():
        found.score.weight.mul_(30)
    return found


def by_hand(model, item):
    ids = TOKENIZER.encode(f"<bos>1+2?\n{item.first}\n{item.second}<end>", add_special_tokens=False)
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.softmax(1)[0, 0].item()


@pytest.mark.parametrize("batch_rows", [1, 3, 32])
def test_the_whole_network_reads_as_the_model_does(model, settings, batch_rows):
    model.train()
    estimator = PairClassifier(
        model, TOKENIZER, settings.model_copy(update={"batch_rows": batch_rows}), seed=0
    )
    found = estimator.read(ITEMS, [None, 0])
    assert model.training
    expected = [by_hand(model, item) for item in ITEMS]
    assert [p for p, _ in found] == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 0.02
    assert any(abs(p - q) > 1e-3 for p, q in found)


def test_the_end_token_is_found_where_it_doubles_as_padding(model, settings):
    tokenizer = sums_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    assert padding_id(tokenizer) != tokenizer.eos_token_id
    found = PairClassifier(model, tokenizer, settings, seed=0).read(ITEMS, [None])
    assert [p for (p,) in found] == pytest.approx([by_hand(model, i) for i in ITEMS], abs=1e-6)
    assert padding_id(TOKENIZER) == TOKENIZER.pad_token_id


def test_swapped_responses_give_1_minus_p(model, settings):
    estimator = PairClassifier(model, TOKENIZER, settings, seed=0)
    back = [Comparison(i.prompt, i.second, i.first, i.id) for i in ITEMS]
    there = estimates(estimator, ITEMS, networks=range(3), order="both")
    again = estimates(estimator, back, networks=range(3), order="both")
    for one, other in zip(there, again, strict=True):
        assert one.passes == pytest.approx([1 - p for p in other.passes], abs=1e-6)
    alone = estimates(estimator, ITEMS, networks=range(3), order="chosen_first")
    assert alone[0].passes != pytest.approx(there[0].passes, abs=1e-4)


def test_what_cannot_be_read_has_its_reason(model, settings):
    estimator = PairClassifier(model, TOKENIZER, settings, seed=0)
    items = [Comparison(ASKED, "3" * 60, "4", "a"), ITEMS[0]]
    long, short = estimates(estimator, items, networks=[0], order="both")
    assert isinstance(long, JudgeFailed)
    assert long.reason == "too_long"
    assert "3333" not in long.detail
    assert not isinstance(short, JudgeFailed)


def test_no_number_is_no_estimate(backbone, settings):
    model = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=2, pad_token_id=0
    )
    with torch.no_grad():
        model.score.weight.fill_(float("nan"))
    (found,) = PairClassifier(model, TOKENIZER, settings, seed=0).read(ITEMS[:1], [None])
    assert found == JudgeFailed("not_finite", "the estimator's output is no number")


def test_the_identity_is_made_of_weights_settings_and_seed(model, settings):
    def identity(seed=0, **update):
        return PairClassifier(
            model, TOKENIZER, settings.model_copy(update=update), seed=seed
        ).identity

    assert identity() == identity() == identity(batch_rows=7)
    assert len({identity(), identity(1), identity(dropout=0.2), identity(template=None)}) == 4
    with torch.no_grad():
        before = identity()
        model.score.weight.add_(1e-3)
        assert identity() != before


def test_another_number_of_labels_is_refused(backbone, settings):
    three = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=3, pad_token_id=0
    )
    with pytest.raises(RecipeError, match="3 outputs and needs 2"):
        PairClassifier(three, TOKENIZER, settings, seed=0)
