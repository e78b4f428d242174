"""The choice over all candidate pairs, once every chunk has been estimated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from align.data.built import Built, BuiltPair
from align.data.messages import prompt_id
from align.data.pairs import PreferencePair
from align.data.problems import DroppedRow, Reason
from align.data.records import content_id
from align_data.uncertainty.select import Choice, Row, drawn, eligible, select, uniform
from align_data.uncertainty.settings import UncertaintySettings
from align_data.uncertainty.smoothing import alphas

LABELLED = "labelled"


def finish(
    built: Sequence[Built],
    settings: UncertaintySettings,
    *,
    seed: int,
    config_hash: str,
    labelled: Sequence[PreferencePair] = (),
    round: int = 0,  # noqa: A002
) -> list[Built]:
    """What is trained on: the reliable pairs with their soft labels, and some labelled ones.

    Rows are where they were; what is left out is counted as dropped, so read = pairs + dropped
    still holds. Replayed labelled pairs come last, as a `Built` of their own.

    Args:
        built: of `UncertaintyWork`, all of it.
        settings: of the recipe.
        seed: of the draws.
        config_hash: of the settings.
        labelled: the pairs that the estimator was trained on, read only where `replay` > 0.
        round: of the loop; 0 outside of one.
    """
    pairs = [pair for one in built for pair in one.pairs]
    names = _names(pairs)
    rows = [
        Row(
            name,
            prompt_id(pair.prompt),
            pair.margin or 0.0,
            pair.uncertainty,
            None if pair.uncertainty is None else bool(pair.detail.get("agree")),
        )
        for name, pair in zip(names, pairs, strict=True)
    ]
    chosen = select(rows, settings.select, seed=seed)
    choices = {row.uid: choice for row, choice in zip(rows, chosen, strict=True)}
    alpha = _alpha(pairs, rows, settings)
    replayed = _replayed(labelled, settings, seed, config_hash, round)
    if settings.dedupe == "prompt":
        choices, replayed = _one_per_prompt(rows, choices, replayed, seed)
    named = iter(names)
    finished = [_finished(one, [next(named) for _ in one.pairs], choices, alpha) for one in built]
    return [*finished, *([] if replayed is None else [replayed])]


def _names(pairs: Sequence[BuiltPair]) -> list[str]:
    """One per pair, all different: a prompt that is there twice gives the same uid twice."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for pair in pairs:
        seen[pair.uid] += 1
        names.append(pair.uid if seen[pair.uid] == 1 else f"{pair.uid}/{seen[pair.uid]}")
    return names


def _alpha(
    pairs: Sequence[BuiltPair], rows: Sequence[Row], settings: UncertaintySettings
) -> dict[str, float]:
    """By the row's name; only for the pairs that the rule chooses from by their information."""
    places = eligible(rows, settings.select)
    pool = [pairs[place] for place in places]
    found = alphas(
        [pair.uncertainty or 0.0 for pair in pool],
        [0.0 if pair.prob_chosen is None else pair.prob_chosen for pair in pool],
        settings.smoothing,
    )
    return {rows[place].uid: alpha for place, alpha in zip(places, found, strict=True)}


def _replayed(
    labelled: Sequence[PreferencePair],
    settings: UncertaintySettings,
    seed: int,
    config_hash: str,
    round: int,  # noqa: A002
) -> Built | None:
    if settings.replay == 0.0 or not labelled:
        return None
    uids = [content_id("upo", LABELLED, n, pair.id) for n, pair in enumerate(labelled)]
    even = [0.0] * len(uids)
    kept = set(drawn(uids, even, settings.replay, seed=seed, purpose=f"replay/{round}"))
    training = set(PreferencePair.model_fields)
    pairs = tuple(
        BuiltPair(
            **pair.model_dump(include=training - {"preference", "pair_kind"}),
            # A column of soft labels must be there in every row or in none.
            preference=1.0 if pair.preference is None else pair.preference,
            uid=uid,
            pipeline="upo",
            round=round,
            pair_kind=LABELLED,
            model="",
            config_hash=config_hash,
            seed=seed,
        )
        for uid, pair in zip(uids, labelled, strict=True)
        if uid in kept
    )
    uid = content_id("upo", LABELLED, config_hash, seed, round, uids)
    return Built(uid=uid, read=len(pairs), pairs=pairs, counts={LABELLED: len(labelled)})


def _one_per_prompt(
    rows: Sequence[Row], choices: dict[str, Choice], replayed: Built | None, seed: int
) -> tuple[dict[str, Choice], Built | None]:
    kept = [(row.uid, row.prompt) for row in rows if choices[row.uid].bucket is not None]
    old = () if replayed is None else replayed.pairs
    kept += [(pair.uid, prompt_id(pair.prompt)) for pair in old]
    kept.sort(key=lambda pair: (uniform(seed, pair[0], "dedupe"), pair[0]))
    first: dict[str, str] = {}
    for uid, prompt in kept:
        first.setdefault(prompt, uid)
    stay = set(first.values())
    detail = "another pair of its prompt was drawn"
    for row in rows:
        choice = choices[row.uid]
        if choice.bucket is not None and row.uid not in stay:
            choices[row.uid] = Choice(reason="not_drawn", detail=detail, weight=choice.weight)
    if replayed is None:
        return choices, None
    return choices, replayed.model_copy(
        update={
            "pairs": tuple(pair for pair in old if pair.uid in stay),
            "dropped": tuple(
                _dropped(pair, "not_drawn", detail) for pair in old if pair.uid not in stay
            ),
        }
    )


def _finished(
    one: Built, names: Sequence[str], choices: dict[str, Choice], alpha: dict[str, float]
) -> Built:
    kept: list[BuiltPair] = []
    dropped = list(one.dropped)
    for name, pair in zip(names, one.pairs, strict=True):
        choice = choices[name]
        if choice.bucket is None:
            assert choice.reason is not None
            dropped.append(_dropped(pair, choice.reason, choice.detail))
            continue
        kept.append(
            pair.model_copy(
                update={
                    "preference": 1.0 - alpha.get(name, 0.0),
                    "weight": choice.weight,
                    "pair_kind": choice.bucket,
                }
            )
        )
    return one.model_copy(update={"pairs": tuple(kept), "dropped": tuple(dropped)})


def _dropped(pair: BuiltPair, reason: Reason, detail: str) -> DroppedRow:
    return DroppedRow(
        source=pair.source, row=pair.row, field="responses", reason=reason, detail=detail
    )
