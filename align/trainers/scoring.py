# pyright: basic
"""Frozen policies as the trainer uses them: identified, scored once, probed at step 0."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object, is_peft_model
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch.nn.functional import softplus
from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id

from align.errors import MachineError, NumericalError, RecipeError
from align.forest import PADDED, Choice, choose_backend
from align.forest.head import EdgeLogps, edge_logps
from align.forest.model import add_edge_head
from align.forest.radix import SHORTEST_SHARED
from align.policies.quantization import keep_gradients_on_cpu
from align.progress import progress
from align.reference import (
    START,
    Identity,
    RoleScores,
    cache_root,
    rows_digest,
    tokenizer_digest,
)
from align.tokens.dataset import scored_columns
from align.trainers.adapters import as_adapter, on_same_base
from align.trainers.head import trl_edge_logps
from align.trainers.loading import load_frozen
from align.trainers.ranks import of_main, same_number, seen
from align.trainers.sharded import ShardedWeights
from align.trainers.sharding import here, is_zero3, shard_early, shards_weights
from align.types import ROLES

logger = logging.getLogger(__name__)

RoleSource = str | PreTrainedModel

# The backend is checked on the shortest few of the first rows.
CHECK_AMONG = 64
CHECK_ROWS = 3

PROBE_ROWS = 4
PROBE_TOLERANCE = 1e-6
# How far a stored score may lie from a fresh one, in nats per token: another padding changes the
# rounding. On every token; in 16 bits, where one rounding of a logit of 16 is 0.06 to 0.12 already
# and now and then a token shows it, the root of the mean square over tokens.
SCORE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
SCORE_TOLERANCE_LOW_PRECISION = 5e-2


class RoleScoring(ShardedWeights):
    """The part of the trainer that turns roles into columns of per-token log-probs."""

    # Who a role is whose distributions are compared, unless it is the policy before training.
    _compared: Identity | None = None

    def _role_sources(
        self, roles: Mapping[str, RoleSource] | None, ref_model: PreTrainedModel | None
    ) -> dict[str, RoleSource]:
        sources: dict[str, RoleSource] = dict(roles or {})
        if ref_model is not None:
            if "reference" in sources:
                raise RecipeError(
                    "Both ref_model and roles['reference'] are given; keep one of them."
                )
            sources["reference"] = ref_model
        needed = [role for role in ROLES if role in self.objective.needs]
        if "reference" in needed:
            sources.setdefault("reference", START)
        for role in sources:
            if role not in ROLES:
                raise RecipeError(
                    f"roles: {role!r} is not a role; the roles are {', '.join(ROLES)}."
                )
            if role not in needed:
                raise RecipeError(
                    f"roles.{role}: objective {self.objective.name} does not read it, so it would "
                    "be scored for nothing; remove it."
                )
        if missing := [role for role in needed if role not in sources]:
            raise RecipeError(
                f"Objective {self.objective.name} needs roles.{missing[0]}; give a folder, a hub "
                f"id or a model for it, or `{START}` for the policy as it is before training."
            )
        return sources

    def _identity(self, source: str, weights: str, dtype: torch.dtype) -> Identity:
        autocast = self.accelerator.mixed_precision
        if shards_weights(self.accelerator) and autocast != "no":
            # Autocast keeps some layers wide that FSDP's mixed precision does not.
            autocast = f"{autocast}/fsdp"
        reader: Any = self.processing_class
        return Identity(
            source=source,
            weights=weights,
            tokenizer=tokenizer_digest(reader),
            dtype=f"{dtype}/{autocast}",
        )

    @contextlib.contextmanager
    def _role(self, role: str, source: RoleSource) -> Iterator[tuple[Any, Identity]]:
        """The role's model and who it is; an adapter on the policy's base borrows that base."""
        if isinstance(source, str) and source == START:
            if self.state.global_step == 0:
                yield self.model, self._start
            else:
                with self._as_started(role) as model:
                    yield model, self._start
        elif isinstance(source, str) and on_same_base(self.model, source):
            with as_adapter(self.model, source, self._digest) as weights:
                yield self.model, self._identity(source, weights, self._start_dtype)
        elif isinstance(source, str):
            frozen = load_frozen(source, self._start_dtype, self.args.trust_remote_code)
            keep_gradients_on_cpu(frozen)
            yield frozen, self._identity(source, self._digest(frozen), frozen.dtype)
        else:
            name = get_config_model_id(source.config) or "in memory"
            yield source, self._identity(name, self._digest(source), source.dtype)

    @contextlib.contextmanager
    def _as_started(self, role: str) -> Iterator[Any]:
        """The policy before training: its adapter as it was, or its folder read again.

        Raises:
            RecipeError: it cannot be had again.
        """
        if self._adapter_at_start:
            self._forget_gathered()
            adapter = {
                name: here(parameter.data)
                for name, parameter in self.model.named_parameters()
                if name in self._adapter_at_start
            }
            trained = {name: value.clone() for name, value in adapter.items()}
            try:
                # In place, because sharded weights are gathered from the memory that they have.
                for name, value in adapter.items():
                    value.copy_(self._adapter_at_start[name])
                yield self.model
            finally:
                self._forget_gathered()
                for name, value in adapter.items():
                    value.copy_(trained[name])
            return
        how_on = "Pass every data set you want to evaluate on as eval_dataset."
        if self.args.precompute_ref_log_probs:
            raise RecipeError(
                "Cannot compute reference log-probs for a dataset passed to evaluate() once "
                "training has begun: precompute_ref_log_probs=True says that the policy before "
                f"training (roles.{role}) is not had again. {how_on}"
            )
        source = get_config_model_id(self.model.config)
        lost = f"roles.{role} is the policy before training, which is no longer in memory at step "
        lost += f"{self.state.global_step}"
        if not source:
            raise RecipeError(f"{lost}, and no folder of it is known. {how_on}")
        try:
            frozen = load_frozen(source, self._start_dtype, self.args.trust_remote_code)
        except OSError as error:
            raise RecipeError(f"{lost}, and {source} cannot be read: {error}. {how_on}") from error
        if self._digest(frozen) != self._start.weights:
            raise RecipeError(f"{lost}, and {source} holds other weights. {how_on}")
        keep_gradients_on_cpu(frozen)
        yield frozen

    def _is_compared(self, role: str) -> bool:
        """Whether a role's whole distributions are asked for, in each pass anew.

        Such a role is not scored beforehand: the same pass gives its log-probs.
        """
        return role == "reference" and "divergence" in self.objective.vocabulary

    def _ready(self, model: Any) -> Any:
        """A frozen model that can be asked: with an edge head, on the device or sharded."""
        if shards_weights(self.accelerator):
            return shard_early(model, self.accelerator, self._edge_logps)
        model = model.to(self.accelerator.device)
        add_edge_head(model.get_base_model() if is_peft_model(model) else model, self._edge_logps)
        return model

    def _with_roles(self, dataset: Dataset) -> Dataset:
        """The data set with the columns of per-token log-probs of each role."""
        if isinstance(dataset, IterableDataset):
            return dataset
        kind = self.scored_kind
        rows = rows_digest(dataset, scored_columns(dataset, kind.ids))
        for role, source in self._sources.items():
            if self._is_compared(role) and not self.args.sync_ref_model:
                self.identities.setdefault(role, self._compared or self._start)
                continue
            if role in self._live:
                continue
            with self._role(role, source) as (model, identity):
                if self.identities.setdefault(role, identity) != identity:
                    raise RecipeError(
                        f"roles.{role} is not the policy it was when training began; start anew."
                    )
                backend = self.backend.backend.name
                root = cache_root() / "roles"
                scores = RoleScores(root, identity, rows, backend, kind.scores)
                if not of_main(self.accelerator, scores.are_there):
                    found = self._score(role, model, dataset)
                    if self.accelerator.is_main_process:
                        scores.save(*found)
                    self.accelerator.wait_for_everyone()
            del model
            if shards_weights(self.accelerator):
                # Sharded modules and their hooks hold each other.
                clear_device_cache(garbage_collection=True)
            if not seen(scores.folder):
                raise MachineError(
                    f"The scores of role {role} were written to {scores.folder} and cannot be read "
                    "back there. On several machines ALIGN_CACHE must be a folder that all of them "
                    "share."
                )
            dataset = concatenate_datasets([dataset, scores.read(role)], axis=1)
        return dataset

    def _choose_backend(self) -> Choice:
        """Compares the forest's log-probs of a few rows with the model's own, and says so."""
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        add_edge_head(base, self._edge_logps)
        wanted = self.args.forest_backend
        if self.args.neftune_noise_alpha is not None:
            # TRL's noise: as many draws as there are slots, scaled by the width they are padded to.
            choice = Choice(
                PADDED, "padded rows, because NEFTune's noise is scaled by a row's length", None
            )
        elif self.args.torch_compile:
            choice = Choice(
                PADDED, "padded rows, because torch.compile wants the same shapes again", None
            )
        elif is_zero3(self.accelerator):
            choice = Choice(
                PADDED, "padded rows, because ZeRO-3's shards cannot be checked beforehand", None
            )
        else:
            rows = self.kind.in_order([self.kind.unit(row) for row in self._check_rows()])
            with self.accelerator.autocast():
                choice = choose_backend(self.model, rows, None if wanted == "auto" else wanted)
            # One for all ranks: another layout is another number of passes.
            if any(name != choice.backend.name for name in gather_object([choice.backend.name])):
                choice = Choice(
                    PADDED, "padded rows, because another rank refused the forest", None
                )
        if wanted not in ("auto", choice.backend.name):
            raise RecipeError(
                f"forest_backend is {wanted}, and here log-probs are computed by {choice.reason}. "
                "Take forest_backend out, or what stands against it."
            )
        level = logging.WARNING if choice.backend is PADDED and wanted == "auto" else logging.INFO
        logger.log(level, "Log-probs are computed by %s.", choice.reason)
        return choice

    def _randomness(self) -> str:
        if not self.args.disable_dropout:
            return "and disable_dropout is False, which leaves dropout on: set it to True"
        return "such as dropout outside nn.Dropout; set it to 0 in the model's config"

    def _check_rows(self) -> list[dict[str, Any]]:
        """A few short rows, with prompts long enough to be shared where there are any."""
        rows: list[Any] = list(self.train_dataset.take(CHECK_AMONG))
        rows.sort(key=lambda row: (len(row["prompt_ids"]) < SHORTEST_SHARED, self.kind.read(row)))
        return rows[:CHECK_ROWS]

    @property
    def _edge_logps(self) -> EdgeLogps:
        on_triton_or_sharded = self.accelerator.device.type == "cuda" or self.is_deepspeed_enabled
        return trl_edge_logps if on_triton_or_sharded else edge_logps

    @torch.no_grad()
    def _score(self, role: str, model: Any, dataset: Dataset) -> tuple[list[Any], ...]:
        """Per-token log-probs [nats] of every row, float32, in the columns that `scores` names.

        Each rank scores a share of the rows; all ranks return all of them, in the data set's order.
        """
        if model is not self.model:
            model = self._ready(model)
        kind = self.scored_kind
        keys: list[Any] = [
            # Neighbours share a prompt in a forest, and a length where rows are padded.
            kind.longest(row) if self.backend.backend is PADDED else list(row["prompt_ids"])
            for row in kind.id_rows(dataset)
        ]
        order = sorted(range(len(keys)), key=lambda i: (keys[i], i))
        # As many for every rank, so that all of them run the same passes; repeats count once.
        everyone: Any = self.accelerator
        order += order[:1] * (-len(order) % everyone.num_processes)
        share = order[everyone.process_index :: everyone.num_processes]
        size = self.args.precompute_ref_batch_size or self.args.per_device_eval_batch_size
        was_training = model.training
        model.eval()
        found: list[tuple[int, tuple[Any, ...]]] = []
        try:
            with progress(f"score {role}", len(share), f"{kind.noun}s") as advance:
                for begin in range(0, len(share), size):
                    indices = share[begin : begin + size]
                    rows = [dataset[i] for i in indices]
                    found += [(indices[at], cells) for at, cells in self._scored(model, rows)]
                    advance(len(rows), tokens=sum(kind.read(row) for row in rows))
        finally:
            model.train(was_training)
        everywhere: Any = gather_object(found) if everyone.num_processes > 1 else found
        once: dict[int, tuple[Any, ...]] = dict(everywhere)
        columns = range(len(kind.scores.stored))
        return tuple([once[i][column] for i in range(len(keys))] for column in columns)

    def _scored(self, model: Any, rows: list[Any]) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Place among `rows`, and what is kept of that row, in the passes' order."""
        kind = self.scored_kind
        prepared: Any = self._prepare_inputs({"parts": self._layout.parts(rows, kind)})
        parts = prepared["parts"]
        sharded = shards_weights(self.accelerator)
        for number, part in enumerate(same_number(self.accelerator, parts) if sharded else parts):
            logps, _ = self._logps(model, part)
            if number >= len(parts):
                continue
            cells = kind.cells(logps, part["sizes"].tolist())
            yield from zip(part["place"].tolist(), cells, strict=True)

    def _probe(self) -> dict[str, float] | None:
        """Step 0: a reference that is the start policy must differ by 0 and give loss log 2.

        The policy is scored twice on the same rows in the same layout, once as the roles were and
        once as the training step does it; a difference is dropout, or a model that changes under
        our hands. The stored scores are then compared with the fresh ones up to rounding, since
        they come from another padding. A reference that is asked in each pass has no stored scores;
        its distributions are compared with the policy's, from which they must not diverge.

        Returns:
            What the kind of row says is compared, such as `margin` [nats, largest magnitude],
            `loss` [nats], and `divergence` [nats, largest magnitude of a token] where the objective
            reads it; None when the reference is another policy.

        Raises:
            NumericalError: naming which of the comparisons failed.
        """
        reference = self.identities.get("reference")
        if reference is None or reference.key != self._start.key:
            return None
        rows = [self.train_dataset[i] for i in range(min(PROBE_ROWS, len(self.train_dataset)))]
        batch: Any = self._prepare_inputs(self.data_collator(rows))
        (part,) = batch["parts"]
        was_training = self.model.training
        try:
            with torch.no_grad():
                frozen, _ = self._logps(self.model.eval(), part)
                trained, _ = self._logps(self.model.train(), part)
        finally:
            self.model.train(was_training)
        h = self.kind.gap(trained, frozen)
        gap, loss = float(h.abs().max()), float(softplus(-h).mean())
        if not (gap <= PROBE_TOLERANCE and abs(loss - math.log(2)) <= PROBE_TOLERANCE):
            raise NumericalError(
                f"Step 0: policy and reference are the same model, yet the {self.kind.compared} on "
                f"{len(rows)} rows is {gap:.3g} nats (must be 0) and the DPO loss {loss:.7f} "
                f"(must be log 2 = {math.log(2):.7f}). Something random or stateful is active in "
                f"the forward pass, {self._randomness()}."
            )
        if self._is_compared("reference"):
            return {self.kind.compared: gap, "loss": loss, "divergence": self._probe_of(part)}
        tolerance = SCORE_TOLERANCE.get(self.model.dtype)
        if self.accelerator.mixed_precision != "no":
            tolerance = None
        stored = self.kind.stored("reference", part, frozen)
        pairs = zip(self.kind.sides(stored), self.kind.sides(frozen), strict=True)
        for name, (kept, fresh) in zip(self.kind.scores.stored, pairs, strict=True):
            gaps = (kept.token - fresh.token)[fresh.mask]
            if tolerance is None:
                most_of, of = float(gaps.square().mean().sqrt()), "a token (RMS)"
                most = SCORE_TOLERANCE_LOW_PRECISION
            else:
                most_of, most, of = float(gaps.abs().max()), tolerance, "on one token"
            if not most_of <= most:
                raise NumericalError(
                    f"Step 0: the stored reference log-probs ({name}) differ from the start "
                    f"policy's by {most_of:.3g} nats {of} (rounding explains {most:g}). "
                    f"Delete {cache_root() / 'roles'} and run again."
                )
        return {self.kind.compared: gap, "loss": loss}

    def _probe_of(self, part: Any) -> float:
        """How far the policy is from itself, as the reference's distributions are asked for."""
        was_training = self.model.training
        try:
            with torch.no_grad():
                policy, _, _ = self._read(self.model.eval(), part)
        finally:
            self.model.train(was_training)
        found = [side.divergence for side in self.kind.sides(policy)]
        most = max(float(far.abs().max()) for far in found if far is not None)
        if not most <= PROBE_TOLERANCE:
            raise NumericalError(
                "Step 0: policy and reference are the same model, yet the divergence of their "
                f"distributions is {most:.3g} nats at one token (must be 0). Their weights or "
                "heads are not the same in memory: pass the model as a folder, or report it."
            )
        return most
