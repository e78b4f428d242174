"""Measurements of one model by name: metrics on held-out pairs, and the built-in tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from align.errors import RecipeError
from align.forest import TokenRow, score_rows
from align.tokens import TokenizedPair
from align.types import Pair
from align.vision.columns import sides_of
from align.vision.pixels import pictures_of
from align.worlds import judged_world, style_game, world
from align.worlds.scenes import Scenes
from align.worlds.styles import Styles
from align.worlds.sums import Sums
from eval.metrics import Estimate, kl_divergence, mean, preference_metrics, proportion, score_pairs

PREFERENCE = "preference"
Report = dict[str, dict[str, dict[str, float | int | None]]]


def run_suite(
    names: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: PreTrainedModel,
    held_out_pairs: Sequence[TokenizedPair],
    n: int,
    seed: int,
    batch_size: int = 64,
) -> Report:
    """Measure `model`; it, the reference and the random state are left as they were found.

    Args:
        names: "preference", or a built-in world with a judge ("sums", "styles").
        model: the policy.
        tokenizer: of both models.
        reference: what the model is compared with; the model itself before training.
        held_out_pairs: none of them was trained on; only "preference" reads them.
        n: held-out problems of a world, and the most held-out pairs, taken in their order.
        seed: of the choice of problems and of the samples.
        batch_size: rows of one forward pass.

    Returns:
        measurement -> metric -> value, low, high, n; strict JSON.

    Raises:
        RecipeError: an unknown name, or "preference" without held-out pairs.
    """
    report: Report = {}
    for name in names:
        if name == PREFERENCE:
            if not held_out_pairs:
                raise RecipeError(
                    "evaluate.suite asks for 'preference' and there are no held-out pairs: keep "
                    "some rows out of training, or take 'preference' out of the suite."
                )
            estimates = _preference(model, tokenizer, reference, held_out_pairs[:n], batch_size)
        elif isinstance(scenes := world(name), Scenes):
            estimates = _captions(scenes, model, tokenizer, n=n, seed=seed)
        elif isinstance(game := world(name), Styles):
            estimates = _game(game, model, tokenizer, reference, n=n, seed=seed)
        else:
            estimates = _task(
                judged_world(name),
                model,
                tokenizer,
                reference,
                n=n,
                seed=seed,
                batch_size=batch_size,
            )
        report[name] = {metric: estimate.to_json() for metric, estimate in estimates.items()}
    return report


def _preference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    batch_size: int,
) -> dict[str, Estimate]:
    """Metrics of `preference_metrics`."""
    rows = Pair(
        [TokenRow(pair.prompt_ids, pair.chosen_ids) for pair in pairs],
        [TokenRow(pair.prompt_ids, pair.rejected_ids) for pair in pairs],
    )
    sides = [sides_of(pair.pair) for pair in pairs]
    pictures = Pair(*(pictures_of(tokenizer, shown) for shown in zip(*sides, strict=True)))
    policy_logps = score_pairs(model, rows, batch_size=batch_size, pictures=pictures)
    if reference is model:
        return preference_metrics(policy_logps, policy_logps)
    return preference_metrics(
        policy_logps, score_pairs(reference, rows, batch_size=batch_size, pictures=pictures)
    )


def _task(
    task: Sums,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    *,
    n: int,
    seed: int,
    batch_size: int,
) -> dict[str, Estimate]:
    """Accuracy of one greedy and one sampled answer per held-out problem, and the samples' KL."""
    problems = task.problems("held_out", n, seed=seed)
    greedy, sampled = (
        task.attempts(
            model, tokenizer, problems, temperature=temperature, seed=seed, batch_size=batch_size
        )
        for temperature in (0.0, 1.0)
    )
    rows = [TokenRow(attempt.prompt_ids, attempt.completion_ids) for attempt in sampled]
    policy_logps = score_rows(model, rows, batch_size=batch_size)
    reference_logps = (
        policy_logps if reference is model else score_rows(reference, rows, batch_size=batch_size)
    )
    return {
        "greedy_accuracy": proportion(sum(a.verdict.right for a in greedy), n),
        "sampled_accuracy": proportion(sum(a.verdict.right for a in sampled), n),
        "well_formed": proportion(sum(a.verdict.well_formed for a in sampled), n),
        "kl_to_reference": kl_divergence(policy_logps, reference_logps),
    }


def _captions(
    scenes: Scenes, model: PreTrainedModel, processor: Any, *, n: int, seed: int
) -> dict[str, Estimate]:
    """Exact counts over one sampled caption per held-out picture.

    hallucination_rate is the share of all sentences that are false, false_share its mean over the
    captions, which are independent; coverage is the share of the objects that are told rightly,
    without which silence would be best.
    """
    told = scenes.tell(model, processor, n, seed=seed)
    return {
        "hallucination_rate": proportion(told.false, told.sentences),
        "coverage": proportion(told.told, told.objects),
        "false_share": mean(told.rates, what="false_share"),
    }


def _game(
    game: Styles,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reference: PreTrainedModel,
    *,
    n: int,
    seed: int,
) -> dict[str, Estimate]:
    """Exact values per held-out topic, by scoring every answer there is; the mean is over topics.

    exploitability is what the best reply to the policy's own mixture wins above one half.
    """
    topics = game.topics("held_out", seed=seed)[:n]
    found = style_game.measure(model, tokenizer, topics, reference=reference)
    return {
        "exploitability": mean(found.exploitability, what="exploitability"),
        "win_rate": mean(found.win_rate, what="win_rate"),
        "well_formed": mean(1 - found.outcomes[:, -1], what="well_formed"),
        "kl_to_reference": mean(found.kl, what="kl"),
    }
