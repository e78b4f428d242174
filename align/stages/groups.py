"""The groups that a recipe trains on: read or sampled, tokenised, some held out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from align.data.completions import Completion
from align.data.group_files import read_groups
from align.data.group_scores import with_columns_of_scores
from align.data.groups import CompletionGroup
from align.data.problems import DroppedRow, RowProblem
from align.data.row_report import RowReport
from align.errors import DataError, MachineError, RecipeError
from align.judges.base import Answer
from align.judges.matrix import Contest, every_pair, preference_matrices, win_rates
from align.policies import in_process
from align.policies.base import Sampling
from align.policies.in_process import InProcessPolicy
from align.policies.loading import load_policy
from align.recipe import Data, Recipe
from align.reference import tokenizer_digest, weights_digest
from align.registry import WORLD
from align.runs.cache import cached_folder, made_by
from align.stages.pairs import split_off
from align.tokens.groups import TokenizedGroup, encode_groups
from align.worlds import world
from align.worlds.base import World

logger = logging.getLogger("align")

FILE = "groups.jsonl"
GATHERED = "gathered_by_prompt"


@dataclass(frozen=True)
class Groups:
    """Tokenised groups of a recipe, and the count of every row that was read."""

    train: list[TokenizedGroup]
    held_out: list[TokenizedGroup]
    report: RowReport

    def counts(self) -> dict[str, Any]:
        """Rows read, kept, dropped by reason; groups trained on and held out, and completions."""
        stored = self.report.to_json()
        return {
            "read": stored["read"],
            "kept": stored["kept"],
            "dropped": stored["dropped"],
            "notes": stored["notes"],
            "train": len(self.train),
            "held_out": len(self.held_out),
            "completions": sum(len(row.completions_ids) for row in self.train),
        }


def read_recipe_groups(recipe: Recipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Groups:
    """Reads, or samples, the recipe's groups, tokenises them and holds some out.

    Rows of one completion each become one group per prompt (and `group_id`), in the order in which
    prompts are first seen, unless the objective looks at the row before each row.

    Args:
        recipe: its `data` section and its objective.
        folder: of the start policy, from which a world samples.
        tokenizer: the start policy's.

    Raises:
        DataError: rows that cannot be read, or too many that cannot be used.
        RecipeError: the model reads pictures, or the world has no groups.
    """
    data = recipe.data
    assert data.groups is not None
    if hasattr(tokenizer, "image_processor"):
        raise RecipeError(
            "model.model_name_or_path reads pictures, and groups of completions are of text: "
            "choose a model of text, or an objective over pairs."
        )
    source = data.groups
    if source.startswith(WORLD):
        source = str(_sampled(recipe, folder, tokenizer))
    try:
        groups, report = read_groups(
            source, split=data.split, revision=data.revision, columns=data.columns, policy=data
        )
        groups = _first_of(groups, report, data.limit)
        if "mismatched" not in recipe.objective.needs | recipe.objective.accepts:
            groups = gathered(groups, report)
        rows = encode_groups(_derived(groups, data, report), tokenizer, data, report)
    except (DataError, MachineError) as error:
        raise type(error)(str(error).replace("data.pairs", "data.groups")) from error
    prompts = [tuple(row.prompt_ids) for row in rows]
    return Groups(*split_off(rows, prompts, data, "groups"), report)


def _first_of(
    groups: list[CompletionGroup], report: RowReport, limit: int | None
) -> list[CompletionGroup]:
    if limit is None or len(groups) <= limit:
        return groups
    beyond = len(groups) - limit
    report.read -= beyond
    report.kept -= beyond
    report.notes["beyond_limit"] = beyond
    return groups[:limit]


def _derived(
    groups: Sequence[CompletionGroup], data: Data, report: RowReport
) -> list[CompletionGroup]:
    """Groups with the labels and advantages that `data` makes of their scores."""
    made: list[CompletionGroup] = []
    for group in groups:
        try:
            made.append(with_columns_of_scores(group, data.label, data.advantage))
        except RowProblem as problem:
            report.drop_kept(DroppedRow.of(problem, group.source, group.row))
    report.check(data.max_dropped)
    return made


def gathered(groups: Sequence[CompletionGroup], report: RowReport) -> list[CompletionGroup]:
    """One group per prompt and `group_id` where every row is a single completion; else as they are.

    A column is kept where all rows of the prompt have it. The place is the first row's; the report
    counts the other rows as a note and no longer as read.
    """
    if any(len(group.completions) > 1 for group in groups):
        return list(groups)
    of_prompt: dict[tuple[Any, ...], list[CompletionGroup]] = {}
    for group in groups:
        of_prompt.setdefault((group.group_id, group.prompt), []).append(group)
    if more := len(groups) - len(of_prompt):
        report.read -= more
        report.kept -= more
        report.notes[GATHERED] = more
    return [_joined(rows) for rows in of_prompt.values()]


def _joined(rows: Sequence[CompletionGroup]) -> CompletionGroup:
    columns = ("scores", "labels", "advantages", "token_advantages", "token_weights")
    found: dict[str, Any] = {"completions": tuple(row.completions[0] for row in rows)}
    for name in columns:
        values = [getattr(row, name) for row in rows]
        found[name] = None if None in values else tuple(value[0] for value in values)
    if any(row.finished is not None for row in rows):
        found["finished"] = tuple(row.ends()[0] for row in rows)
    return rows[0].model_copy(update=found)


def _sampled(recipe: Recipe, folder: str, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A file of groups that the start policy itself made, sampled once for the same settings."""
    sample = recipe.data.sample
    assert sample is not None
    assert recipe.data.groups is not None
    of = world(recipe.data.groups)
    model = load_policy(recipe.model, folder)

    def build(target: Path) -> None:
        groups = sampled_groups(
            of,
            model,
            tokenizer,
            prompts=sample.prompts,
            completions=sample.completions,
            temperature=sample.temperature,
            seed=sample.seed,
        )
        lines = [
            group.model_dump_json(exclude={"source", "row"}, exclude_none=True) + "\n"
            for group in groups
        ]
        (target / FILE).write_text("".join(lines), encoding="utf-8")

    parts = {
        "policy": weights_digest(model),
        "tokenizer": tokenizer_digest(tokenizer),
        "sample": sample.model_dump(mode="json"),
        **made_by(inspect.getfile(type(of)), in_process.__file__, __file__),
    }
    return cached_folder(f"worlds/{of.name}-groups", parts, build) / FILE


def sampled_groups(
    of: World,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: int,
    completions: int,
    temperature: float,
    seed: int,
) -> list[CompletionGroup]:
    """A policy's own answers to a world's prompts, with the world's exact scores.

    Where the world compares, a score is the win rate against the prompt's other answers. An answer
    that does not end in time, or holds a special token, is left out and counted in the log; so is a
    prompt without an answer left (of a world that compares: with one).

    Raises:
        RecipeError: the world has no judge.
    """
    if of.judged_by is None:
        raise RecipeError(
            f"The world world:{of.name} has no groups of judged answers: name another world in "
            "data.groups, or give the rows as a file."
        )
    asked = of.prompts("train", prompts, seed=seed)
    sampling = Sampling(max_new_tokens=of.max_new_tokens, temperature=temperature)
    drawn = InProcessPolicy(model, tokenizer).generate(asked, completions, sampling, seed)
    # Their spelling would not give the tokens back.
    special = tuple(map(str, tokenizer.all_special_tokens))
    kept = [
        [
            a.completion
            for a in answers
            if isinstance(a, Completion) and not any(s in _written(a.completion) for s in special)
        ]
        for answers in drawn
    ]
    contests = [
        Contest(prompt.prompt, tuple(_written(text) for text in texts))
        for prompt, texts in zip(asked, kept, strict=True)
    ]
    groups = [
        CompletionGroup(
            prompt=prompt.prompt,
            completions=tuple(texts),
            scores=scores,
            group_id=prompt.group_id,
            source=prompt.source,
            row=prompt.row,
        )
        for prompt, texts, scores in zip(asked, kept, _exact_scores(of, contests), strict=True)
        if scores is not None
    ]
    left = sum(len(group.completions) for group in groups)
    logger.info(
        "Sampled from the start policy: %d answers to %d prompts of world:%s; %d not used.",
        left,
        len(groups),
        of.name,
        len(asked) * completions - left,
    )
    return groups


def _exact_scores(of: World, contests: Sequence[Contest]) -> list[tuple[float, ...] | None]:
    """One number per completion of each prompt; None where there is nothing to say."""
    judge: Any = of.judge()
    if of.judged_by == "comparisons":
        wanted = [every_pair(len(contest.completions)) for contest in contests]
        matrices = preference_matrices(judge, contests, wanted)
        rates = [win_rates(matrix.preferences) for matrix in matrices]
        return [None if not row or None in row else tuple(row) for row in rates]  # pyright: ignore[reportReturnType]
    items = [Answer(c.prompt, text, "") for c in contests for text in c.completions]
    found = iter(judge.score(items))
    scores = [[next(found) for _ in contest.completions] for contest in contests]
    return [
        tuple(row) if row and all(isinstance(score, float) for score in row) else None
        for row in scores
    ]


def _written(text: Any) -> str:
    return text if isinstance(text, str) else text[-1].content
