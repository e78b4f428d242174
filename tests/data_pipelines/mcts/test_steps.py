import pytest

from align.policies.writer import Drawn
from align_data.mcts.steps import chunk_end, cut, pieces, tokens_for


def drawn(text, finish="length", end=False):
    ids = tuple(map(ord, text)) + ((0,) if end else ())
    return Drawn(ids, (-1.0,) * len(ids), text, "end" if end else finish)


def spelled(ids):
    return "".join(chr(i) for i in ids if i)


def cut_as(kind, one, **settings):
    given = {"answer_ends": (), "shortest": 4, "step_tokens": 40, "at_root": False}
    return cut(one, kind, spelled, **(given | settings))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("First line.\n\nSecond line.\nThird", ["First line.\n\n", "Second line.\n", "Third"]),
        ("1.\nBuy it.\n", ["1.\nBuy it.\n"]),
        (
            'It is 3.5 kg. So he pays. "Yes." Done',
            ["It is 3.5 kg. ", "So he pays. ", '"Yes." ', "Done"],
        ),
        ("", []),
        ("\n\n", ["\n\n"]),
    ],
)
def test_pieces_spell_the_text(text, found):
    assert pieces(text, 4) == found
    assert "".join(found) == text


def test_a_chunk_is_taken_whole_save_in_two_cases():
    two = ["One step.\n", "Another one"]
    assert chunk_end(two, at_root=False, has_ended=True, filled=0.5) == 2
    assert chunk_end(two, at_root=True, has_ended=True, filled=0.5) == 1
    assert chunk_end(two, at_root=True, has_ended=False, filled=0.5) == 2
    assert chunk_end(two, at_root=False, has_ended=False, filled=7 / 8) == 1
    assert chunk_end(["A.\n", "Done."], at_root=False, has_ended=False, filled=1.0) == 2
    assert chunk_end(["Only one"], at_root=True, has_ended=True, filled=0.0) == 1


def test_tokens_are_never_split():
    words = ["a ", "long. ", "st", "ep"]

    def of(ids):
        return "".join(words[i] for i in ids)

    assert tokens_for(8, [0, 1, 2, 3], of) == 2
    assert tokens_for(7, [0, 1, 2, 3], of) == 2
    assert tokens_for(0, [0, 1, 2, 3], of) == 0


def test_a_sentence_is_cut_and_an_end_within_the_rest_is_not_its_own():
    step = cut_as("sentence", drawn("He has five. He eats two. Three.", end=True))
    assert (step.text, step.is_last, step.has_end) == ("He has five. ", False, False)
    assert spelled(step.ids) == step.text
    assert len(step.logps) == len(step.ids)
    last = cut_as("sentence", drawn("Three.", end=True))
    assert (last.text, last.is_last, last.has_end) == ("Three.", True, True)
    assert last.ids[-1] == 0


def test_what_ends_an_answer_is_cut_off():
    step = cut_as("finish", drawn("It is 5.\nQuestion: What", "stop"), answer_ends=("\nQuestion:",))
    assert (step.text, step.is_last, step.has_end) == ("It is 5.", True, False)
    nothing = cut_as("line", drawn("\nQuestion:", "stop"), answer_ends=("\nQuestion:",))
    assert (nothing.text, nothing.ids, nothing.is_last) == ("", (), True)


def test_a_token_across_the_border_to_the_header_is_left_out():
    words = ["", "It is 5", ".\nQ", "uestion:", " What"]

    def of(ids):
        return "".join(words[i] for i in ids)

    one = Drawn((1, 2, 3, 4), (-1.0,) * 4, of((1, 2, 3, 4)), "stop")
    given = {"shortest": 4, "step_tokens": 40, "at_root": False}
    step = cut(one, "finish", of, answer_ends=("\nQuestion:",), **given)
    assert (step.text, step.ids, step.logps) == ("It is 5", (1,), (-1.0,))


def test_a_short_step_is_open_unless_the_answer_ends():
    assert cut_as("line", drawn("2.\n", "stop")).is_open
    assert not cut_as("line", drawn("42", end=True)).is_open
    assert not cut_as("line", drawn("four\n", "stop")).is_open
