"""Noise, targets and samples against diffusers' own arithmetic, and against a perfect denoiser."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from align.diffusion.denoiser import DiffusersDenoiser, Sampler, draw_times
from align.errors import RecipeError
from align.worlds.unet import scheduler_from_scratch, unet_from_scratch


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
    return x0, torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 7, 23, 49])


class Perfect(nn.Module):
    """Predicts what leads to one image, whatever the noise."""

    def __init__(self, denoiser: DiffusersDenoiser, x0: Tensor) -> None:
        super().__init__()
        self.denoiser, self.x0 = denoiser, x0

    def forward(self, sample, timestep, encoder_hidden_states, return_dict):
        assert not return_dict
        denoiser = self.denoiser
        if denoiser.is_flow:
            sigma = (timestep / denoiser.times).view(-1, 1, 1, 1)
            return ((sample - self.x0) / sigma,)
        kept = denoiser.scheduler.alphas_cumprod[timestep.long()].view(-1, 1, 1, 1)
        e = (sample - kept.sqrt() * self.x0) / (1 - kept).sqrt()
        return (denoiser.target(self.x0, e, timestep.long()),)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers(drawn, prediction) -> None:
    x0, e, t = drawn
    scheduler = scheduler_from_scratch(50, prediction)
    denoiser = DiffusersDenoiser(scheduler, Sampler())
    torch.testing.assert_close(denoiser.noise(x0, e, t), scheduler.add_noise(x0, e, t))
    expected = {"epsilon": e, "v_prediction": scheduler.get_velocity(x0, e, t), "sample": x0}
    torch.testing.assert_close(denoiser.target(x0, e, t), expected[prediction])


def test_flow_matching(drawn) -> None:
    x0, e, t = drawn
    denoiser = DiffusersDenoiser(
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=50, shift=3.0), Sampler(scheduler=None)
    )
    sigma = denoiser.scheduler.sigmas[t].view(-1, 1, 1, 1)
    # Index 0 is pure noise, the last is nearly the image.
    assert sigma.flatten().tolist() == sorted(sigma.flatten().tolist(), reverse=True)
    torch.testing.assert_close(denoiser.noise(x0, e, t), (1 - sigma) * x0 + sigma * e)
    torch.testing.assert_close(denoiser.target(x0, e, t), e - x0)
    # dz/dsigma is the target: what ties the two together.
    step = 1e-3
    torch.testing.assert_close(
        ((1 - sigma - step) * x0 + (sigma + step) * e - denoiser.noise(x0, e, t)) / step,
        denoiser.target(x0, e, t),
        atol=1e-2,
        rtol=1e-2,
    )
    seen = []

    def record(sample, timestep, encoder_hidden_states, return_dict):
        seen.append(timestep)
        return (sample,)

    network = nn.Module()
    network.forward = record  # type: ignore[method-assign]
    denoiser.predict(network, x0, t, {"encoder_hidden_states": x0})
    # The network is told the noise level in the scheduler's own units.
    torch.testing.assert_close(seen[0], 50 * sigma.flatten())


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("DDIMScheduler", {"timestep_spacing": "trailing"}),
        ("DDPMScheduler", {}),
        ("EulerDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("PNDMScheduler", {}),
    ],
)
# diffusers 0.42 hands its tensors to numpy without the copy keyword of numpy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_any_scheduler_samples(drawn, sampler, options, prediction) -> None:
    x0, e, _ = drawn
    scheduler = DDPMScheduler(num_train_timesteps=50, prediction_type=prediction, clip_sample=False)
    denoiser = DiffusersDenoiser(scheduler, Sampler(sampler, 25, 1.0, options))
    given = {"encoder_hidden_states": torch.zeros(4, 1, 2)}
    generator = torch.Generator().manual_seed(0)
    made = denoiser.sample(Perfect(denoiser, x0), e, given, None, generator=generator)
    # The schedule's noisiest level is not quite pure noise, and the last step not quite the image.
    assert (made - x0).abs().max() < 0.1


def test_flow_matching_samples(drawn) -> None:
    x0, e, _ = drawn
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=50)
    denoiser = DiffusersDenoiser(scheduler, Sampler(None, 10, 1.0))
    given = {"encoder_hidden_states": torch.zeros(4, 1, 2)}
    made = denoiser.sample(Perfect(denoiser, x0), e, given, None)
    torch.testing.assert_close(made, x0, atol=1e-4, rtol=0)


def test_guidance_extrapolates(drawn) -> None:
    # The network returns its caption; one DDIM step from the end makes the guided prediction
    # visible: free + s (bound - free).
    x0, e, _ = drawn

    def caption(sample, timestep, encoder_hidden_states, return_dict):
        return (encoder_hidden_states.view(-1, 1, 1, 1).expand_as(sample),)

    network = nn.Module()
    network.forward = caption  # type: ignore[method-assign]
    scheduler = scheduler_from_scratch(50, "sample")
    scheduler.register_to_config(clip_sample=False)
    denoiser = DiffusersDenoiser(scheduler, Sampler("DDIMScheduler", 1, 3.0))
    given = {"encoder_hidden_states": torch.full((4, 1, 1), 0.5)}
    without = {"encoder_hidden_states": torch.full((4, 1, 1), 0.2)}
    made = denoiser.sample(network, e, given, without)
    # 0.2 + 3 (0.5 - 0.2) = 1.1
    torch.testing.assert_close(made, torch.full_like(x0, 1.1), atol=0.05, rtol=0)
    plain = denoiser.sample(network, e, given, None)
    torch.testing.assert_close(plain, torch.full_like(x0, 0.5), atol=0.05, rtol=0)


def test_nested_conditions_reach_the_network() -> None:
    network = nn.Module()
    seen = {}

    def record(sample, timestep, added_cond_kwargs, return_dict):
        seen.update(added_cond_kwargs)
        return (sample,)

    network.forward = record  # type: ignore[method-assign]
    denoiser = DiffusersDenoiser(scheduler_from_scratch(50), Sampler())
    z, ids = torch.zeros(1, 3, 8, 8), torch.ones(1, 6)
    denoiser.predict(network, z, torch.tensor([0]), {"added_cond_kwargs.time_ids": ids})
    assert seen["time_ids"] is ids


def test_times() -> None:
    draw = torch.Generator().manual_seed(0)
    t = draw_times(4000, 100, draw)
    assert (t.min(), t.max()) == (0, 99)
    assert t.double().mean().item() == pytest.approx(49.5, abs=2)
    t = draw_times(4000, 100, draw, bounds=(0.2, 0.5))
    assert (t.min(), t.max()) == (20, 49)
    t = draw_times(4000, 100, draw, distribution="logit_normal")
    # Half of a logit-normal lies between sigmoid(-0.674) = 0.338 and sigmoid(0.674) = 0.662.
    assert ((t >= 34) & (t < 66)).double().mean().item() == pytest.approx(0.49, abs=0.03)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(RecipeError, match="NoSuchScheduler"):
        DiffusersDenoiser(scheduler_from_scratch(50), Sampler("NoSuchScheduler"))
    with pytest.raises(RecipeError, match="flow-matching"):
        DiffusersDenoiser(FlowMatchEulerDiscreteScheduler(), Sampler("DDIMScheduler"))
    # The schedulers that pipelines ship with can be trained by.
    assert DiffusersDenoiser(EulerDiscreteScheduler(), Sampler()).prediction_type == "epsilon"


def test_a_real_network_takes_the_call() -> None:
    network = unet_from_scratch(8, (8, 16), 8).eval()
    denoiser = DiffusersDenoiser(scheduler_from_scratch(50), Sampler())
    z = torch.randn(2, 3, 8, 8)
    given = {"encoder_hidden_states": torch.randn(2, 1, 8)}
    with torch.no_grad():
        assert denoiser.predict(network, z, torch.tensor([3, 4]), given).shape == z.shape
