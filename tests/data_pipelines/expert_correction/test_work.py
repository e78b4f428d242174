"""The whole pipeline with a rule-based expert, from responses to rows that training takes."""

import json
import random

import pytest

from align.data.messages import Message
from align.data.pairs import PreferencePair, check_pair
from align.data.problems import REASONS
from align.data.questions import Candidates, Question
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.errors import RecipeError
from align.policies.base import Capabilities, Failed, completion_of
from align.policies.local_tokens import LocalTokens
from align.tokens.dataset import to_dataset
from align.tokens.encoding import encode_pairs
from align.worlds.additions import judge, prompt_of, solution_of, sums_tokenizer
from align.worlds.sums import SLIPS
from align_data.expert_correction import ExpertCorrectionWork
from align_data.expert_correction.settings import ExpertCorrectionSettings
from align_data.expert_correction.world import SumsExpert, report_on

ENCODER = LocalTokens(sums_tokenizer(), None)
OPERANDS = (17, 35, 28)
RIGHT = "17+35=52\n52+28=80\n80"
# The first sum is wrong, the error is carried on; 53 + 28 is right in itself.
WRONG = "17+35=53\n53+28=81\n81"


def unit(operands, *responses, row=1, **given):
    return Candidates(
        prompt=(Message(role="user", content=prompt_of(operands)),),
        responses=responses,
        solution=solution_of(operands),
        policy="p",
        source="s",
        row=row,
    ).model_copy(update=given)


def attempts(n, seed=0):
    """n prompts with one response, about half of them right."""
    draw = random.Random(seed)
    units = []
    for row in range(1, n + 1):
        a, b, c = (draw.randint(10, 39) for _ in range(3))
        first = a + b + draw.choice([0, 0, *SLIPS])
        second = first + c + draw.choice([0, 0, *SLIPS])
        text = f"{a}+{b}={first}\n{first}+{c}={second}\n{second}"
        units.append(unit((a, b, c), text, row=row))
    return units


def work(by=None, encoder=ENCODER, policy=None, seed=0, **given):
    settings = ExpertCorrectionSettings.model_validate(given)
    return ExpertCorrectionWork(
        settings, by or SumsExpert(), encoder, policy, seed=seed, config_hash="h"
    )


def conserved(built):
    for one in built:
        assert one.read == len(one.pairs) + len(one.dropped)
        assert all(row.reason in REASONS for row in one.dropped)
    return [pair for one in built for pair in one.pairs], [
        row.reason for one in built for row in one.dropped
    ]


def test_a_wrong_response_gives_both_pairs_with_their_weights():
    (built,) = work()([unit(OPERANDS, WRONG)])
    assert built.read == 2
    of_truth, of_revision = built.pairs
    assert (of_truth.pair_kind, of_revision.pair_kind) == ("gt_vs_gen", "rev_vs_gen")
    for pair in built.pairs:
        check_pair(pair)
        assert pair.chosen[0].content == RIGHT
        assert pair.rejected[0].content == WRONG
    assert of_truth.group_id == of_revision.group_id
    assert of_truth.uid != of_revision.uid
    # 20 characters and the end token; all 1.
    assert of_truth.chosen_token_weight == of_truth.rejected_token_weight == (1.0,) * 21
    # "17+35=53\n" 9 tokens at 2.0; "53+28=81\n" 9 and "81" 2 at 1.5, for the error they carry on.
    heavy = (2.0,) * 9 + (1.5,) * 11
    assert of_revision.chosen_token_weight == (*heavy, 1.5)
    assert of_revision.rejected_token_weight == (*heavy, 0.0)
    assert built.counts["sentences_with_errors"] == built.counts["sentences"] == 3


def test_right_lines_weigh_one():
    wrong_answer = "17+35=52\n52+28=80\n81"
    (built,) = work(pairs=["rev_vs_gen"])([unit(OPERANDS, wrong_answer)])
    (pair,) = built.pairs
    assert pair.chosen_token_weight == (1.0,) * 18 + (2.0,) * 3
    assert pair.rejected_token_weight == (1.0,) * 18 + (2.0,) * 2 + (0.0,)
    assert [span.weight for span in pair.rejected_span_weights] == [1.0, 1.0, 2.0]
    assert "".join(RIGHT[s.start : s.end] for s in pair.chosen_span_weights) == RIGHT.replace(
        "\n", ""
    )


def test_other_weights_of_the_recipe():
    settings = {"severity": {"minor": 7.0}, "pairs": ["rev_vs_gen"]}
    (built,) = work(**settings)([unit(OPERANDS, WRONG)])
    assert set(built.pairs[0].chosen_token_weight) == {2.0, 7.0}


def test_many_responses_end_in_rows_that_training_takes():
    pairs, lost = conserved(work()(attempts(60)))
    assert len({pair.uid for pair in pairs}) == len(pairs) > 60
    for pair in pairs:
        operands = tuple(int(x) for x in pair.prompt[0].content[:-1].split("+"))
        assert judge(operands, pair.chosen[0].content).right
        assert not all(judge(operands, pair.rejected[0].content).steps_right)
    assert set(lost) == {"equal", "unchanged"}
    assert lost.count("equal") == lost.count("unchanged")
    bare = [
        PreferencePair.model_validate(p.model_dump(include=set(PreferencePair.model_fields)))
        for p in pairs
    ]
    rows = encode_pairs(bare, sums_tokenizer(), RowPolicy(), RowReport())
    # Both kinds hold their weights, or the trainer would leave the column out.
    data = to_dataset(rows)
    assert len(data) == len(pairs)
    for row in data:
        assert len(row["chosen_token_weight"]) == len(row["chosen_ids"])
        assert len(row["rejected_token_weight"]) == len(row["rejected_ids"])


def test_the_same_again_gives_the_same_bytes_whichever_units_share_the_chunk():
    units = attempts(10)
    expert = SumsExpert(nonsense=0.4, refusal=0.2)
    whole = [one.model_dump_json() for one in work(expert)(units)]
    assert whole == [work(expert)([one])[0].model_dump_json() for one in units]


def test_responses_of_the_wrong_shape_are_rewritten():
    for response in ("80", "17+35=52\n52\n\n80", "80+80"):
        (built,) = work()([unit(OPERANDS, response)])
        assert [pair.chosen[0].content for pair in built.pairs] == [RIGHT, RIGHT]
    assert set(built.pairs[1].rejected_token_weight) == {2.5, 0.0}


class Scripted:
    """An expert that gives the texts of a list in turn, to whoever asks."""

    identity = "scripted"
    capabilities = Capabilities(logps=False, reproducible=True)

    def __init__(self, *texts):
        self.texts = list(texts)
        self.asked = []

    def generate(self, prompts, n, sampling, seed):
        self.asked.append((prompts, sampling))
        text = self.texts.pop(0)
        return [
            [
                Failed(p, 0, text[1:], "no answer")
                if text.startswith("!")
                else completion_of(p, text, policy="scripted", sample=0)
            ]
            for p in prompts
        ]


GOOD = json.dumps(report_on(OPERANDS, WRONG))


def test_a_bad_report_goes_back_with_what_is_wrong_with_it():
    expert = Scripted("no idea", GOOD.replace('"score": 2', '"score": 9'), GOOD)
    (built,) = work(expert)([unit(OPERANDS, WRONG)])
    assert len(built.pairs) == 2
    assert built.pairs[0].detail["attempts"] == built.counts["expert_calls"] == 3
    first, second, third = (prompts[0].prompt for prompts, _ in expert.asked)
    assert [len(turns) for turns in (first, second, third)] == [1, 3, 3]
    assert second[1].content == "no idea"
    assert "no JSON" in second[2].content
    assert "`score`" in third[2].content
    assert expert.asked[0][1].temperature == 0
    for text in (prompt_of(OPERANDS), WRONG, RIGHT):
        assert f"\n{text}\n" in first[0].content


def test_after_the_last_try_there_is_no_row():
    expert = Scripted("no", "no", "no", "no", GOOD)
    (built,) = work(expert)([unit(OPERANDS, WRONG)])
    assert conserved([built]) == ([], ["failed", "failed"])
    assert len(expert.asked) == 4
    assert built.dropped[0].detail == "unparsable after 4 calls"
    assert built.record["revisions"][0]["status"] == "error"
    assert built.record["responses"] == []
    (built,) = work(Scripted("no"), expert={"retries": 0})([unit(OPERANDS, WRONG)])
    assert built.dropped[0].detail == "unparsable after 1 call"


@pytest.mark.parametrize("reason", ["refused", "unanswered", "unfinished"])
def test_a_failed_call_is_not_tried_again_here(reason):
    expert = Scripted(f"!{reason}")
    (built,) = work(expert)([unit(OPERANDS, WRONG)])
    assert conserved([built]) == ([], ["failed", "failed"])
    assert reason in built.dropped[0].detail


def test_one_bad_report_costs_no_other_row():
    class OneBad(SumsExpert):
        def generate(self, prompts, n, sampling, seed):
            good = super().generate(prompts, n, sampling, seed)
            return [
                [completion_of(p, "{}", policy="x", sample=0)] if p.row == 2 else row
                for p, row in zip(prompts, good, strict=True)
            ]

    units = [unit((10 + n, 20, 30), f"{10 + n}+20=0\n0+30=30\n30", row=n) for n in (1, 2, 3)]
    with_bad, without = work(OneBad())(units), work(SumsExpert())(units)
    assert with_bad[0].pairs == without[0].pairs
    assert with_bad[2].pairs == without[2].pairs
    assert with_bad[1].pairs == ()
    assert len(without[1].pairs) == 2


def test_a_response_with_nothing_to_correct_stays_for_the_alignment():
    (built,) = work()([unit(OPERANDS, RIGHT)])
    assert conserved([built]) == ([], ["equal", "unchanged"])
    assert [(r["kind"], r["response"]) for r in built.record["responses"]] == [
        ("gt", RIGHT),
        ("rev", RIGHT),
        ("gen", RIGHT),
    ]


def test_texts_that_run_in_circles():
    endless = "\n".join(["1+1=2"] * 3)
    wordy = "\n".join(["1", "2"] * 31)
    (built,) = work()([unit(OPERANDS, endless, wordy, WRONG, WRONG)])
    pairs, lost = conserved([built])
    assert len(pairs) == 2
    assert lost == ["degenerate"] * 4 + ["equal"] * 2
    (built,) = work(max_word_repeats=31)([unit(OPERANDS, wordy)])
    assert len(built.pairs) == 2


def test_without_a_ground_truth_only_the_revision_makes_a_pair():
    (built,) = work()([unit(OPERANDS, WRONG, solution=None)])
    assert [pair.pair_kind for pair in built.pairs] == ["rev_vs_gen"]
    assert [row.reason for row in built.dropped] == ["missing_field"]
    assert [r["kind"] for r in built.record["responses"]] == ["rev", "gen"]
    expert = Scripted(GOOD)
    work(expert)([unit(OPERANDS, WRONG, solution=None)])
    assert "<reference" not in expert.asked[0][0][0].prompt[0].content


def test_image_pairs_of_a_prompt_without_a_picture_are_counted_and_left_out():
    kinds = ["gt_vs_gen", "rev_vs_gen", "gt_img", "rev_img"]
    (built,) = work(pairs=kinds)([unit(OPERANDS, WRONG)])
    assert built.read == 4
    assert [row.reason for row in built.dropped] == ["unsupported_content"] * 2
    assert built.counts["image_pairs_left_out"] == 2


def test_a_deleted_response_makes_no_revision():
    report = report_on(OPERANDS, WRONG)
    for one in report.values():
        one["rewritten"] = None
    (built,) = work(Scripted(json.dumps(report)))([unit(OPERANDS, WRONG)])
    assert [pair.pair_kind for pair in built.pairs] == ["gt_vs_gen"]
    assert [row.reason for row in built.dropped] == ["empty_completion"]


class Guesser(Scripted):
    """A policy."""

    def generate(self, prompts, n, sampling, seed):
        self.asked.append((prompts, sampling))
        return [
            [
                completion_of(prompts[0], WRONG, policy="guesser", sample=0),
                Failed(prompts[0], 1, "unfinished", "no end within 9 tokens"),
                completion_of(prompts[0], RIGHT, policy="guesser", sample=2),
            ][:n]
        ]


def test_questions_are_answered_by_the_policy_first():
    question = Question(
        prompt=unit(OPERANDS).prompt, answer="80", solution=RIGHT, source="s", row=4
    )
    policy = Guesser()
    (built,) = work(policy=policy, responses={"samples": 3})([question])
    pairs, lost = conserved([built])
    assert [pair.model for pair in pairs] == ["scripted"] * 2
    assert lost == ["failed", "failed", "equal", "unchanged"]
    sampling = policy.asked[0][1]
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 30, 0.95)
    assert sampling.max_new_tokens == 896
    with pytest.raises(RecipeError, match="no policy"):
        work()([question])


def test_half_characters():
    (built,) = work()([unit(OPERANDS, "1\ud800")])
    assert conserved([built]) == ([], ["bad_unicode"] * 2)
    built.model_dump_json()


def test_no_response_at_all():
    (built,) = work()([unit(OPERANDS)])
    assert conserved([built]) == ([], ["too_few_completions"])
