import itertools
from collections import Counter

import pytest

from align.data.questions import Question
from align_data.mcts.settings import AgentQSettings, XieSettings
from align_data.mcts.step_pairs import smoothing
from align_data.mcts.tree import Tree
from align_data.mcts.work import MCTSWork
from tests.data_pipelines.mcts.scripted_writer import (
    END,
    Says,
    ScriptedWriter,
    at_random,
    every_step,
)

KNOWN = {
    "": ["aaaa\n", "bbbb\n", "cccc\n"],
    "aaaa\n": ["1$", "2$"],
    "bbbb\n": ["1$", "3$"],
    "cccc\n": ["3$", "4$"],
}
# Mean outcome of the three first steps: 1, 0, -1.
RIGHT = ("aaaa\n1", "aaaa\n2", "bbbb\n1")


def asked(row=1, **fields):
    return Question(prompt=f"q{row}?", source="test", row=row, **fields)


def work(settings, writer, right=lambda text: text in RIGHT, **given):
    hashed = settings.config_hash
    return MCTSWork(settings, writer, Says(right), seed=0, config_hash=hashed, **given)


def xie(**fields):
    given = {"confidence": "none", "first_breadth": 3, "breadth": 2, "exploration": 5.0}
    return XieSettings(**(given | fields))


def agent_q(**fields):
    given = {"first_breadth": 3, "breadth": 2, "root_simulations": 60}
    return AgentQSettings(**(given | fields))


def built(settings, options=KNOWN, questions=None, mass=None, **given):
    writer = ScriptedWriter(every_step(options), mass=mass)
    return work(settings, writer, **given)(questions or [asked()])


def test_the_pair_is_the_truly_best_and_the_truly_worst_step():
    [found] = built(xie(root_simulations=90))
    pair, *others = found.pairs
    assert (pair.chosen, pair.rejected) == ("aaaa\n", "cccc\n")
    # The program commits to where visits differ most, so to the step with one right child.
    assert [(p.chosen, p.rejected) for p in others] == [("bbbb\n1", "bbbb\n3")]
    assert (found.read, found.dropped) == (2, ())
    assert (pair.chosen_score, pair.rejected_score, pair.margin) == (1.0, -1.0, 2.0)
    n_chosen, n_rejected = pair.visit_counts
    assert pair.preference == pytest.approx(n_chosen / (n_chosen + n_rejected))
    assert pair.preference > 0.5
    assert (pair.chosen_ends, pair.rejected_ends, pair.depth) == (False, False, 0)
    assert END not in pair.chosen_ids
    assert found.record["right"] is True
    assert found.record["answer_text"] in RIGHT


def test_the_rejected_step_may_be_any_but_the_best():
    questions = [asked(row) for row in range(1, 25)]
    rejected = Counter(
        pair.rejected
        for one in built(xie(reject="random", root_simulations=90), questions=questions)
        for pair in one.pairs
        if pair.depth == 0
    )
    assert set(rejected) == {"bbbb\n", "cccc\n"}
    assert rejected.total() == 24


@pytest.mark.parametrize("backup", ["xie", "mean"])
def test_the_question_is_visited_once_per_simulation(backup):
    [found] = built(xie(root_simulations=40, backup=backup))
    root = found.record["nodes"][0]
    assert root["visits"] == 40
    assert sum(child["visits"] for child in found.record["frozen"]["0"]) == 40


def test_the_program_counts_the_question_twice():
    [found] = built(xie(root_simulations=40, root_count="twice"))
    assert found.record["nodes"][0]["visits"] == 80


def test_a_step_without_alternative_joins_the_beginning():
    options = {
        "": ["only\n"],
        "only\n": ["this\n"],
        "only\nthis\n": ["good$", "evil$"],
    }
    [found] = built(xie(), options, right=lambda text: text.endswith("good"))
    [pair] = found.pairs
    assert pair.assistant_prefix == "only\nthis\n"
    assert (pair.chosen, pair.rejected) == ("only\nthis\ngood", "only\nthis\nevil")
    # As drawn, the end token included, since both end the answer.
    assert pair.chosen_ids == (*map(ord, "only\nthis\ngood"), END)
    assert pair.rejected_ids == (*map(ord, "only\nthis\nevil"), END)
    assert (pair.chosen_ends, pair.rejected_ends, pair.depth) == (True, True, 2)
    assert pair.prompt_ids == tuple(map(ord, "q1?>"))


def test_both_sides_share_the_beginning_and_part_behind_it():
    questions = [asked(row) for row in range(1, 13)]
    writer = ScriptedWriter(at_random(3))
    settings = xie(pairs_from="all", keep_trees="all", min_visits=0)
    results = work(settings, writer, right=lambda text: text.endswith("b" * 4))(questions)
    pairs = [pair for one in results for pair in one.pairs]
    assert len(pairs) > 10
    for pair in pairs:
        shared = len(pair.assistant_prefix)
        assert pair.chosen_ids[:shared] == pair.rejected_ids[:shared]
        assert pair.chosen_ids[shared:] != pair.rejected_ids[shared:]
        assert pair.chosen != pair.rejected
        for ids, text, ends in (
            (pair.chosen_ids, pair.chosen, pair.chosen_ends),
            (pair.rejected_ids, pair.rejected, pair.rejected_ends),
        ):
            assert "".join(chr(i) for i in ids if i != END) == text
            assert (ids[-1] == END) is ends
            assert END not in ids[:-1]


@pytest.mark.parametrize("variant", ["xie", "agent_q"])
def test_everything_read_is_a_pair_or_dropped_for_a_reason(variant):
    settings = xie() if variant == "xie" else agent_q(ranking="none", mix=1, threshold=0.3)
    questions = [asked(row) for row in range(1, 21)]
    writer = ScriptedWriter(at_random(1))
    writer.fails = lambda key: key.endswith("/6/steps") and key[0] < "8"
    results = work(settings, writer, right=lambda text: text.count("a") > 5)(questions)
    assert all(one.read == len(one.pairs) + len(one.dropped) for one in results)
    reasons = Counter(row.reason for one in results for row in one.dropped)
    assert reasons["failed"] > 0
    assert len(reasons) > 1
    assert sum(len(one.pairs) for one in results) > 0


@pytest.mark.parametrize(
    "settings",
    [
        xie(confidence="options", exploration=1.0),
        agent_q(root_simulations=20),
    ],
)
def test_together_or_one_at_a_time_is_the_same(settings):
    def mass(text):
        return {"correct": (len(text) % 7) / 7, "incorrect": 0.1, "A": 0.2, "B": 0.3, "C": 0.1}

    def run(questions, together):
        writer = ScriptedWriter(at_random(5), mass=mass)
        job = work(settings, writer, right=lambda text: text.count("b") > 5)
        if together:
            return job(questions), writer
        return [one for question in questions for one in job([question])], writer

    questions = [asked(row) for row in range(1, 9)]
    together, batched = run(questions, True)
    alone, single = run(questions, False)
    again, _ = run(questions, True)
    assert [one.model_dump_json() for one in together] == [one.model_dump_json() for one in alone]
    assert [one.model_dump_json() for one in together] == [one.model_dump_json() for one in again]
    assert sum(batched.calls) == sum(single.calls)
    assert len(batched.calls) < len(single.calls) / 3


def test_a_shift_of_all_confidences_moves_no_difference_between_siblings():
    def run(shift):
        def mass(text):
            so_far = text.partition("partial solution:\n")[2]
            return {"correct": 0.1 + shift + (sum(map(ord, so_far)) % 11) / 30}

        settings = xie(
            confidence="options", value="undiscounted", exploration=1.0, keep_trees="all"
        )
        writer = ScriptedWriter(at_random(2), mass=mass)
        [one] = work(settings, writer, right=lambda text: text.count("b") > 5)([asked()])
        return one.record["nodes"]

    plain, shifted = run(0.0), run(0.25)
    assert [node["text"] for node in plain] == [node["text"] for node in shifted]
    compared = 0
    for before, after in zip(plain, shifted, strict=True):
        for i, j in itertools.combinations(before["children"], 2):
            gap = plain[i]["q"] - plain[j]["q"]
            assert shifted[i]["q"] - shifted[j]["q"] == pytest.approx(gap, abs=1e-9)
            compared += abs(gap) > 1e-6
        assert after["visits"] == before["visits"]
    assert compared > 3


def test_values_by_hand():
    options = {
        "": ["aaaa\n"],
        "aaaa\n": ["bbbb\n"],
        "aaaa\nbbbb\n": ["cccc\n"],
        "aaaa\nbbbb\ncccc\n": ["dddd\n"],
        "aaaa\nbbbb\ncccc\ndddd\n": ["eeee\n"],
        "aaaa\nbbbb\ncccc\ndddd\neeee\n": ["5$"],
    }

    def mass(text):
        last = text.partition("partial solution:\n")[2].partition("\n\nLetter")[0].split("\n")[-1]
        said = {"aaaa": 0.3, "bbbb": 0.0, "cccc": 0.5, "dddd": 0.6, "eeee": 0.8, "5": 0.9}
        return {"correct": said[last], "incorrect": 0.1}

    def values(**fields):
        settings = xie(confidence="options", depth=8, **fields)
        [one] = built(settings, options, mass=mass, right=lambda text: text.endswith("5"))
        nodes = one.record["nodes"][1:]
        return [node["value"] for node in nodes], [node["reward"] for node in nodes]

    # Divided by max(depth of the parent - 3, 1): 1 for the first five, 2 for the last; 0 is the
    # parent's 0.3; right adds 1.
    v, r = values()
    assert v == pytest.approx([0.3, 0.3, 0.5, 0.6, 0.8, 0.9 / 2 + 1])
    assert r == pytest.approx([0.3, 0.0, 0.2, 0.1, 0.2, 0.65])
    v, r = values(value="undiscounted")
    assert v == pytest.approx([0.3, 0.0, 0.5, 0.6, 0.8, 1.9])
    assert r == pytest.approx([0.3, -0.3, 0.5, 0.1, 0.2, 1.1])
    v, r = values(value="paper")
    assert r == pytest.approx(v)
    v, _ = values(confidence_scale="normalised")
    assert v[0] == pytest.approx(0.75, abs=1e-6)


def test_grades_are_weighed():
    def mass(text):
        return {"A": 0.1, "B": 0.2, "C": 0.3, "D": 0.4}

    options = {"": ["aaaa\n", "bbbb\n"], "aaaa\n": ["1$"], "bbbb\n": ["1$"]}
    settings = xie(confidence="grades", keep_trees="all")
    [one] = built(settings, options, mass=mass, right=lambda text: None)
    # 0.4 - 0.2 - 2 * 0.1 = 0, and 0 takes the parent's value, 0.
    assert {node["confidence"] for node in one.record["nodes"][1:]} == {0.0}


def test_a_step_that_the_critic_cannot_evaluate_is_left_out():
    writer = ScriptedWriter(every_step(KNOWN), mass=lambda text: {"correct": 0.5})
    writer.fails = lambda key: key.endswith("/0/confidence/2")
    settings = xie(confidence="options", root_simulations=90)
    [one] = work(settings, writer)([asked()])
    assert one.counts["not_evaluated"] == 1
    assert [pair.rejected for pair in one.pairs if pair.depth == 0] == ["bbbb\n"]


@pytest.mark.parametrize("what", ["/steps", "/confidence/"])
def test_without_an_answer_the_tree_failed(what):
    writer = ScriptedWriter(every_step(KNOWN), mass=lambda text: {"correct": 0.5})
    writer.fails = lambda key: what in key
    [one, other] = work(xie(confidence="options"), writer)([asked(1), asked(2)])
    for lost in (one, other):
        assert (lost.read, lost.pairs) == (1, ())
        assert lost.dropped[0].reason == "failed"
        assert "unanswered" in lost.dropped[0].detail


def test_what_runs_out_of_tokens_is_wrong():
    options = {"": ["aaaa\n", "bbbb\n"], "aaaa\n": ["7" * 40], "bbbb\n": ["8$"]}
    settings = xie(depth=1, finish_tokens=9)
    [one] = built(settings, options, right=lambda text: True)
    [cut] = [node for node in one.record["nodes"] if node["is_cut"]]
    assert (cut["text"], cut["outcome"], cut["has_end"]) == ("7" * 9, False, False)
    [pair] = one.pairs
    assert (pair.chosen, pair.rejected) == ("bbbb\n", "aaaa\n")


def test_the_end_of_the_context_cuts_an_answer_off():
    writer = ScriptedWriter(lambda question, so_far, n: ["abcd\n"] * n, longest=22)
    [one] = work(xie(), writer)([asked()])
    nodes = one.record["nodes"]
    # The prompt has 4 tokens; behind the third step 3 are left, and 5 are too few.
    assert [node["text"] for node in nodes[1:]] == ["abcd\n"] * 3
    assert (nodes[-1]["is_cut"], nodes[-1]["outcome"]) == (True, False)
    assert one.counts["trees_without_choice"] == 1


@pytest.mark.parametrize("settings", [xie(), agent_q(ranking="none", mix=1)])
def test_a_prompt_without_room_is_dropped(settings):
    writer = ScriptedWriter(lambda question, so_far, n: ["abcd\n"] * n, longest=9)
    [one] = work(settings, writer)([asked()])
    assert [row.reason for row in one.dropped] == ["too_long"]
    # Room for a step, and none for what should follow.
    writer = ScriptedWriter(lambda question, so_far, n: ["abcd\n"] * n, longest=10)
    [one] = work(settings, writer)([asked()])
    assert one.record["nodes"][1]["visits"] > 0
    assert one.pairs == ()


def test_an_end_that_the_policy_did_not_draw_is_not_trained_on():
    options = {"": ["five#more", "nine$", "$"]}
    settings = xie(answer_ends=("#",))
    [one] = built(settings, options, right=lambda text: text == "five")
    [pair] = one.pairs
    assert (pair.chosen, pair.chosen_ends, pair.rejected_ends) == ("five", False, True)
    assert pair.chosen_ids == tuple(map(ord, "five"))
    # An answer that ends before it began is no step.
    assert len(one.record["nodes"]) == 3


def test_siblings_are_compared_as_they_stood_when_the_search_went_on():
    options = {"": ["aaaa\n", "cccc\n"], "aaaa\n": ["1$", "3$"], "cccc\n": ["3$"]}
    settings = xie(root_simulations=30, simulations=40)
    [one] = built(settings, options, right=lambda text: text == "aaaa\n1")
    first = next(pair for pair in one.pairs if pair.depth == 0)
    assert sum(first.visit_counts) == 30
    assert one.record["nodes"][1]["visits"] > 40


def test_the_critic_steers_the_first_choice():
    options = {"": ["aaaa\n", "bbbb\n", "cccc\n"]} | {
        step: ["1$"] for step in ("aaaa\n", "bbbb\n", "cccc\n")
    }

    def mass(text):
        listed = text.partition("Next steps:\n")[2]
        return {letter: 0.9 for letter in "ABC" if f"({letter}) bbbb" in listed}

    writer = ScriptedWriter(every_step(options), mass=mass)
    [one] = work(agent_q(root_simulations=1), writer, right=lambda text: True)([asked()])
    visited = [node["text"] for node in one.record["nodes"][1:] if node["visits"]]
    assert visited == ["bbbb\n"]


def test_short_steps_are_drawn_on_and_equal_ones_count_once():
    options = {
        "": ["1.\n", "\n", "long enough\n", "1.\n"],
        "1.\n": ["so it is\n"],
        "\n": ["\n"],
        "\n\n": ["well then\n"],
        "1.\nso it is\n": ["9$"],
        "\n\nwell then\n": ["9$"],
        "long enough\n": ["9$", "$"],
    }
    settings = xie(first_breadth=4, keep_trees="all")
    [one] = built(settings, options, right=lambda text: text.endswith("9"))
    nodes = one.record["nodes"]
    first = [nodes[number]["text"] for number in nodes[0]["children"]]
    assert first == ["1.\nso it is\n", "\n\nwell then\n", "long enough\n"]
    assert one.counts["steps_left_out"] > 0
    # An end without a word more is a step of its own behind a step.
    assert any(node["text"] == "" and node["has_end"] for node in nodes[1:])


def test_the_pairs_of_a_wrong_answer_are_not_kept():
    [one] = built(xie(), right=lambda text: False)
    assert {row.reason for row in one.dropped} == {"wrong_answer"}
    assert not one.pairs
    [one] = built(xie(keep_trees="all", equal_q="keep"), right=lambda text: False)
    assert one.pairs
    [one] = built(xie(), right=lambda text: None)
    assert {row.reason for row in one.dropped} == {"not_judged"}


def test_limits():
    [one] = built(xie(root_simulations=90, min_q_gap=2.5))
    assert [row.reason for row in one.dropped] == ["small_margin", "small_margin"]
    [one] = built(xie(root_simulations=90, min_visits=1000))
    assert {row.reason for row in one.dropped} == {"too_few_visits"}
    [one] = built(xie(root_simulations=90, pairs_from="all", max_pairs=1))
    assert len(one.pairs) == 1
    assert "not_drawn" in {row.reason for row in one.dropped}


def test_smoothing():
    # 3 / (9 + 3); capped; nothing visited; alike.
    assert smoothing(9, 3) == pytest.approx(0.25)
    assert smoothing(3, 9) == 0.5
    assert smoothing(0, 0) == 0.0
    assert smoothing(1, 1) == 0.5


def test_agent_q_pairs_by_outcome_alone_where_alpha_is_one():
    def liking(letter):
        return lambda text: {letter: 0.9}

    options = {**KNOWN, "": ["aaaa\n", "cccc\n"]}

    def found(mass):
        [one] = built(agent_q(mix=1), options, mass=mass)
        return [(p.chosen, p.rejected, p.chosen_score, p.rejected_score) for p in one.pairs]

    assert found(liking("A")) == found(liking("B")) == [("aaaa\n", "cccc\n", 1.0, 0.0)]
    [mixed] = built(agent_q(mix=0.5), options, mass=liking("A"))
    # Two right answers differ by their ranks alone: 0.5 * 1 against 0.5 * 0.
    assert any(pair.depth == 1 and pair.margin == 0.5 for pair in mixed.pairs)


def test_agent_q_scores_mix_rank_and_outcome():
    def mass(text):
        listed = text.partition("Next steps:\n")[2]
        # The critic likes c best, then b.
        for step in ("cccc", "bbbb"):
            for letter in "ABC":
                if f"({letter}) {step}" in listed:
                    return {letter: 0.9}
        return {"A": 0.9}

    writer = ScriptedWriter(every_step(KNOWN), mass=mass)
    [one] = work(agent_q(mix=0.25, threshold=0.0), writer)([asked()])
    nodes = one.record["nodes"]
    ranks = {nodes[n]["text"]: nodes[n]["rank_value"] for n in nodes[0]["children"]}
    assert ranks == {"aaaa\n": 0.0, "bbbb\n": 0.5, "cccc\n": 1.0}
    of_root = {(p.chosen, p.rejected): p for p in one.pairs if p.depth == 0}
    q = {nodes[n]["text"]: nodes[n]["q"] for n in nodes[0]["children"]}
    assert (q["aaaa\n"], q["cccc\n"]) == (1.0, 0.0)
    # c: 0.25 * 0 + 0.75 * 1; a: 0.25 * 1 + 0.75 * 0.
    pair = of_root["cccc\n", "aaaa\n"]
    assert (pair.chosen_score, pair.rejected_score) == (pytest.approx(0.75), pytest.approx(0.25))
    assert pair.preference is None
    # K - 1 questions for each set of K siblings; three sets of two and one of three.
    assert one.counts["asked"] == 2 + 3


def test_agent_q_keeps_what_is_far_enough_apart():
    [one] = built(agent_q(mix=1, ranking="none", threshold=1.5))
    assert one.pairs == ()
    [one] = built(agent_q(mix=1, ranking="none", threshold=0.0))
    per_parent = Counter(pair.assistant_prefix for pair in one.pairs)
    assert per_parent[""] <= 3
    assert max(per_parent.values()) <= 3
    assert one.read == 3 + 3
    [one] = built(agent_q(mix=1, ranking="none"), right=lambda text: None)
    assert [row.reason for row in one.dropped] == ["not_judged"]


def test_sampled_labels_follow_the_difference_of_the_scores():
    settings = agent_q(mix=1, ranking="none", labels="sampled", breadth=1)
    options = {"": ["aaaa\n", "cccc\n"], "aaaa\n": ["1$"], "cccc\n": ["3$"]}
    questions = [asked(row) for row in range(1, 401)]
    results = built(settings, options, questions=questions)
    kept = [pair.chosen == "aaaa\n" for one in results for pair in one.pairs]
    assert len(kept) == 400
    # sigmoid(1 - 0) = 0.7311; four standard errors are 0.089.
    assert sum(kept) / 400 == pytest.approx(0.7311, abs=0.089)


def test_rounds_and_settings_part_the_units():
    writer = ScriptedWriter(every_step(KNOWN))
    one, other = (work(xie(), writer, round=r)([asked()])[0] for r in (1, 2))
    assert one.uid != other.uid
    assert one.pairs[0].uid != other.pairs[0].uid
    assert (one.pairs[0].round, other.pairs[0].round) == (1, 2)


def test_a_tree_can_be_read_back():
    [one] = built(xie())
    kept = {key: one.record[key] for key in ("nodes", "committed", "frozen")}
    tree = Tree.from_json(kept)
    assert tree.to_json() == kept


def test_trees_are_counted_as_they_end_with_their_simulations(phases, caplog):
    questions = [asked(row) for row in range(1, 9)]
    found = built(xie(root_simulations=20), questions=questions)
    [(_, unit, total, done, _)] = [p for p in phases if p[0] == "search"]
    assert (unit, total, done[-1]) == ("trees", 8, 8)
    assert all(one.counts["simulations"] >= 20 for one in found)
