import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from align.worlds.generation import evaluating, sample_completions

VOCABULARY, END = 11, 10
# Wider weights than usual, so that every earlier token and its position changes what is likeliest.
WIDE = 0.4
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [9, 1, 4]]


def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=0,
            attention_dropout=0.5,
            initializer_range=WIDE,
        )
    )


def gpt2():
    # Its positions are absolute: Llama's rotary ones do not notice a constant shift.
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=WIDE,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=0,
        )
    )


@pytest.fixture(scope="module", params=[llama, gpt2])
def model(request):
    torch.manual_seed(3)
    model = request.param()
    return model.train()


def sampled(model, prompts, **settings):
    defaults = {"end_ids": [END], "max_new_tokens": 12, "temperature": 1.0, "seed": 0}
    return sample_completions(model, prompts, **(defaults | settings))


def test_greedy_equals_plain_generate(model):
    ours = sampled(model, PROMPTS, temperature=0.0, batch_size=2)
    model.eval()
    for prompt, sample in zip(PROMPTS, ours, strict=True):
        plain = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
        )
        assert list(sample.completion_ids) == plain[0, len(prompt) :].tolist()
    model.train()
    assert len({sample.completion_ids for sample in ours}) > 1


def test_samples_follow_the_seed_and_not_the_batch(model):
    whole = sampled(model, PROMPTS)
    assert sampled(model, PROMPTS, batch_size=1) == whole
    assert sampled(model, PROMPTS, batch_size=2) == whole
    assert sampled(model, PROMPTS, seed=1) != whole


def test_a_completion_ends_with_its_end_token_or_is_unfinished(model):
    samples = sampled(model, PROMPTS * 8, max_new_tokens=6)
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        assert sample.finished == (sample.completion_ids[-1] == END)
        assert END not in sample.completion_ids[:-1]
        assert sample.finished or len(sample.completion_ids) == 6


def test_the_first_token_has_the_models_distribution(model):
    n = 4_000
    samples = sampled(model, [[1, 2, 3]] * n, max_new_tokens=1, temperature=2.0)
    drawn = torch.bincount(
        torch.tensor([sample.completion_ids[0] for sample in samples]), minlength=VOCABULARY
    )
    with evaluating(model):
        expected = (model(torch.tensor([[1, 2, 3]])).logits[0, -1] / 2.0).softmax(dim=0)
    # Five standard deviations of a share of 4,000, at its widest.
    assert (drawn / n - expected).abs().max() < 5 * 0.5 / n**0.5
    assert expected.max() < 0.9


def test_model_and_random_state_are_left_alone(model):
    first, second = (m for m in model.modules() if type(m).__name__ in ("LlamaMLP", "GPT2MLP"))
    first.eval()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    sampled(model, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not first.training
    assert second.training
    model.train()


def test_evaluating_restores_after_a_failure(model):
    def fail():
        assert not model.training
        assert not torch.is_grad_enabled()
        raise KeyError

    with pytest.raises(KeyError):
        evaluating(model)(fail)()
    assert model.training
    assert torch.is_grad_enabled()


def test_bad_arguments_are_refused(model):
    with pytest.raises(ValueError, match="no empty one"):
        sampled(model, [[1], []])
    with pytest.raises(ValueError, match="at least one prompt"):
        sampled(model, [])
    with pytest.raises(ValueError, match="not -1"):
        sampled(model, PROMPTS, temperature=-1.0)
