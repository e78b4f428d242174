"""The records of one round and, for SePPO, the reference's own samples for their captions.

A pool belongs to one process: its rows are every `processes`-th of the round's draw. The samples
lie on disk as soon as they are made, under a key of everything that determines them, so that a run
that goes on in the middle of a round reads them again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from align.diffusion.denoiser import Denoiser
from align.diffusion.latents import LatentData
from align.diffusion.seeds import generator_for, noise_of
from align.diffusion.settings import DiffusionSampler, DiffusionTrain
from align.errors import NumericalError


@dataclass(frozen=True, eq=False)
class Pool:
    """What the updates of one round train on, in one process.

    Attributes:
        rows: P numbers of records.
        samples: [P, C, H, W] the reference's samples, float32 on the CPU; None where the formula
            reads none.
    """

    rows: list[int]
    samples: Tensor | None


def rows_of_round(
    records: int, size: int, seed: int, number: int, process: int = 0, processes: int = 1
) -> tuple[list[int], list[int]]:
    """This process's share of a round's draw: places in the draw, and the records there.

    The draw goes through all records before it takes one twice.

    Args:
        records: there are so many.
        size: of the draw, over all processes.
        seed: of the run.
        number: of the round, from 1.
        process: this process.
        processes: all of them.
    """
    generator = generator_for(seed, "records", number)
    drawn: list[int] = []
    while len(drawn) < size:
        drawn += torch.randperm(records, generator=generator).tolist()
    places = list(range(process, size, processes))
    return places, [drawn[place] for place in places]


def batches_of_round(size: int, batch: int, count: int, *name: str | int, seed: int) -> Tensor:
    """[count, batch] places in a pool: as many whole passes, each in a new order, as it takes."""
    generator = generator_for(seed, "order", *name)
    passes = -(-count * batch // size)
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])
    return order[: count * batch].view(count, batch)


def sample_rows(
    denoiser: Denoiser,
    network: nn.Module,
    data: LatentData,
    rows: Sequence[int],
    noise_keys: Sequence[int],
    sampler: DiffusionSampler,
    *,
    name: str,
    seed: int,
    device: torch.device,
    before_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """[len(rows), C, H, W] float32 on the CPU: samples for the captions of these records.

    Args:
        denoiser: how to sample.
        network: in evaluation mode, on `device`.
        data: has the captions.
        rows: records.
        noise_keys: what the starting noise of each sample belongs to.
        sampler: how many are sampled together, which changes none of them but for rounding where
            the scheduler draws no noise, and whether with guidance.
        name: what the noise is drawn for.
        seed: of the noise.
        device: of the network.
        before_batch: called before each batch.
    """
    made: list[Tensor] = []
    batch, guided = sampler.batch, sampler.guidance_scale != 1
    for begin in range(0, len(rows), batch):
        before_batch()
        part = list(rows[begin : begin + batch])
        start = noise_of(seed, name, noise_keys[begin : begin + batch], data.shape).to(device)
        given = {k: v.to(device) for k, v in data.conditions(part).items()}
        without = {k: v.to(device) for k, v in data.without_caption(part).items()}
        generator = generator_for(seed, name, "sampler", noise_keys[begin])
        sampled = denoiser.sample(
            network, start, given, without if guided else None, generator=generator
        )
        made.append(sampled.float().cpu())
    samples = torch.cat(made)
    finite = samples.flatten(1).isfinite().all(dim=1)
    if not bool(finite.all()):
        raise NumericalError(
            f"{int((~finite).sum())} of {len(samples)} samples of the model ({name}) are not "
            "finite. A lower train.learning_rate is the usual cure; under mixed precision, look "
            "at the model in float32."
        )
    return samples


def kept_samples(path: Path | None, key: str, make: Callable[[], Tensor]) -> Tensor:
    """The samples at `path` where they were made under `key`; else makes and keeps them there.

    Args:
        path: a safetensors file; None keeps nothing.
        key: everything that determines the samples.
        make: makes them.
    """
    if path is not None and path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("samples")
    samples = make()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        save_file({"samples": samples.contiguous()}, partial, metadata={"key": key})
        os.replace(partial, path)
    return samples


def sample_key(train: DiffusionTrain, **parts: object) -> str:
    """Canonical JSON of everything that determines a pool's samples."""
    of_train = {
        "seed": train.seed,
        "bf16": train.bf16,
        "sampler": train.sampler.model_dump(mode="json"),
    }
    return json.dumps({**of_train, **parts}, sort_keys=True)
