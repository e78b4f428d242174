import warnings
from collections import Counter
from itertools import chain

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from align.data.completions import Completion
from align.data.messages import Message
from align.data.prompts import Prompt
from align.forest import TokenRow
from align.policies.base import Failed, Sampling
from align.policies.in_process import InProcessPolicy
from align.policies.prompting import Prompting
from align.worlds.additions import sums_tokenizer

TOKENIZER = sums_tokenizer()
VOCABULARY, END = len(TOKENIZER), TOKENIZER.eos_token_id
CONTROL = set(TOKENIZER.all_special_ids) - {END, TOKENIZER.unk_token_id}
# Wider weights than usual, so that every earlier token and its position changes what is likeliest.
SHARED = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.4,
    "bos_token_id": TOKENIZER.bos_token_id,
    "eos_token_id": END,
    "pad_token_id": TOKENIZER.pad_token_id,
}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
QUESTIONS = ["1+2+3?", "17+35+28?", "4", "5+5?", "99+1+2+3+4?"]


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHARED, **SMALL, attention_dropout=0.5))


def gpt2():
    # Its positions are absolute: Llama's rotary ones do not notice a constant shift.
    return GPT2LMHeadModel(
        GPT2Config(**SHARED, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.5)
    )


def sliding():
    return MistralForCausalLM(MistralConfig(**SHARED, **SMALL, head_dim=8, sliding_window=5))


def recurrent():
    # One of its layers keeps a state that cannot be repeated.
    return Lfm2ForCausalLM(
        Lfm2Config(**SHARED, **SMALL, layer_types=["conv", "full_attention"], block_ff_dim=32)
    )


def talkative(make):
    """A model that draws fewer control tokens than chance, and more characters."""
    torch.manual_seed(5)
    model = make()
    head = torch.nn.Linear(16, VOCABULARY)
    head.weight.data.normal_(std=0.4)
    head.bias.data.zero_()
    head.bias.data[list(CONTROL)] = -3.0
    head.bias.data[END] = 1.0
    model.lm_head = head
    return model.train()


@pytest.fixture(scope="module", params=[llama, gpt2, sliding, recurrent])
def model(request):
    return talkative(request.param)


@pytest.fixture(scope="module")
def plain_model():
    return talkative(llama)


def asked(*questions, chat=True):
    return [
        Prompt(
            prompt=(Message(role="user", content=question),) if chat else question,
            group_id=f"g{row}",
            source="test",
            row=row,
        )
        for row, question in enumerate(questions, start=1)
    ]


def outcome(answer):
    """What can be compared: the text, or the reason why there is none."""
    if isinstance(answer, Failed):
        return answer.reason
    (message,) = answer.completion
    return ("text", message.content)


def outcomes(policy, prompts, n=1, seed=0, **sampling):
    settings = Sampling(**({"max_new_tokens": 12} | sampling))
    return [[outcome(x) for x in row] for row in policy.generate(prompts, n, settings, seed)]


def expected_of(ids):
    """The outcome of tokens that `generate` drew."""
    for place, drawn in enumerate(ids):
        if drawn == END:
            text = TOKENIZER.decode(ids[:place])
            return ("text", text) if text.strip() else "empty"
        if drawn in CONTROL:
            return "unfinished"
    return "unfinished"


@pytest.mark.parametrize("rows", [1, 2, 5, 50])
def test_greedy_equals_plain_generate(model, rows):
    ours = outcomes(
        InProcessPolicy(model, TOKENIZER, rows=rows), asked(*QUESTIONS), n=2, temperature=0.0
    )
    model.eval()
    for question, found in zip(QUESTIONS, ours, strict=True):
        ids = TOKENIZER.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
            )
        expected = expected_of(drawn[0, ids.shape[1] :].tolist())
        assert found == [expected, expected]
    model.train()


def test_a_sample_belongs_to_seed_prompt_and_number(model):
    prompts = asked(*QUESTIONS)
    whole = outcomes(InProcessPolicy(model, TOKENIZER), prompts, n=4)
    for rows in (1, 3, 7):
        policy = InProcessPolicy(model, TOKENIZER, rows=rows)
        assert outcomes(policy, prompts, n=4) == whole
    policy = InProcessPolicy(model, TOKENIZER)
    assert outcomes(policy, prompts[::-1], n=4) == whole[::-1]
    assert outcomes(policy, prompts[2:3], n=2) == [whole[2][:2]]
    assert outcomes(policy, prompts, n=4, seed=1) != whole
    # Samples of one prompt differ from each other, and so do prompts.
    assert len({str(x) for row in whole for x in row}) > 5


def test_what_is_sampled_is_what_is_trained_on(plain_model):
    prompts = asked(*QUESTIONS)
    answers = InProcessPolicy(plain_model, TOKENIZER).generate(
        prompts, 40, Sampling(max_new_tokens=6), 0
    )
    seen = 0
    for prompt, row in zip(prompts, answers, strict=True):
        assert [x.sample for x in row] == list(range(40))
        for answer in row:
            if isinstance(answer, Failed):
                assert answer.prompt == prompt
                continue
            seen += 1
            assert (answer.prompt, answer.group_id, answer.source, answer.row) == (
                prompt.prompt,
                prompt.group_id,
                prompt.source,
                prompt.row,
            )
            text = answer.completion[0].content
            if "<unk>" not in text:
                ids = Prompting(TOKENIZER).row(prompt.prompt, text).completion_ids
                assert TOKENIZER.decode(ids) == text + "<end>"
    assert seen > 10


def test_the_first_token_has_the_models_distribution(plain_model):
    n = 4_000
    (row,) = InProcessPolicy(plain_model, TOKENIZER, rows=n).generate(
        asked("1+2?"), n, Sampling(max_new_tokens=2, temperature=2.0), 0
    )
    ids = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "1+2?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    plain_model.eval()
    with torch.no_grad():
        first = (plain_model(ids).logits[0, -1] / 2.0).softmax(dim=0)
    counts = Counter(outcome(x) for x in row)
    # Only an end token makes a completion empty at once.
    assert counts["empty"] / n == pytest.approx(float(first[END]), abs=5 * 0.5 / n**0.5)
    assert 0.005 < first[END] < 0.9
    for character in "0+\n7":
        (i,) = TOKENIZER.encode(character, add_special_tokens=False)
        with torch.no_grad():
            after = plain_model(torch.cat([ids, torch.tensor([[i]])], dim=1)).logits[0, -1] / 2.0
        p = float(first[i] * after.softmax(dim=0)[END])
        found = counts[("text", character)] if character.strip() else 0
        if character.strip():
            assert found / n == pytest.approx(p, abs=5 * (p / n) ** 0.5 + 1e-3)


def test_every_failure_has_its_reason(plain_model):
    policy = InProcessPolicy(plain_model, TOKENIZER)
    no_question = Prompt(prompt=(Message(role="assistant", content="4"),), source="test", row=1)
    prompts = [*asked("1+1?", "1" * 60), no_question, *asked("1+1?")]
    answers = policy.generate(prompts, 60, Sampling(max_new_tokens=4), 0)
    reasons = [{x.reason if isinstance(x, Failed) else "text" for x in row} for row in answers]
    assert reasons == [
        {"text", "unfinished", "empty"},
        {"too_long"},
        {"rejected"},
        {"text", "unfinished", "empty"},
    ]
    # 60 characters, <bos><user> before and <end><assistant> behind them; 64 positions less 4.
    assert answers[1][0].detail.startswith("64 tokens, and 60 of 64 are left")
    assert answers[2][0].sample == 0
    assert answers[2][59].sample == 59
    details = {x.detail for x in answers[0] if isinstance(x, Failed)}
    assert "no end within 4 tokens" in details
    assert "a control token that ends no answer was drawn as token 1" in details


def test_a_prompt_that_just_fits_is_read(plain_model):
    policy = InProcessPolicy(plain_model, TOKENIZER)
    (row,) = policy.generate(asked("1" * 56), 3, Sampling(max_new_tokens=4), 0)
    assert not {x.reason for x in row if isinstance(x, Failed)} & {"too_long", "rejected"}


def test_a_stop_text_ends_a_completion_and_is_no_part_of_it(plain_model):
    policy = InProcessPolicy(plain_model, TOKENIZER)
    free = outcomes(policy, asked(*QUESTIONS), n=20, max_new_tokens=20)
    stopped = outcomes(policy, asked(*QUESTIONS), n=20, max_new_tokens=20, stop=("+", "=1"))
    cut = 0
    for before, after in zip(chain(*free), chain(*stopped), strict=True):
        if before == after:
            continue
        cut += 1
        if before[0] == "text":
            places = [before[1].find(stop) for stop in ("+", "=1") if stop in before[1]]
            text = before[1][: min(places)]
            assert after == (("text", text) if text.strip() else "empty")
    assert cut > 5
    assert not any("+" in x[1] or "=1" in x[1] for row in stopped for x in row if x[0] == "text")


def test_prompts_are_read_once_and_ended_rows_leave(plain_model, monkeypatch):
    sizes = []
    original = type(plain_model).forward

    def counting(self, input_ids, **inputs):
        sizes.append(tuple(input_ids.shape))
        return original(self, input_ids, **inputs)

    monkeypatch.setattr(type(plain_model), "forward", counting)
    policy = InProcessPolicy(plain_model, TOKENIZER)
    policy.generate(asked("1+2?", "3+4?"), 30, Sampling(max_new_tokens=16), 0)
    # <bos><user>1+2?<end><assistant> is 8 tokens.
    assert sizes[0] == (2, 8)
    rows = [size[0] for size in sizes[1:]]
    assert all(size[1] == 1 for size in sizes[1:])
    assert rows[0] <= 60
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 40


def test_model_and_random_state_are_left_alone(plain_model):
    plain_model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    outcomes(InProcessPolicy(plain_model, TOKENIZER), asked(*QUESTIONS))
    assert torch.equal(torch.get_rng_state(), before)
    assert plain_model.training
    assert all(p.grad is None for p in plain_model.parameters())


# A fused step leaves no trace in the tensors' version counters.
@pytest.mark.parametrize("way", ["foreach", "fused"])
def test_the_identity_follows_the_weights(way):
    torch.manual_seed(0)
    model = llama()
    policy = InProcessPolicy(model, TOKENIZER)
    first = policy.identity
    assert policy.identity == first
    assert InProcessPolicy(model, TOKENIZER).identity == first
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **{way: True})
    model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    assert policy.identity != first
    model.load_state_dict(state)
    assert policy.identity == first
    (answer,) = policy.generate(asked("1?"), 1, Sampling(max_new_tokens=12, temperature=0), 0)[0]
    assert isinstance(answer, Failed) or answer.policy == first


def test_every_completion_carries_the_identity(plain_model):
    policy = InProcessPolicy(plain_model, TOKENIZER)
    rows = policy.generate(asked(*QUESTIONS), 8, Sampling(max_new_tokens=12), 0)
    found = {x.policy for row in rows for x in row if isinstance(x, Completion)}
    assert found == {policy.identity}


def test_logps_are_the_models_own(plain_model):
    rows = [TokenRow([1, 5, 6], [8, 9, END]), TokenRow([1, 7], [10, END])]
    found = InProcessPolicy(plain_model, TOKENIZER).logps(rows)
    plain_model.eval()
    for r, row in enumerate(rows):
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        with torch.no_grad():
            logps = plain_model(ids).logits[0].log_softmax(dim=1)
        at = len(row.prompt_ids)
        expected = [float(logps[at - 1 + t, i]) for t, i in enumerate(row.completion_ids)]
        assert found.token[r][found.mask[r]].tolist() == pytest.approx(expected, abs=1e-5)


def test_plain_prompts_give_plain_completions(plain_model):
    policy = InProcessPolicy(plain_model, TOKENIZER)
    prompts = asked("1+2=", chat=False)
    (row,) = policy.generate(prompts, 50, Sampling(max_new_tokens=12), 0)
    texts = [x.completion for x in row if isinstance(x, Completion)]
    assert texts
    assert all(isinstance(text, str) for text in texts)


def test_wrong_numbers_are_refused(plain_model):
    with pytest.raises(ValueError, match="rows must be 1"):
        InProcessPolicy(plain_model, TOKENIZER, rows=0)
    with pytest.raises(ValueError, match="n must be 1"):
        InProcessPolicy(plain_model, TOKENIZER).generate([], 0, Sampling(max_new_tokens=1), 0)
    assert (
        InProcessPolicy(plain_model, TOKENIZER).generate([], 1, Sampling(max_new_tokens=1), 0) == []
    )


def test_generation_counts_every_row_as_it_ends_and_every_token(plain_model, phases):
    policy = InProcessPolicy(plain_model, TOKENIZER, rows=4)
    rows = policy.generate(asked(*QUESTIONS), 3, Sampling(max_new_tokens=12), 0)
    [(title, unit, total, done, tokens)] = [p for p in phases if p[0] == "generate"]
    assert (title, unit, total) == ("generate", "rows", 3 * len(QUESTIONS))
    assert done[-1] == total
    # Rows end one by one and not with their batch.
    assert len(done) > -(-total // 4)
    assert len(rows) * 3 <= tokens <= 12 * total
