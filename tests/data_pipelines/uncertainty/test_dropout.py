import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from align.errors import RecipeError
from align_data.uncertainty.dropout import Passes, Spot, Thinning, blocks_of, spots_of
from align_data.uncertainty.files import new_classifier
from align_data.uncertainty.settings import Classifier

IDS = torch.tensor([[1, 9, 10, 11, 12, 2], [1, 12, 11, 10, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])


@pytest.fixture(scope="module")
def model(backbone):
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=2, pad_token_id=0
    ).eval()


@pytest.fixture(scope="module")
def adapted(backbone):
    found, _ = new_classifier(backbone, Classifier())
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return found


def outputs(model, where, networks, *, blocks=None, rate=0.3, seed=0, rows=slice(None)):
    passes = Passes(model, Thinning(spots_of(model, where, blocks), rate, seed))
    with torch.no_grad():
        found = [out.logits for out in passes.outputs(IDS[rows], MASK[rows], networks)]
    return torch.stack(found)


def whole(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("where", ["blocks", "head"])
def test_networks_differ_and_the_whole_one_is_the_model(model, where):
    found = outputs(model, where, [0, None, 1, 0])
    torch.testing.assert_close(found[1], whole(model))
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert torch.equal(found[0], found[3])
    torch.testing.assert_close(whole(model), found[1])


def test_an_adapter_leaves_its_own_inputs_out(adapted):
    found = outputs(adapted, "adapter", [None, 0, 1])
    torch.testing.assert_close(found[0], whole(adapted))
    assert (found[1] - found[0]).abs().min() > 1e-5
    assert not torch.allclose(found[1], found[2])
    names = [spot.name for spot in spots_of(adapted, "adapter", None)]
    assert len(names) == 3 * 7  # layers x (q, k, v, o, gate, up, down)
    assert {spot.block for spot in spots_of(adapted, "adapter", 1)} == {2}


def test_without_dropout_all_passes_are_equal(model):
    found = outputs(model, "blocks", [0, 1, 2], rate=0.0)
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], whole(model))


def test_a_network_is_the_same_for_every_row_whatever_the_batch(model):
    both = outputs(model, "blocks", [0, 1])
    alone = outputs(model, "blocks", [1], rows=slice(1, 2))
    torch.testing.assert_close(both[1, 1], alone[0, 0])


def test_another_seed_is_another_network(model):
    assert not torch.allclose(outputs(model, "blocks", [0]), outputs(model, "blocks", [0], seed=1))


@pytest.mark.parametrize(("where", "blocks"), [("blocks", 1), ("blocks", 2), ("head", None)])
def test_shared_blocks_run_once_and_change_nothing(model, where, blocks):
    passes = Passes(model, Thinning(spots_of(model, where, blocks), 0.3, 0))
    lowest = blocks_of(model)[0][1]
    runs = []
    handle = lowest.self_attn.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        together = [out.logits for out in passes.outputs(IDS, MASK, [0, 1, None])]
        assert len(runs) == 1
        apart = [next(iter(passes.outputs(IDS, MASK, [n]))).logits for n in (0, 1, None)]
    handle.remove()
    torch.testing.assert_close(torch.stack(together), torch.stack(apart))
    assert len(runs) == 4
    torch.testing.assert_close(together[2], whole(model))
    assert "forward" not in vars(lowest)


def test_what_a_block_adds_is_thinned_by_hand():
    class Adds(torch.nn.Module):
        def forward(self, hidden_states):
            return (hidden_states + torch.tensor([1.0, 2.0, 3.0, 4.0]), "rest")

    block = Adds()
    thinning = Thinning([Spot("x", block, "block")], 0.5, 7)
    x = torch.zeros(1, 2, 4)
    with thinning.network(0):
        out, rest = block(hidden_states=x)
    kept = (out[0, 0] != 0).float()
    # The mask is drawn at rate .5, so what is kept is doubled.
    assert out[0, 0].tolist() == (kept * torch.tensor([2.0, 4.0, 6.0, 8.0])).tolist()
    assert torch.equal(out[0, 0], out[0, 1])
    assert rest == "rest"
    assert block(hidden_states=x)[0][0, 0].tolist() == [1, 2, 3, 4]


def test_while_training_each_row_has_its_own_network():
    layer = torch.nn.Identity()
    thinning = Thinning([Spot("x", layer, "output")], 0.25, 0)
    x = torch.ones(64, 3, 32)
    with thinning.training_step(0):
        first = layer(x)
    with thinning.training_step(1):
        second = layer(x)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[:, 0], first[:, 2])
    # 2048 units, a quarter left out, the others 4/3: 1 +- 3 x .0128
    assert first[:, 0].mean().item() == pytest.approx(1.0, abs=0.039)
    assert set(np.unique(first.numpy().round(4))) == {np.float32(0), np.float32(1.3333)}


def test_the_random_state_is_left_alone(model):
    state = torch.get_rng_state()
    outputs(model, "blocks", [0, 1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_language_model_has_a_head_too(backbone):
    lm = AutoModelForCausalLM.from_pretrained(backbone).eval()
    assert [s.name for s in spots_of(lm, "head", None)] == ["lm_head"]
    assert [s.block for s in spots_of(lm, "blocks", 2)] == [1, 2]


def test_a_model_without_the_place_is_refused(model):
    with pytest.raises(RecipeError, match="dropout_in: adapter"):
        spots_of(model, "adapter", None)
