import copy
import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.row_policy import RowPolicy
from align.errors import RecipeError
from align.policies.sampling import Sample, sample_completions
from align.tokens.encoding import encode_pair
from align.worlds import style_game, styles, world
from align.worlds.style_game import (
    ADJECTIVES,
    MAX_NEW_TOKENS,
    NASH,
    NOUNS,
    OUTCOMES,
    PREFERENCE,
    QUALITIES,
    STYLES,
    answer_ids,
    answer_logps,
    answers_of,
    exploitability,
    measure,
    outcome_of,
    preference_of,
    prompt_ids,
    prompt_of,
    split_of,
    styles_tokenizer,
)
from align.worlds.styles import Styles, StylesSettings

TOPIC = ("green", "tea")
P = torch.tensor(PREFERENCE, dtype=torch.float64)
MINIATURE = StylesSettings(heads=2, steps=160, batch=32, learning_rate=1e-2)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """World, model and tokenizer of a hasty base model, read back with the ordinary loaders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        built = Styles(MINIATURE)
        folder = built.base_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return built, model, AutoTokenizer.from_pretrained(folder)


def test_the_table_is_a_preference():
    assert torch.allclose(P + P.T, torch.ones(6, 6, dtype=torch.float64), atol=1e-15)
    assert P.shape == (len(OUTCOMES), len(OUTCOMES))


def test_preferences_go_in_a_circle():
    asking, shouting, listing = (OUTCOMES.index(x) for x in ("asking", "shouting", "listing"))
    for winner, loser in ((asking, shouting), (shouting, listing), (listing, asking)):
        assert PREFERENCE[winner][loser] > 0.5
    others = [OUTCOMES.index(x) for x in ("plain", "hedging", "malformed")]
    assert all(PREFERENCE[i][j] > 0.5 for i in (asking, shouting, listing) for j in others)


def test_the_nash_policy_is_the_only_one_that_nothing_beats():
    nash = np.array(NASH)
    assert nash.sum() == pytest.approx(1, abs=1e-15)
    table = np.array(PREFERENCE)
    assert (table @ nash).max() == pytest.approx(0.5, abs=1e-12)
    # Every coordinate's least and greatest value over all policies that nothing beats.
    for at in range(6):
        for sign in (1, -1):
            answer = linprog(
                sign * np.eye(6)[at],
                A_ub=table,
                b_ub=np.full(6, 0.5 + 1e-12),
                A_eq=np.ones((1, 6)),
                b_eq=[1.0],
                bounds=[(0, 1)] * 6,
            )
            assert answer.x[at] == pytest.approx(nash[at], abs=1e-6)


def test_exploitability_is_the_best_replys_surplus():
    policies = torch.tensor(
        [NASH, (0.2, 0.2, 0.2, 0.2, 0.2, 0.0), *np.eye(6).tolist()], dtype=torch.float64
    )
    # Uniform over the styles: asking wins (.7 + .7 + .5 + .85 + .2) / 5 = .59 and shouting
    # (.6 + .8 + .15 + .5 + .75) / 5 = .56, listing (.65 + .75 + .8 + .25 + .5) / 5 = .59.
    expected = [0.0, 0.09, 0.20, 0.30, 0.30, 0.35, 0.25, 0.45]
    assert exploitability(policies).tolist() == pytest.approx(expected, abs=1e-12)


def test_every_single_style_is_worse_than_the_base_policy():
    # What makes the world worth having: to take the style with the highest win rate is no answer.
    base = torch.tensor([(*StylesSettings().shares, 0.0)], dtype=torch.float64)
    argmax = int((P @ base[0]).argmax())
    assert float(exploitability(base)) < float(exploitability(torch.eye(6).double())[argmax])


def test_answers_are_recognised_and_nothing_else_is():
    prompt = prompt_of(TOPIC)
    assert prompt == "what of green tea?"
    answers = answers_of(TOPIC)
    assert len(answers) == len(STYLES) * len(QUALITIES)
    assert Counter(answers.values()) == dict.fromkeys(STYLES, len(QUALITIES))
    assert {outcome_of(prompt, text) for text in answers} == set(STYLES)
    for text, style in (
        ("green tea is old.", "plain"),
        ("perhaps green tea is old.", "hedging"),
        ("is green tea not old?", "asking"),
        ("green tea! old!", "shouting"),
        ("- green tea\n- old", "listing"),
        ("red tea is old.", "malformed"),
        ("green tea is green.", "malformed"),
        ("green tea is old", "malformed"),
        (" green tea is old.", "malformed"),
        ("", "malformed"),
    ):
        assert outcome_of(prompt, text) == style
    with pytest.raises(ValueError, match="adjective"):
        outcome_of("17+35+28?", "80")


def test_the_judge_knows_the_exact_probability():
    prompt = prompt_of(TOPIC)
    for first, one in answers_of(TOPIC).items():
        for second, other in answers_of(TOPIC).items():
            expected = PREFERENCE[OUTCOMES.index(one)][OUTCOMES.index(other)]
            assert preference_of(prompt, first, second) == expected


def test_tokenizer_gives_every_text_back(small):
    for tokenizer in (styles_tokenizer(), small[2]):
        for adjective, noun in zip(ADJECTIVES, NOUNS, strict=True):
            for text in (prompt_of((adjective, noun)), *answers_of((adjective, noun))):
                ids = tokenizer.encode(text, add_special_tokens=False)
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text
                assert len(ids) < MAX_NEW_TOKENS
        assert tokenizer.encode("coffee", add_special_tokens=False) == [tokenizer.unk_token_id]


def test_the_splits_share_words_and_no_topic():
    train, held_out = (Styles().topics(split, seed=0) for split in ("train", "held_out"))
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == 144
    assert 16 <= len(held_out) <= 32
    for place in (0, 1):
        assert {topic[place] for topic in held_out} <= {topic[place] for topic in train}
    assert all(split_of(topic) == "held_out" for topic in held_out)
    assert Styles().topics("train", 5, seed=1) == Styles().topics("train", 5, seed=1)
    assert Styles().topics("train", 5, seed=1) != Styles().topics("train", 5, seed=2)
    with pytest.raises(ValueError, match="topics, not 200"):
        Styles().topics("train", 200, seed=0)


def test_prompts_are_rows_for_a_policy(small):
    built, _, tokenizer = small
    rows = built.prompts("held_out", 3, seed=0)
    assert [row.row for row in rows] == [1, 2, 3]
    for row, topic in zip(rows, built.topics("held_out", 3, seed=0), strict=True):
        assert row.prompt[0].content == row.group_id == prompt_of(topic)
        ids = tokenizer.apply_chat_template(
            [message.model_dump() for message in row.prompt],
            add_generation_prompt=True,
            return_dict=False,
        )
        assert ids == prompt_ids(tokenizer, topic)


def test_what_a_model_does_is_exactly_what_it_samples(small):
    built, model, tokenizer = small
    topic = built.topics("held_out", 1, seed=0)[0]
    found = measure(model, tokenizer, [topic], reference=model)
    n = 4_000
    samples = sample_completions(
        model,
        [prompt_ids(tokenizer, topic)] * n,
        end_ids=[tokenizer.eos_token_id],
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        seed=0,
        batch_size=4_000,
    )
    texts = [tokenizer.decode(s.completion_ids[:-1]) if s.finished else "..." for s in samples]
    counts = Counter(outcome_of(prompt_of(topic), text) for text in texts)
    for name, p in zip(OUTCOMES, found.outcomes[0].tolist(), strict=True):
        assert counts[name] / n == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n) + 1e-3)
    # Hasty training leaves much malformed, and every style has been met.
    assert min(found.outcomes[0].tolist()) > 1e-3


def test_measures_are_those_of_the_outcomes(small):
    built, model, tokenizer = small
    topics = built.topics("held_out", 3, seed=0)
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=draw)
    found = measure(other, tokenizer, topics, reference=model)
    p, q = (answer_logps(m, tokenizer, topics).exp() for m in (other, model))
    for x in range(3):
        mine = [*p[x].reshape(5, 6).sum(dim=1).tolist(), 1 - float(p[x].sum())]
        theirs = [*q[x].reshape(5, 6).sum(dim=1).tolist(), 1 - float(q[x].sum())]
        assert found.outcomes[x].tolist() == pytest.approx(mine, abs=1e-12)
        wins = sum(mine[i] * PREFERENCE[i][j] * theirs[j] for i in range(6) for j in range(6))
        assert float(found.win_rate[x]) == pytest.approx(wins, abs=1e-9)
        best = max(sum(PREFERENCE[i][j] * mine[j] for j in range(6)) for i in range(6))
        assert float(found.exploitability[x]) == pytest.approx(best - 0.5, abs=1e-9)
        kl = sum(a * math.log(a / b) for a, b in zip(p[x].tolist(), q[x].tolist(), strict=True))
        kl += mine[5] * math.log(mine[5] / theirs[5])
        assert float(found.kl[x]) == pytest.approx(kl, abs=1e-9)
    assert float(found.kl.min()) > 0.01
    itself = measure(model, tokenizer, topics, reference=model)
    assert itself.win_rate.tolist() == pytest.approx([0.5] * 3, abs=1e-12)
    assert itself.kl.tolist() == pytest.approx([0.0] * 3, abs=1e-12)


def test_training_goes_towards_the_stated_shares(small):
    built, model, tokenizer = small
    fresh = styles.tiny_llama(tokenizer, layers=1, width=16, heads=2, seed=3)
    topics = built.topics("train", 20, seed=0)
    found = measure(model, tokenizer, topics, reference=model).outcomes.mean(dim=0).tolist()
    assert float(measure(fresh, tokenizer, topics, reference=model).outcomes[:, -1].min()) > 0.999
    well_formed = 1 - found[-1]
    assert well_formed > 0.5
    for p, share in zip(found[:-1], built.settings.shares, strict=True):
        assert p / well_formed == pytest.approx(share, abs=0.1)


def test_demonstrations_come_from_the_training_split_with_the_stated_shares():
    built, tokenizer = Styles(), styles_tokenizer()
    draw = random.Random(0)
    topics = built.topics("train", seed=0)
    counts = Counter()
    for _ in range(2_000):
        topic, ids = built._demonstration(draw, topics, tokenizer)
        assert ids[-1] == tokenizer.eos_token_id
        counts[outcome_of(prompt_of(topic), tokenizer.decode(ids[:-1]))] += 1
    for style, share in zip(STYLES, built.settings.shares, strict=True):
        spread = math.sqrt(2_000 * share * (1 - share))
        assert abs(counts[style] - 2_000 * share) < 5 * spread
    assert set(counts) == set(STYLES)


def scripted(monkeypatch, tokenizer, texts):
    """`sample_completions` answers `texts` in turn, with an end token unless one ends in "..."."""

    def answer(model, prompts, *, end_ids, **settings):
        assert len(prompts) == len(texts)
        return [
            Sample(
                (
                    *tokenizer.encode(text.removesuffix("..."), add_special_tokens=False),
                    *([] if text.endswith("...") else end_ids),
                ),
                not text.endswith("..."),
            )
            for text in texts
        ]

    monkeypatch.setattr(styles, "sample_completions", answer)


def test_pairs_are_neighbouring_samples_and_everything_is_counted(small, monkeypatch):
    built, model, tokenizer = small
    one, two = built.topics("train", 2, seed=4)

    def remark(topic, template):
        return template.format(t=" ".join(topic))

    asking, shouting = "is {t} not old?", "{t}! old!"
    texts = [
        *(remark(one, shouting), remark(one, asking)),
        *(remark(one, asking), remark(one, "is {t} not rare?")),
        *(remark(one, asking) + "...", remark(one, shouting)),
        *(remark(two, "{t} is old."), "tea tea"),
        *("", remark(two, asking)),
        *("<user>", remark(two, asking)),
    ]
    scripted(monkeypatch, tokenizer, texts)
    made = built.sample_pairs(model, tokenizer, problems=2, samples_per_problem=6, seed=4)
    found = [(p.chosen[0].content, p.rejected[0].content, p.preference) for p in made.pairs]
    assert found == [
        (remark(one, asking), remark(one, shouting), 0.85),
        (remark(two, "{t} is old."), "tea tea", 0.95),
    ]
    assert [(p.group_id, p.row) for p in made.pairs] == [(prompt_of(one), 1), (prompt_of(two), 2)]
    assert (made.samples, made.comparisons, made.ties, made.unusable) == (12, 6, 1, 3)
    encoded = encode_pair(made.pairs[0], tokenizer, RowPolicy())
    assert encoded.prompt_ids == prompt_ids(tokenizer, one)
    assert encoded.chosen_ids == answer_ids(tokenizer, remark(one, asking))


def test_sampled_pairs_follow_the_seed_and_not_the_batch(small):
    built, model, tokenizer = small

    def pairs(seed, batch_size):
        made = built.sample_pairs(
            model,
            tokenizer,
            problems=9,
            samples_per_problem=4,
            seed=seed,
            batch_size=batch_size,
        )
        assert made.comparisons == 18 == len(made.pairs) + made.ties + made.unusable
        return made.pairs

    assert pairs(0, 36) == pairs(0, 5)
    assert pairs(0, 36) != pairs(1, 36)


def test_the_base_model_is_trained_once_per_setting(align_cache, monkeypatch):
    trained = []
    monkeypatch.setattr(
        Styles, "_imitate", lambda self, model, tokenizer: trained.append(self.settings.seed)
    )
    tiny = StylesSettings(layers=1, width=16, heads=2)
    folder = Styles(tiny).base_model()
    assert Styles(tiny).base_model() == folder
    assert Styles(StylesSettings(layers=1, width=16, heads=2, seed=1)).base_model() != folder
    assert trained == [0, 1]


def test_building_the_model_is_a_function_of_its_settings(align_cache, tmp_path, monkeypatch):
    tiny = StylesSettings(layers=1, width=16, heads=2, steps=2, batch=4)
    before = torch.get_rng_state()
    first = (Styles(tiny).base_model() / "model.safetensors").read_bytes()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "elsewhere"))
    assert (Styles(tiny).base_model() / "model.safetensors").read_bytes() == first


def test_the_world_by_name():
    found = world("world:styles")
    assert isinstance(found, Styles)
    # Nothing is right or wrong in it: there are comparisons and no known answers.
    assert found.judged_by == "comparisons"
    assert found.judge().identity == styles.styles_judge().identity
    with pytest.raises(RecipeError, match="world:styles has no right answers"):
        found.question(found.prompts("held_out", 1, seed=0)[0])


def test_few_held_out_prompts_are_the_first_of_many():
    for seed in range(10):
        many = Styles().prompts("held_out", 12, seed=seed)
        for n in (1, 3, 5):
            assert Styles().prompts("held_out", n, seed=seed) == many[:n]


def test_no_two_styles_share_a_text():
    for topic, other in combinations([TOPIC, ("red", "tea"), ("green", "boat")], 2):
        assert not set(answers_of(topic)) & set(answers_of(other))
    assert OUTCOMES[-1] == style_game.MALFORMED
