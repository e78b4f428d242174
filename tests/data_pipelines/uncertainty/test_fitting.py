import pytest
import torch

from align.data.messages import prompt_id
from align.errors import DataError, NumericalError
from align_data.uncertainty.files import new_classifier
from align_data.uncertainty.fitting import fit, split


@pytest.fixture(scope="module")
def fitted(backbone, labelled):
    from align_data.uncertainty.settings import Classifier

    settings = Classifier(
        template="{query}\n{first}\n{second}", max_length=64, lora=None, dropout_in="blocks",
        learning_rate=6e-3, epochs=12, pairs_per_step=32, held_out=0.2,
    )  # fmt: skip
    model, tokenizer = new_classifier(backbone, settings)
    state = torch.get_rng_state()
    found = fit(model, tokenizer, labelled, settings)
    assert torch.equal(torch.get_rng_state(), state)
    return found, model


def test_it_learns_which_side_is_better_and_not_which_is_first(fitted):
    found, model = fitted
    assert found.pairs + found.held_out == 240
    assert found.steps == 12 * -(-found.pairs // 32)
    assert found.accuracy >= 0.9
    assert found.first_wins >= 0.75
    assert found.first_wins_swapped <= 0.25
    assert found.last_loss < 0.45 < found.first_loss
    assert not model.training


def test_the_same_again(backbone, labelled, settings):
    short = settings.model_copy(update={"epochs": 1})
    found = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        model, tokenizer = new_classifier(backbone, short)
        found.append((fit(model, tokenizer, labelled[:64], short), model.score.weight.clone()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_only_adapter_and_head_are_trained(backbone, labelled, settings):
    from align_data.uncertainty.settings import Lora

    low_rank = settings.model_copy(
        update={"lora": Lora(r=4, alpha=8), "dropout_in": "adapter", "epochs": 1}
    )
    model, tokenizer = new_classifier(backbone, low_rank)
    before = {name: p.clone() for name, p in model.named_parameters()}
    fit(model, tokenizer, labelled[:64], low_rank)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name or "score" in name for name in changed)
    assert any("lora_B" in name for name in changed)


def test_a_preference_is_a_soft_label(backbone, labelled, settings):
    half = [pair.model_copy(update={"preference": 0.5}) for pair in labelled]
    model, tokenizer = new_classifier(backbone, settings)
    found = fit(model, tokenizer, half, settings)
    # Nothing to learn: the loss cannot fall under log 2.
    assert found.last_loss == pytest.approx(0.6931, abs=0.01)


def test_pairs_of_one_prompt_are_on_one_side(labelled, settings):
    twice = [*labelled, *labelled]
    training, held_out = split(twice, settings)
    assert len(training) + len(held_out) == 480
    assert not {prompt_id(p.prompt) for p in training} & {prompt_id(p.prompt) for p in held_out}
    # 48 of 240 prompts +- 3 x 6.2
    assert abs(len(held_out) / 2 - 48) < 19


def test_pairs_that_cannot_be_read_are_counted(backbone, labelled, settings):
    long = labelled[0].chosen[0].model_copy(update={"content": "9" * 70})
    bad = labelled[0].model_copy(update={"chosen": (long,)})
    one = settings.model_copy(update={"epochs": 1, "held_out": 0.0})
    model, tokenizer = new_classifier(backbone, one)
    found = fit(model, tokenizer, [bad, *labelled[1:20]], one)
    assert (found.pairs, found.dropped, found.accuracy) == (19, {"too_long": 1}, None)
    with pytest.raises(DataError, match="1 too_long") as caught:
        fit(model, tokenizer, [bad], one)
    assert "999" not in str(caught.value)


def test_a_loss_that_is_no_number_stops(backbone, labelled, settings):
    model, tokenizer = new_classifier(backbone, settings)
    with torch.no_grad():
        model.score.weight.fill_(float("inf"))
    with pytest.raises(NumericalError, match="step 1 of"):
        fit(model, tokenizer, labelled, settings)


def test_a_signal_is_looked_for_before_every_step(backbone, labelled, settings):
    class Stop(Exception):
        pass

    calls = []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    model, tokenizer = new_classifier(backbone, settings)
    with pytest.raises(Stop):
        fit(model, tokenizer, labelled, settings, check=check)
