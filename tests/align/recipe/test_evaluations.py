import pytest
from pydantic import TypeAdapter, ValidationError

from align.recipe.evaluations import EVALUATIONS, AnyEvaluation

NODES = {
    "alpaca_eval": {"reference_outputs": "base.json"},
    "arena_hard": {"version": "v2.0", "questions": "q.jsonl", "baseline_answers": ["b.jsonl"]},
    "win_rate": {"against": "base.json"},
    "tasks": {"tasks": ["sums"]},
}
JUDGE = {"base_url": "http://localhost:8000/v1", "model": "judge", "revision": "1"}


def read(name, **settings):
    judged = {} if name == "tasks" else {"annotator": JUDGE}
    return TypeAdapter(AnyEvaluation).validate_python(
        {"run": name, **NODES[name], **judged, **settings}
    )


def test_every_evaluation_reads_its_node_and_describes_its_keys():
    assert set(EVALUATIONS) == set(NODES)
    for name, section in EVALUATIONS.items():
        node = read(name)
        assert type(node) is section
        assert type(node).model_validate(node.model_dump(mode="json")) == node
        assert all(field.description for field in section.model_fields.values()), name
        assert node.max_failed == 0.01


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
    ],
)
def test_what_cannot_stand_is_refused(name, settings, words):
    with pytest.raises(ValidationError, match=words):
        read(name, **settings)
