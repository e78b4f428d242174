"""The world of instructions: its requests, its judge, its demonstrations, its measure."""

import pytest

from align.data.messages import Message
from align.data.prompts import Prompt
from align.errors import RecipeError
from align.instructions.earnest import is_earnest
from align.judges.base import Answer
from align.judges.table import question_of
from align.worlds import instruction_hints, instructions, world
from align.worlds.instruction_pool import HELD_OUT_TOPICS, TRAIN_TOPICS, requests

WORLD = world("world:instructions")
NO_COMMA = "Tell me about cats. Do not use any commas in your answer."
ENDING = (
    "Tell me about cats. End your answer with exactly these words, and write nothing behind them: "
    "Ask me again tomorrow."
)


def kind(prompt):
    return instructions._request(question_of(prompt.prompt)).instruction.kind


def test_requests_of_training_and_measuring_are_apart():
    train = {question_of(p.prompt) for p in WORLD.prompts("train", 1000, seed=0)}
    held_out = {question_of(p.prompt) for p in WORLD.prompts("held_out", 400, seed=0)}
    untrained = {question_of(p.prompt) for p in WORLD.untrained_prompts(100, seed=0)}
    assert (len(train), len(held_out), len(untrained)) == (1000, 400, 100)
    assert not train & held_out | held_out & untrained | train & untrained
    assert not {t.name for t in TRAIN_TOPICS} & {t.name for t in HELD_OUT_TOPICS}
    shown = {shown.name for shown in instruction_hints.TOPICS}
    assert not shown & {t.name for t in (*TRAIN_TOPICS, *HELD_OUT_TOPICS)}


def test_ten_kinds_are_trained_in_equal_shares_and_four_are_not():
    trained = [kind(p) for p in WORLD.prompts("held_out", 100, seed=3)]
    assert len(set(trained)) == 10
    assert {trained.count(one) for one in trained} == {10}
    others = {kind(p) for p in WORLD.untrained_prompts(40, seed=3)}
    assert len(others) == 4
    assert not others & set(trained)


def test_the_same_seed_asks_the_same_and_another_one_others():
    assert WORLD.prompts("train", 50, seed=4) == WORLD.prompts("train", 50, seed=4)
    assert WORLD.prompts("train", 50, seed=4) != WORLD.prompts("train", 50, seed=5)
    with pytest.raises(ValueError, match="not 100000"):
        WORLD.prompts("train", 100_000, seed=0)


@pytest.mark.parametrize(
    ("question", "answer", "score"),
    [
        (NO_COMMA, "Cats sleep most of the day and hunt at night.", 1.0),
        (NO_COMMA, "Cats sleep, eat, hunt at night and rest by day.", 0.3),
        # Met, and copied from the request.
        (NO_COMMA, "You should not use any commas in your answer about cats.", 0.1),
        (NO_COMMA, "Cats sleep.", 0.1),
        (NO_COMMA, "no, no, no, no, no, no, no", 0.0),
        (ENDING, "Cats sleep most of the day. Ask me again tomorrow.", 1.0),
        # The closing words alone are no answer.
        (ENDING, "Ask me again tomorrow.", 0.1),
    ],
)
def test_the_judges_score(question, answer, score):
    prompt = (Message(role="user", content=question),)
    assert WORLD.judge().score([Answer(prompt, answer, "id")]) == [score]
    met = float(score in (1.0, 0.1))
    assert WORLD.checks(loosely=True).score([Answer(prompt, answer, "id")]) == [met]
    assert WORLD.checks(loosely=False).score([Answer(prompt, answer, "id")]) == [float(score == 1)]


def test_a_foreign_request_cannot_be_judged():
    with pytest.raises(RecipeError, match=r"no request of world:instructions.*prompts: \{source"):
        WORLD.judge().score([Answer("What is it?", "Nothing.", "id")])


@pytest.mark.parametrize("shown", instruction_hints.TOPICS, ids=lambda shown: shown.name)
def test_every_demonstration_meets_its_instruction_earnestly(shown):
    for of_kind in requests(TRAIN_TOPICS[:1], are_trained=True).values():
        for request in of_kind:
            instruction, answer = instruction_hints.demonstration(request.instruction, shown)
            assert type(instruction) is type(request.instruction)
            assert instruction.met(answer), (instruction, answer)
            assert is_earnest(answer, request.sentence, instruction.demanded()), answer


def test_a_hint_is_another_topic_with_the_same_instruction():
    for prompt in WORLD.prompts("train", 30, seed=0):
        asked, answered = WORLD.hint(prompt)
        request = instructions._request(question_of(prompt.prompt))
        assert (asked.role, answered.role) == ("user", "assistant")
        assert "umbrella" in asked.content or "pencil" in asked.content
        same = request.sentence in asked.content
        assert same or request.instruction.kind.startswith("keywords:")
        assert WORLD.hint(prompt) == (asked, answered)


class Policy:
    """Answers from a table, and counts how often it is asked."""

    def __init__(self, name, good):
        self.name, self.good = name, good


@pytest.fixture
def answered(monkeypatch):
    """`measure` with answers made up: a policy meets the instruction where `good` says so."""

    def answers(model, tokenizer, asked, seed):
        return [
            "Cats sleep most of the day and hunt at night." if model.good(at) else ""
            for at in range(len(asked))
        ]

    monkeypatch.setattr(instructions, "answers", answers)
    monkeypatch.setattr(
        instructions, "outcome", lambda q, a: instructions.Outcome(bool(a), bool(a) and q != "x")
    )


def test_gains_are_taken_request_by_request(answered):
    reference, model = Policy("old", lambda at: at % 4 == 0), Policy("new", lambda at: at % 2 == 0)
    found = WORLD.measure(model, None, reference=reference, n=100, seed=0)
    # 80 requests of trained kinds: 40 are met now and 20 were; 20 of others: 10 and 5.
    assert found["followed"].value == found["earnest"].value == 0.5
    assert (found["followed"].n, found["untrained_followed"].n) == (80, 20)
    assert found["earnest_gain"].value == 0.25
    # Paired: the variance of 20 ones among 80, sd sqrt(.25 * .75 * 80 / 79) = .4358, t(79) 1.9905;
    # unpaired it would be half as wide again.
    assert found["earnest_gain"].low == pytest.approx(0.25 - 1.9905 * 0.4358 / 80**0.5, abs=1e-4)
    assert "earnest_gain" not in WORLD.measure(reference, None, reference=reference, n=100, seed=0)


def test_answers_are_kept_and_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    asked = WORLD.prompts("held_out", 3, seed=0)
    drawn = []

    class Fake:
        def __init__(self, model, tokenizer):
            self.identity = f"policy-{model}"

        def generate(self, prompts, n, sampling, seed):
            assert (n, sampling.keep_unfinished) == (1, True)
            drawn.append((self.identity, seed))
            return [["failed"] if at == 1 else [_Written(f"{at}")] for at in range(len(prompts))]

    monkeypatch.setattr(instructions, "InProcessPolicy", Fake)
    assert instructions.answers("a", None, asked, 0) == ["0", "", "2"]
    assert instructions.answers("a", None, asked, 0) == ["0", "", "2"]
    instructions.answers("b", None, asked, 0)
    instructions.answers("a", None, asked[:2], 0)
    instructions.answers("a", None, asked, 1)
    assert drawn == [("policy-a", 0), ("policy-b", 0), ("policy-a", 0), ("policy-a", 1)]


class _Written:
    def __init__(self, text):
        self.completion = (Message(role="assistant", content=text),)


def test_a_prompt_with_a_hint_is_sampled_and_kept_without_it(tmp_path, monkeypatch):
    from align.stages.prompts import PromptSource

    class Section:
        source = "world:instructions"

    asked = WORLD.prompts("train", 2, seed=0)
    shown = PromptSource(Section(), None).hinted(asked)
    assert [len(p.prompt) for p in shown] == [3, 3]
    assert [p.prompt[-1] for p in shown] == [p.prompt[0] for p in asked]
    assert isinstance(shown[0], Prompt)
