"""On-policy alignment as a stage: the policy learns what the expert wrote, before the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from align.errors import RecipeError
from align.loops.artefacts import read_lines
from align.loops.stage import Stage, StageContext, StageNode
from align.node import own_code
from align.stages.policies import load_round_policy, save_policy
from align.stages.workshop import Workshop
from align_data.expert_correction.alignment import Response, align_on_policy
from align_data.expert_correction.settings import OnPolicyAlignmentSettings


class OnPolicyAlignment(OnPolicyAlignmentSettings, StageNode):
    """The policy learns the ground truths and revisions first, so that they become its own.

    Fine-tuning with LoRA; the pairs are then trained on with the result as policy and reference.
    """

    run: Literal["on_policy_alignment"] = "on_policy_alignment"
    """Which stage."""
    trains: ClassVar[bool] = True

    def stage(self, workshop: Workshop) -> Stage:
        if workshop.recipe.model.use_peft or self.save == "adapter":
            raise RecipeError(
                "each_round: on_policy_alignment leaves a whole policy, its adapter merged, on "
                "which the train stage goes on; write `save: merged` and train all weights "
                "(`model.use_peft: false`)."
            )
        return AlignmentStage(workshop, self)


@dataclass
class AlignmentStage:
    """Fine-tunes the policy on ground truths and revisions (Yang et al. 2025, arXiv 2501.09695)."""

    workshop: Workshop
    node: OnPolicyAlignment
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("records", "policy"), init=False)
    writes: tuple[str, ...] = field(default=("policy",), init=False)

    @property
    def name(self) -> str:
        """As the recipe calls it."""
        return self.node.run

    def settings(self) -> Mapping[str, Any]:
        """The node, and how weights are loaded."""
        node = self.node.model_dump(mode="json", exclude={"run", "batch_rows"})
        code = own_code(self.node)
        return node | {"model": self.workshop.model_settings} | ({"code": code} if code else {})

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes the policy that is trained on the round's pairs."""
        responses = [
            Response.model_validate(one)
            for row in read_lines(context.input("records"))
            for one in row["record"].get("responses", ())
        ]
        workshop = self.workshop
        model = context.take("policy")
        if model is None:
            model = load_round_policy(
                workshop.recipe, context.input("policy"), workshop.start, trainable=True
            )
        folder = context.output("policy")
        found = align_on_policy(
            model, workshop.tokenizer, responses, self.node, seed=context.seed, folder=folder
        )
        aligned = load_round_policy(workshop.recipe, folder, workshop.start, trainable=True)
        save_policy(aligned, workshop.tokenizer, folder)
        context.keep("policy", aligned)
        said = asdict(found)
        losses = said.pop("losses")
        dropped = Counter(row.reason for row in found.dropped)
        return said | {
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "dropped": dict(sorted(dropped.items())),
        }
