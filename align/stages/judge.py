"""A judge scores the completions or compares them: completions -> judged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias, cast

from pydantic import Field

from align.data.completions import JudgedPrompt
from align.data.curriculum import advantages, folded, learnability
from align.data.messages import Message, prompt_id
from align.data.records import content_id
from align.errors import DataError, RecipeError
from align.judges.base import Answer, Asked, Bench, JudgeFailed, JudgeNode
from align.judges.by import JudgedBy
from align.judges.matrix import Contest, Matrix, from_scores, preference_matrices, tournaments
from align.loops.artefacts import read_lines, write_lines
from align.loops.stage import StageContext, StageNode
from align.node import Conflict, own_code
from align.stages.prompts import CURRICULUM, PromptSource
from align.stages.rules import AllPairs, SelectRule, numbers_of, pairs_to_ask
from align.stages.select import Select, select_of
from align.stages.workshop import Workshop, start_content

# What rounds remember of a judge whose weights adapt themselves.
REWARD_WEIGHTS = "reward_weights"
# Comparisons that a judge is asked for.
Ask: TypeAlias = Literal["scores", "all_pairs", "tournament", "random_pair"]


class Judge(StageNode, JudgedBy):
    """A judge scores the completions or compares them."""

    run: Literal["judge"] = "judge"
    """Which stage."""
    by: Any
    """Who judges: world (exact), answers (a file of known ones), reward_model, preference_model
    (compares, in both orders), implicit (of a model trained by DPO), llm (asked pairwise), rewards
    (a weighted sum), instructions (checks of the row's own), or a function of one's own as
    file.py:function."""
    ask: Ask | None = None
    """What is asked: scores, all_pairs, tournament (11 for 8 completions), or random_pair, the
    comparison that the select stage draws; null takes what the judge and the select stage need."""
    score_scale: float | None = Field(default=None, gt=0)
    """P(a beats b) = sigmoid((score a - score b) / score_scale); null: the higher score surely."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Share of verdicts that may fail before the loop stops; what failed is asked again then."""

    @property
    def judge(self) -> JudgeNode:
        """The same value as the settings of its judge."""
        return cast("JudgeNode", self)

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        yield from super().conflicts()
        gives = self.judge.gives if isinstance(self, JudgeNode) else None
        if gives == "comparisons" and self.ask == "scores":
            yield (
                "ask",
                f"`by: {self.by}` compares; write all_pairs, tournament or random_pair",
            )
        if gives == "scores" and self.ask not in (None, "scores"):
            yield "ask", f"`by: {self.by}` scores each completion; write `ask: scores`"

    def look_ahead(self, workshop: Workshop) -> None:
        """What the judge names."""
        self.judge.look()

    def stage(self, workshop: Workshop) -> JudgeStage:
        """The stage; a judge that needs no model is tried at once."""
        return JudgeStage(workshop, self, select_of(workshop.nodes))


@dataclass
class JudgeStage:
    """A judge scores the completions or compares them."""

    workshop: Workshop
    node: Judge
    select: Select | None
    asked: Ask = field(init=False)
    name: str = field(default="judge", init=False)
    version: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        prompts = self.workshop.recipe.prompts
        assert prompts is not None
        self.prompts = PromptSource(prompts, self.workshop.recipe.data)
        self.asked = ask_for(self.node, self.select, prompts.source)
        if self.node.by in ("world", "answers"):
            # Soon built, and better refused now than after the first completions.
            with self.node.judge.open(Bench(Path(), prompts.source)):
                pass

    @property
    def states(self) -> tuple[str, ...]:
        """What a curriculum, and weights that adapt themselves, remember from round to round."""
        by_curriculum = self.prompts.section.curriculum is not None
        of_weights = (REWARD_WEIGHTS,) if self.node.judge.adapts else ()
        return (*((CURRICULUM,) if by_curriculum else ()), *of_weights)

    @property
    def reads(self) -> tuple[str, ...]:
        """The completions."""
        return ("completions", *self.states)

    @property
    def writes(self) -> tuple[str, ...]:
        """What was said of them."""
        return ("judged", *self.states)

    def settings(self) -> Mapping[str, Any]:
        """The node, with the content of what it names; and which comparisons are asked.

        Where the judge is served has no part: its name and revision say who it is.
        """
        node = self.node.model_dump(mode="json", exclude={"run", "max_failed", "server"})
        if node.get("adapt", "") is None:
            # Loops that were begun before there was this key keep their stages.
            del node["adapt"]
        server: Any = getattr(self.node, "server", None)
        if server is not None:
            node["server"] = [server.model, server.revision, dict(server.extra)]
        node |= self.node.judge.content()
        if code := own_code(self.node):
            node["code"] = code
        if self.node.by == "world" and self.prompts.code is not None:
            node["world"] = self.prompts.code
        if self.node.judge.reads_columns:
            node["columns"] = self.prompts.columns_digest()
        if self.node.judge.reads_start:
            node["start"] = start_content(self.workshop)
        drawn = self.select.rule_settings() if self.select is not None else None
        return node | {"ask": self.asked, "rule": drawn if self.asked == "random_pair" else None}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes one `JudgedPrompt` per line."""
        lines = list(read_lines(context.input("completions")))
        with self.node.judge.open(self._bench(context, lines)) as judge:
            judged = judge_prompts(judge, self.asked, self.node, self.select, lines, context.round)
            adapted: Any = judge if self.node.judge.adapts else None
        # The failures of the generate stage stand in front.
        unjudged = [
            failure
            for row, line in zip(judged, lines, strict=True)
            for failure in row.failures[len(line["failures"]) :]
        ]
        asked, lost = sum(row.calls for row in judged), len(unjudged)
        if lost > self.node.max_failed * asked:
            raise DataError(
                f"Round {context.round}: {lost} of {asked} judgements failed, more than "
                f"max_failed {self.node.max_failed:g}; the first: {unjudged[0]}. Answers that came "
                "are kept, so running the same command again asks only for the others."
            )
        write_lines(context.output("judged"), [row.model_dump(mode="json") for row in judged])
        learned = self._learned(context, lines, judged)
        if adapted is not None:
            context.remember(REWARD_WEIGHTS, adapted.state)
            learned |= adapted.told()
        return {
            "prompts": len(judged),
            "calls": asked,
            "failed": lost,
            **told_of(judged),
            **learned,
            "judge": judged[0].judge if judged else None,
        }

    def _learned(
        self,
        context: StageContext,
        lines: Sequence[Mapping[str, Any]],
        judged: Sequence[JudgedPrompt],
    ) -> dict[str, float]:
        """What is still learned from each source of the prompts, where a curriculum heeds it."""
        curriculum = self.prompts.section.curriculum
        if curriculum is None:
            return {}
        state = context.state(CURRICULUM)
        drawn: Counter[str] = Counter()
        found: defaultdict[str, list[float]] = defaultdict(list)
        for arm, line, row in zip(state["asked"], lines, judged, strict=True):
            drawn[arm] += len(line["completions"]) + len(line["failures"])
            unit = "win_rate" if row.scores is None else "score"
            found[arm] += advantages([x for x in numbers_of(row, unit) if x is not None])
        arms = folded(state["arms"], drawn, found, curriculum.window)
        context.remember(CURRICULUM, {"arms": arms})
        return {f"learnability_{name}": learnability(arm) for name, arm in arms.items()}

    def _bench(self, context: StageContext, lines: Sequence[Mapping[str, Any]]) -> Bench:
        reads_columns = self.node.judge.reads_columns
        columns = self.prompts.columns() if reads_columns else {}
        rows = {
            prompt_id(_prompt(line)): Asked(
                line["source"], line["row"], columns.get((line["source"], line["row"]), {})
            )
            for line in lines
        }
        source = self.prompts.section.source
        state = context.state(REWARD_WEIGHTS) if self.node.judge.adapts else None
        return Bench(context.loop, source, rows.get, self.workshop.start, state)


def told_of(judged: Sequence[JudgedPrompt]) -> dict[str, int | float]:
    """What a judge said of the policy's completions, for the ledger.

    `mean_score` over all scored samples, in the judge's units, and `greedy_score` over the
    likeliest answers where these were drawn; where it compared instead, `ties` among the pairs of
    completions that it compared.
    """
    placed = [
        (score, place == row.greedy)
        for row in judged
        for place, score in enumerate(row.scores or ())
        if score is not None
    ]
    scores = [score for score, is_greedy in placed if not is_greedy]
    likeliest = [score for score, is_greedy in placed if is_greedy]
    if scores:
        told = {"greedy_score": fmean(likeliest)} if likeliest else {}
        return {"scored": len(scores), "mean_score": fmean(scores), **told}
    known = [
        p
        for row in judged
        for i, of in enumerate(row.preferences or ())
        for p in of[i + 1 :]
        if p is not None
    ]
    return {"compared": len(known), "ties": sum(p == 0.5 for p in known)}


def ask_for(node: Judge, select: Select | None, source: str) -> Ask:
    """What the judge is asked: the node's word, else what judge and select stage need.

    Args:
        node: of the judge stage.
        select: of the select stage, where there is one.
        source: of the prompts; the judge of a world scores or compares as its world does.

    Raises:
        RecipeError: the judge cannot answer that, or the select stage cannot use the answer.
    """
    rule: Any = None if select is None else select.rule
    it_scores = node.judge.answers(source) == "scores"
    if node.ask is None:
        if it_scores:
            return "scores"
        return rule if rule == "tournament" or rule == "random_pair" else "all_pairs"
    if it_scores != (node.ask == "scores"):
        does = (
            "scores each completion; write `ask: scores`"
            if it_scores
            else ("compares two completions; write all_pairs, tournament or random_pair")
        )
        raise RecipeError(
            f"each_round: the judge is asked for {node.ask}, and the judge of {source} {does}, or "
            "leave `ask` out."
        )
    if node.ask in ("tournament", "random_pair") and rule != node.ask:
        raise RecipeError(
            f"each_round: the judge asks for the comparisons of {node.ask}, and the select stage "
            f"{f'takes {rule}' if rule else 'is missing'}; write `rule: {node.ask}` there, or "
            "`ask: all_pairs`."
        )
    return node.ask


def judge_prompts(
    judge: Any,
    asked: Ask,
    node: Judge,
    select: Select | None,
    lines: Sequence[Mapping[str, Any]],
    number: int,
) -> list[JudgedPrompt]:
    """One `JudgedPrompt` per line of the generate stage, in their order."""
    if asked == "scores":
        return _scored(judge, node, lines, number)
    prompts = [_prompt(line) for line in lines]
    contests = [
        Contest(prompt, tuple(line["completions"]))
        for prompt, line in zip(prompts, lines, strict=True)
    ]
    return [
        _judged(line, prompt, number, judge.identity, matrix)
        for line, prompt, matrix in zip(
            lines, prompts, _matrices(judge, asked, select, contests, number), strict=True
        )
    ]


def _matrices(
    judge: Any, asked: Ask, select: Select | None, contests: Sequence[Contest], number: int
) -> list[Matrix]:
    if asked == "tournament":
        # One completion, or none, has nobody to play against.
        able = [q for q in contests if len(q.completions) > 1]
        played = iter(tournaments(judge, able)) if able else iter(())
        return [next(played).matrix if len(q.completions) > 1 else _alone(q) for q in contests]
    rule: SelectRule = AllPairs()
    if asked == "random_pair":
        assert select is not None, "ask_for refuses it"
        rule = cast("SelectRule", select)
    wanted = [
        pairs_to_ask(rule, contest.prompt, number, len(contest.completions)) or ()
        for contest in contests
    ]
    return preference_matrices(judge, contests, wanted)


def _alone(contest: Contest) -> Matrix:
    k = len(contest.completions)
    return Matrix(tuple((0.5,) * k for _ in range(k)), (), 0)


def _scored(
    judge: Any, node: Judge, lines: Sequence[Mapping[str, Any]], number: int
) -> list[JudgedPrompt]:
    prompts = [_prompt(line) for line in lines]
    items = [
        Answer(prompt, text, content_id(line["prompt"], text))
        for prompt, line in zip(prompts, lines, strict=True)
        for text in line["completions"]
    ]
    found = iter(judge.score(items))
    rows: list[JudgedPrompt] = []
    for prompt, line in zip(prompts, lines, strict=True):
        verdicts = [next(found) for _ in line["completions"]]
        scores = tuple(None if isinstance(v, JudgeFailed) else float(v) for v in verdicts)
        failures = tuple(
            f"completion {i}: {v.reason} ({v.detail})"
            for i, v in enumerate(verdicts)
            if isinstance(v, JudgeFailed)
        )
        matrix = Matrix(from_scores(scores, node.score_scale), failures, len(verdicts))
        rows.append(_judged(line, prompt, number, judge.identity, matrix, scores))
    return rows


def _judged(
    line: Mapping[str, Any],
    prompt: Any,
    number: int,
    judge: str,
    matrix: Matrix,
    scores: tuple[float | None, ...] | None = None,
) -> JudgedPrompt:
    return JudgedPrompt(
        prompt=prompt,
        group_id=line["group_id"],
        source=line["source"],
        row=line["row"],
        round=number,
        sampler=line["sampler"],
        completions=tuple(line["completions"]),
        unfinished=tuple(line["unfinished"]),
        greedy=line.get("greedy"),
        scores=scores,
        preferences=matrix.preferences,
        failures=(*line["failures"], *matrix.failures),
        judge=judge,
        calls=matrix.calls,
    )


def _prompt(line: Mapping[str, Any]) -> Any:
    prompt = line["prompt"]
    return prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
