"""The dry run of a loop."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from align.app.check_loop import calls_of, check_before_rounds, check_loop
from align.errors import DataError, RecipeError
from align.judges.base import Tie
from align.judges.matrix import preference_matrix, tournament
from align.stages.select import Select
from tests import tiny_loops


def test_a_loop_is_described_without_running_it(recipe_of, place: Path) -> None:
    """4 prompts of 3 letters: bos, user, 3, end, assistant = 7 tokens; 4 samples, 4 scores."""
    before = sorted(place.iterdir())
    said = check_loop(recipe_of(), show_example=True).splitlines()
    assert said[0] == "rounds: 3, each of generate, judge, select, train; the stages fit together"
    assert said[1] == "roles: reference: start, previous: round_start"
    assert "rows: 12 read, 0 dropped" in said
    assert "prompts: 4 in round 1" in said
    assert "prompt tokens: min 7, median 7, p95 7, max 7" in said
    assert "judge: asked for scores, at most 16 calls a round, 48 in all" in said
    assert "pairs: at most 4 a round, in at most 2 steps" in said
    assert said[-1].startswith("'<bos><user>")
    assert not [line for line in said if line.startswith("warning")]
    assert sorted(place.iterdir()) == sorted({*before, place / "recipe.yaml"})


class Asked:
    identity = "ties"

    def __init__(self) -> None:
        self.asked = 0

    def compare(self, items):
        self.asked += len(items)
        return [Tie()] * len(items)


@pytest.mark.parametrize("samples", range(2, 10))
def test_the_estimate_of_calls_is_what_a_judge_is_asked(samples: int) -> None:
    completions = [str(i) for i in range(samples)]
    judge = Asked()
    tournament(judge, "p", completions)
    # With an odd one out, the last match may have been played before.
    assert calls_of("tournament", samples, None) - judge.asked in (
        (0,) if samples in (4, 6, 8) else (0, 1)
    )
    judge = Asked()
    every = [(i, j) for i in range(samples) for j in range(i)]
    preference_matrix(judge, "p", completions, every)
    assert calls_of("all_pairs", samples, None) == judge.asked
    assert calls_of("random_pair", samples, Select.of(rule="random_pair")) == 1
    assert calls_of("scores", samples, None) == samples


def test_inpos_eleven_of_eight() -> None:
    assert calls_of("tournament", 8, None) == 11


def test_long_answers_are_announced(recipe_of) -> None:
    said = check_loop(recipe_of(data={"max_length": 20}), show_example=False)
    assert "warning: a prompt of 7 tokens and an answer of 16 are longer than" in said


def test_prompts_that_leave_no_room_are_refused(recipe_of) -> None:
    nodes = [dict(stage) for stage in tiny_loops.STAGES]
    nodes[0]["max_new_tokens"] = 60
    with pytest.raises(DataError, match="None of the 4 prompts of round 1 can be continued"):
        check_loop(recipe_of(each_round=nodes), show_example=False)


SEARCH = {"run": "mcts", "verify": "answers", "confidence": "none"}
REFUSED = {
    "chain": ({"each_round": tiny_loops.STAGES[1:]}, "reads completions, which no stage writes"),
    "guide": (
        {"objective": {"name": "tgdpo"}, "roles": {"reference": "start", "guide": "./nowhere"}},
        "roles.guide: there is no folder './nowhere'",
    ),
    "launch": (
        {"each_round": [*tiny_loops.STAGES[:3], {"run": "train", "launch": "none.yaml"}]},
        "launched by none.yaml, which cannot be read",
    ),
    "answers": (
        {"each_round": [tiny_loops.STAGES[0], {"run": "judge", "by": "answers", "path": "none"}]},
        "answers none cannot be read",
    ),
    "reward model": (
        {
            "each_round": [
                tiny_loops.STAGES[0],
                {"run": "judge", "by": "reward_model", "path": "none"},
                tiny_loops.STAGES[2],
            ]
        },
        "'none' cannot be loaded as a judge's model",
    ),
    "one of several rewards": (
        {
            "each_round": [
                tiny_loops.STAGES[0],
                {
                    "run": "judge",
                    "by": "rewards",
                    "rewards": [{"by": "length"}, {"by": "reward_model", "path": "none"}],
                },
                tiny_loops.STAGES[2],
            ]
        },
        "'none' cannot be loaded as a judge's model",
    ),
    "labelled pairs": (
        {"each_round": [*tiny_loops.STAGES[:2], {"run": "uncertainty", "labelled": "none.jsonl"}]},
        r"no file or folder none\.jsonl",
    ),
    "estimator": (
        {
            "each_round": [
                *tiny_loops.STAGES[:2],
                {"run": "uncertainty", "estimator": {"kind": "likelihood", "path": "./nowhere"}},
            ]
        },
        r"estimator\.path: there is no folder './nowhere'",
    ),
    "backbone": (
        {
            "each_round": [
                *tiny_loops.STAGES[:2],
                {
                    "run": "uncertainty",
                    "labelled": "eval.jsonl",
                    "estimator": {"kind": "likelihood", "backbone": "./nowhere"},
                },
            ]
        },
        "there is no folder './nowhere'",
    ),
    "prompts of a pipeline": (
        {"each_round": [SEARCH], "prompts": {"source": "none.jsonl"}},
        r"no file or folder none\.jsonl",
    ),
    "known answers": (
        {"each_round": [SEARCH], "prompts": {"source": "unanswered.jsonl"}},
        "none of the 1 prompts of unanswered.jsonl brings one",
    ),
    "pattern": (
        {"each_round": [*tiny_loops.STAGES[:1], dict(tiny_loops.STAGES[1]) | {"pattern": "("}]},
        "is no regular expression",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_end_the_first_round_is_refused_before_it(
    case: str, recipe_of, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    tiny_loops.write_rows(place / "unanswered.jsonl", [{"prompt": "abc"}])
    changes, says = REFUSED[case]
    if "each_round" in changes and not any(s["run"] == "train" for s in changes["each_round"]):
        changes = changes | {"each_round": [*changes["each_round"], {"run": "train"}]}
    with pytest.raises((RecipeError, DataError), match=says):
        check_loop(recipe_of(**changes), show_example=False)


def test_a_reward_model_is_looked_at_without_its_weights(recipe_of, place: Path) -> None:
    tokenizer = tiny_loops.letters_tokenizer()
    nodes = [dict(stage) for stage in tiny_loops.STAGES]
    nodes[1] = {"run": "judge", "by": "reward_model", "path": str(place / "judge")}
    tokenizer.save_pretrained(place / "judge")
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0)
    config.save_pretrained(place / "judge")
    check_loop(recipe_of(each_round=nodes), show_example=False)
    for change, says in (({"num_labels": 3}, "has 3 outputs"), ({"pad_token_id": None}, "no pad_")):
        LlamaConfig(**config.to_diff_dict() | change).save_pretrained(place / "judge")
        with pytest.raises(RecipeError, match=says):
            check_loop(recipe_of(each_round=nodes), show_example=False)


def test_the_prompts_of_a_pipeline_are_counted(recipe_of, place: Path) -> None:
    said = check_loop(recipe_of(each_round=[SEARCH, {"run": "train"}]), show_example=True)
    assert "rounds: 3, each of mcts, train; the stages fit together" in said
    assert "prompts: 4 in round 1\nprompt tokens: min 7" in said
    assert said.splitlines()[-1].startswith("'<bos><user>")


def test_scores_that_nobody_asks_for_are_refused(recipe_of, shop_of) -> None:
    nodes = [dict(stage) for stage in tiny_loops.STAGES]
    server = {"base_url": "http://localhost:1/v1", "model": "m", "revision": "1"}
    nodes[1] = {"run": "judge", "by": "llm", "server": server}
    nodes[2] = {"run": "select", "rule": "random_pair"}
    changes = {"objective": {"name": "spo"}, "roles": {"previous": "round_start"}}
    workshop = shop_of(recipe_of(each_round=nodes, **changes))
    with pytest.raises(RecipeError, match="spo reads a score of each completion"):
        check_before_rounds(workshop, workshop.stages())
    # Two completions have one comparison, which says all.
    nodes[0]["samples"] = 2
    workshop = shop_of(recipe_of(each_round=nodes, **changes))
    check_before_rounds(workshop, workshop.stages())
