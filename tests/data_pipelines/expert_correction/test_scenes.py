"""Pictures in the pipeline: what the expert says of them, and the two kinds of image pairs."""

import json

import pytest

from align.data.built import Built
from align.data.images import Degraded, png
from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.data.prompts import Prompt
from align.data.questions import Candidates
from align.data.row_policy import RowPolicy
from align.errors import RecipeError
from align.policies.base import Failed, Sampling
from align.policies.local_tokens import LocalTokens
from align.tokens.encoding import encode_pair
from align.trainers.pair_rows import refuse_rows_without_signal
from align.worlds import scene_model
from align.worlds.scene_words import Object, caption
from align.worlds.scenes import QUESTION, picture
from align_data.expert_correction.report import read_report
from align_data.expert_correction.revise import Faulty, question
from align_data.expert_correction.scenes import ScenesExpert, report_on
from align_data.expert_correction.settings import ExpertCorrectionSettings
from align_data.expert_correction.work import ExpertCorrectionWork

SCENE = (Object("red", "square"), None, None, Object("blue", "cross"))
KINDS = ("gt_vs_gen", "rev_vs_gen", "gt_img", "rev_img")
# One in another colour, one that is not there, one right.
WRONG = "green square top left. red disc top right. blue cross bottom right."
RIGHT = "red square top left. blue cross bottom right."


def unit(*responses: str, images: bool = True) -> Candidates:
    return Candidates(
        prompt=(Message(role="user", content=QUESTION),),
        images=(png(picture(SCENE)),) if images else None,
        responses=responses,
        solution=caption(SCENE, "annotator"),
        source="test",
        row=1,
        policy="someone",
    )


def built(*units: Candidates, **settings: object) -> list[Built]:
    work = ExpertCorrectionWork(
        ExpertCorrectionSettings.model_validate({"pairs": KINDS} | settings),
        ScenesExpert(),
        LocalTokens(scene_model.processor(), None),
        seed=0,
        config_hash="test",
    )
    return work(units)


@pytest.mark.parametrize(
    ("response", "scores", "revised"),
    [
        (WRONG, [2, 1, 4], RIGHT),
        (RIGHT, [4, 4], RIGHT),
        # In its own words; told twice; no sentence about a cell.
        (
            "there is a red disc in the top left. red square top left. blue blue.",
            [2, 1, 1],
            "there is a red square in the top left.",
        ),
    ],
)
def test_the_expert_corrects_as_little_as_it_can(
    response: str, scores: list[int], revised: str
) -> None:
    report = read_report(json.dumps(report_on(SCENE, response)), response)
    assert [sentence.score for sentence in report.sentences] == scores
    assert report.revised == revised


def test_what_is_missing_is_offered_and_put_there_if_asked_for() -> None:
    told = json.dumps(report_on(SCENE, "red square top left."))
    assert read_report(told, "red square top left.").revised == "red square top left."
    assert read_report(told, "red square top left.", add_missing=True).revised == RIGHT


def test_the_expert_sees_the_picture_and_is_told_of_it() -> None:
    one = unit(WRONG)
    asked = question(Faulty(one.prompt, WRONG, None, "test", 1, one.images))
    assert "the picture above" in asked[0].content
    bare = question(Faulty(one.prompt, WRONG, None, "test", 1))
    assert "picture" not in bare[0].content
    prompt = Prompt(prompt=bare, source="test", row=1)
    with pytest.raises(RecipeError, match="one picture"):
        ScenesExpert().generate([prompt], 1, Sampling(max_new_tokens=1), 0)
    seen = prompt.model_copy(update={"images": one.images})
    ((answer,),) = ScenesExpert().generate([seen], 1, Sampling(max_new_tokens=1), 0)
    assert not isinstance(answer, Failed)


def test_four_kinds_of_pairs_of_one_response() -> None:
    (one,) = built(unit(WRONG))
    assert one.dropped == ()
    pairs = {pair.pair_kind: pair for pair in one.pairs}
    assert tuple(pairs) == KINDS
    assert len({pair.group_id for pair in one.pairs}) == 1
    assert len({pair.uid for pair in one.pairs}) == 4
    truth = caption(SCENE, "annotator")
    texts = {kind: (p.chosen[0].content, p.rejected[0].content) for kind, p in pairs.items()}
    assert texts == {
        "gt_vs_gen": (truth, WRONG),
        "rev_vs_gen": (RIGHT, WRONG),
        "gt_img": (truth, truth),
        "rev_img": (RIGHT, RIGHT),
    }
    assert all(pair.images == unit(WRONG).images for pair in one.pairs)
    assert pairs["gt_vs_gen"].rejected_images is pairs["rev_vs_gen"].rejected_images is None
    degraded = pairs["gt_img"].rejected_images
    assert isinstance(degraded, Degraded)
    assert degraded.share == 0.3
    assert degraded == pairs["rev_img"].rejected_images
    assert set(pairs["gt_img"].chosen_token_weight or ()) == {1.0}
    # Five tokens of the sentence that was seen wrongly (image_error_weight), then the right one.
    weights = (3.0,) * 5 + (1.0,) * 6
    assert pairs["rev_img"].chosen_token_weight == weights
    assert pairs["rev_img"].rejected_token_weight == weights


def test_image_pairs_are_rows_that_a_trainer_takes() -> None:
    from align.tokens.dataset import to_dataset

    processor = scene_model.processor()
    (one,) = built(unit(WRONG), degraded_share=0.5)
    known = PreferencePair.model_fields
    rows = [
        encode_pair(
            PreferencePair.model_validate(
                {k: v for k, v in pair.model_dump().items() if k in known}
            ),
            processor,
            RowPolicy(),
        )
        for pair in one.pairs
    ]
    dataset = to_dataset(rows)
    refuse_rows_without_signal(dataset, "test")
    assert dataset["pair_kind"] == list(KINDS)
    assert [one and one["share"] for one in dataset["degraded"]] == [None, None, 0.5, 0.5]


def test_another_picture_makes_another_group_another_uid_and_another_loss_of_pixels() -> None:
    (first,) = built(unit(WRONG))
    other = unit(WRONG).model_copy(update={"images": (png(picture((*SCENE[:3], None))),)})
    (second,) = built(other)
    assert {p.group_id for p in first.pairs}.isdisjoint({p.group_id for p in second.pairs})
    assert {p.uid for p in first.pairs}.isdisjoint({p.uid for p in second.pairs})
    seeds = {p.rejected_images.seed for b in (first, second) for p in b.pairs if p.rejected_images}
    assert len(seeds) == 2


def test_a_right_response_leaves_the_pairs_of_the_truth_about_its_picture() -> None:
    (one,) = built(unit(RIGHT))
    assert [pair.pair_kind for pair in one.pairs] == ["gt_vs_gen", "gt_img"]
    assert [row.reason for row in one.dropped] == ["unchanged", "unchanged"]
    responses = one.record["responses"]
    assert all(response["images"] for response in responses)
