"""What stands in `evaluate.suite`: words, and evaluations with keys of their own."""

import pytest
from pydantic import ValidationError

from align import registry
from align.errors import RecipeError
from align.evaluation import Benchmark, EvaluationNode, Measurement
from align.recipe.sections import Evaluate

MEASUREMENTS = {"preference": {}, "answers": {}, "world": {"world": "sums"}}
BENCHMARKS = {
    "alpaca_eval": {"reference_outputs": "base.json"},
    "arena_hard": {"version": "v2.0", "questions": "q.jsonl", "baseline_answers": ["b.jsonl"]},
    "win_rate": {"against": "base.json"},
    "tasks": {"tasks": ["sums"]},
    "ifeval": {"file": "input_data.jsonl"},
}
JUDGE = {"base_url": "http://localhost:8000/v1", "model": "judge", "revision": "1"}


def read(name, **settings) -> EvaluationNode:
    judged = {} if name in ("tasks", "ifeval", *MEASUREMENTS) else {"annotator": JUDGE}
    keys = (MEASUREMENTS | BENCHMARKS)[name]
    (node,) = Evaluate.model_validate(
        {"suite": [{"run": name, **keys, **judged, **settings}]}
    ).nodes()
    return node


def test_every_evaluation_reads_its_node_and_describes_its_keys():
    assert set(registry.names("evaluation")) == set(MEASUREMENTS) | set(BENCHMARKS)
    for name in registry.names("evaluation"):
        node = read(name)
        section = registry.node("evaluation", name)
        assert type(node) is section
        assert type(node).model_validate(node.model_dump(mode="json")) == node
        assert all(field.description for field in section.model_fields.values()), name
        assert isinstance(node, Measurement if name in MEASUREMENTS else Benchmark)
    for name in BENCHMARKS:
        assert read(name).max_failed == 0.01


def test_a_word_is_an_evaluation_without_keys():
    found = Evaluate(suite=("preference", "sums", "world:styles"))
    assert found.nodes() == [
        read("preference"),
        read("world"),
        read("world", world="styles"),
    ]
    # And a word is what a stage's key holds of it.
    assert [node.settings() for node in found.nodes()] == ["preference", "sums", "styles"]
    assert found.worlds == ["sums", "styles"]
    assert Evaluate().nodes() == [read("preference")]


def test_a_section_written_back_reads_the_same():
    found = Evaluate.model_validate(
        {"suite": ["sums", {"run": "win_rate", "annotator": JUDGE, **BENCHMARKS["win_rate"]}]}
    )
    assert Evaluate.model_validate_json(found.model_dump_json(), strict=True) == found


def test_who_needs_pairs_of_rows_is_known_before_anything_runs():
    assert Evaluate().needs_pairs
    assert Evaluate.model_validate({"suite": [{"run": "preference"}]}).needs_pairs
    assert not Evaluate.model_validate(
        {"suite": ["sums", {"run": "tasks", "tasks": ["sums"]}]}
    ).needs_pairs


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("preferense", "did you mean `preference`"),
        ("sum", "did you mean `sums`"),
        ("world:sum", "did you mean `?world:sums"),
        ("world:zz", "there are world:sums"),
        ("zz", "there are preference, .*sums"),
    ],
)
def test_a_wrong_word_gets_the_nearest_right_one(word, words):
    with pytest.raises(ValidationError, match=words):
        Evaluate(suite=(word,))


def test_words_that_cannot_stand_are_refused():
    with pytest.raises(ValidationError, match="an entry stands twice"):
        Evaluate(suite=("sums", "sums"))
    with pytest.raises(RecipeError, match=r"tasks needs keys of its own \(tasks\)"):
        Evaluate(suite=("tasks",)).nodes()
    with pytest.raises(RecipeError, match=r"win_rate needs keys of its own \(.*against"):
        Evaluate(suite=("win_rate",)).nodes()


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("alpaca_eval", {"gamed": "a.csv", "difficulty": "b.csv"}, "keep one of the two"),
        ("alpaca_eval", {"reading": "guess"}, "logprobs"),
        ("alpaca_eval", {"referense_outputs": "x"}, "referense_outputs"),
        ("arena_hard", {"version": "v3"}, "v2.0"),
        ("arena_hard", {"baseline_answers": []}, "baseline_answers"),
        ("win_rate", {"max_failed": 2}, "max_failed"),
        ("win_rate", {"annotator": {**JUDGE, "base_url": "localhost"}}, "base_url must be like"),
        ("tasks", {"tasks": []}, "tasks"),
        ("ifeval", {"limit": 0}, "limit"),
        ("world", {"world": "sum"}, "did you mean `?world:sums"),
    ],
)
def test_what_cannot_stand_is_refused(name, settings, words):
    with pytest.raises(ValidationError, match=words):
        read(name, **settings)
