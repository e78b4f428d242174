"""Strength from a real, if untrained, model: the numbers of its own forward pass."""

import math

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.forest import TokenRow, score_rows
from align.policies.prompting import Prompting
from align.policies.token_writer import InProcessWriter
from align.worlds.bytes import Bytes
from align_data.self_reference import SelfReferenceWork
from align_data.self_reference.annotate import ORDERS, annotation, verdict_line
from align_data.self_reference.settings import SelfReferenceSettings
from align_data.self_reference.verdict import parse
from align_data.self_reference.world import SumsAnnotator
from tests.data_pipelines.self_reference.test_work import right_and_wrong


@pytest.fixture(scope="module")
def loaded():
    folder = Bytes().base_model()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def built_by(loaded, units, **given):
    settings = SelfReferenceSettings.model_validate(
        {"verdict": "forced", "min_label_mass": 0, **given}
    )
    writer = InProcessWriter(*loaded)
    return SelfReferenceWork(settings, SumsAnnotator(slip=0), writer, seed=0, config_hash="h")(
        units
    )


def test_forced_verdicts_are_the_models_log_probs(loaded):
    (unit,) = right_and_wrong(1)
    (built,) = built_by(loaded, [unit], decide="soft", min_margin=0)
    rounds = built.record["judgements"][0]["rounds"]
    own = built.record["own_answers"][0]["text"]
    s = []
    for one, order in zip(rounds, ORDERS, strict=True):
        shown = unit.responses if order == "12" else unit.responses[::-1]
        asked = annotation(unit, *shown, own, SelfReferenceSettings().principle)
        body = parse(one["feedback"], asked.code).body
        rows = [
            Prompting(loaded[1]).row(
                asked.prompt.prompt, f"{body}\n\n{verdict_line(asked.code, label)}"
            )
            for label in "AB"
        ]
        # The label is the last token before the end token.
        rows = [
            TokenRow([*r.prompt_ids, *r.completion_ids[:-2]], r.completion_ids[-2:-1]) for r in rows
        ]
        assert rows[0].prompt_ids == rows[1].prompt_ids
        a, b = score_rows(loaded[0], rows).total().tolist()
        s.append(a - b if order == "12" else b - a)
        shown_ppl = one["ppl"] if order == "12" else one["ppl"][::-1]
        assert shown_ppl == pytest.approx([math.exp(-a), math.exp(-b)], rel=1e-4)
    (pair,) = built.pairs
    assert pair.margin == pytest.approx(abs(sum(s) / 2), abs=1e-4)
    assert (pair.chosen[0].content == unit.responses[0]) == (sum(s) > 0)


def test_a_model_for_which_no_verdict_is_likely_decides_nothing(loaded):
    built = built_by(loaded, right_and_wrong(3), decide="soft", min_label_mass=0.5)
    assert [row.reason for one in built for row in one.dropped] == ["failed"] * 3
    assert "likely" in built[0].dropped[0].detail


def test_whole_critiques_are_scored_with_their_end_token(loaded):
    (unit,) = right_and_wrong(1)
    settings = {"verdict": "written", "strength": "pooled_feedback"}
    (built,) = built_by(loaded, [unit], **settings)
    one = built.record["judgements"][0]["rounds"][0]
    own = built.record["own_answers"][0]["text"]
    asked = annotation(unit, *unit.responses, own, SelfReferenceSettings().principle)
    row = Prompting(loaded[1]).row(asked.prompt.prompt, one["feedback"])
    expected = float(score_rows(loaded[0], [row]).average()[0])
    assert one["mean_logp"] == pytest.approx(expected, abs=1e-4)
    assert len(built.pairs) == 1
