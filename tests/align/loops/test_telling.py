"""Reports and changes in words."""

from align.loops.telling import changes, in_words, numbers

REPORT = {
    "prompts": 24,
    "mean_score": 0.123456,
    "failed": {"too_long": 2, "unfinished": 0},
    "judge": "rule:length",
    "probe": {"margin": 0.0, "loss": 0.69},
    "is_whole": True,
    "rewards/margins": 0.5,
}


def test_a_report_is_its_numbers_and_its_counts_by_reason() -> None:
    assert numbers(REPORT) == {
        "prompts": 24,
        "mean score": 0.123456,
        "failed: too long": 2,
        "failed: unfinished": 0,
        "rewards margins": 0.5,
    }
    assert (
        in_words(REPORT) == "prompts 24, mean score 0.123, failed: too long 2, rewards margins 0.5"
    )


def test_a_plain_zero_is_said_because_it_may_be_the_news() -> None:
    assert in_words({"kept": 0, "dropped": {"tie": 0}}) == "kept 0"


def test_a_change_names_its_key_with_both_values() -> None:
    then = {"rule": "tournament", "model": {"lora_r": 16}, "list": [1, 2]}
    now = {"rule": "all_pairs", "model": {"lora_r": 32}, "list": [1, 3]}
    assert (
        changes(then, now)
        == 'list[1] 2 -> 3, model.lora_r 16 -> 32, rule "tournament" -> "all_pairs"'
    )
    assert changes(None, {"a": 1}) == 'null -> {"a": 1}'
    assert changes({}, {"new": 1}) == "new null -> 1"


def test_a_hash_is_never_printed_and_much_is_cut() -> None:
    digests = (
        {"code": {"rewards.py:right": "8433074750a59403"}},
        {"code": {"rewards.py:right": "0" * 64}},
    )
    assert changes(*digests) == "code.rewards.py:right is another one"
    many = changes({str(n): n for n in range(9)}, {})
    assert many == "0 0 -> null, 1 1 -> null, 2 2 -> null and 6 more"
    assert len(changes({"text": "x" * 500}, {"text": "y" * 500})) < 100
