import random
from collections import Counter
from itertools import permutations

import pytest
import torch

from align.data.row_policy import RowPolicy
from align.policies.sampling import Sample
from align.tokens.encoding import encode_pair
from align.worlds import sums
from align.worlds.additions import judge, prompt_of, solution_of, split_of, sums_tokenizer
from align.worlds.sums import Sums, SumsSettings

OPERANDS = (17, 35, 28)


@pytest.mark.parametrize(
    ("completion", "well_formed", "steps_right", "right"),
    [
        ("17+35=52\n52+28=80\n80", True, (True, True), True),
        # 17+35 is 52, so the first step is wrong; 53+28 = 81 is carried on faithfully.
        ("17+35=53\n53+28=81\n81", True, (False, True), False),
        # Two wrongs that cancel: 53+28 is 81 and not 80.
        ("17+35=53\n53+28=80\n80", True, (False, False), True),
        # The second line does not carry the first one's sum.
        ("17+35=52\n53+28=81\n81", True, (True, False), False),
        # Right sums of other operands.
        ("17+36=53\n53+28=81\n81", True, (False, True), False),
        ("35+17=52\n52+28=80\n80", True, (False, True), True),
        # Right steps, another answer.
        ("17+35=52\n52+28=80\n81", True, (True, True), False),
        ("17+35=52\n52+28=80\n", False, None, False),
        ("17+35=52\n52+28=80", False, None, False),
        ("80", False, None, False),
        ("", False, None, False),
        ("17+35=52\n52+28=80\n80\n", False, None, False),
        (" 17+35=52\n52+28=80\n80", False, None, False),
        ("17+35=52\n52+28=80\n8O", False, None, False),
        # The Devanagari digits of 80 are no answer.
        ("17+35=52\n52+28=80\n\u096e\u0966", False, None, False),
        ("17+35=52\n52+28=80\n80<user>", False, None, False),
    ],
)
def test_the_judge(completion, well_formed, steps_right, right):
    verdict = judge(OPERANDS, completion)
    assert (verdict.well_formed, verdict.steps_right, verdict.right) == (
        well_formed,
        steps_right,
        right,
    )


def test_the_solution_is_right():
    assert solution_of(OPERANDS) == "17+35=52\n52+28=80\n80"
    assert judge((39, 39, 39), solution_of((39, 39, 39))).right


def test_tokenizer_gives_every_completion_back_one_token_per_character(miniature):
    for tokenizer in (sums_tokenizer(), miniature[2]):
        text = prompt_of(OPERANDS) + solution_of(OPERANDS)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(text) == [tokenizer.bos_token_id, *ids]
        assert tokenizer.encode("x", add_special_tokens=False) == [tokenizer.unk_token_id]
        control = [
            tokenizer.pad_token_id,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.unk_token_id,
        ]
        assert len(set(control)) == 4


def test_the_chat_template_renders_what_generation_continues(miniature):
    tokenizer = miniature[2]
    question = [{"role": "user", "content": "17+35+28?"}]
    answer = [{"role": "assistant", "content": "80"}]
    asked = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert asked == "<bos><user>17+35+28?<end><assistant>"
    assert tokenizer.apply_chat_template(question + answer, tokenize=False) == asked + "80<end>"
    # 3 control tokens and the end token between them, 9 characters.
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert len(ids) == 4 + 9


def test_the_splits_are_disjoint_also_after_reordering():
    world = Sums()
    train = world.problems("train", 20_000, seed=0)
    held_out = world.problems("held_out", 1_024, seed=0)
    assert len(set(train)) == 20_000
    assert len(set(held_out)) == 1_024
    assert not {tuple(sorted(x)) for x in train} & {tuple(sorted(x)) for x in held_out}
    assert all(split_of(order) == "held_out" for x in held_out[:50] for order in permutations(x))


def test_problems_follow_the_seed():
    world = Sums()
    assert world.problems("train", 50, seed=3) == world.problems("train", 50, seed=3)
    assert world.problems("train", 50, seed=3) != world.problems("train", 50, seed=4)
    with pytest.raises(ValueError, match=r"has 24[0-9]{3} problems, not 27000"):
        world.problems("train", 27_000, seed=0)


def test_demonstrations_come_from_the_training_split_with_the_stated_quality():
    world, tokenizer = Sums(), sums_tokenizer()
    draw = random.Random(0)
    steps = Counter()
    for _ in range(2_000):
        ids, prompt_length = world._demonstration(draw, tokenizer)
        question = tokenizer.decode(ids[:prompt_length], skip_special_tokens=True)
        operands = tuple(int(x) for x in question.rstrip("?").split("+"))
        assert split_of(operands) == "train"
        assert ids[-1] == tokenizer.eos_token_id
        verdict = judge(operands, tokenizer.decode(ids[prompt_length:-1]))
        # A slip on one line leaves the other line's own sum right.
        steps.update(enumerate(verdict.steps_right))
    # 0.75 of 2,000, and five standard deviations of sqrt(2000 * .25 * .75) = 19.4.
    assert abs(steps[0, True] - 1_500) < 97
    assert abs(steps[1, True] - 1_500) < 97


def test_the_base_model_is_trained_once_per_setting(align_cache, monkeypatch):
    trained = []

    def record(self, model, tokenizer):
        trained.append(self.settings.seed)

    monkeypatch.setattr(Sums, "_imitate", record)
    small = SumsSettings(layers=1, width=16, heads=2)
    first = Sums(small).base_model()
    assert Sums(small).base_model() == first
    assert trained == [0]
    other = Sums(SumsSettings(layers=1, width=16, heads=2, seed=1)).base_model()
    assert other != first
    assert trained == [0, 1]


def test_building_the_model_is_a_function_of_its_settings(align_cache, tmp_path, monkeypatch):
    small = SumsSettings(layers=1, width=16, heads=2, steps=2, batch=4)
    before = torch.get_rng_state()
    first = (Sums(small).base_model() / "model.safetensors").read_bytes()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "elsewhere"))
    assert (Sums(small).base_model() / "model.safetensors").read_bytes() == first


def test_training_lowers_the_loss_on_completions_and_leaves_prompts_alone():
    world = Sums(SumsSettings(layers=1, width=32, heads=2, steps=60, batch=16))
    tokenizer = sums_tokenizer()
    model = sums.tiny_llama(tokenizer, layers=1, width=32, heads=2, seed=0)
    ids = tokenizer.encode(
        "<bos><user>17+35+28?<end><assistant>17+35=52\n", add_special_tokens=False
    )

    def logps():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(dim=1)
        return logits.gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)

    before = logps()
    world._imitate(model, tokenizer)
    after = logps()
    # Slot 12 predicts token 13, the first one of the completion. ln 22 = 3.09 is a uniform guess.
    assert before[12:].mean() == pytest.approx(-3.09, abs=0.15)
    assert after[12:].mean() > -2.3
    assert after[:12].mean() < -2.9


def scripted(monkeypatch, tokenizer, texts):
    """`sample_completions` answers `texts` in turn, with an end token unless one ends in "..."."""

    def answer(model, prompts, *, end_ids, **settings):
        assert len(prompts) == len(texts)
        samples = []
        for text in texts:
            ids = tokenizer.encode(text.removesuffix("..."), add_special_tokens=False)
            finished = not text.endswith("...")
            samples.append(Sample((*ids, *(list(end_ids) if finished else [])), finished))
        return samples

    monkeypatch.setattr(sums, "sample_completions", answer)


def test_pairs_join_the_first_right_and_the_first_wrong_of_a_problem(miniature, monkeypatch):
    world, model, tokenizer = miniature
    asked = world.problems("train", 5, seed=9)
    right = [solution_of(operands) for operands in asked]
    texts = [
        # Unfinished and special wrong ones are passed over; the second right one is not used.
        *(right[0][:-1] + "...", "1<user>1", right[0], "1+1=2\n2+2=4\n4", right[0], "7"),
        *([right[1]] * 6),
        *(["5"] * 6),
        # Nothing but unfinished ones beside the right ones: no contrast.
        *([right[3]] * 5 + [right[3] + "1..."]),
        *(["", "9", right[4], "", "9", "8"]),
    ]
    scripted(monkeypatch, tokenizer, texts)
    sample = world.sample_pairs(model, tokenizer, problems=5, samples_per_problem=6, seed=9)
    assert [
        (p.prompt[0].content, p.chosen[0].content, p.rejected[0].content) for p in sample.pairs
    ] == [
        (prompt_of(asked[0]), right[0], "1+1=2\n2+2=4\n4"),
        (prompt_of(asked[4]), right[4], "9"),
    ]
    assert [(p.row, p.source) for p in sample.pairs] == [
        (1, "world:sums/train/seed-9"),
        (5, "world:sums/train/seed-9"),
    ]
    # Problem 0: 2 of 6 right, so a right answer wins 4 and ties 2: (4 + 2/2)/6; a wrong one ties 4:
    # (4/2)/6. Problem 4: 1 of 6 right: (5 + 1/2)/6 and (5/2)/6.
    assert [(p.chosen_score, p.rejected_score) for p in sample.pairs] == [
        pytest.approx((5 / 6, 1 / 3)),
        pytest.approx((11 / 12, 5 / 12)),
    ]
    assert (sample.problems, sample.samples) == (5, 30)
    # Right: 2 + 6 + 0 + 5 + 1.
    assert (sample.right, sample.wrong) == (14, 16)
    assert sample.unfinished == 2
    # Of the 16 wrong ones only "1+1=2..." has the right shape.
    assert sample.malformed == 15
    assert (sample.all_right, sample.all_wrong) == (2, 1)
    assert sample.problems == len(sample.pairs) + sample.all_right + sample.all_wrong


def test_a_pair_is_encoded_as_it_was_sampled(miniature, monkeypatch):
    world, model, tokenizer = miniature
    asked = world.problems("train", 1, seed=0)
    texts = [solution_of(asked[0]), "12+34=46\n46+10=57\n57"]
    scripted(monkeypatch, tokenizer, texts)
    pair = world.sample_pairs(model, tokenizer, problems=1, samples_per_problem=2, seed=0).pairs[0]
    attempts = world.attempts(model, tokenizer, asked * 2, temperature=1.0, seed=0)
    encoded = encode_pair(pair, tokenizer, RowPolicy())
    assert tuple(encoded.prompt_ids) == attempts[0].prompt_ids
    assert tuple(encoded.chosen_ids) == attempts[0].completion_ids
    assert tuple(encoded.rejected_ids) == attempts[1].completion_ids


def test_a_right_looking_answer_without_an_end_is_wrong(miniature, monkeypatch):
    world, model, tokenizer = miniature
    asked = world.problems("train", 1, seed=0)
    scripted(monkeypatch, tokenizer, [solution_of(asked[0]) + "..."])
    (attempt,) = world.attempts(model, tokenizer, asked, temperature=1.0, seed=0)
    assert attempt.text == solution_of(asked[0])
    assert not attempt.verdict.right


def test_attempts_follow_the_seed_and_not_the_batch(miniature):
    world, model, tokenizer = miniature
    asked = world.problems("held_out", 9, seed=0)

    def texts(seed, batch_size):
        attempts = world.attempts(
            model, tokenizer, asked, temperature=1.0, seed=seed, batch_size=batch_size
        )
        return [attempt.text for attempt in attempts]

    assert texts(0, 9) == texts(0, 2)
    assert texts(0, 9) != texts(1, 9)
