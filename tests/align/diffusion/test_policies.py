"""Two networks or two adapters: what is a copy, what is frozen, what is put back."""

from typing import Any

import pytest
import torch

from align.diffusion.policies import TwoAdapters, TwoNetworks
from align.errors import RecipeError
from align.reference import weights_digest
from tests.align.diffusion.small import small_network

GIVEN = {
    "sample": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    "timestep": torch.tensor([3, 30]),
    "encoder_hidden_states": torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1)),
    "return_dict": False,
}


def pair_of(kind: str) -> Any:
    if kind == "networks":
        return TwoNetworks(small_network())
    return TwoAdapters(small_network(), rank=2, alpha=4, target_modules=("to_q", "to_v"), seed=0)


@pytest.fixture(params=["networks", "adapters"])
def pair(request) -> Any:
    return pair_of(request.param)


def step(pair: Any) -> None:
    """One update that moves every trained weight."""
    trained = [p for p in pair.network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    pair.network(**GIVEN)[0].square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.05


def test_both_start_as_the_base(pair) -> None:
    with torch.no_grad():
        base = small_network()(**GIVEN)[0]
        assert torch.equal(pair.network(**GIVEN)[0], base)
        with pair.reference() as network:
            assert torch.equal(network(**GIVEN)[0], base)


def test_training_moves_the_policy_and_leaves_the_reference(pair) -> None:
    before, start = pair.reference_state(), pair.state()
    with pair.reference() as network:
        frozen = network(**GIVEN)[0]
    step(pair)
    assert all(torch.equal(before[name], now) for name, now in pair.reference_state().items())
    assert any(not torch.equal(start[name], now) for name, now in pair.state().items())
    with pair.reference() as network:
        assert torch.equal(network(**GIVEN)[0], frozen)
    with torch.no_grad():
        assert not torch.allclose(pair.network(**GIVEN)[0], frozen)


def test_a_checkpoint_goes_into_the_reference_bit_for_bit(pair) -> None:
    step(pair)
    kept = pair.state()
    with torch.no_grad():
        then = pair.network(**GIVEN)[0]
    step(pair)
    pair.become(kept)
    assert all(torch.equal(kept[name], now) for name, now in pair.reference_state().items())
    with pair.reference() as network:
        assert torch.equal(network(**GIVEN)[0], then)
    pair.restore(kept)
    with torch.no_grad():
        assert torch.equal(pair.network(**GIVEN)[0], then)


def test_the_policy_is_active_again_also_after_an_error(pair) -> None:
    def trained() -> list[str]:
        return [name for name, p in pair.network.named_parameters() if p.requires_grad]

    before = trained()
    assert before

    def fail(network: Any) -> None:
        assert not torch.is_grad_enabled()
        assert not network(**GIVEN)[0].requires_grad
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"), pair.reference() as network:
        fail(network)
    assert trained() == before
    assert torch.is_grad_enabled()
    assert pair.network(**GIVEN)[0].requires_grad


def test_only_the_adapter_is_trained() -> None:
    pair = pair_of("adapters")
    names = [name for name, p in pair.network.named_parameters() if p.requires_grad]
    assert names
    assert all(".policy." in name for name in names)
    base = weights_digest(pair.network, without=("lora_",))
    step(pair)
    assert weights_digest(pair.network, without=("lora_",)) == base
    # An adapter's checkpoint is small, and speaks of no adapter by name.
    assert all(".policy" not in name and ".ref" not in name for name in pair.state())
    assert sum(t.numel() for t in pair.state().values()) < 2000


def test_adapters_start_the_same_for_one_seed_and_leave_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one = pair_of("adapters").state()
    assert torch.rand(1) == expected
    other = pair_of("adapters").state()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(RecipeError, match="no_such_layer"):
        TwoAdapters(small_network(), rank=2, alpha=2, target_modules=("no_such_layer",), seed=0)
    with pytest.raises(RecipeError, match="takes no LoRA"):
        TwoAdapters(torch.nn.Linear(2, 2), rank=2, alpha=2, target_modules=("x",), seed=0)
