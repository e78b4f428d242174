"""What is a report, what is none, and where its sentences stand."""

import json

import pytest

from align_data.expert_correction.report import BadReport, read_report

TEXT = "The cat is red. It sits.\n\nIt has  two tails."


def sentence(copied, rewritten="same", score=4, kind="correct", **more):
    rewritten = copied if rewritten == "same" else rewritten
    return {"sentence": copied, "score": score, "error_type": kind, "objects": [],
            "rewritten": rewritten, "reason": "r"} | more  # fmt: skip


def report_of(*sentences, **more):
    return {str(n): one for n, one in enumerate(sentences)} | more


GOOD = report_of(
    sentence("The cat is red.", "The cat is blue.", 2, "image recognition",
             objects=[{"wrong": "red", "right": "blue"}]),
    sentence("It sits."),
    sentence("It has two tails.", "It has one tail.", 1, "language comprehension"),
)  # fmt: skip


def test_sentences_scores_and_places():
    report = read_report(json.dumps(GOOD), TEXT)
    # The white space of the response stays, the double space inside a copied sentence included.
    assert report.revised == "The cat is blue. It sits.\n\nIt has one tail."
    assert [s.score for s in report.sentences] == [2, 4, 1]
    assert report.sentences[0].objects == (("red", "blue"),)
    for s in report.sentences:
        assert TEXT[slice(*s.span_gen)] == s.copied
        assert report.revised[slice(*s.span_rev)] == s.rewritten
    assert report.sentences[2].copied == "It has  two tails."


def test_what_is_copied_comes_back_as_it_was():
    text = "  One. Two?\n\nThree!\n"
    same = report_of(sentence("One."), sentence("Two?"), sentence("Three!"))
    assert read_report(json.dumps(same), text).revised == text


@pytest.mark.parametrize("score", ["3", 3.0, " 3 ", 3])
def test_scores_that_are_meant_as_numbers(score):
    report = read_report(json.dumps(report_of(sentence("A.", "B.", score))), "A.")
    assert report.sentences[0].score == 3
    assert isinstance(report.sentences[0].score, int)


@pytest.mark.parametrize("kind", ["Image recognition", "IMAGE_RECOGNITION", " image recognition"])
def test_error_types_in_any_case(kind):
    report = read_report(json.dumps(report_of(sentence("A.", "B.", 2, kind))), "A.")
    assert report.sentences[0].error_type == "image recognition"


def test_fences_and_capital_keys():
    text = "```json\n" + json.dumps(report_of(sentence("A."), Added="B.")) + "\n```\n"
    report = read_report(text, "A.", add_missing=True)
    assert report.revised == "A. B."
    assert report.revised[slice(*report.span_added)] == "B."
    without = read_report(text, "A.")
    assert (without.revised, without.added, without.span_added) == ("A.", "B.", None)


def test_deleted_sentences_take_their_gap_along():
    text = "A. B.\nC."
    gone = report_of(sentence("A.", None, 1), sentence("B."), sentence("C.", None, 1))
    report = read_report(json.dumps(gone), text)
    assert report.revised == "B."
    assert [s.span_rev for s in report.sentences] == [None, (0, 2), None]
    all_gone = report_of(sentence("A.", None, 1))
    assert read_report(json.dumps(all_gone), "A.").revised == ""


def changed(**fields):
    return report_of({**sentence("A."), **fields})


@pytest.mark.parametrize(
    ("report", "word"),
    [
        ("I cannot help.", "no JSON"),
        ("{", "no JSON"),
        ("[]", "JSON list"),
        ("{}", "keys"),
        ('{"0": {}, "0": {}}', "twice"),
        ({"1": sentence("A.")}, "gap"),
        ({"0": "A."}, "must be a JSON object"),
        ({"0": {"sentence": "A."}}, "lacks score, error type, rewritten"),
        (changed(score=5), "score"),
        (changed(score=True), "score"),
        (changed(score="three"), "score"),
        (changed(score=2.5), "score"),
        (changed(score=None), "score"),
        (changed(error_type="typo"), "error_type"),
        (changed(error_type=None), "error_type"),
        (changed(rewritten=""), "null to delete"),
        (changed(rewritten=3), "null to delete"),
        (changed(sentence=" "), "sentence"),
        (changed(objects=[{"wrong": "a"}]), "objects"),
        (changed(objects="a"), "objects"),
        (report_of(sentence("B.")), "not the next one"),
        (report_of(sentence("A."), sentence("A.")), "not the next one"),
        (report_of(sentence("A")), "goes on"),
        (changed(rewritten="B."), "called right"),
        ({"00": sentence("A.")}, "keys"),
        ({"9" * 5000: sentence("A.")}, "keys"),
        ('{"0": ' + "9" * 5000 + "}", "no plain JSON"),
        ("[" * 100_000, "no plain JSON"),
        ('{"0": NaN}', "must be a JSON object"),
        (changed(score=3, rewritten="\ud800"), "half a character"),
    ],
)
def test_what_is_no_report(report, word):
    text = report if isinstance(report, str) else json.dumps(report)
    with pytest.raises(BadReport, match=word) as caught:
        read_report(text, "A.")
    assert "A." not in str(caught.value)


def test_a_share_of_right_sentences_may_be_restyled():
    # 1 of 2 is at most 0.6, and more than 0.4.
    restyled = json.dumps(report_of(sentence("A.", "Ah."), sentence("B.")))
    assert read_report(restyled, "A. B.").revised == "Ah. B."
    with pytest.raises(BadReport, match="1 of 2"):
        read_report(restyled, "A. B.", max_restyled=0.4)


def test_sentences_out_of_order_or_left_out():
    for numbers in ((1, 0, 2), (0, 2)):
        picked = report_of(*(GOOD[str(n)] for n in numbers))
        with pytest.raises(BadReport, match="not the next one"):
            read_report(json.dumps(picked), TEXT)
