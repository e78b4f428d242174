import pytest
from pydantic import ValidationError

from align.data.completions import JudgedPrompt
from align.data.messages import Message, prompt_id


def judged(**fields):
    return JudgedPrompt(
        **{
            "prompt": "?",
            "source": "test",
            "row": 1,
            "sampler": "s",
            "completions": ("a", "b"),
            "judge": "j",
            "calls": 1,
        }
        | fields
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"scores": (1.0, None)},
        {"preferences": ((0.5, 0.3), (0.7, 0.5))},
        {"preferences": ((0.5, None), (None, 0.5))},
        {"completions": (), "preferences": ()},
    ],
)
def test_a_row_survives_its_file(fields):
    row = judged(**fields)
    assert JudgedPrompt.model_validate_json(row.model_dump_json()) == row


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scores": (1.0,)}, "1 scores for 2 completions"),
        ({"scores": (1.0, float("nan"))}, "finite"),
        ({"preferences": ((0.5, 0.3),)}, "must be 2 x 2"),
        ({"preferences": ((0.5, 0.3), (0.6, 0.5))}, "add up to 1"),
        ({"preferences": ((0.4, 0.3), (0.7, 0.5))}, "add up to 1"),
        ({"preferences": ((0.5, 1.2), (-0.2, 0.5))}, "in \\[0, 1\\]"),
        ({"preferences": ((0.5, 0.3), (None, 0.5))}, "both be known"),
        ({"preferences": ((None, 0.3), (0.7, 0.5))}, "needs no judge"),
        ({"row": 0}, "greater than or equal to 1"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        judged(**fields)


def test_a_prompts_id_is_its_text_alone():
    chat = (Message(role="user", content="?"),)
    assert prompt_id("?") == prompt_id("?") != prompt_id("!")
    assert prompt_id(chat) != prompt_id("?")
    assert len(prompt_id(chat)) == 16
