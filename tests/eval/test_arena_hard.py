import gzip
import hashlib
import json
import math
import random

import numpy as np
import pytest

from align.errors import DataError
from align_eval.arena_hard import (
    BENCHMARKS,
    Battles,
    ModelAnswer,
    StyleCounts,
    answer_rows,
    battle_scores,
    battles_of,
    leaderboard,
    parse_verdict,
    read_answers,
    read_battles,
    read_judgments,
    read_questions,
    style_controlled,
    style_counts,
    style_features,
    write_answers,
)
from align_eval.arena_hard.judging import SYSTEM, SYSTEM_CREATIVE, USER
from align_eval.arena_hard.verdicts import scores_of, without_labels
from align_eval.bradley_terry import Outcome

V01 = BENCHMARKS["v0.1"].interval


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("My final verdict is: [[A>>B]]", "A>>B"),
        ("[[A>B]]", "A>B"),
        ("[[A=B]]", "A=B"),
        ("[[B>A]]", "B>A"),
        ("[[B>>A]]", "B>>A"),
        # Mirrored.
        ("[[B<<A]]", "A>>B"),
        ("[[B<A]]", "A>B"),
        ("[[B=A]]", "A=B"),
        ("[[A<B]]", "B>A"),
        ("[[A<<B]]", "B>>A"),
        # Lower case, single brackets, markup.
        ("so [[a>>b]].", "A>>B"),
        ("so [A>B].", "A>B"),
        ("**[[B>A]]**", "B>A"),
        ("\\boxed{[[A=B]]}", "A=B"),
        # The last one; a double one goes before any single one.
        ("at first [[A>B]], then [[B>>A]]", "B>>A"),
        ("[A>B] and then [B>A]", "B>A"),
        ("[[A>B]] but see [B>A]", "A>B"),
        ("[A>B] but see [[B>A]]", "B>A"),
        # None.
        ("A is better", None),
        ("", None),
        ("[[A > B]]", None),
        ("[[C>B]]", None),
        ("A>>B", None),
        ("[[A>>>B]]", None),
        # A broken last label is no verdict, and the earlier one is not taken for it.
        ("[[A>B]] no: [[AB]]", None),
        ("the array [A]", None),
    ],
)
def test_verdicts(text, verdict):
    assert parse_verdict(text) == verdict


def test_strong_verdicts_count_three_times():
    assert scores_of("A>>B", weight=3) == [1.0, 1.0, 1.0]
    assert scores_of("A>B", weight=3) == [1.0]
    assert scores_of("A=B", weight=3) == [0.5]
    assert scores_of("B>A", weight=3) == [0.0]
    assert scores_of("B>>A", weight=3) == [0.0] * 3


def test_nothing_in_a_masked_text_can_be_read_as_a_verdict():
    draw = random.Random(0)
    for _ in range(2000):
        text = "".join(draw.choices("[[[]]]AB<>=ab x\n", k=30))
        masked, count = without_labels(text)
        assert parse_verdict(masked) is None
        assert (count > 0) == (masked != text)
    assert without_labels("x[1] [[0, 1]] [a]b]") == ("x[1] [[0, 1]] (a)b]", 1)


def judgment(uid, first, second, model="m", category="hard_prompt", baseline="base"):
    games = [None if label is None else {"score": label} for label in (first, second)]
    return {
        "uid": uid,
        "category": category,
        "judge": "j",
        "model": model,
        "baseline": baseline,
        "games": games,
    }


def test_scores_by_hand():
    rows = [
        # Game 1 shows the baseline as A: A>>B is a strong loss, 3 x 0; game 2, A>B, a win.
        judgment("1", "A>>B", "A>B"),
        # B>A in game 1 is a win; A=B a tie.
        judgment("2", "B>A", "A=B"),
        # Left out.
        judgment("3", None, "A>B"),
        {**judgment("4", "A>B", "A>B"), "games": [{"score": None}, {"score": "A>B"}]},
        judgment("5", "A>B", "A>B", category="coding"),
        # Mirrored label of an older file: game 1 B<<A is A>>B, 3 x 0; game 2 A<B is 0.
        judgment("6", "B<<A", "A<B"),
    ]
    battles = battles_of(rows, "hard_prompt")
    (score,) = leaderboard(battles, seed=0, interval=(0.05, 0.95))
    # (3 x 0 + 1) + (1 + 0.5) + (3 x 0 + 0) over 4 + 2 + 4 entries.
    assert score.score == pytest.approx(100 * 2.5 / 10)
    assert (score.n_questions, score.n_dropped, score.n_verdicts) == (3, 2, 10)
    assert battles.dropped == {"m": {"no answer": 1, "no verdict": 1}}
    assert len(battles_of(rows).outcomes) == 12


def test_a_weak_verdict_and_a_strong_one_differ_and_sides_are_symmetric():
    def score(*games):
        (row,) = leaderboard(battles_of([judgment("1", *games)]), seed=0, interval=(0.05, 0.95))
        return row.score

    assert score("B>>A", "A>>B") == 100
    assert score("A>>B", "B>>A") == 0
    # Seen from both sides as first: 3 x 1 + 0 over 4.
    assert score("A>B", "A>>B") == 75
    assert score("B>>A", "B>A") == 75


def test_intervals_follow_the_seed_alone():
    draw = random.Random(1)
    labels = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]
    rows = [judgment(str(i), draw.choice(labels), draw.choice(labels)) for i in range(80)]
    settings = {"interval": (0.05, 0.95)}
    (one,) = leaderboard(battles_of(rows), seed=0, **settings)
    assert leaderboard(battles_of(rows), seed=0, **settings) == [one]
    (other,) = leaderboard(battles_of(rows), seed=1, **settings)
    assert other.score == one.score
    assert (other.low, other.high) != (one.low, one.high)
    assert one.low < one.score < one.high
    # Another model in the same table moves nothing.
    more = [*rows, *(judgment(str(i), "A>B", "A>B", model="z") for i in range(9))]
    assert one in leaderboard(battles_of(more), seed=0, **settings)
    # 90 % of a mean with the deviation s of n entries: +- 1.645 s / sqrt(n).
    scores = np.array([o.score for o in battles_of(rows).outcomes])
    width = 2 * 164.5 * scores.std() / math.sqrt(len(scores))
    (wide,) = leaderboard(battles_of(rows), seed=0, interval=(0.05, 0.95), resamples=4000)
    assert wide.high - wide.low == pytest.approx(width, rel=0.05)


def test_the_published_battles_by_hand(shared_data):
    outcomes = read_battles(shared_data / "arena_hard" / "arena_hard_battles_small.jsonl")
    assert len(outcomes) == 1348
    haiku = "claude-3-haiku-20240307"
    settings = {"baseline": haiku, "interval": V01}
    found = battle_scores(outcomes, seed=0, **settings)
    # Every battle is against haiku, so the Bradley-Terry maximum is the mean:
    #   gpt-4o  423 wins, 6 ties, 39 losses: (423 + 3) / 468 = 91.02564
    #   sonnet  414 wins, 8 ties, 38 losses: (414 + 4) / 460 = 90.86957
    #   opus    341 wins, 9 ties, 70 losses: (341 + 4.5) / 420 = 82.26190
    assert [(row.model, row.n_verdicts, row.n_questions) for row in found] == [
        ("gpt-4o", 468, 100),
        ("claude-3-5-sonnet-20240620", 460, 100),
        ("claude-3-opus-20240229", 420, 100),
    ]
    assert [row.score for row in found] == pytest.approx(
        [91.025641, 90.869565, 82.261905], abs=1e-5
    )
    assert battle_scores(outcomes, seed=0, **settings) == found
    again = battle_scores(outcomes, seed=1, **settings)
    assert [row.score for row in again] == [row.score for row in found]
    assert [row.low for row in again] != [row.low for row in found]
    for row in found:
        # Normal: 1.96 sqrt(p (1 - p) / n), 2.6 points for gpt-4o; 100 resamples are rough.
        p = row.score / 100
        half = 196 * math.sqrt(p * (1 - p) / row.n_verdicts)
        assert (row.high - row.low) / 2 == pytest.approx(half, rel=0.35)


def test_the_published_files_are_read_whole(shared_data, tmp_path):
    folder = shared_data / "arena_hard"
    questions = read_questions(folder / "v0.1_question.jsonl")
    answers = read_answers(folder / "v0.1_model_answer_gpt-4-0314.jsonl.gz")
    assert len(questions) == len(answers) == 500
    assert {q.uid for q in questions} == set(answers)
    assert {q.category for q in questions} == set(BENCHMARKS["v0.1"].baselines)
    assert {a.model for a in answers.values()} == {"gpt-4-0314"}
    # v0.1 has no style metadata; written with a counter it comes back with it.
    assert all(answer.style is None for answer in answers.values())
    texts = {uid: answer.text for uid, answer in answers.items()}
    rows = answer_rows(questions, "gpt-4-0314", texts, count_tokens=lambda t: len(t.split()))
    write_answers(tmp_path / "a.jsonl", rows)
    back = read_answers(tmp_path / "a.jsonl")
    assert {uid: answer.text for uid, answer in back.items()} == texts
    assert all(answer.style for answer in back.values())
    original = json.loads(
        gzip.decompress((folder / "v0.1_model_answer_gpt-4-0314.jsonl.gz").read_bytes())
        .decode()
        .split("\n")[0]
    )
    assert set(rows[0]) == set(original) | {"metadata"}
    # Nothing in them looks like a verdict, so masking changes no published prompt.
    assert not any(without_labels(text)[1] for text in texts.values())
    assert not any(without_labels(q.prompt)[1] for q in questions)


def test_style_is_counted_outside_code():
    text = (
        "# One\n## Two\n**bold** and __also__ **not\nbold**\n1. a\n 2. b\n- c\n* d\n+ e\n"
        "```\n# no\n- no\n**no**\n```\n#no\n"
    )
    counts = style_counts(text, lambda t: 7)
    assert counts.to_json() == {
        "token_len": 7,
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 2, "unordered": 3},
        "bold_count": {"**": 1, "__": 1},
    }
    assert counts.vector() == [7, 2, 5, 2]
    assert StyleCounts.of(counts.to_json(), "x") == counts
    with pytest.raises(DataError, match="token_len"):
        StyleCounts.of({"header_count": {}}, "x")


def counts(tokens, headers=0, lists=0, bold=0):
    return StyleCounts(tokens, {"h1": headers}, {"ordered": lists}, {"**": bold})


def test_style_features_by_hand():
    # Length (30 - 10) / 40 = .5 and (10 - 30) / 40 = -.5: mean 0, deviation .7071: +-.7071.
    # Headers: densities 3/30 = .1 and 0: .1 / 1.1 = .0909, and 0 - .2 over 1.2 = -.1667.
    features = style_features(
        [counts(30, headers=3), counts(10)], [counts(10), counts(30, headers=6)]
    )
    assert features[:, 0] == pytest.approx([0.70711, -0.70711], abs=1e-5)
    raw = np.array([0.1 / 1.1, -0.2 / 1.2])
    assert features[:, 1] == pytest.approx((raw - raw.mean()) / raw.std(ddof=1))
    # Lists and bold are alike everywhere: no information, and no division by zero.
    assert (features[:, 2:] == 0).all()


def test_style_control_recovers_what_a_judge_gives_for_length():
    """Two models of equal quality; one writes long, and the judge likes it."""
    draw = np.random.default_rng(0)
    n = 1500
    outcomes, answers = [], {"long": {}, "short": {}, "base": {}}
    gaps = {}
    for model, (low, high) in (("long", (250, 400)), ("short", (60, 260))):
        for i in range(n):
            uid = f"{model}{i}"
            tokens = [int(draw.integers(low, high)), int(draw.integers(100, 300))]
            for name, count in zip((model, "base"), tokens, strict=True):
                answers[name][uid] = ModelAnswer(uid, name, "", counts(count))
            gaps[uid] = (tokens[0] - tokens[1]) / sum(tokens)
            p = 1 / (1 + math.exp(-4 * gaps[uid]))
            outcomes.append(Outcome(model, "base", float(draw.random() < p), uid))
    battles = Battles(outcomes, {"long": n, "short": n})
    raw = {row.model: row.score for row in leaderboard(battles, seed=0, interval=V01)}
    assert raw["long"] - raw["short"] > 20
    found = style_controlled(battles, answers, seed=0, interval=V01, resamples=30)
    scores = {row.model: row for row in found.scores}
    assert scores["long"].score == pytest.approx(scores["short"].score, abs=6)
    deviation = np.std(list(gaps.values()), ddof=1)
    assert found.coefficients["length"] == pytest.approx(4 * deviation, abs=0.15)
    assert found.coefficients["bold"] == 0
    again = style_controlled(battles, answers, seed=0, interval=V01, resamples=30)
    assert again == found
    del answers["short"]["short0"]
    with pytest.raises(DataError, match="no answer of short to question short0"):
        style_controlled(battles, answers, seed=0, interval=V01)
    answers["short"]["short0"] = ModelAnswer("short0", "short", "", None)
    with pytest.raises(DataError, match="no style counts"):
        style_controlled(battles, answers, seed=0, interval=V01)


def test_style_control_needs_one_baseline():
    rows = [judgment("1", "A>B", "A>B"), judgment("2", "A>B", "A>B", baseline="other")]
    with pytest.raises(DataError, match="have 2"):
        style_controlled(battles_of(rows), {}, seed=0, interval=V01)


def test_judgments_come_back_and_broken_ones_are_named(tmp_path):
    path = tmp_path / "m.jsonl"
    good = judgment("1", "A>B", "A=B")
    path.write_text(json.dumps(good) + "\n")
    assert read_judgments(path) == [good]
    old = {k: v for k, v in good.items() if k != "uid"} | {"question_id": "9"}
    path.write_text(json.dumps(old) + "\n")
    assert read_judgments(path)[0]["uid"] == "9"
    for bad, words in (
        ([{**good, "games": [None]}], "m.jsonl:1: .* two games"),
        ([good, good], "row 2 has the pair of an earlier row"),
        ([{"uid": "1"}], "m.jsonl:1: the row has no model, games"),
    ):
        path.write_text("".join(json.dumps(row) + "\n" for row in bad))
        with pytest.raises(DataError, match=words):
            read_judgments(path)


def test_battles_and_answers_that_are_none_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    row = {"question_id": 1, "model_a": "a", "model_b": "b", "winner": "nobody"}
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"x\.jsonl:1: the winner is none of"):
        read_battles(path)
    path.write_text(json.dumps({"uid": "1", "model": "m", "messages": [{"content": {}}]}))
    with pytest.raises(DataError, match="holds no answer"):
        read_answers(path)
    with pytest.raises(DataError, match="names the baseline 'c'; the models are a, b"):
        battle_scores([Outcome("a", "b", 1.0, "1")], baseline="c", seed=0, interval=V01)


def test_prompts_are_the_benchmarks_own():
    # Sha256 of the two system prompts of utils/judge_utils.py at commit 196f6b8.
    digests = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in (SYSTEM, SYSTEM_CREATIVE)]
    assert digests == ["03f68010febd7a64", "171489efbca7f19f"]
    assert USER.startswith("<|User Prompt|>\n{question}\n\n<|The Start of Assistant A's Answer|>\n")
