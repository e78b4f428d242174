"""What a judge is asked, and how its answers become judged prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.completions import JudgedPrompt
from align.errors import DataError, RecipeError
from align.judges.base import Bench, JudgeFailed, Prefers, Tie
from align.loops.artefacts import read_lines, write_lines
from align.stages.judge import Judge, JudgeStage, ask_for, judge_prompts, told_of
from align.stages.select import Select
from tests import tiny_loops
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.scripted import by_quality

LEFT_OUT = object()
WORLD: Any = Judge.of(by="world")
LLM: Any = Judge.of(
    by="llm", server={"base_url": "http://localhost:1/v1", "model": "m", "revision": "1"}
)


def asking(node: Judge, ask: str) -> Judge:
    return node.model_copy(update={"ask": ask})


@pytest.mark.parametrize(
    ("node", "rule", "source", "expected"),
    [
        (WORLD, "random_pair", "world:sums", "scores"),
        (WORLD, "tournament", "world:sums", "scores"),
        (Judge.of(by="answers", path="a"), "all_pairs", "p.jsonl", "scores"),
        (Judge.of(by="reward_model", path="a"), "best_vs_worst", "p.jsonl", "scores"),
        # The world of styles compares: it is asked for no more than the rule reads.
        (WORLD, "random_pair", "world:styles", "random_pair"),
        (WORLD, "tournament", "world:styles", "tournament"),
        (WORLD, "best_vs_worst", "world:styles", "all_pairs"),
        (WORLD, None, "world:styles", "all_pairs"),
        (LLM, "random_pair", "p.jsonl", "random_pair"),
        (LLM, "all_pairs", "p.jsonl", "all_pairs"),
        (asking(LLM, "all_pairs"), "random_pair", "p.jsonl", "all_pairs"),
    ],
)
def test_the_judge_is_asked_for_what_the_rule_needs(node, rule, source, expected) -> None:
    select = None if rule is None else Select.of(rule=rule)
    assert ask_for(node, select, source) == expected


@pytest.mark.parametrize(
    ("node", "rule", "source", "says"),
    [
        (asking(WORLD, "all_pairs"), "all_pairs", "world:sums", "scores each completion"),
        (asking(WORLD, "scores"), "all_pairs", "world:styles", "compares two completions"),
        (asking(LLM, "random_pair"), None, "p", "the select stage is missing"),
        (
            asking(LLM, "random_pair"),
            "all_pairs",
            "p",
            "takes all_pairs; write `rule: random_pair`",
        ),
        (asking(LLM, "tournament"), "best_vs_worst", "p", "write `rule: tournament`"),
    ],
)
def test_what_the_judge_or_the_rule_cannot_use_is_refused(node, rule, source, says) -> None:
    select = None if rule is None else Select.of(rule=rule)
    with pytest.raises(RecipeError, match=says):
        ask_for(node, select, source)


def line(completions: list[str], prompt: str = "abc", failures: tuple[str, ...] = ()) -> dict:
    return {
        "prompt": prompt,
        "group_id": None,
        "source": "rows",
        "row": 1,
        "sampler": "policy",
        "completions": completions,
        "unfinished": [],
        "failures": list(failures),
    }


class Alphabet:
    """Compares: what comes first in the alphabet wins surely; an x has no verdict."""

    identity = "alphabet"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def compare(self, items: Any) -> list[Any]:
        self.asked += [(item.first, item.second) for item in items]
        return [self._verdict(item.first, item.second) for item in items]

    def _verdict(self, first: str, second: str) -> Any:
        if "x" in first + second:
            return JudgeFailed("cross", "it holds an x")
        return (
            Tie()
            if first == second
            else Prefers(*(("first", 1.0), ("second", 0.0))[first > second])
        )


def judged(lines: list[dict], rule: str, judge: Any = None, number: int = 1) -> list[Any]:
    select = Select.of(rule=rule)
    judge = judge or Alphabet()
    return judge_prompts(judge, ask_for(LLM, select, "p"), LLM, select, lines, number)


def test_all_pairs_fill_the_matrix() -> None:
    """c, a, b: P = [[1/2, 0, 0], [1, 1/2, 1], [1, 0, 1/2]] with 3 comparisons."""
    (row,) = judged([line(["c", "a", "b"], failures=("sample 3: empty ()",))], "all_pairs")
    assert row.preferences == ((0.5, 0.0, 0.0), (1.0, 0.5, 1.0), (1.0, 0.0, 0.5))
    assert (row.calls, row.scores, row.judge, row.sampler) == (3, None, "alphabet", "policy")
    assert row.failures == ("sample 3: empty ()",)


def test_random_pair_asks_one_comparison_which_the_selection_then_draws() -> None:
    from align.stages.rules import RandomPair, select

    lines = [line(["d", "a", "c", "b"], prompt=f"prompt {i}") for i in range(8)]
    judge = Alphabet()
    rows = judged(lines, "random_pair", judge, number=3)
    assert len(judge.asked) == 8
    assert all(row.calls == 1 and row.round == 3 for row in rows)
    pairs, report = select(rows, RandomPair())
    assert (report.kept, len(pairs)) == (8, 8)
    assert {frozenset((p.chosen, p.rejected)) for p in pairs} == {frozenset(p) for p in judge.asked}
    assert all(p.chosen < p.rejected for p in pairs)


def test_a_tournament_of_eight_asks_eleven_and_one_completion_plays_nobody() -> None:
    lines = [line(list("hgfedcba")), line(["a"]), line([])]
    eight, one, none = judged(lines, "tournament")
    assert (eight.calls, one.calls, none.calls) == (11, 0, 0)
    assert one.preferences == ((0.5,),)
    assert none.preferences == ()


def test_a_failed_verdict_is_none_and_named() -> None:
    (row,) = judged([line(["a", "x"])], "all_pairs")
    assert row.preferences == ((0.5, None), (None, 0.5))
    assert row.failures == ("0 against 1: cross (it holds an x)",)
    assert row.calls == 1


@pytest.fixture
def stage(recipe_of, shop_of, place: Path):
    """Function: keys of the judge's node -> its stage, on answers 'a' to every question."""

    def make(**node: Any) -> JudgeStage:
        recipe = recipe_of()
        given = {"by": "answers", "path": str(place / "answers.jsonl"), "pattern": "^.", **node}
        node: Any = Judge.of(**{key: x for key, x in given.items() if x is not LEFT_OUT})
        return JudgeStage(shop_of(recipe), node, None)

    return make


class Context:
    """What a judge stage looks at in its context."""

    round = 2

    def __init__(self, folder: Path, lines: list[dict]) -> None:
        self.loop = self.folder = folder
        (folder / "completions").mkdir()
        (folder / "judged").mkdir()
        write_lines(folder / "completions", lines)

    def input(self, kind: str) -> Path:
        return self.folder / kind

    def output(self, kind: str) -> Path:
        return self.folder / kind


def test_scores_are_kept_beside_the_matrix_that_follows_from_them(stage, place: Path) -> None:
    tiny_loops.write_rows(place / "answers.jsonl", [{"prompt": "abc", "answer": "b"}])
    context = Context(place, [line(["be", "ab", "b"], failures=("sample 1: empty ()",))])
    said = stage().run(context)
    assert said["calls"] == 3
    assert said["failed"] == 0
    (row,) = read_lines(place / "judged")
    assert row["scores"] == [1.0, 0.0, 1.0]
    assert row["preferences"] == [[0.5, 1.0, 0.5], [0.0, 0.5, 0.0], [0.5, 1.0, 0.5]]
    assert row["failures"] == ["sample 1: empty ()"]


def test_too_many_failed_verdicts_stop_the_loop_and_the_first_is_named(stage, place) -> None:
    """1 of 2 prompts has no known answer: 2 of 4 judgements; what was not sampled is no verdict."""
    tiny_loops.write_rows(place / "answers.jsonl", [{"prompt": "abc", "answer": "b"}])
    lines = [line(["b", "c"], failures=("sample 2: empty ()",)), line(["d", "e"], prompt="no")]
    context = Context(place, lines)
    says = r"2 of 4 judgements failed, more than max_failed 0.49; the first: completion 0: unkn"
    with pytest.raises(DataError, match=says):
        stage(max_failed=0.49).run(context)
    assert stage(max_failed=0.5).run(context)["failed"] == 2


@pytest.mark.parametrize("text", ["no json\n", '{"prompt": "a"}\n', "[1]\n"])
def test_a_broken_file_of_answers_is_named_with_its_line(stage, place: Path, text: str) -> None:
    (place / "answers.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' + text)
    with pytest.raises(DataError, match=r"answers\.jsonl:2: "):
        stage().run(Context(place, [line(["b"])]))


def test_what_moves_a_verdict_moves_the_key_and_nothing_else(stage, place: Path) -> None:
    def key(**node: Any) -> str:
        return json.dumps(stage(**node).settings(), sort_keys=True)

    before = key()
    assert key(max_failed=0.9) == before
    assert key(pattern="^..") != before
    (place / "answers.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    assert key() != before
    server = {"base_url": "http://localhost:1/v1", "model": "m", "revision": "1"}
    llm = {"by": "llm", "path": LEFT_OUT, "pattern": LEFT_OUT}
    before = key(**llm, server=server)
    assert key(**llm, server=server | {"base_url": "http://localhost:2/v1", "timeout": 5}) == before
    for change in ({"model": "n"}, {"revision": "2"}, {"extra": {"seed": 1}}):
        assert key(**llm, server=server | change) != before
    assert key(**llm, server=server, how={"criterion": "shorter"}) != before


def test_an_llm_is_asked_in_both_orders_and_never_again(recipe_of, shop_of, place: Path) -> None:
    lines = [line(["[quality 1]", "[quality 3]", "[quality 2]"])]
    with FaultServer(by_quality) as server:
        node = LLM.model_copy(
            update={"server": LLM.server.model_copy(update={"base_url": server.url})}
        )
        for _ in range(2):
            with node.open(Bench(place, "world:sums")) as judge:
                (row,) = judge_prompts(judge, "all_pairs", node, None, lines, 1)
            assert row.preferences == ((0.5, 0.0, 0.0), (1.0, 0.5, 1.0), (1.0, 0.0, 0.5))
        assert server.requests == 6


def judged_row(**given: Any) -> JudgedPrompt:
    fixed = {"prompt": "p", "source": "s", "row": 1, "sampler": "m", "judge": "j", "calls": 3}
    return JudgedPrompt(**fixed, **given)


def test_the_ledger_says_the_mean_score_of_what_was_scored() -> None:
    rows = [
        judged_row(completions=("a", "b"), scores=(1.0, None)),
        judged_row(completions=("c",), scores=(4.0,)),
    ]
    assert told_of(rows) == {"scored": 2, "mean_score": 2.5}


def test_the_ledger_says_ties_among_the_pairs_that_were_compared() -> None:
    # Of three pairs one is a tie, one was not asked; the diagonal is no comparison.
    table = ((0.5, 0.5, None), (0.5, 0.5, 0.9), (None, 0.1, 0.5))
    assert told_of([judged_row(completions=("a", "b", "c"), preferences=table)]) == {
        "compared": 2,
        "ties": 1,
    }
    assert told_of([]) == {"compared": 0, "ties": 0}
