# diffusers does not declare what it exports.
# pyright: reportPrivateImportUsage=false
"""What the trainer asks of a diffusion model, and diffusers' schedulers behind it.

A denoiser knows how images are noised, what the network is to predict, and how to sample; the
network itself is an argument, because policy and reference share everything else. Times are indices
into the training schedule [0, T), int64; images are latents x0 [B, C, H, W]; noise is e.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from align.errors import RecipeError

Conditions: TypeAlias = Mapping[str, Tensor]
"""Name of the network's argument -> [B, ...]. A dot leads into a mapping: SDXL's pooled text
embedding is `added_cond_kwargs.text_embeds`."""

Timesteps: TypeAlias = Literal["uniform", "logit_normal"]


class Denoiser(Protocol):
    """How images are noised, denoised and sampled."""

    @property
    def times(self) -> int:
        """T, the number of timesteps of the training schedule."""
        ...

    def noise(self, x0: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """[B, C, H, W]: the noised images z."""
        ...

    def target(self, x0: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """[B, C, H, W]: what the network is to predict from z."""
        ...

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """[B, C, H, W]: what it predicts, without guidance."""
        ...

    def sample(
        self,
        network: nn.Module,
        start: Tensor,
        given: Conditions,
        without: Conditions | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, C, H, W]: x0 from the noise `start`.

        Args:
            network: in evaluation mode.
            start: [B, C, H, W] standard normal.
            given: the conditions.
            without: the conditions of no caption, for guidance; None where guidance is off.
            generator: for samplers that draw noise on the way.
        """
        ...


def draw_times(
    count: int,
    times: int,
    generator: torch.Generator,
    *,
    distribution: Timesteps = "uniform",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """[count] int64 timesteps.

    Args:
        count: how many.
        times: T.
        generator: of the draw.
        distribution: uniform, or logit_normal (middle times more often; Esser et al. 2024,
            arXiv:2403.03206, section 3.1).
        bounds: the part of the schedule that is drawn from, as shares of T.
    """
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    if distribution == "logit_normal":
        u = torch.sigmoid(torch.randn(count, generator=generator, dtype=torch.float64))
    low, high = bounds
    return ((low + u * (high - low)) * times).long().clamp(max=times - 1)


@dataclass(frozen=True)
class Sampler:
    """How images are sampled.

    Attributes:
        scheduler: name of a scheduler class of diffusers; None takes the model's own.
        steps: denoising steps.
        guidance_scale: of classifier-free guidance; 1 is none.
        options: further settings of the scheduler.
    """

    scheduler: str | None = "DDIMScheduler"
    steps: int = 50
    guidance_scale: float = 7.5
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


class DiffusersDenoiser:
    """A denoiser on two schedulers of diffusers: one to train by, one to sample with.

    `prediction_type` of the training scheduler says what the network predicts: `epsilon` the noise,
    `v_prediction` the velocity, `sample` the image; a flow-matching scheduler e - x0.

    Args:
        scheduler: the model's own scheduler, which it was trained by.
        sampler: how to sample; its scheduler is made anew for every batch, because samplers change
            themselves on the way.

    Raises:
        RecipeError: a scheduler that training cannot use, or a sampler that does not exist.
    """

    def __init__(self, scheduler: Any, sampler: Sampler) -> None:
        self.is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
        self.scheduler = scheduler
        self.sampler = sampler
        self.prediction_type = (
            "flow" if self.is_flow else scheduler.config.get("prediction_type", "epsilon")
        )
        known = ("epsilon", "v_prediction", "sample", "flow")
        if self.prediction_type not in known or not hasattr(scheduler, "config"):
            raise RecipeError(
                f"The model's scheduler predicts {self.prediction_type!r}, which training does not "
                f"know; it knows {', '.join(known)}."
            )
        if not self.is_flow and not hasattr(scheduler, "alphas_cumprod"):
            raise RecipeError(
                f"The model's scheduler {type(scheduler).__name__} has no schedule of noise levels "
                "(alphas_cumprod) to train by; take a model with a DDPM, DDIM, PNDM or "
                "flow-matching scheduler."
            )
        self._sampling_scheduler()

    @property
    def times(self) -> int:
        """T, the number of timesteps of the training schedule."""
        return int(self.scheduler.config["num_train_timesteps"])

    def noise(self, x0: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """Z = sqrt(abar_t) x0 + sqrt(1 - abar_t) e;  flow: (1 - sigma_t) x0 + sigma_t e."""
        keep, add = self._levels(x0, t)
        return keep * x0 + add * e

    def target(self, x0: Tensor, e: Tensor, t: Tensor) -> Tensor:
        """e, the velocity sqrt(abar_t) e - sqrt(1 - abar_t) x0, x0, or e - x0 (flow)."""
        match self.prediction_type:
            case "epsilon":
                return e
            case "sample":
                return x0
            case "flow":
                return e - x0
            case _:
                keep, add = self._levels(x0, t)
                return keep * e - add * x0

    def predict(self, network: nn.Module, z: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """What the network predicts, without guidance."""
        timestep = self.scheduler.timesteps.to(z.device)[t] if self.is_flow else t
        return call_network(network, z, timestep, given)

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        start: Tensor,
        given: Conditions,
        without: Conditions | None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """x0 from noise, with guidance where `without` is given."""
        scheduler = self._sampling_scheduler()
        scheduler.set_timesteps(self.sampler.steps, device=start.device)
        drawing = "generator" in inspect.signature(scheduler.step).parameters
        options = {"generator": generator} if drawing else {}
        z = start * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for t in scheduler.timesteps:
            scaled = (
                scheduler.scale_model_input(z, t) if hasattr(scheduler, "scale_model_input") else z
            )
            prediction = self._guided(network, scaled, t.expand(len(z)), given, without)
            z = scheduler.step(prediction, t, z, **options).prev_sample
        return z

    def _guided(
        self,
        network: nn.Module,
        z: Tensor,
        timestep: Tensor,
        given: Conditions,
        without: Conditions | None,
    ) -> Tensor:
        if without is None or self.sampler.guidance_scale == 1:
            return call_network(network, z, timestep, given).to(z.dtype)
        both = {name: torch.cat([without[name], tensor]) for name, tensor in given.items()}
        prediction = call_network(network, torch.cat([z, z]), torch.cat([timestep] * 2), both)
        free, bound = prediction.to(z.dtype).chunk(2)
        return free + self.sampler.guidance_scale * (bound - free)

    def _levels(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, 1, 1] each: what multiplies the image and what multiplies the noise."""
        shape = (-1, *[1] * (x0.dim() - 1))
        if self.is_flow:
            sigma = self.scheduler.sigmas.to(x0.device, x0.dtype)[t].view(shape)
            return 1 - sigma, sigma
        # As in diffusers' add_noise: the schedule is cast to the images' type first.
        kept = self.scheduler.alphas_cumprod.to(x0.device, x0.dtype)[t].view(shape)
        return kept.sqrt(), (1 - kept).sqrt()

    def _sampling_scheduler(self) -> Any:
        name = self.sampler.scheduler
        made = type(self.scheduler) if name is None else getattr(diffusers, str(name), None)
        if made is None or not hasattr(made, "set_timesteps"):
            raise RecipeError(
                f"diffusers has no scheduler {name!r}; write the name of its class, such as "
                "DDIMScheduler, or null for the model's own."
            )
        if self.is_flow and "FlowMatch" not in made.__name__:
            raise RecipeError(
                f"{made.__name__} cannot sample from a flow-matching model; write null for the "
                "model's own scheduler."
            )
        return made.from_config(self.scheduler.config, **self.sampler.options)


def call_network(network: nn.Module, z: Tensor, timestep: Tensor, given: Conditions) -> Tensor:
    """The prediction of a UNet or a transformer of diffusers; `timestep` [B] in its own units."""
    arguments: dict[str, Any] = {}
    for name, tensor in given.items():
        outer, _, inner = name.partition(".")
        if inner:
            arguments.setdefault(outer, {})[inner] = tensor
        else:
            arguments[name] = tensor
    # Keywords throughout: a UNet's second argument is the timestep, SD3's is the caption. The
    # network may be wrapped (DDP), whose forward says nothing about its arguments.
    bare = getattr(network, "module", network)
    first = next(iter(inspect.signature(bare.forward).parameters))
    prediction = network(**{first: z}, timestep=timestep, **arguments, return_dict=False)[0]
    assert prediction.shape == z.shape, "a network that also predicts its variance"
    return prediction
