"""The record of a row: its texts with the columns beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.data.formats.columns import (
    ENDS,
    IMAGES,
    SCORES,
    TOKEN_IDS,
    TOKEN_WEIGHTS,
    UNSUPPORTED_COLUMNS,
    ids_of,
    number_of,
    rejected_images_of,
    truth_of,
    weights_of,
)
from align.data.formats.places import image_places_of
from align.data.formats.reading import Reading, Texts
from align.data.images import refs_of
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem


def pair_of_row(
    row: Mapping[str, Any], texts: Texts, reading: Reading, source: str, number: int
) -> PreferencePair:
    """The record of a row: its texts with the columns beside them, and its place.

    Args:
        row: as the source has it.
        texts: prompt, chosen and rejected, as a reader found them in it.
        reading: of this row.
        source: the file, or hub id@revision.
        number: 1-based number of the row in `source`.

    Raises:
        RowProblem: a column holds something that it may not.
    """
    kinds = ["text" if isinstance(text, str) else "messages" for text in texts]
    if len(set(kinds)) > 1:
        raise RowProblem("wrong_type", "chosen", f"prompt, chosen, rejected mix {', '.join(kinds)}")
    used = {"prompt", "chosen", "rejected", "group_id", "system"}
    used.update((*TOKEN_WEIGHTS, *ENDS, *TOKEN_IDS, *IMAGES, "pair_kind"))
    used.update(("conversations", "conversation"))
    scores: dict[str, float | None] = {}
    for name, spellings in SCORES.items():
        used.update(spellings)
        given = [(key, row[key]) for key in spellings if row.get(key) is not None]
        scores[name] = number_of(given[0][1], given[0][0]) if given else None
    preference = scores["preference"]
    if preference is not None and not 0.0 <= preference <= 1.0:
        raise RowProblem("bad_score", "preference", f"{preference:g} is not in [0, 1]")
    for column in UNSUPPORTED_COLUMNS:
        if row.get(column):
            raise RowProblem("unsupported_content", column, "more than text")
    group = row.get("group_id")
    reading.report.ignore_columns([key for key in row if key not in used])
    ids = {column: ids_of(row, column) for column in TOKEN_IDS}
    absent = [column for column in TOKEN_IDS if ids[column] is None]
    if 0 < len(absent) < len(TOKEN_IDS):
        raise RowProblem("missing_field", absent[0], "absent beside the ids of the others")
    prompt, chosen, rejected = texts
    column = "image" if row.get("images") is None else "images"
    images = refs_of(row.get(column), column, source)
    if images is not None and isinstance(prompt, str):
        detail = "beside plain text, which has no place for a picture; give messages"
        raise RowProblem("unsupported_content", "images", detail)
    places = image_places_of(row, texts, images, reading.placeholders)
    return PreferencePair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_score=scores["chosen_score"],
        rejected_score=scores["rejected_score"],
        preference=preference,
        margin=scores["margin"],
        chosen_token_weight=weights_of(row, "chosen_token_weight"),
        rejected_token_weight=weights_of(row, "rejected_token_weight"),
        chosen_ends=truth_of(row, "chosen_ends"),
        rejected_ends=truth_of(row, "rejected_ends"),
        prompt_ids=ids["prompt_ids"],
        chosen_ids=ids["chosen_ids"],
        rejected_ids=ids["rejected_ids"],
        images=images,
        image_places=places,
        rejected_images=rejected_images_of(row, images, source),
        pair_kind=_optional_text(row, "pair_kind", reading),
        group_id=str(group) if isinstance(group, int) else _group(group, reading),
        source=source,
        row=number,
    )


def _group(group: object, reading: Reading) -> str | None:
    return None if group is None else reading.text(group, "group_id")


def _optional_text(row: Mapping[str, Any], column: str, reading: Reading) -> str | None:
    return None if row.get(column) is None else reading.text(row[column], column)
