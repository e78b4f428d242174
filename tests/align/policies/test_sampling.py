import math
from functools import partial

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from align.policies import sampling as sampling_module
from align.policies.base import Sampling
from align.policies.loaded import evaluating
from align.policies.sampling import draw, runs_of, sample_completions, steps

# Probabilities 0.1, 0.4, 0.2, 0.3.
LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
N = 1_000
# In the middle of N equal steps: shares come out to one step.
GRID = (torch.arange(N, dtype=torch.float64) + 0.5) / N


def shares(logits=LOGITS, **sampling):
    token = draw(logits.expand(N, -1), GRID, Sampling(max_new_tokens=1, **sampling))
    return (torch.bincount(token, minlength=logits.shape[1]) / N).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_token_has_its_probability(dtype):
    assert shares(LOGITS.to(dtype)) == pytest.approx([0.1, 0.4, 0.2, 0.3], abs=5e-3)


def test_temperature_sharpens():
    # Squares .01, .16, .04, .09 of .30.
    assert shares(temperature=0.5) == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30], abs=2e-3)
    assert shares(temperature=0.0) == [0, 1, 0, 0]


def test_float64_logits_have_float64_probabilities():
    # 1/2 + 2.5e-10, which is 1/2 in float32.
    logits = torch.tensor([[1e-9, 0.0]], dtype=torch.float64)
    uniform = torch.tensor([0.5 + 1e-10], dtype=torch.float64)
    one = Sampling(max_new_tokens=1)
    assert draw(logits, uniform, one).tolist() == [0]
    assert draw(logits.float(), uniform, one).tolist() == [1]


def test_top_k_keeps_the_likeliest():
    # .4 and .3 of .7.
    assert shares(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=2e-3)
    assert shares(top_k=1) == [0, 1, 0, 0]
    assert shares(top_k=4) == shares(top_k=9) == shares()


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.3, [0, 1, 0, 0]),
        # .4 reaches .39 alone; .4 + .3 reaches .5 and .69; .9 takes three.
        (0.39, [0, 1, 0, 0]),
        (0.5, [0, 4 / 7, 0, 3 / 7]),
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.8, [0, 4 / 9, 2 / 9, 3 / 9]),
        (1.0, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, expected):
    assert shares(top_p=top_p) == pytest.approx(expected, abs=2e-3)


def test_top_k_comes_before_top_p():
    # Of .4 and .3 the first has 4/7 = .57 of what is left: enough for .5, and not for .5 of all.
    assert shares(top_k=2, top_p=0.5) == [0, 1, 0, 0]


def test_the_order_of_the_numbers_is_that_of_the_rows():
    uniform = torch.tensor([0.95, 0.05, 0.3], dtype=torch.float64)
    token = draw(LOGITS.expand(3, -1), uniform, Sampling(max_new_tokens=1))
    # Cumulative: .1, .5, .7, 1.
    assert token.tolist() == [3, 0, 1]


def test_an_impossible_token_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    token = draw(logits.expand(3, -1), uniform, Sampling(max_new_tokens=1))
    assert token.tolist() == [1, 3, 3]


class Told:
    """A reading that is told which logits to show: row r always draws token r."""

    def __init__(self, rows, can_select=True):
        self.logits = torch.eye(rows)
        self.can_select = can_select
        self.read = []

    def select(self, keep):
        self.logits = self.logits[keep]

    def go_on(self, token):
        self.read.append(token.tolist())
        # As the model does it: logits of the rows that were just read.
        self.logits = torch.eye(self.logits.shape[1])[token]


def told(reading, lengths, most):
    """(rows, ids) of every step; row r ends after `lengths[r]` tokens."""
    count = [0] * len(lengths)
    greedy = partial(draw, sampling=Sampling(max_new_tokens=1, temperature=0.0))
    found = []
    uniform = torch.zeros(len(lengths), most, dtype=torch.float64)
    for step in steps(reading, uniform, greedy, lambda row: count[row] < lengths[row]):
        found.append((step.rows, step.ids))
        for row in step.rows:
            count[row] += 1
    return found


def test_steps_tell_of_no_row_that_has_ended():
    lengths = [3, 1, 2, *[4] * 13]
    for can_select in (True, False):
        found = told(Told(16, can_select), lengths, 9)
        expected = [[row for row in range(16) if lengths[row] > t] for t in range(4)]
        assert [rows for rows, _ in found] == expected
        assert [ids for _, ids in found] == expected


def test_ended_rows_leave_once_they_are_one_in_eight():
    lengths = [3, 1, 2, *[4] * 13]
    reading = Told(16)
    told(reading, lengths, 9)
    # 1 of 16 stays, 2 of 16 leave, then 1 of 14 stays; behind the last step nothing is read.
    assert [len(read) for read in reading.read] == [16, 14, 14]
    assert reading.read[1] == [0, *range(3, 16)]
    fixed = Told(16, can_select=False)
    told(fixed, lengths, 9)
    assert [len(read) for read in fixed.read] == [16, 16, 16]


def test_steps_end_with_the_uniform_numbers():
    reading = Told(2)
    assert told(reading, [5, 5], 3) == [([0, 1], [0, 1])] * 3
    assert len(reading.read) == 2


def test_log_probs_are_the_models_own_and_of_the_rows_told():
    reading = Told(3, can_select=False)
    reading.logits = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.6, 0.3, 0.1]]).log()
    # Row 1 ends at once, and the reading still holds it.
    on = {0, 1, 2}
    greedy = partial(draw, sampling=Sampling(max_new_tokens=1, temperature=0.0))
    reading.go_on = lambda token: None
    uniform = torch.zeros(3, 2, dtype=torch.float64)
    first = True
    for step in steps(reading, uniform, greedy, lambda row: row in on):
        p = {0: 0.7, 1: 0.5, 2: 0.6}
        assert step.rows == ([0, 1, 2] if first else [0, 2])
        expected = [math.log(p[row]) for row in step.rows]
        assert step.logps() == pytest.approx(expected, abs=1e-6)
        first = False
        on.discard(1)


def test_every_draw_has_the_number_of_its_row_and_step():
    # At two tokens of equal probability a number below 1/2 draws the first.
    halves = torch.zeros(8, 2)
    reading = Told(8)
    reading.logits = halves
    reading.go_on = lambda token: setattr(reading, "logits", halves[: len(token)])
    uniform = torch.rand(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [[] for _ in range(8)]
    choose = partial(draw, sampling=Sampling(max_new_tokens=1))
    # Rows 0 and 1 leave after one token, so that the places of the others change.
    for step in steps(reading, uniform, choose, lambda row: row > 1):
        for row, i in zip(step.rows, step.ids, strict=True):
            rows[row].append(i)
    drawn = (uniform >= 0.5).long().tolist()
    assert rows == [drawn[0][:1], drawn[1][:1], *drawn[2:]]


def test_neighbours_with_the_same_ids_are_one_prompt():
    assert runs_of([(1, 2), (1, 2), (3,), (1, 2)]) == ([(1, 2), (3,), (1, 2)], [2, 1, 1])


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


def test_samples_equal_a_plain_loop_without_cache(model):
    ours = sampled(model, PROMPTS * 8, temperature=0.7, seed=4)
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(len(ours), 12, generator=generator, dtype=torch.float64)
    for prompt, numbers, sample in zip(PROMPTS * 8, uniform, ours, strict=True):
        ids = []
        with evaluating(model):
            while len(ids) < 12 and END not in ids:
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1].double()
                cumulative = (logits / 0.7).softmax(dim=0).cumsum(dim=0)
                ids.append(int((cumulative <= numbers[len(ids)]).sum()))
        assert sample.completion_ids == tuple(ids)


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


def test_bad_arguments_are_refused(model):
    with pytest.raises(ValueError, match="no empty one"):
        sampled(model, [[1], []])
    with pytest.raises(ValueError, match="at least one prompt"):
        sampled(model, [])
    with pytest.raises(ValueError, match="not -1"):
        sampled(model, PROMPTS, temperature=-1.0)


def test_a_repeated_prompt_is_read_once_and_ended_rows_leave(model, monkeypatch):
    sizes = []
    original = type(model).forward

    def counting(self, input_ids, **inputs):
        sizes.append(tuple(input_ids.shape))
        return original(self, input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", counting)
    sampled(model, [[1, 2, 3]] * 40 + [[4, 5]] * 40, max_new_tokens=30)
    assert sizes[0] == (2, 3)
    rows = [size[0] for size in sizes[1:]]
    assert rows[0] <= 80
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 40


def _sorted_nucleus(logits, top_p):
    """The same by ordering the whole vocabulary."""
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    p = ordered.softmax(dim=1)
    outside = p.cumsum(dim=1) - p >= top_p
    outside[:, 0] = False
    return torch.zeros_like(outside).scatter(1, order, outside)


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 3000])
# No multiple of 1 / V, where rounding would decide.
@pytest.mark.parametrize("top_p", [0.01003, 0.50003, 0.95003])
def test_a_nucleus_needs_no_order_of_the_whole_vocabulary(scale, vocabulary, top_p):
    # In bfloat16 many tokens are equally likely, some of them on both sides of the border.
    torch.manual_seed(0)
    logits = (torch.randn(12, vocabulary) * scale).bfloat16().double()
    logits[0] = 0.0
    logits[1, : vocabulary // 2] = -torch.inf
    expected = _sorted_nucleus(logits, top_p)
    assert torch.equal(sampling_module._outside_nucleus(logits, top_p), expected)


def test_a_frozen_head_is_not_copied_for_every_row():
    # Torch multiplies a 3-d slice by frozen weights as a batched product, over copies of them.
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    multiplied = []
    bmm = torch.ops.aten.bmm.default

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is bmm:
                multiplied.append(tuple(args[1].shape))
            return function(*args, **(kwargs or {}))

    with Recorder():
        sample_completions(
            model, [[1, 2, 3], [4, 5, 6]], end_ids=[0], max_new_tokens=3, temperature=1.0, seed=0
        )
    assert not [shape for shape in multiplied if shape[-1] == config.vocab_size]
