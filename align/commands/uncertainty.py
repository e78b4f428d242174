# pyright: basic
"""The filter of reliable pairs as a stage: estimator, units, and the choice over all of them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.commands.artefacts import content_digest, read_lines
from align.commands.judging import build_judge
from align.errors import RecipeError
from align.loops.stage import StageContext
from align.manifest import damage, publish
from align.recipe.pipeline_stages import FilterUncertain
from align.recipe.pipelines.uncertainty import Uncertainty
from align.recipe.stages import Judge
from align.records import JudgedPrompt, PreferencePair, content_id
from data_pipelines.chunks import Work
from data_pipelines.rows import Built

if TYPE_CHECKING:
    from align.commands.pipelines import Site

logger = logging.getLogger("align")

SUMS = "world:sums"
ROUND_START = "round_start"


@dataclass
class Filtering:
    """The parts of the stage.

    Attributes:
        workshop: recipe, start policy and tokenizer.
        node: of the recipe.
    """

    workshop: Any
    node: FilterUncertain

    @property
    def reads(self) -> tuple[str, ...]:
        """What is filtered, and the policy where the estimator begins with its weights."""
        rows = "judged" if self.node.rewards is None else "completions"
        return (rows, "policy") if self.node.estimator.backbone == ROUND_START else (rows,)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The content of what the node names."""
        node = self.node
        named = {"labelled": node.labelled, "estimator": node.estimator.path}
        if node.estimator.backbone not in ("start", ROUND_START):
            named["backbone"] = node.estimator.backbone
        if node.rewards is not None:
            named["rewards"] = node.rewards.path
        found = {key: content_digest(name) for key, name in named.items() if name is not None}
        return {"content": found}

    def units(self, context: StageContext) -> Sequence[Any]:
        """Judged prompts, or prompts with responses; the estimator is made first."""
        from align.commands.pipelines import candidates

        self._make_estimator(context)
        if self.node.rewards is None:
            return [JudgedPrompt.model_validate(row) for row in read_lines(context.input("judged"))]
        return candidates(context)

    def build(self, node: FilterUncertain, site: Site, stack: ExitStack) -> Work:
        """The pipeline's core."""
        from align.commands.pipelines import config_hash, core
        from data_pipelines.uncertainty.files import open_estimator
        from data_pipelines.uncertainty.work import UncertaintyWork

        settings = core(node, Uncertainty)
        backbone = self._backbone(site.policy)
        estimator = open_estimator(
            settings.estimator,
            backbone,
            self._folder(site.loop, backbone),
            seed=site.seed,
            device=_device(),
        )
        return UncertaintyWork(
            settings,
            estimator,
            self._judge(site, stack),
            seed=site.seed,
            config_hash=config_hash(settings),
            round=site.round,
        )

    def finish(self, built: Sequence[Built], context: StageContext) -> list[Built]:
        """The reliable ones of all candidate pairs."""
        from align.commands.pipelines import config_hash, core
        from data_pipelines.uncertainty.finish import finish
        from data_pipelines.uncertainty.report import findings, warnings

        settings = core(self.node, Uncertainty)
        for text in warnings(findings(built)):
            logger.warning("uncertainty: %s", text)
        labelled = self._labelled() if settings.replay > 0 else ()
        return finish(
            built,
            settings,
            seed=context.seed,
            config_hash=config_hash(settings),
            labelled=labelled,
            round=context.round,
        )

    def _judge(self, site: Site, stack: ExitStack) -> Any | None:
        rewards = self.node.rewards
        if rewards is None:
            return None
        judge = stack.enter_context(
            build_judge(
                Judge(by=rewards.by, path=rewards.path, pattern=rewards.pattern),
                self.workshop,
                site.loop,
            )
        )
        if rewards.flips:
            from data_pipelines.uncertainty.world import FlippedJudge

            return FlippedJudge(judge, flips=rewards.flips, seed=site.seed)
        return judge

    def _backbone(self, policy: Path) -> str:
        named = self.node.estimator.backbone
        if named == "start":
            return self.workshop.start
        if named != ROUND_START:
            return named
        if (policy / "adapter_config.json").is_file():
            raise RecipeError(
                "estimator.backbone: round_start is an adapter here, and the estimator needs whole "
                "weights; write `start`, or train all weights (`model.use_peft: false`)."
            )
        return str(policy)

    def _folder(self, loop: Path, backbone: str) -> Path:
        """Where the estimator lies; rounds that would make the same one share it."""
        given = self.node.estimator.path
        if given is not None:
            return Path(given)
        settings = self.node.estimator.model_dump(mode="json", exclude={"batch_rows"})
        parts = [settings, content_digest(backbone), self.node.labelled]
        return loop / "estimators" / content_id(parts, self.identity, self.node.labelled_problems)

    def _make_estimator(self, context: StageContext) -> None:
        from data_pipelines.uncertainty.files import make_estimator

        policy = context.inputs["policy"].path if "policy" in context.inputs else Path()
        backbone = self._backbone(policy)
        folder = self._folder(context.loop, backbone)
        if self.node.estimator.path is not None or (folder.is_dir() and damage(folder) is None):
            return
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        found = make_estimator(
            self.node.estimator,
            backbone,
            self._labelled(),
            partial,
            device=_device(),
            check=lambda: context.stop.check("the next step of the estimator"),
        )
        shutil.rmtree(folder, ignore_errors=True)
        publish(partial, folder, {"fit": found.to_json()})
        logger.info("Estimator: %s", json.dumps(found.to_json()))

    def _labelled(self) -> list[PreferencePair]:
        from data_pipelines.sources import read_pairs

        named = self.node.labelled
        assert named is not None, "conflicts() refuses it"
        if named == SUMS:
            return self._labelled_sums()
        data = self.workshop.recipe.data
        pairs, report = read_pairs(named, policy=data)
        report.check(data.max_dropped)
        return pairs

    def _labelled_sums(self) -> list[PreferencePair]:
        from align.commands.policies import load_round_policy
        from align.worlds.sums import Sums

        workshop = self.workshop
        start = load_round_policy(
            workshop.recipe, Path(workshop.start), workshop.start, trainable=False
        )
        return (
            Sums()
            .sample_pairs(
                start,
                workshop.tokenizer,
                problems=self.node.labelled_problems,
                samples_per_problem=4,
                seed=self.node.estimator.seed,
            )
            .pairs
        )


def _device() -> str:
    from accelerate import PartialState

    return str(PartialState().device)
