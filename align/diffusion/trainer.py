"""Rounds of preference training of a diffusion model, on accelerate.

    for k = 1, 2, ... K:
        j = which of the checkpoints c_0 ... c_{k-1};  reference = c_j
        pool = records, with the reference's own samples where the formula asks for them
        M updates on the pool
        c_k = a copy of the policy

One process, or several under DDP; each chooses the same reference and makes its own share of the
samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from align.diffusion.denoiser import Denoiser
from align.diffusion.errors import batch_errors, draw_noise
from align.diffusion.latents import LatentData
from align.diffusion.objectives import DiffusionObjective
from align.diffusion.policies import PolicyAndReference
from align.diffusion.pool import (
    Pool,
    batches_of_round,
    kept_samples,
    rows_of_round,
    sample_key,
    sample_rows,
)
from align.diffusion.replay import Replay, select, state_digest
from align.diffusion.resuming import Progress, load_progress, save_progress
from align.diffusion.schedule import adamw, learning_rate
from align.diffusion.seeds import generator_for
from align.diffusion.settings import DiffusionTrain
from align.diffusion.training_log import TrainingLog
from align.errors import DataError, Interrupted, MachineError

logger = logging.getLogger(__name__)

# What of `train` may change under a run that goes on.
MOVES_NOTHING = {"logging_steps", "save_steps", "use_cpu"}


class DiffusionTrainer:
    """Trains a policy by a formula over denoising errors.

    Args:
        policy: the policy, with its reference where the formula needs one.
        denoiser: how images are noised, denoised and sampled.
        objective: the formula.
        train: how to train.
        data: the records.
        output_dir: of checkpoints, earlier policies and samples; None keeps them in memory, and no
            run goes on from there.
        accelerator: made from `train` where it is None.

    Raises:
        DataError: the formula needs rejected images and the records have none.
        MachineError: accelerate is set up for FSDP or DeepSpeed.
    """

    def __init__(
        self,
        policy: PolicyAndReference,
        denoiser: Denoiser,
        objective: DiffusionObjective,
        train: DiffusionTrain,
        data: LatentData,
        *,
        output_dir: Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        precision = "bf16" if train.bf16 else "no"
        self.accelerator = accelerator or Accelerator(mixed_precision=precision, cpu=train.use_cpu)
        _refuse(self.accelerator.distributed_type, objective, data)
        self.policy, self.denoiser, self.objective = policy, denoiser, objective
        self.args, self.data, self.output_dir = train, data, output_dir
        if train.gradient_checkpointing:
            network: Any = policy.network
            network.enable_gradient_checkpointing()
        trained = [p for p in policy.network.parameters() if p.requires_grad]
        # Only the policy is wrapped; with adapters it is the active one here, so DDP registers it.
        self.model: nn.Module
        self.model, self.optimizer = self.accelerator.prepare(policy.network, adamw(train, trained))
        self.replay = Replay(
            objective.selection,
            None if output_dir is None else output_dir / "replay",
            writes=self.accelerator.is_main_process,
        )
        self.log = TrainingLog()
        self._settings = {
            "objective": objective.model_dump(mode="json"),
            "train": train.model_dump(mode="json", exclude=MOVES_NOTHING),
            "records": len(data),
            "processes": self.accelerator.num_processes,
        }
        self.step = 0
        self.reference_number: int | None = None
        self._reference_digest: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.accelerator.device

    @property
    def has_reference(self) -> bool:
        """Whether the formula compares with a reference."""
        return "reference" in self.objective.needs

    def train(self, requested: Callable[[], str | None] = lambda: None) -> list[dict[str, Any]]:
        """Trains, or goes on training, to the last round.

        Args:
            requested: name of the signal that asks to stop, once there was one.

        Returns:
            The log: one mapping per `logging_steps` updates.

        Raises:
            Interrupted: a signal ended training; the same call goes on from its checkpoint.
            NumericalError: a loss or a sample is not finite.
            RecipeError: the checkpoint belongs to a run with other settings.
        """
        self._resume()
        per_round = self.args.updates_per_round
        while self.step < self.args.max_steps:
            number, done = divmod(self.step, per_round)
            pool = self._start_round(number + 1, requested)
            batches = self._batches(number + 1, len(pool.rows))
            for update in range(done, per_round):
                self._update(pool, batches[update])
                self._log(number + 1)
                is_last = update == per_round - 1
                if is_last:
                    self._keep(number + 1)
                wanted = self.args.save_steps and self.step % self.args.save_steps == 0
                signal = self._any(requested())
                if is_last or wanted or signal:
                    self._save()
                if signal and self.step < self.args.max_steps:
                    raise Interrupted(
                        f"Stopped by {requested() or 'a signal'} after update {self.step} of "
                        f"{self.args.max_steps}. Run the same command again to go on."
                    )
        return self.log.history

    def _start_round(self, number: int, requested: Callable[[], str | None]) -> Pool:
        """Puts the round's reference in place and makes its pool."""
        args, here = self.args, self.accelerator
        if self.has_reference:
            here.wait_for_everyone()
            self.reference_number = select(self.objective.selection, number, args.seed)
            state = self.replay.load(self.reference_number)
            self.policy.become(state)
            self._reference_digest = state_digest(state)
        size = args.pool_size or args.updates_per_round * self._global_batch
        places, rows = rows_of_round(
            len(self.data), size, args.seed, number, here.process_index, here.num_processes
        )
        samples: Tensor | None = None
        if self.objective.samples_reference:

            def stop_early() -> None:
                if requested() is not None and here.num_processes == 1:
                    raise Interrupted(
                        f"Stopped by {requested()} while round {number} made its samples. Run the "
                        "same command again to go on."
                    )

            folder = None if self.output_dir is None else self.output_dir / "samples"
            path = folder and folder / f"process-{here.process_index}.safetensors"
            key = sample_key(args, reference=self._reference_digest, round=number, rows=rows)

            def make() -> Tensor:
                with self.policy.reference() as network, here.autocast():
                    return sample_rows(
                        self.denoiser, network, self.data, rows, places, args.sampler,
                        name=f"samples of round {number}", seed=args.seed, device=self.device,
                        before_batch=stop_early,
                    )  # fmt: skip

            samples = kept_samples(path, key, make)
            here.wait_for_everyone()
        return Pool(rows, samples)

    @property
    def _global_batch(self) -> int:
        args = self.args
        per_process = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return per_process * self.accelerator.num_processes

    def _batches(self, number: int, size: int) -> Tensor:
        """[M, accumulation, B] places in this process's pool."""
        args, process = self.args, self.accelerator.process_index
        parts, batch = args.gradient_accumulation_steps, args.per_device_train_batch_size
        count = args.updates_per_round * parts
        order = batches_of_round(size, batch, count, number, process, seed=args.seed)
        return order.view(args.updates_per_round, parts, batch)

    def _update(self, pool: Pool, batches: Tensor) -> None:
        """One optimizer step."""
        args, process, count = self.args, self.accelerator.process_index, len(batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(args, self.step)
        for part, places in enumerate(batches.tolist()):
            batch = self.data.batch([pool.rows[place] for place in places])
            rejected = batch.rejected if "rejected" in self.objective.needs else None
            if pool.samples is not None:
                rejected = pool.samples[places]
            generator = generator_for(args.seed, "update", self.step, part, process)
            t, e = draw_noise(
                batch, self.denoiser.times, generator, args.timesteps, args.timestep_range
            )
            is_synced = part == count - 1
            with nullcontext() if is_synced else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    errors = batch_errors(
                        self.denoiser, self.model, self.policy if self.has_reference else None,
                        batch, rejected, t, e, self.objective.error_reduction, self.device,
                    )  # fmt: skip
                output = self.objective(errors)
                self.accelerator.backward(output.loss.mean() / count)
            self.log.note(self.step, output)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm: Any = self.accelerator.clip_grad_norm_(trained, args.max_grad_norm)
        self.log.sums["grad_norm"].append(float(norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _log(self, number: int) -> None:
        if self.step % self.args.logging_steps and self.step not in (1, self.args.max_steps):
            return
        about = {
            "round": number,
            "reference": self.reference_number,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        self.log.write(self.accelerator, self.step, self.args.max_steps, about)

    def _any(self, signal: str | None) -> bool:
        """Whether any process was asked to stop; the processes must stop at the same update."""
        if self.accelerator.num_processes == 1:
            return signal is not None
        asked = torch.tensor([float(signal is not None)], device=self.device)
        total: Any = self.accelerator.reduce(asked, "sum")
        return bool(total > 0)

    def _keep(self, number: int) -> None:
        if self.has_reference:
            self.replay.keep(number, self.policy.state())

    def _save(self) -> None:
        if self.output_dir is not None and self.accelerator.is_main_process:
            progress = Progress(
                self.step, self.reference_number, self._reference_digest, self.log.history,
                self.log.sums, self.policy.state(), self.optimizer.state_dict(),
            )  # fmt: skip
            save_progress(self.output_dir, progress, self._settings)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Puts the newest checkpoint in place, or keeps c_0 where there is none."""
        folder = self.output_dir
        found = load_progress(folder, self._settings) if folder is not None else None
        if found is None:
            self._keep(0)
            self.accelerator.wait_for_everyone()
            return
        self.step = found.step
        self.log.go_on(found.step, found.log_history, found.sums)
        self.policy.restore(found.policy)
        self.optimizer.load_state_dict(found.optimizer)
        logger.info("Going on after update %d of %d.", self.step, self.args.max_steps)


def _refuse(kind: DistributedType, objective: DiffusionObjective, data: LatentData) -> None:
    """Raises what the trainer says it raises."""
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise MachineError(
            f"Diffusion models are trained on one device or under DDP; accelerate is set up for "
            f"{kind.value}. Use recipes/accelerate/single.yaml or ddp.yaml."
        )
    if "rejected" in objective.needs and data.rejected is None:
        raise DataError(
            f"{objective.name} needs a rejected image in every record, and the records have none. "
            "Add the column rejected_image, or train by seppo or diffusion_sft."
        )
