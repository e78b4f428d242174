# pyright: basic
"""On-policy alignment as a stage: the policy learns what the expert wrote, before the pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from align.commands.artefacts import read_lines
from align.commands.policies import load_round_policy, save_policy
from align.errors import RecipeError
from align.loops.stage import StageContext
from align.recipe.pipelines.expert_correction import OnPolicyAlignment


@dataclass
class AlignmentStage:
    """Fine-tunes the policy on ground truths and revisions (Yang et al. 2025, arXiv 2501.09695)."""

    workshop: Any
    node: OnPolicyAlignment
    name: str = field(default="on_policy_alignment", init=False)
    version: int = field(default=1, init=False)
    reads: tuple[str, ...] = field(default=("records", "policy"), init=False)
    writes: tuple[str, ...] = field(default=("policy",), init=False)

    def __post_init__(self) -> None:
        if self.workshop.recipe.model.use_peft or self.node.save == "adapter":
            raise RecipeError(
                "each_round: on_policy_alignment leaves a whole policy, its adapter merged, on "
                "which the train stage goes on; write `save: merged` and train all weights "
                "(`model.use_peft: false`)."
            )

    def settings(self) -> Mapping[str, Any]:
        """The node, and how weights are loaded."""
        node = self.node.model_dump(mode="json", exclude={"run", "batch_rows"})
        return node | {"model": self.workshop.model_settings}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes the policy that is trained on the round's pairs."""
        from data_pipelines.expert_correction.alignment import Response, align_on_policy

        responses = [
            Response.model_validate(one)
            for row in read_lines(context.input("records"))
            for one in row["record"].get("responses", ())
        ]
        model = context.take("policy")
        if model is None:
            model = load_round_policy(
                self.workshop.recipe, context.input("policy"), self.workshop.start, trainable=True
            )
        folder = context.output("policy")
        found = align_on_policy(
            model,
            self.workshop.tokenizer,
            responses,
            self.node,
            seed=context.seed,
            folder=folder,
        )
        aligned = load_round_policy(
            self.workshop.recipe, folder, self.workshop.start, trainable=True
        )
        save_policy(aligned, self.workshop.tokenizer, folder)
        context.keep("policy", aligned)
        said = asdict(found)
        losses = said.pop("losses")
        dropped = Counter(row.reason for row in found.dropped)
        return said | {
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "dropped": dict(sorted(dropped.items())),
        }
