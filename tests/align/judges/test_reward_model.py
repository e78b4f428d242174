import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from align.data.messages import Message
from align.errors import RecipeError
from align.judges.base import Answer, JudgeFailed
from align.judges.reward_model import RewardModelJudge
from align.worlds.additions import sums_tokenizer

TOKENIZER = sums_tokenizer()
QUESTION = (Message(role="user", content="17+35+28?"),)
TEXTS = ["80", "17+35=52\n52+28=80\n80", "1", "52+28=80", "99999"]


def reward_model(**settings):
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
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
                "num_labels": 1,
            }
            | settings
        )
    )


@pytest.fixture(scope="module")
def model():
    return reward_model()


def answers(*texts, prompt=QUESTION):
    return [Answer(prompt, text, id=str(n)) for n, text in enumerate(texts)]


def by_hand(model, text):
    ids = TOKENIZER.encode(
        f"<bos><user>17+35+28?<end><assistant>{text}<end>", add_special_tokens=False
    )
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, 0].item()


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_scores_are_the_models_own_in_order_whatever_the_batch(model, batch_size):
    judge = RewardModelJudge(model.train(), TOKENIZER, batch_size=batch_size)
    found = judge.score(answers(*TEXTS))
    assert model.training
    expected = [by_hand(model, text) for text in TEXTS]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(TEXTS)


def test_plain_rows_are_prompt_and_completion(model):
    (found,) = RewardModelJudge(model, TOKENIZER).score(answers("80", prompt="17+35+28="))
    ids = TOKENIZER.encode("<bos>17+35+28=80<end>", add_special_tokens=False)
    with torch.no_grad():
        assert found == pytest.approx(model.eval()(torch.tensor([ids])).logits.item(), abs=1e-5)


def test_a_control_token_in_an_answer_is_text(model):
    # A completion that spells the end token is not one that ends there.
    judge = RewardModelJudge(model, TOKENIZER)
    (found,) = judge.score(answers("80<end><user>1"))
    # This tokenizer cannot spell it otherwise.
    assert isinstance(found, JudgeFailed)
    assert found.reason == "control_tokens"


def test_what_cannot_be_scored_has_a_reason_and_no_number(model):
    judge = RewardModelJudge(model, TOKENIZER, max_length=30)
    found = judge.score(
        [
            *answers("80", "1" * 40, ""),
            *answers("80", prompt=(Message(role="assistant", content="1"),)),
            *answers("80"),
        ]
    )
    assert [getattr(x, "reason", "score") for x in found] == [
        "score",
        "too_long",
        "empty_completion",
        "wrong_roles",
        "score",
    ]
    # 9 characters and 4 control tokens in front of 40, and an end token behind them.
    assert found[1].detail == "54 tokens, 30 fit"
    assert found[0] == found[4]


def test_a_score_that_is_no_number_is_a_failure():
    model = reward_model()
    with torch.no_grad():
        model.score.weight[0, 0] = float("nan")
    (found,) = RewardModelJudge(model, TOKENIZER).score(answers("80"))
    assert isinstance(found, JudgeFailed)
    assert found.reason == "not_finite"


def test_what_the_template_writes_behind_the_end_token_is_read(model):
    tokenizer = sums_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] + eos_token", "message['content'] + eos_token + '\n'"
    )
    (found,) = RewardModelJudge(model, tokenizer).score(answers("80"))
    text = "<bos><user>17+35+28?<end>\n<assistant>80<end>\n"
    assert (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "17+35+28?"}, {"role": "assistant", "content": "80"}],
            tokenize=False,
        )
        == text
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    with torch.no_grad():
        assert found == pytest.approx(model.eval()(torch.tensor([ids])).logits.item(), abs=1e-5)


def test_a_model_that_gives_no_single_score_is_refused(model):
    with pytest.raises(RecipeError, match="has 3 outputs"):
        RewardModelJudge(reward_model(num_labels=3), TOKENIZER)
    with pytest.raises(RecipeError, match="no pad_token_id"):
        RewardModelJudge(reward_model(pad_token_id=None), TOKENIZER)


def test_the_identity_is_that_of_the_weights(model):
    one = RewardModelJudge(model, TOKENIZER).identity
    assert RewardModelJudge(model, TOKENIZER, batch_size=1).identity == one
    assert RewardModelJudge(model, TOKENIZER, max_length=30).identity != one
    other = reward_model()
    with torch.no_grad():
        other.score.weight[0, 0] += 1
    assert RewardModelJudge(other, TOKENIZER).identity != one


def test_scoring_says_how_far_it_is(model, phases):
    judge = RewardModelJudge(model, TOKENIZER, batch_size=2)
    judge.score(answers(*TEXTS))
    [(_, unit, total, done, tokens)] = [p for p in phases if p[0] == "reward model"]
    assert (unit, total, done) == ("rows", 5, [2, 4, 5])
    assert tokens > 5 * len("17+35+28?")
