"""The filter of reliable pairs as a stage: an estimator, candidates, and the choice over them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from pydantic import Field

from align.data.built import Built
from align.data.completions import JudgedPrompt
from align.data.messages import prompt_id
from align.data.pair_files import read_pairs
from align.data.pairs import PreferencePair
from align.data.records import Record, content_id
from align.data.row_policy import RowPolicy
from align.errors import RecipeError
from align.judges.base import Asked, Bench
from align.loops.artefacts import read_lines
from align.loops.stage import Stage, StageContext
from align.node import Conflict
from align.policies.loading import load_config
from align.policies.model import Model
from align.recipe import DataRecipe, Recipe
from align.reference import content_digest
from align.registry import WORLD
from align.runs.manifest import damage, publish
from align.stages.policies import load_round_policy
from align.stages.prompts import PromptSource
from align.stages.workshop import Workshop, start_content
from align.worlds import world
from align_data.site import Site, source_of
from align_data.stage import PipelineNode, PipelineStage, candidates
from align_data.uncertainty.files import make_estimator, open_estimator
from align_data.uncertainty.finish import finish
from align_data.uncertainty.report import findings, warnings
from align_data.uncertainty.settings import UncertaintySettings
from align_data.uncertainty.work import UncertaintyWork
from align_data.uncertainty.world import FlippedJudge

logger = logging.getLogger("align")

SUMS = "world:sums"
ROUND_START = "round_start"


class Uncertainty(UncertaintySettings, PipelineNode):
    """Completions of the generate stage, or what a judge stage says of them, filtered."""

    run: Literal["uncertainty"] = "uncertainty"
    """Which stage."""
    labelled: str | None = Field(default=None, min_length=1)
    """Pairs whose labels are trusted, on which the estimator is trained: a file, folder, Hub id, or
    world:sums, whose exact judge labels samples of the start policy."""
    labelled_problems: int = Field(default=512, ge=2)
    """Problems of a world that are sampled and labelled."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        is_trained = self.estimator.path is None
        if is_trained and self.labelled is None:
            yield "labelled", "is missing; the estimator learns from pairs with trusted labels"
        if self.replay > 0 and self.labelled is None:
            yield "replay", "there are no labelled pairs; write `labelled: <file>`"
        if self.labelled is not None and not is_trained and self.replay == 0:
            yield "labelled", "nothing reads it beside estimator.path; take one of the two out"
        if (self.labelled or "").startswith(WORLD) and self.labelled != SUMS:
            yield "labelled", f"no labelled pairs of {self.labelled}; write {SUMS} or a file"

    @property
    def reads(self) -> tuple[str, ...]:
        """What is filtered, and the policy where the estimator begins with its weights."""
        rows = "judged" if self.rewards is None else "completions"
        return (rows, "policy") if self.estimator.backbone == ROUND_START else (rows,)

    def keyed(self) -> dict[str, Any]:
        found = super().keyed()
        del found["estimator"]["batch_rows"]
        return found

    def stage(self, workshop: Workshop) -> Stage:
        prompts = source_of(workshop.recipe)
        if self.rewards is not None and self.rewards.judge.answers(prompts) != "scores":
            raise RecipeError(
                f"uncertainty: rewards.by is {self.rewards.by}, which compares two responses to "
                f"the prompts of {prompts}; name a judge that scores one."
            )
        return FilteringStage(workshop, self)

    def look_ahead(self, workshop: Workshop) -> None:
        """The labelled pairs, the estimator's folder and backbone, and what the judge names.

        Raises:
            DataError: the labelled pairs cannot be read.
            RecipeError: the estimator is not there, or the judge's model.
        """
        if self.rewards is not None:
            self.rewards.judge.look()
        estimator = self.estimator
        if estimator.path is not None and not Path(estimator.path).is_dir():
            raise RecipeError(
                f"estimator.path: there is no folder {estimator.path!r}. Write the folder of a "
                "trained estimator, or take it out and name `labelled` pairs to train one."
            )
        if estimator.path is None and estimator.backbone not in ("start", ROUND_START):
            name, _, revision = estimator.backbone.partition("@")
            load_config(Model(model_name_or_path=name, model_revision=revision or "main"), name)
        if self.labelled is not None and not self.labelled.startswith(WORLD):
            self.read_labelled(self.labelled, workshop.recipe.data)

    @staticmethod
    def read_labelled(named: str, policy: RowPolicy) -> Sequence[PreferencePair]:
        """The pairs whose labels are trusted, of a file, a folder or the Hub."""
        pairs, report = read_pairs(named, policy=policy)
        report.check(policy.max_dropped)
        return pairs

    def content(self) -> dict[str, Any]:
        """Digests of what the node names."""
        named = {"labelled": self.labelled, "estimator": self.estimator.path}
        if self.estimator.backbone not in ("start", ROUND_START):
            named["backbone"] = self.estimator.backbone
        found: dict[str, Any] = {
            key: content_digest(name) for key, name in named.items() if name is not None
        }
        if self.rewards is not None and (of_judge := self.rewards.judge.content()):
            found["rewards"] = of_judge
        return found

    def backbone(self, start: str, policy: Path) -> str:
        """Whose weights the estimator begins with.

        Args:
            start: the policy that the loop began with.
            policy: folder of the newest one.

        Raises:
            RecipeError: the newest one is an adapter.
        """
        named = self.estimator.backbone
        if named == "start":
            return start
        if named != ROUND_START:
            return named
        if (policy / "adapter_config.json").is_file():
            raise RecipeError(
                "estimator.backbone: round_start is an adapter here, and the estimator needs whole "
                "weights; write `start`, or train all weights (`model.use_peft: false`)."
            )
        return str(policy)

    def folder(self, loop: Path, backbone: str) -> Path:
        """Where the estimator lies; rounds that would make the same one share it."""
        given = self.estimator.path
        if given is not None:
            return Path(given)
        settings = self.estimator.model_dump(mode="json", exclude={"batch_rows"})
        parts = [settings, content_digest(backbone), self.labelled]
        about = {"content": self.content()}
        return loop / "estimators" / content_id(parts, about, self.labelled_problems)

    def work(self, site: Site, stack: ExitStack) -> UncertaintyWork:
        backbone = self.backbone(site.start, site.policy)
        estimator = open_estimator(
            self.estimator,
            backbone,
            self.folder(site.loop, backbone),
            seed=site.seed,
            device=_device(),
        )
        return UncertaintyWork(
            self,
            estimator,
            self._judge(site, stack),
            seed=site.seed,
            config_hash=self.config_hash,
            round=site.round,
        )

    def _judge(self, site: Site, stack: ExitStack) -> Any | None:
        rewards = self.rewards
        if rewards is None:
            return None
        bench = Bench(site.loop, site.prompts, start=site.start)
        if rewards.judge.reads_columns:
            bench = replace(bench, row_of=_rows(site.recipe, site.round))
        judge: Any = stack.enter_context(rewards.judge.open(bench))
        if rewards.flips:
            return FlippedJudge(judge, flips=rewards.flips, seed=site.seed)
        return judge


@dataclass
class FilteringStage(PipelineStage[Uncertainty]):
    """Every chunk is estimated; which pairs are reliable depends on all of them."""

    def units(self, context: StageContext) -> Sequence[Record]:
        """Judged prompts, or prompts with responses; the estimator is made first."""
        self._make_estimator(context)
        if self.node.rewards is None:
            return [JudgedPrompt.model_validate(row) for row in read_lines(context.input("judged"))]
        return candidates(context)

    def identity(self) -> Mapping[str, Any]:
        """The content of what the node names, and the columns that its judge reads."""
        node = self.node
        found: dict[str, Any] = {"content": node.content()}
        recipe = self.workshop.recipe
        if node.rewards is not None and node.rewards.judge.reads_start:
            found["start"] = start_content(self.workshop)
        if node.rewards is None or not node.rewards.judge.reads_columns or recipe.prompts is None:
            return found
        return found | {"columns": PromptSource(recipe.prompts, recipe.data).columns_digest()}

    def finish(self, built: Sequence[Built], context: StageContext) -> list[Built]:
        """The reliable ones of all candidate pairs."""
        for text in warnings(findings(built)):
            logger.warning("uncertainty: %s", text)
        return finish(
            built,
            self.node,
            seed=context.seed,
            config_hash=self.node.config_hash,
            labelled=self._labelled() if self.node.replay > 0 else (),
            round=context.round,
        )

    def _make_estimator(self, context: StageContext) -> None:
        policy = context.inputs["policy"].path if "policy" in context.inputs else Path()
        backbone = self.node.backbone(self.workshop.start, policy)
        folder = self.node.folder(context.loop, backbone)
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
        logger.info("%s", found)

    def _labelled(self) -> Sequence[PreferencePair]:
        named = self.node.labelled
        assert named is not None, "conflicts() refuses it"
        if named.startswith(WORLD):
            return self._labelled_by(named)
        return self.node.read_labelled(named, self.workshop.recipe.data)

    def _labelled_by(self, named: str) -> Sequence[PreferencePair]:
        """Answers of the start policy to problems of a world, which knows the right ones."""
        workshop = self.workshop
        start = load_round_policy(
            workshop.recipe, Path(workshop.start), workshop.start, trainable=False
        )
        made = world(named).sample_pairs(
            start,
            workshop.tokenizer,
            problems=self.node.labelled_problems,
            samples_per_problem=4,
            temperature=1.0,
            seed=self.node.estimator.seed,
        )
        return made.pairs


def _rows(recipe: Recipe | DataRecipe, number: int) -> Callable[[str], Asked | None]:
    """The rows of a round's prompts, for judges that read their columns."""
    assert recipe.prompts is not None, "recipes whose stages ask prompts have some"
    prompts = PromptSource(recipe.prompts, recipe.data)
    columns = prompts.columns()
    rows = {
        prompt_id(prompt.prompt): Asked(
            prompt.source, prompt.row, columns.get((prompt.source, prompt.row), {})
        )
        for prompt in prompts.of_round(number)
    }
    return rows.get


def _device() -> str:
    return str(PartialState().device)
