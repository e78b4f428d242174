# pyright: basic
"""What can be known of a loop before it begins: chain, roles, prompts, calls and steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.app.cost import Lengths, optimizer_steps
from align.app.fitting import check_roles
from align.app.memory import count_parameters
from align.errors import DataError, RecipeError
from align.judges.matrix import every_pair, knockout
from align.loops.stage import Stage, check_chain, first_states
from align.policies.base import Sampling
from align.policies.loading import load_config, load_tokenizer
from align.policies.precision import refuse_rate_of
from align.policies.prompting import Prompting
from align.recipe import Recipe
from align.recipe.sections import ROUND_POLICIES, Roles, ema_decay
from align.stages.generate import Generate, GenerateStage
from align.stages.group_rule import Groups
from align.stages.judge import Ask, Judge, JudgeStage
from align.stages.policies import policy_folder
from align.stages.prompts import PromptSource
from align.stages.rules import AllPairs, RandomPair
from align.stages.select import Select, select_of
from align.stages.train import TrainRound
from align.stages.workshop import Workshop

GIVEN = ("policy", "anchor")


def check_before_rounds(workshop: Workshop, stages: list[Stage]) -> None:
    """What would otherwise end a loop in the middle of its first round.

    Raises:
        RecipeError: stages that do not fit together, a role or a judge's model that is not there,
            scores that the objective needs and the judge is not asked for, or a learning rate that
            cannot move weights of 16 bits.
        DataError: rows that a stage names cannot be read.
    """
    recipe = workshop.loop_recipe
    # Words that name nothing, or need keys of their own.
    recipe.evaluate.nodes()
    check_rule(recipe, stages)
    check_chain(stages, dict.fromkeys([*GIVEN, *(a.kind for a in first_states(stages))]))
    for node in workshop.nodes:
        node.look_ahead(workshop)
    outside = {
        role: source
        for role, source in recipe.roles.given.items()
        if source not in ROUND_POLICIES and ema_decay(source) is None
    }
    check_roles(recipe.model_copy(update={"roles": Roles(**outside)}))
    if any(isinstance(node, TrainRound) and not node.shards for node in recipe.each_round):
        config = load_config(recipe.model, workshop.start)
        refuse_rate_of(recipe.model, recipe.train, workshop.start, config)
    judge = next((stage for stage in stages if isinstance(stage, JudgeStage)), None)
    generate = next((node for node in recipe.each_round if isinstance(node, Generate)), None)
    rule = _rule_of_groups(recipe)
    if rule is not None and rule.advantage == "greedy":
        _check_greedy(generate, judge)
    reads_scores = "score" in recipe.objective.needs and rule is None
    if judge is None or generate is None or not reads_scores:
        return
    if judge.asked in ("tournament", "random_pair") and generate.samples > 2:
        raise RecipeError(
            f"objective.name: {recipe.objective.name} reads a score of each completion, and the "
            f"judge is asked only for the comparisons of {judge.asked}, which give none. Write "
            "`ask: all_pairs` in the judge stage and another rule in the select stage, or take an "
            "objective that reads preferences."
        )


def check_rule(recipe: Recipe, stages: list[Stage]) -> None:
    """Whether the rounds make what the objective learns from.

    Raises:
        RecipeError: they make the other kind of rows, or groups without a column that it needs.
    """
    name, wanted = recipe.objective.name, recipe.learns_from
    made = {kind for stage in stages for kind in stage.writes} & {"pairs", "groups"}
    if made and wanted not in made:
        rules = "groups" if wanted == "groups" else "best_vs_worst, or another rule of pairs"
        raise RecipeError(
            f"each_round: objective {name} learns from {wanted}, and the rounds make "
            f"{', '.join(made)}; write `rule: {rules}` in the select stage, or take an objective "
            f"over {', '.join(made)}."
        )
    rule = _rule_of_groups(recipe)
    if rule is None:
        return
    made_of_scores = {"label": "{above: 0.5}", "advantage": "mean"}
    for column, example in made_of_scores.items():
        if column in recipe.objective.needs and getattr(rule, column) is None:
            raise RecipeError(
                f"each_round: objective {name} needs the column {column} of each completion, and "
                f"the select stage makes none; write `{column}: {example}` beside `rule: groups`."
            )
    of_tokens = sorted({"token_advantage", "token_weight"} & recipe.objective.needs)
    if of_tokens:
        raise RecipeError(
            f"each_round: objective {name} needs a {of_tokens[0]}, which no stage makes; give the "
            "rows as a file in data.groups."
        )


def _rule_of_groups(recipe: Recipe) -> Groups | None:
    select = select_of(recipe.each_round)
    rule = None if select is None else select.as_rule
    return rule if isinstance(rule, Groups) else None


def _check_greedy(generate: Generate | None, judge: JudgeStage | None) -> None:
    if generate is None or not generate.greedy:
        raise RecipeError(
            "each_round: `advantage: greedy` measures from the likeliest answer, which the "
            "generate stage does not draw; write `greedy: true` there."
        )
    if judge is not None and judge.asked != "scores":
        raise RecipeError(
            f"each_round: `advantage: greedy` needs scores, and the judge compares "
            f"({judge.asked}); write `advantage: mean`, or name a judge that scores."
        )


def check_loop(recipe: Recipe, show_example: bool) -> str:
    """The dry run of a loop: nothing is generated, judged or trained.

    Args:
        recipe: with rounds.
        show_example: render the first prompt.

    Raises:
        DataError: no prompt of the first round can be continued.
    """
    start = policy_folder(recipe.model)
    config = load_config(recipe.model, start)
    workshop = Workshop(recipe, start, load_tokenizer(recipe.model, start))
    stages = workshop.stages()
    check_before_rounds(workshop, stages)
    rounds = recipe.rounds
    assert rounds is not None
    ran = ", ".join(stage.name for stage in stages)
    roles = ", ".join(f"{role}: {source}" for role, source in recipe.roles.given.items())
    parameters = count_parameters(recipe, config)
    lines = [
        f"rounds: {rounds}, each of {ran}; the stages fit together",
        f"roles: {roles or 'none'}",
        f"parameters: {parameters.total:,}, trained {parameters.trained:,}",
    ]
    if recipe.prompts is None:
        return "\n".join(lines)
    generate = next((stage for stage in stages if isinstance(stage, GenerateStage)), None)
    node = None if generate is None else generate.node
    source = PromptSource(recipe.prompts, recipe.data)
    prompts = source.of_round(1)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
    # A pipeline's stages have lengths of their own.
    sampling = Sampling(max_new_tokens=1 if node is None else node.max_new_tokens)
    begun = Prompting(workshop.tokenizer).begin(prompts, 1, sampling, longest)
    refused: list[Any] = [of[0] for of in begun.results if of]
    if not begun.ids:
        raise DataError(
            f"None of the {len(prompts)} prompts of round 1 can be continued; the first: "
            f"{refused[0].reason} ({refused[0].detail}). Mend the prompts"
            + ("." if node is None else ", or max_new_tokens in the generate stage.")
        )
    lengths = Lengths.of([len(ids) for ids in begun.ids.values()])
    if rows := source.counts():
        dropped = sum(rows["rows"]["dropped"].values())
        lines.append(f"rows: {rows['rows']['read']} read, {dropped} dropped")
    lines += [f"prompts: {len(prompts)} in round 1", f"prompt tokens: {lengths}"]
    if node is not None:
        lines += _of_generation(recipe, node, stages, len(prompts))
    lines += [f"warning: {text}" for text in _warnings(recipe, node, lengths.maximum, refused)]
    if show_example:
        first = next(iter(begun.ids.values()))
        lines += ["", "what generation continues:", repr(workshop.tokenizer.decode(first))]
    return "\n".join(lines)


def _of_generation(
    recipe: Recipe, node: Generate, stages: list[Stage], prompts: int
) -> Iterator[str]:
    """Completions, calls and pairs of a round whose policy answers as in a generate stage."""
    assert recipe.rounds is not None
    greedy = ", and the likeliest one" if node.greedy else ""
    yield f"completions: {node.samples} a prompt{greedy}, of at most {node.max_new_tokens} tokens"
    judge = next((stage for stage in stages if isinstance(stage, JudgeStage)), None)
    if judge is not None:
        calls = prompts * calls_of(judge.asked, node.samples + node.greedy, judge.select)
        yield (
            f"judge: asked for {judge.asked}, at most {calls} calls a round, "
            f"{calls * recipe.rounds} in all{_requests(judge.node)}"
        )
    select = select_of(recipe.each_round)
    if select is not None:
        rows = prompts * rows_of(select, node.samples)
        steps = optimizer_steps(recipe.train, rows, processes=1)
        yield f"{recipe.learns_from}: at most {rows} a round, in at most {steps} steps"


def calls_of(asked: Ask, samples: int, select: Select | None) -> int:
    """Questions about one prompt at most; equal completions are not asked about."""
    match asked:
        case "scores":
            return samples
        case "all_pairs":
            return len(every_pair(samples))
        case "random_pair":
            assert select is not None
            pairs = rows_of(select, samples)
            return pairs if samples >= 2 * pairs else 0
        case "tournament":
            return _knockout_calls(samples)


def rows_of(select: Select, samples: int) -> int:
    """Pairs, or groups, of one prompt at most."""
    match select.as_rule:
        case AllPairs():
            return len(every_pair(samples))
        case RandomPair(pairs=pairs):
            return pairs
        case _:
            return 1


def _knockout_calls(samples: int) -> int:
    if samples < 2:
        return 0
    bracket = knockout(samples)
    matches, calls = next(bracket), 0
    try:
        while True:
            calls += len(matches)
            matches = bracket.send([1.0] * len(matches))
    except StopIteration:
        return calls


def _requests(node: Judge) -> str:
    return ", each of two requests" if node.by == "llm" else ""


def _warnings(
    recipe: Recipe, node: Generate | None, longest: int, refused: list[Any]
) -> Iterator[str]:
    if refused:
        yield (
            f"{len(refused)} prompt(s) of round 1 cannot be continued; the first: "
            f"{refused[0].reason} ({refused[0].detail})"
        )
    limit = recipe.data.max_length
    if node is not None and limit is not None and longest + node.max_new_tokens > limit:
        yield (
            f"a prompt of {longest} tokens and an answer of {node.max_new_tokens} are longer than "
            f"data.max_length {limit}; such rows meet data.on_too_long: {recipe.data.on_too_long}"
        )
    launch = next((n.launch for n in recipe.each_round if isinstance(n, TrainRound)), None)
    if launch is not None and not Path(launch).is_absolute():
        yield f"{launch} is looked for in the folder where `align loop` is started"
