# pyright: basic
"""What the trainers of all kinds of rows have in common.

What they change in TRL's, and where:

- `objective_trainer` (here): the loss is a formula, its mean is over the losses of the step on all
  ranks.
- `bad_numbers`: a loss or a gradient that nothing can be learnt from stops the run.
- `row_kind`, `pair_kind`, `group_kind`: what a row is.
- `rows`, `pair_rows`, `group_rows`: rows are tokenised and checked by `align.tokens.encoder`.
- `scoring`: frozen policies are named roles that are scored once, before training, by the weights
  they really have.
- `sharding`: weights can be shared out over the processes (FSDP2).
- `sampling`: rows of one prompt can be kept together.
- `budget`: the tokens of one forward pass can be found out.
- `metrics`, `records`: metrics are sums over counts.
- `evaluating`: an evaluation counts each row once, and takes rows that were never scored.
- `coupling`: an objective can look at all rows of the optimizer step.
- `checkpoints`: a checkpoint is verified before it is trusted.
- `base`: the one forward pass, over shared prefixes (`align.forest`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig

from align.errors import RecipeError
from align.forest.attention import attending
from align.objectives.refusals import collecting
from align.policies.quantization import keep_gradients_on_cpu
from align.reference import ConfigOnly
from align.tokens.vision.pixels import PixelReader
from align.trainers.bad_numbers import BadNumbers
from align.trainers.budget import BudgetSearch
from align.trainers.collator import PreferenceCollator
from align.trainers.config import (
    PreferenceConfig,
    converted,
    refuse_cut_beginnings,
    refuse_precomputed_streams,
    scored_by_us,
)
from align.trainers.coupling import Coupling
from align.trainers.evaluating import Evaluating
from align.trainers.guards import StopOnBadWeights, StopOnSignal
from align.trainers.loading import load_trained
from align.trainers.metrics import HeldOut, SumsOverCounts, statistics_of
from align.trainers.precision import (
    adapter_in_float32,
    refuse_weights_that_stay,
    unrounded_adapters,
)
from align.trainers.ranks import same_number
from align.trainers.records import Records
from align.trainers.rows import hidden_images
from align.trainers.sampling import RowSampling
from align.trainers.scoring import RoleSource
from align.trainers.sharding import here


class ObjectiveTrainer(Coupling, BadNumbers, Evaluating, Records, BudgetSearch, RowSampling):
    """A trainer but for its kind of rows, which a child adds in front."""

    loss_is_scaled_for_ga = True
    _tag_names = ["align", "preference-optimization"]  # noqa: RUF012 - TRL's name and type
    _name = "Preference optimization"
    config_class: ClassVar[type[PreferenceConfig]] = PreferenceConfig
    # TRL's own configuration that is taken over.
    trl_config: ClassVar[type[Any]] = DPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: PreferenceConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        objective: Any = None,
        roles: Mapping[str, RoleSource] | None = None,
    ) -> None:
        if args is None:
            args = self.config_class()
        if not isinstance(args, PreferenceConfig):
            if not isinstance(args, self.trl_config):
                raise RecipeError(
                    f"args is a {type(args).__name__}; use {self.config_class.__name__} of "
                    f"align.trainers, or trl.{self.trl_config.__name__}."
                )
            args = converted(args, self.config_class)
        refuse_cut_beginnings(args)
        for given in (train_dataset, eval_dataset):
            refuse_precomputed_streams(args, given)
        # A loss that is not finite stops the run, and to look for one waits twice for the device.
        args.logging_nan_inf_filter = False
        # Read by the parts before Trainer sets it.
        self.args = args
        self.objective = self._objective_of(args, objective)
        self._check_sampling()
        sources = self._role_sources(roles, ref_model)
        if ref_model is not None and ref_model is model:
            raise RecipeError(
                "ref_model is the model that is trained, so it would not stay what it is. Leave it "
                "out: the reference is then the policy as it is before training."
            )
        if isinstance(model, str):
            model, processing_class = load_trained(
                model, args, processing_class, quantization_config
            )
        elif quantization_config is not None:
            raise RecipeError(
                "quantization_config needs `model` as a path or hub id, not a loaded model."
            )
        keep_gradients_on_cpu(model)

        self._row_count = self._streams = 0
        self._row_tables = []
        self._train_sums = SumsOverCounts()
        self._eval_sums = self._eval_seen = None
        self._held_out = HeldOut()
        self._tokens_here = self._computed_here = 0
        self.identities = {}
        self._signal = StopOnSignal()
        no_weights: Any = ConfigOnly(model.config)
        held_out: Any = hidden_images(eval_dataset)
        with scored_by_us(args), unrounded_adapters(model):
            super().__init__(
                model=model,
                ref_model=no_weights,
                args=args,
                data_collator=data_collator,
                train_dataset=hidden_images(train_dataset),
                eval_dataset=held_out,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=[*(callbacks or []), StopOnBadWeights(), self._signal],
                optimizers=optimizers,
                peft_config=peft_config,
            )
        self._nothing_asked_yet()
        adapter_in_float32(self.model)
        refuse_weights_that_stay(self)
        self.ref_model = None if isinstance(ref_model, str) else ref_model
        self._check_columns()
        self._sources, self._live = sources, {}
        self._check_vocabulary()
        # Now, because these are the last moments of whole weights where they are sharded.
        self._start = self._started_from()
        if self._is_compared("reference") and not args.sync_ref_model:
            self._keep_reference()
        self._shard()
        self.backend = self._choose_backend()
        processor: Any = self.processing_class
        pixels = PixelReader(processor) if self._is_vlm else None
        self._layout = self._collator(pixels)
        if data_collator is None:
            self.data_collator = self._layout
        # What a role `start` is read from once training has begun; an adapter is small.
        self._adapter_at_start = {
            name: here(parameter).detach().cpu().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and is_peft_model(self.model)
        }
        if args.sync_ref_model:
            self._renew_reference()
        self.train_dataset = self._with_roles(self.train_dataset)
        if isinstance(self.eval_dataset, dict):
            self.eval_dataset = {k: self._with_roles(v) for k, v in self.eval_dataset.items()}
        elif self.eval_dataset is not None:
            self.eval_dataset = self._with_roles(self.eval_dataset)
        self.probe = self._probe()
        self._forget_gathered()
        if data_collator is None:
            self.data_collator = replace(self.data_collator, token_budget=self._token_budget())

    @classmethod
    def _objective_of(cls, args: PreferenceConfig, objective: Any) -> Any:
        """The objective that was asked for.

        Raises:
            RecipeError: there is none, or it is of another kind of row.
        """
        raise NotImplementedError

    def _collator(self, pixels: PixelReader | None) -> PreferenceCollator:
        """What lays rows out, without a token budget."""
        return PreferenceCollator(self.backend.backend, None, pixels, self.kind)

    def _check_sampling(self) -> None:
        """Refuses an order of rows that the objective cannot do with.

        Raises:
            RecipeError: naming the setting.
        """

    def _inputs(self, policy: Any, part: Mapping[str, Any], asked: Mapping[str, Any]) -> Any:
        """What the objective reads of a part: the policy, the roles asked, those of its columns."""
        frozen = dict(asked)
        for role in self._sources.keys() - asked.keys():
            frozen[role] = self.kind.stored(role, part, policy)
        return self.kind.inputs(policy, part, frozen, self._optional_columns)

    def _measured_inputs(self, model: Any, part: Mapping[str, Any]) -> Any:
        policy, _, asked = self._read(model, part)
        return self._inputs(policy, part, asked)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Loss of one part of a batch.

        It is scaled so that the step's gradient is the mean over its losses on all ranks.
        """
        training = self.model.training
        statistics = not training or self._is_logging_step()
        policy, output, asked = self._read(model, inputs, statistics=statistics)
        with collecting(self._refusals) if training else contextlib.nullcontext():
            read = self._with_coupling(self._inputs(policy, inputs, asked), inputs)
            result = self.objective(read)
        sizes: Tensor = inputs["sizes"]
        # With its size known, because to ask for it waits for the device.
        of_sizes = partial(torch.repeat_interleave, repeats=sizes, output_size=len(result.loss))
        look = self._see_loss if training else self._stop_on_bad_loss
        look(result.loss.detach(), of_sizes(inputs["row_index"]))
        counts = inputs.get("counts", torch.ones_like(sizes, dtype=result.loss.dtype))
        of_each = of_sizes(counts)
        frozen = read.reference or read.previous
        found = statistics_of(inputs["pack"], output)
        rows = self.kind.values(result, policy, found, frozen, inputs)
        scale: Any = 1 / result.loss.numel()
        if training:
            for side in self.kind.sides(policy):
                side.token.register_hook(self._see_gradient)
                if side.divergence is not None:
                    side.divergence.register_hook(self._see_gradient)
            self._train_sums.add({name: (n * counts, d * counts) for name, (n, d) in rows.items()})
            # CUDA has no dot product of whole numbers.
            self._tokens_here = self._tokens_here + (inputs["tokens"] * counts.long()).sum()
            self._computed_here += inputs["pack"].computed_tokens
            if num_items_in_batch is not None:
                # DDP averages gradients over ranks, hence the factor.
                scale = self.accelerator.num_processes / num_items_in_batch
        else:
            assert self._eval_sums is not None
            assert self._eval_seen is not None
            seen = self._eval_seen.gather(inputs["row_index"], rows)
            self._eval_sums.add(seen)
            if self.compute_metrics is not None:
                judged = self.kind.judged(result, inputs)
                self._held_out.add(judged, inputs["row_index"], sizes, of_each)
        loss = (result.loss * of_each).sum() * scale
        if self.aux_loss_enabled and training:
            aux_loss: Any = output.aux_loss
            self._train_sums.add({"aux_loss": (aux_loss.detach() * counts, counts)})
            loss = loss + self.router_aux_loss_coef * aux_loss * of_each.sum() * scale
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The batches of one optimizer step; rows that accelerate repeats get the count 0.

        It fills the last batch of an epoch with rows from the epoch's beginning, so that every rank
        has work; in rank order they stand behind the `remainder` rows that are there for the first
        time.
        """
        batches, losses = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._nothing_asked_yet()
        state = self.accelerator.gradient_state
        processes = self.accelerator.num_processes
        if processes > 1 and batches and state.end_of_dataloader and state.remainder > 0:
            last = batches[-1]
            size = last["row_index"].numel()
            place = self.accelerator.process_index * size + torch.arange(size)
            last["counts"] = (place < state.remainder).float().to(last["row_index"].device)
            losses = self._get_num_items_in_batch(batches, device)
        self._couple_step(batches)
        return batches, losses

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Losses of this optimizer step on all ranks."""
        here = sum((batch["sizes"] * batch.get("counts", 1)).sum() for batch in batch_samples)
        losses = torch.as_tensor(here, dtype=torch.float32, device=device)
        if self.accelerator.num_processes > 1:
            return self.accelerator.reduce(losses, "sum")
        return losses

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """One batch, in as many forward passes as `token_budget` asks for; same gradient."""
        self._last_rows = inputs["row_index"][:8]
        parts = self._as_many_as_the_others(
            [
                part | ({"counts": inputs["counts"][part["place"]]} if "counts" in inputs else {})
                for part in inputs["parts"]
            ]
        )
        # Only the last pass of a batch needs the other ranks' gradients. FSDP would have to keep
        # whole gradients meanwhile, and DeepSpeed counts its passes itself.
        quiet = isinstance(model, DistributedDataParallel)
        loss = torch.zeros((), device=self.accelerator.device)
        ends_step = self.accelerator.sync_gradients
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            # DeepSpeed's engine steps in each backward pass that finds this set.
            self.accelerator.sync_gradients = ends_step and is_last
            with (
                contextlib.nullcontext()
                if is_last or not quiet
                else self.accelerator.no_sync(model),
                attending(model, part["pack"].implementation),
            ):
                loss += super().training_step(model, part, num_items_in_batch)
        return loss

    def _as_many_as_the_others(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parts on top, without weight, where every rank must run the same number of passes.

        Sharded weights are gathered in each pass by all ranks together.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return parts
        return same_number(self.accelerator, parts)
