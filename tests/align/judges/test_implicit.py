"""beta times the log-ratio of a model to the one it began with."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.data.messages import Message
from align.errors import RecipeError
from align.judges.base import Answer, Bench, JudgeFailed
from align.judges.implicit import ImplicitReward, ImplicitRewardJudge
from align.worlds.additions import sums_tokenizer

TOKENIZER = sums_tokenizer()
QUESTION = (Message(role="user", content="17+35+28?"),)
TEXTS = ["80", "17+35=52\n52+28=80\n80", "1", "80", "52+28=80", "99999"]


def language_model(seed, **settings):
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": len(TOKENIZER),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "initializer_range": 0.4,
                "attention_dropout": 0.5,
                "pad_token_id": TOKENIZER.pad_token_id,
                "bos_token_id": TOKENIZER.bos_token_id,
                "eos_token_id": TOKENIZER.eos_token_id,
            }
            | settings
        )
    )


@pytest.fixture(scope="module")
def models():
    return language_model(0), language_model(1)


def answers(*texts, prompt=QUESTION):
    return [Answer(prompt, text, id=str(n)) for n, text in enumerate(texts)]


def logp(model, text):
    """Of the answer and its end, one token after the other, with the model alone."""
    asked = TOKENIZER.encode("<bos><user>17+35+28?<end><assistant>", add_special_tokens=False)
    said = TOKENIZER.encode(f"{text}<end>", add_special_tokens=False)
    model.eval()
    with torch.no_grad():
        found = model(torch.tensor([asked + said])).logits.log_softmax(-1)[0]
    return sum(found[len(asked) - 1 + t, i].item() for t, i in enumerate(said))


@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_scores_are_beta_times_the_log_ratio_whatever_the_passes(models, token_budget):
    policy, reference = models
    judge = ImplicitRewardJudge(
        policy.train(), reference, TOKENIZER, beta=0.3, token_budget=token_budget
    )
    expected = [0.3 * (logp(policy, text) - logp(reference, text)) for text in TEXTS]
    policy.train()
    assert judge.score(answers(*TEXTS)) == pytest.approx(expected, abs=1e-4)
    assert policy.training
    assert max(expected) - min(expected) > 0.1
    assert judge.score([]) == []


def test_a_model_against_itself_scores_0(models):
    judge = ImplicitRewardJudge(models[0], models[0], TOKENIZER, beta=5.0)
    assert judge.score(answers(*TEXTS)) == [0.0] * len(TEXTS)


def test_what_cannot_be_scored_has_no_score_and_the_others_keep_theirs(models):
    judge = ImplicitRewardJudge(*models, TOKENIZER, beta=1.0)
    found = judge.score(answers("80", "", "1" * 60, "1"))
    assert [getattr(f, "reason", None) for f in found] == [
        None,
        "empty_completion",
        "too_long",
        None,
    ]
    assert isinstance(found[1], JudgeFailed)
    assert [found[0], found[3]] == pytest.approx(judge.score(answers("80", "1")), abs=1e-5)


def test_the_identity_is_that_of_both_models_and_beta(models):
    policy, reference = models
    own = ImplicitRewardJudge(policy, reference, TOKENIZER, beta=1.0).identity
    assert ImplicitRewardJudge(policy, reference, TOKENIZER, beta=1.0).identity == own
    for other in (
        ImplicitRewardJudge(policy, reference, TOKENIZER, beta=2.0),
        ImplicitRewardJudge(reference, policy, TOKENIZER, beta=1.0),
        ImplicitRewardJudge(policy, policy, TOKENIZER, beta=1.0),
    ):
        assert other.identity != own


@pytest.fixture
def folders(models, tmp_path):
    found = []
    for name, model in zip(("policy", "start"), models, strict=True):
        model.save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
        found.append(str(tmp_path / name))
    return found


def test_the_node_opens_both_folders_and_takes_start_from_the_run(models, folders, tmp_path):
    policy, start = folders
    expected = ImplicitRewardJudge(*models, TOKENIZER, beta=0.1).score(answers(*TEXTS))
    for reference, bench in (
        (start, Bench(tmp_path, "")),
        ("start", Bench(tmp_path, "", start=start)),
    ):
        node = ImplicitReward(model=policy, reference=reference)
        node.look()
        assert node.reads_start == (reference == "start")
        with node.open(bench) as judge:
            assert judge.score(answers(*TEXTS)) == pytest.approx(expected, abs=1e-6)
    named = ImplicitReward(model=policy, reference=start).content()
    assert named["content"] != named["reference"]
    assert ImplicitReward(model=policy, reference="start").content().keys() == {"content"}


def test_what_is_no_pair_of_models_is_refused(models, folders, tmp_path):
    policy, start = folders
    with (
        pytest.raises(RecipeError, match="there is none here"),
        ImplicitReward(model=policy, reference="start").open(Bench(tmp_path, "")),
    ):
        pass
    with pytest.raises(RecipeError, match=r"by: implicit, model: there is no folder"):
        ImplicitReward(model=str(tmp_path / "nowhere"), reference=start).look()
    other = sums_tokenizer()
    other.add_tokens(["x"])
    other.save_pretrained(start)
    with (
        pytest.raises(RecipeError, match="spells texts in other tokens"),
        ImplicitReward(model=policy, reference=start).open(Bench(tmp_path, "")),
    ):
        pass
