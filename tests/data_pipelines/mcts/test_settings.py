import pytest
from pydantic import ValidationError

from align_data.mcts.settings import AgentQSettings, XieSettings


@pytest.mark.parametrize(
    ("settings", "fields", "key"),
    [
        (AgentQSettings, {"ranking": "none"}, "mix: "),
        (AgentQSettings, {"labels": "visits"}, "labels"),
        (AgentQSettings, {"breadth": 27}, "breadth: "),
        (XieSettings, {"beyond_depth": "stop", "confidence": "none"}, "beyond_depth: "),
        (XieSettings, {"backup": "mean", "root_count": "twice"}, "root_count: "),
        (
            XieSettings,
            {"confidence": "grades", "confidence_scale": "normalised"},
            "confidence_scale: ",
        ),
        (XieSettings, {"max_steps": 3}, "max_steps: "),
    ],
)
def test_what_cannot_stand_together_is_refused(settings, fields, key):
    with pytest.raises(ValidationError, match=key):
        settings(**fields)


# Every key that only one of the two searches reads, at its default there.
OWN = [
    (settings, other, key)
    for settings, other in ((XieSettings, AgentQSettings), (AgentQSettings, XieSettings))
    for key in sorted(set(settings.model_fields) - set(other.model_fields))
]


@pytest.mark.parametrize(("settings", "other", "key"), OWN)
def test_keys_of_the_other_search_are_refused(settings, other, key):
    default = settings.model_fields[key].default
    assert settings(**{key: default}) == settings()
    with pytest.raises(ValidationError, match=rf"{key}\n  Extra inputs are not permitted"):
        other(**{key: default})


def test_the_two_searches_have_keys_of_their_own():
    assert {key for settings, _, key in OWN if settings is AgentQSettings} == {
        "ranking", "mix", "threshold",
    }  # fmt: skip
    assert {"simulations", "length_penalty", "backup", "confidence"} < {key for *_, key in OWN}


def test_each_search_has_its_own_defaults():
    xie, agent_q = XieSettings(), AgentQSettings()
    assert (xie.breadth, xie.from_root, xie.from_step) == (2, 20, 10)
    assert (xie.max_pairs, xie.pairs_from, xie.labels) == (8, "committed", "visits")
    assert xie.keep_trees == "right"
    assert (agent_q.breadth, agent_q.from_root, agent_q.max_pairs) == (4, 20, None)
    assert (agent_q.pairs_from, agent_q.labels, agent_q.keep_trees) == ("all", "hard", "all")


@pytest.mark.parametrize("settings", [XieSettings, AgentQSettings])
def test_every_default_is_accepted_when_written_out(settings):
    assert settings(**settings().model_dump()) == settings()
    assert settings(**settings().model_dump()).config_hash == settings().config_hash
