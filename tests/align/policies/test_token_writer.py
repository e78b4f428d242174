from dataclasses import replace

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from align.data.messages import Message
from align.data.problems import RowProblem
from align.errors import RecipeError
from align.policies.base import Sampling
from align.policies.prompting import Prompting
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Stem
from align.worlds.additions import sums_tokenizer

TOKENIZER = sums_tokenizer()
VOCABULARY, END = len(TOKENIZER), TOKENIZER.eos_token_id
CONTROL = set(TOKENIZER.all_special_ids) - {END, TOKENIZER.unk_token_id}
SHARED = {
    # Three rows of the embedding have no token.
    "vocab_size": VOCABULARY + 3,
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


def llama():
    return LlamaForCausalLM(LlamaConfig(**SHARED, **SMALL, attention_dropout=0.5))


def gpt2():
    # Its positions are absolute: Llama's rotary ones do not notice a constant shift.
    return GPT2LMHeadModel(
        GPT2Config(**SHARED, n_embd=16, n_layer=2, n_head=2, n_positions=64, attn_pdrop=0.5)
    )


def recurrent():
    # One of its layers keeps a state that cannot be repeated.
    return Lfm2ForCausalLM(
        Lfm2Config(**SHARED, **SMALL, layer_types=["conv", "full_attention"], block_ff_dim=32)
    )


def made(make):
    torch.manual_seed(5)
    return make().train()


@pytest.fixture(scope="module", params=[llama, gpt2, recurrent])
def model(request):
    return made(request.param)


@pytest.fixture(scope="module")
def plain_model():
    return made(llama)


def ids_of(text):
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def stem(question, so_far="", key=None):
    prompt = Prompting(TOKENIZER).prompt_ids((Message(role="user", content=question),))
    return Stem(prompt, ids_of(so_far), key or f"{question}/{so_far}")


STEMS = [stem("1+2+3?"), stem("17+35+28?", "17+35=5"), stem("4"), stem("4", "4\n"), stem("5?", "5")]


def draws(n=3, **sampling):
    return [Draw(one, n, Sampling(**({"max_new_tokens": 8} | sampling))) for one in STEMS]


def own_logps(model, before, ids):
    """Log-probs of `ids` behind `before` from one plain pass of the whole sequence."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *ids]])).logits[0].float()
    model.train()
    logps = logits.log_softmax(dim=1)
    return [float(logps[len(before) - 1 + t, i]) for t, i in enumerate(ids)]


def before(one):
    return (*one.prompt_ids, *one.prefix_ids)


def test_logps_are_those_of_one_plain_pass(model):
    # Another temperature and fewer tokens to draw from do not touch them.
    requests = draws(temperature=1.7, top_k=9, top_p=0.9)
    answers = InProcessWriter(model, TOKENIZER, rows=4).draw(requests, 0)
    for request, answer in zip(requests, answers, strict=True):
        assert len(answer) == 3
        for one in answer:
            expected = own_logps(model, before(request.stem), one.ids)
            assert one.logps == pytest.approx(expected, abs=2e-5)


def test_a_sample_belongs_to_seed_key_and_number(model):
    # Rows that stop early leave the batch.
    asked = draws(stop=("1", "5", "+", "="))
    whole = InProcessWriter(model, TOKENIZER).draw(asked, 0)
    tokens = [[one.ids for one in row] for row in whole]
    for rows in (1, 2, 7):
        found = InProcessWriter(model, TOKENIZER, rows=rows).draw(asked, 0)
        assert [[one.ids for one in row] for row in found] == tokens
    writer = InProcessWriter(model, TOKENIZER)
    assert [[x.ids for x in row] for row in writer.draw(asked[::-1], 0)] == tokens[::-1]
    assert [[x.ids for x in row] for row in writer.draw([replace(asked[2], n=2)], 0)] == [
        tokens[2][:2]
    ]
    assert [[x.ids for x in row] for row in writer.draw(asked, 1)] != tokens
    assert len({ids for row in tokens for ids in row}) > 8
    other_key = Draw(stem("4", key="another"), 3, asked[2].sampling)
    assert [x.ids for x in writer.draw([other_key], 0)[0]] != tokens[2]


def test_requests_of_other_lengths_and_stops_share_a_batch(plain_model, monkeypatch):
    alone = [
        InProcessWriter(plain_model, TOKENIZER).draw([Draw(one, 4, how)], 0)[0]
        for one, how in mixed()
    ]
    sizes = []
    original = LlamaForCausalLM.forward

    def counting(self, input_ids, **inputs):
        sizes.append(tuple(input_ids.shape))
        return original(self, input_ids, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counting)
    writer = InProcessWriter(plain_model, TOKENIZER)
    found = writer.draw([Draw(one, 4, how) for one, how in mixed()], 0)
    assert [[x.ids for x in row] for row in found] == [[x.ids for x in row] for row in alone]
    # One reading of five stems, then one token per row; the longest request sets the end.
    assert sizes[0] == (5, max(len(before(one)) for one in STEMS))
    assert sizes[1][1] == 1
    assert len(sizes) <= 12


def mixed():
    stops = [(), ("1",), ("+",), (), ("2", "3")]
    return [(one, Sampling(max_new_tokens=4 + 2 * k, stop=stops[k])) for k, one in enumerate(STEMS)]


def test_how_a_draw_ends(plain_model):
    writer = InProcessWriter(plain_model, TOKENIZER)
    how = {"max_new_tokens": 7, "stop": ("+", "=1")}
    seen = set()
    for row in writer.draw(draws(n=60, **how), 0):
        for one in row:
            seen.add(one.finish)
            stops = [s for s in how["stop"] if s in one.text]
            match one.finish:
                case "end":
                    assert one.ids[-1] == END
                    assert END not in one.ids[:-1]
                    assert not stops
                case "stop":
                    (stop,) = stops
                    assert one.text.endswith(stop)
                    assert one.text.count(stop) == 1
                case "length":
                    assert len(one.ids) == 7
                    assert not stops
            assert len(one.logps) == len(one.ids)
            spelled = [i for i in one.ids if i != END]
            assert one.text == TOKENIZER.decode(spelled, clean_up_tokenization_spaces=False)
    assert seen == {"end", "stop", "length"}


def test_only_tokens_that_a_text_can_hold_are_drawn(plain_model):
    (row,) = InProcessWriter(plain_model, TOKENIZER, rows=2000).draw(
        [Draw(STEMS[0], 2000, Sampling(max_new_tokens=1, temperature=2.0))], 0
    )
    drawn = {one.ids[0] for one in row}
    assert not drawn & CONTROL
    assert max(drawn) < VOCABULARY
    # The frequencies are the model's, without what cannot be drawn.
    plain_model.eval()
    with torch.no_grad():
        logits = plain_model(torch.tensor([before(STEMS[0])])).logits[0, -1] / 2.0
    plain_model.train()
    logits[[*CONTROL, *range(VOCABULARY, VOCABULARY + 3)]] = -torch.inf
    p = logits.softmax(dim=0)
    for i in p.topk(5).indices.tolist():
        share = sum(one.ids == (i,) for one in row) / 2000
        assert share == pytest.approx(float(p[i]), abs=4 * (float(p[i]) / 2000) ** 0.5)


def test_greedy_takes_the_likeliest(model):
    for request, (one,) in zip(
        STEMS,
        InProcessWriter(model, TOKENIZER).draw(draws(n=1, temperature=0.0), 0),
        strict=True,
    ):
        model.eval()
        for t, i in enumerate(one.ids):
            with torch.no_grad():
                logits = model(torch.tensor([[*before(request), *one.ids[:t]]])).logits[0, -1]
            logits[[*CONTROL, *range(VOCABULARY, VOCABULARY + 3)]] = -torch.inf
            assert int(logits.argmax()) == i
        model.train()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_streamed_answer_is_the_first_one_drawn(model, temperature):
    writer = InProcessWriter(model, TOKENIZER, rows=4)
    for request in draws(n=1, temperature=temperature):
        pieces = []
        streamed = writer.stream(request, 3, pieces.append)
        ((drawn,),) = writer.draw([request], 3)
        assert replace(streamed, logps=()) == replace(drawn, logps=())
        assert "".join(pieces) == drawn.text
        # Word by word, and not all at the end; an end token is no piece.
        assert len(pieces) >= len(drawn.ids) - 2 - drawn.ids.count(TOKENIZER.unk_token_id)
    with pytest.raises(ValueError, match="room"):
        writer.stream(Draw(STEMS[0], 1, Sampling(max_new_tokens=65)), 0, print)


def test_scores_are_those_of_one_plain_pass(model):
    continuations = [ids_of(text) for text in ("1+2=3\n6", "2", "4\n4", "1", "+7=12")]
    requests = [(one, (*ids, END)) for one, ids in zip(STEMS, continuations, strict=True)]
    found = InProcessWriter(model, TOKENIZER, rows=2).score(requests)
    for (one, ids), logps in zip(requests, found, strict=True):
        assert logps == pytest.approx(own_logps(model, before(one), ids), abs=2e-5)
    assert InProcessWriter(model, TOKENIZER).score([]) == []


def test_a_shared_beginning_is_scored_once(plain_model):
    shared = Stem(tuple([7, 8, 9, 10] * 8), (), "shared")
    requests = [(shared, ids_of(text)) for text in ("1+2", "3+45", "=6", "7")]
    seen = []
    hook = plain_model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].numel())
    )
    writer = InProcessWriter(plain_model, TOKENIZER)
    try:
        first = writer.score(requests)
        seen.clear()
        assert writer.score(requests) == first
    finally:
        hook.remove()
    # 32 tokens, and 3 + 4 + 2 + 1 behind them; the last of each predicts nothing.
    assert len(seen) == 1
    assert 32 + 6 <= seen[0] <= 32 + 10
    for (one, ids), logps in zip(requests, first, strict=True):
        assert logps == pytest.approx(own_logps(plain_model, before(one), ids), abs=2e-5)


def test_what_is_drawn_scores_as_it_was_drawn(plain_model):
    writer = InProcessWriter(plain_model, TOKENIZER)
    answers = writer.draw(draws(), 0)
    requests = [
        (request.stem, one.ids)
        for request, row in zip(draws(), answers, strict=True)
        for one in row
    ]
    drawn = [one.logps for row in answers for one in row]
    for found, expected in zip(writer.score(requests), drawn, strict=True):
        assert found == pytest.approx(expected, abs=2e-5)


def test_option_mass_adds_up_all_spellings(model):
    writer = InProcessWriter(model, TOKENIZER, rows=2)
    found = writer.option_mass(STEMS, {"low": ["1", " 2"], "high": ["8 ", "9"], "line": ["+"]})
    for one, answer in zip(STEMS, found, strict=True):
        p = [torch.tensor(own_logps(model, before(one), ids_of(c))).exp() for c in "1289+"]
        assert answer.mass["low"] == pytest.approx(float(p[0] + p[1]), abs=1e-5)
        assert answer.mass["high"] == pytest.approx(float(p[2] + p[3]), abs=1e-5)
        assert answer.mass["line"] == pytest.approx(float(p[4]), abs=1e-5)
        assert not answer.is_truncated


def test_options_that_cannot_be_told_apart_are_refused(plain_model):
    writer = InProcessWriter(plain_model, TOKENIZER)
    with pytest.raises(RecipeError, match="No single token of this model spells the option 'yes'"):
        writer.option_mass(STEMS, {"yes": ["yes"], "no": ["1"]})
    with pytest.raises(RecipeError, match="share a spelling"):
        writer.option_mass(STEMS, {"a": ["1", "2"], "b": [" 2"]})
    with pytest.raises(RecipeError, match="No single token"):
        writer.option_mass(STEMS, {"blank": [" "]})


def test_ids_are_those_of_training(plain_model):
    writer = InProcessWriter(plain_model, TOKENIZER)
    prompt = (Message(role="user", content="1+2?"),)
    row = Prompting(TOKENIZER).row(prompt, "3")
    assert writer.prompt_ids(prompt) == tuple(row.prompt_ids)
    assert writer.answer_ids(prompt, "3") == (*ids_of("3"), END)
    assert writer.end_ids == {END}
    assert writer.text((*ids_of("3\n"), END), behind=row.prompt_ids[-1]) == "3\n"
    with pytest.raises(RowProblem):
        writer.prompt_ids(())


def test_the_model_is_left_as_it_was(plain_model):
    plain_model.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    writer = InProcessWriter(plain_model, TOKENIZER)
    identity = writer.identity
    writer.draw(draws(), 0)
    writer.score([(STEMS[0], (END,))])
    writer.option_mass(STEMS, {"one": ["1"]})
    assert torch.equal(torch.get_rng_state(), state)
    assert plain_model.training
    assert writer.identity == identity


def test_what_cannot_be_drawn_is_refused(plain_model):
    writer = InProcessWriter(plain_model, TOKENIZER)
    full = Stem(tuple([5] * 60), (), "full")
    assert writer.room(full) == 4
    assert len(writer.draw([Draw(full, 1, Sampling(max_new_tokens=4))], 0)) == 1
    with pytest.raises(ValueError, match="leaves room for 4 tokens, and 5 were asked for"):
        writer.draw([Draw(full, 1, Sampling(max_new_tokens=5))], 0)
    with pytest.raises(ValueError, match="no token"):
        writer.draw([Draw(Stem((), (), "none"), 1, Sampling(max_new_tokens=1))], 0)
    with pytest.raises(ValueError, match="n must be 1"):
        writer.draw([Draw(full, 0, Sampling(max_new_tokens=1))], 0)
    with pytest.raises(ValueError, match="rows must be 1"):
        InProcessWriter(plain_model, TOKENIZER, rows=0)
    assert writer.draw([], 0) == []


def test_draws_scores_and_questions_say_how_far_they_are(plain_model, phases):
    writer = InProcessWriter(plain_model, TOKENIZER, rows=4)
    drawn = writer.draw(draws(), 0)
    written = sum(len(one.ids) for row in drawn for one in row)
    writer.score([(one, ids_of("80")) for one in STEMS])
    writer.option_mass(STEMS, {"one": ["1"], "two": ["2"]})
    asked = sum(len(before(one)) for one in STEMS)
    scored = asked + len(STEMS) * len(ids_of("80"))
    assert [(p[:3], p[3][-1], p[4]) for p in phases] == [
        (("draw", "samples", 15), 15, written),
        (("score", "rows", 5), 5, scored),
        (("ask", "questions", 5), 5, asked),
    ]
    assert len(phases[0][3]) > 4  # more often than batches
