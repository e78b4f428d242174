# pyright: basic
"""Roles that are asked batch by batch: for streams, for a reference that is renewed, and for one
whose whole distributions an objective compares with the policy's.

Everything else is scored once, before training, by `scoring`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl.trainer.callbacks import SyncRefModelCallback

from align.errors import MachineError, RecipeError
from align.forest.lm_head import Predictions, head_of, kept
from align.forest.model import EdgeOutput
from align.reference import START, Identity
from align.trainers.row_kind import RowKind
from align.trainers.scoring import RoleScoring


class LiveRoles(RoleScoring):
    """The part of the trainer that asks a role for the batch in hand."""

    def _frozen_logps(self, part: Mapping[str, Any], kind: RowKind[Any]) -> dict[str, Any]:
        """Each role's log-probs of a part whose rows do not carry them.

        Args:
            part: of a batch.
            kind: what its rows were read as.
        """
        return self._frozen_answers(part, kind)[0]

    def _frozen_answers(
        self, part: Mapping[str, Any], kind: RowKind[Any]
    ) -> tuple[dict[str, Any], Predictions | None]:
        """`_frozen_logps`, and what the role predicts whose distributions are compared."""
        found: dict[str, Any] = {}
        predictions: Predictions | None = None
        for role in self._sources:
            compared = self._is_compared(role)
            if kind.scores.of(role)[0] in part and not compared:
                continue
            with self._answering(role) as model:
                was_training = model.training
                model.eval()
                try:
                    with torch.no_grad():
                        found[role], output = self._logps(model, part, hidden=compared)
                finally:
                    model.train(was_training)
                if compared and output.hidden is not None:
                    base = model.get_base_model() if is_peft_model(model) else model
                    predictions = Predictions(output.hidden, kept(head_of(base)))
                if model is not self.model:
                    # Gathered weights would not follow a reference that is renewed.
                    self._forget_gathered(model)
        return found, predictions

    def _read(
        self,
        model: Any,
        part: Mapping[str, Any],
        *,
        statistics: bool = False,
    ) -> tuple[Any, EdgeOutput, dict[str, Any]]:
        asked, predictions = self._frozen_answers(part, self.kind)
        policy, output = self._logps(
            model,
            part,
            statistics=statistics,
            collision="collision" in self.objective.vocabulary,
            reference=predictions,
        )
        return policy, output, asked

    def _check_vocabulary(self) -> None:
        """Refuses launches, settings and formulas with which whole vocabularies cannot be had.

        Raises:
            MachineError: weights are sharded.
            RecipeError: a setting says that the reference is gone, or the formula has none.
        """
        read = ", ".join(sorted(self.objective.vocabulary))
        told = f"Objective {self.objective.name} needs {read} over the whole vocabulary"
        compares = self._is_compared("reference")
        if compares and "reference" not in self._sources:
            raise RecipeError(f"{told}, which is from the reference: `needs` must name it, too.")
        if read and (self.is_deepspeed_enabled or (compares and self.is_fsdp_enabled)):
            raise MachineError(
                f"{told}, which takes whole weights on every rank, and this launch shards them "
                "(DeepSpeed or FSDP). Launch it on replicated weights, for example with an adapter."
            )
        if compares and self.args.precompute_ref_log_probs:
            raise RecipeError(
                f"precompute_ref_log_probs=True: {told}, which the reference is asked for in each "
                "pass; log-probs of the written tokens do not say it. Leave it out."
            )

    def _keep_reference(self) -> None:
        """Has a reference in memory, for an objective that compares distributions.

        Beside an adapter it is the policy with the adapter as it was. To be called before the
        policy reads packs, so that a copy of it has its own forward pass.

        Raises:
            RecipeError: it is an adapter on the policy's own base.
        """
        source = self._sources["reference"]
        if not (isinstance(source, str) and source == START):
            self._live["reference"], self._compared = self._second_model("reference", source)
        elif not is_peft_model(self.model):
            copied = copy.deepcopy(self.model)
            self._live["reference"] = self._ready(copied.requires_grad_(False).eval())

    def _second_model(self, role: str, source: Any) -> tuple[Any, Identity]:
        """A role's own model, to be asked batch by batch, and who it is.

        Raises:
            RecipeError: it is an adapter on the policy's own base.
        """
        with self._role(role, source) as (model, identity):
            if model is self.model:
                raise RecipeError(
                    f"roles.{role} is an adapter on the policy's own base, which cannot be asked "
                    "batch by batch, as streams and objectives that compare whole distributions "
                    "do it. Merge it into a folder of its own, or use a map-style data set and "
                    "another objective."
                )
            return self._ready(model), identity

    @contextlib.contextmanager
    def _answering(self, role: str) -> Iterator[Any]:
        source = self._sources[role]
        if role not in self._live and isinstance(source, str) and source == START:
            # Not for a second `train()`, which begins at step 0 with weights that were trained.
            if self.state.global_step == 0 and not self._is_compared(role):
                yield self.model
                return
            if self._adapter_at_start:
                with self._as_started(role) as model:
                    yield model
                return
        if role not in self._live:
            self._live[role], _ = self._second_model(role, source)
        yield self._live[role]

    def _of_reference(self, model: Any, inputs: Mapping[str, Any], name: str) -> Iterator[Any]:
        """Each pass of a batch with its log-probs under a frozen model.

        Args:
            model: the policy itself stands for the reference as it was before training where an
                adapter is trained, as in TRL.
            inputs: a batch of this trainer's own collator.
            name: of the list of passes in it.

        Raises:
            RecipeError: the batch is another collator's, or `ld_alpha` is set.
        """
        if "parts" not in inputs:
            raise RecipeError(
                "compute_ref_log_probs: inputs is no batch of this trainer's collator; make one "
                "with `trainer.data_collator(rows)` or from `trainer.get_train_dataloader()`."
            )
        if self.args.ld_alpha is not None:
            raise RecipeError(
                "compute_ref_log_probs: TRL's sums depend on ld_alpha; here that weight is the "
                "objective's, and a reference has none. Take the sums without ld_alpha."
            )
        prepared: Any = self._prepare_inputs(dict(inputs))
        asked = self.accelerator.unwrap_model(model)
        of_adapter = asked is self.model and is_peft_model(self.model)
        with self._as_before(asked) if of_adapter else contextlib.nullcontext(asked) as frozen:
            if not of_adapter and asked is not self.model:
                self._ready(frozen)
            was_training = frozen.training
            frozen.eval()
            try:
                for part in prepared[name]:
                    with torch.no_grad():
                        logps, _ = self._logps(frozen, part)
                    yield part, logps
            finally:
                frozen.train(was_training)

    def _as_before(self, model: Any) -> contextlib.AbstractContextManager[Any]:
        if self.state.global_step == 0:
            return contextlib.nullcontext(model)
        return self._as_started("reference")

    def _renew_reference(self) -> None:
        """Makes `reference` a model of its own that follows the policy, as TRL's callback does it.

        Raises:
            RecipeError: an adapter is trained, or the start policy is nowhere to be read.
        """
        if is_peft_model(self.model):
            raise RecipeError(
                "sync_ref_model=True needs a policy that is trained whole: beside an adapter no "
                "second model is kept. Use sync_ref_model=False."
            )
        if self.args.precompute_ref_log_probs:
            raise RecipeError(
                "sync_ref_model=True and precompute_ref_log_probs=True contradict each other: a "
                "reference that is renewed cannot be scored beforehand. Keep one of them."
            )
        if "reference" not in self._sources:
            raise RecipeError(
                f"sync_ref_model=True: objective {self.objective.name} has no reference to renew."
            )
        source = self._sources["reference"]
        if isinstance(source, str) and source == START:
            with self._as_started("reference") as model:
                self._live["reference"] = self._ready(model)
        else:
            with self._role("reference", source) as (model, _):
                self._live["reference"] = self._ready(model)
        self.ref_model = self._live["reference"]
        # TRL's own was given the config that stands for a reference while it builds itself.
        self.remove_callback(SyncRefModelCallback)
        self.add_callback(
            SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator)
        )
