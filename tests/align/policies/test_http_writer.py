"""A writer behind `/completions`: a real server on loopback around a tiny model."""

import json
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.data.messages import Message
from align.errors import RecipeError
from align.policies.base import Sampling, stream_seed
from align.policies.http_writer import HttpWriter
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, NoAnswer, Stem
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import Limits
from align.servers.server import Call
from align.worlds.additions import sums_tokenizer
from tests.align.judges.fault_server import FaultServer, no_faults, seeded
from tests.align.judges.virtual_clock import VirtualClock, Watched

TOKENIZER = sums_tokenizer()
END = TOKENIZER.eos_token_id
CONTEXT = 64
# What is no answer of the server; the other scripted faults are texts of a judge.
FAULTS = ("429", "429 Retry-After", "500", "503", "timeout", "reset", "cut", "garbage", "text only")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENIZER),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.4,
            bos_token_id=TOKENIZER.bos_token_id,
            eos_token_id=END,
        )
    )
    head = torch.nn.Linear(16, len(TOKENIZER))
    head.weight.data.normal_(std=0.4)
    head.bias.data.zero_()
    # An unknown character's text would not give its id back, so it is hardly ever drawn.
    head.bias.data[TOKENIZER.unk_token_id] = -20.0
    made.lm_head = head
    return made.eval()


class Completions(FaultServer):
    """Continues token ids as vLLM does: stop texts and end tokens are no part of the text.

    Attributes:
        names: how it names the tokens: `ids` beside the choice, `numbers` as token_id:7, or only
            their texts.
        spoil: changes the choice of a healthy answer.
    """

    def __init__(self, model, script=no_faults, names="texts", spoil=None):
        super().__init__(lambda _: "", script)
        self.writer = InProcessWriter(model, TOKENIZER)
        self.names = names
        self.spoil = spoil or (lambda choice, body: choice)

    def _completion(self, path, body, text=None):
        choice = self.spoil(self.choice(body), body)
        return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1}})

    async def _send(self, writer, status, text, header=""):
        if "scripted text only" in text:
            status, text = 200, json.dumps({"choices": [{"text": "1", "finish_reason": "stop"}]})
        return await super()._send(writer, status, text, header)

    async def _respond(self, path, content, reader, writer):
        if path != "/v1/completions":
            return await self._send(writer, 404, json.dumps({"error": {"message": "no route"}}))
        return await super()._respond(path, content, reader, writer)

    def choice(self, body):
        ids = tuple(body["prompt"])
        if body.get("echo"):
            return self.echoed(ids)
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body.get("top_p", 1.0),
            stop=tuple(body.get("stop", ())),
        )
        asked = [Draw(Stem(ids, (), str(body["seed"])), 1, sampling)]
        ((one,),) = self.writer.draw(asked, 0)
        text = one.text
        for stop in sampling.stop:
            text = text.split(stop)[0]
        finish = "length" if one.finish == "length" else "stop"
        choice = {"text": text, "finish_reason": finish}
        choice["logprobs"] = {
            "tokens": [self.name(i) for i in one.ids],
            "token_logprobs": list(one.logps),
            "top_logprobs": [self.top(ids, body["logprobs"])] + [None] * (len(one.ids) - 1),
        }
        if self.names == "ids":
            choice["token_ids"] = list(one.ids)
        return choice

    def name(self, i):
        return f"token_id:{i}" if self.names == "numbers" else TOKENIZER.decode([i])

    def top(self, ids, count):
        with torch.no_grad():
            logps = self.writer.model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=0)
        best = logps.topk(min(count, len(logps)))
        return {
            self.name(i): p
            for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        }

    def echoed(self, ids):
        (logps,) = self.writer.score([(Stem(ids[:1], (), ""), ids[1:])])
        logprobs = {"tokens": [self.name(i) for i in ids], "token_logprobs": [None, *logps]}
        return {"text": "", "finish_reason": "length", "logprobs": logprobs}


@pytest.fixture
def store(tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        yield store


def writer_of(server, store, shown=20, **endpoint):
    clock = VirtualClock(lambda: server.hanging)
    settings = {"base_url": server.url, "model": "m", "revision": "r", "timeout": 0.75} | endpoint
    caller = OpenAICaller(Endpoint(**settings))
    cached = CachedCaller(Watched(caller, clock), store, Limits(), clock)
    return HttpWriter(cached, TOKENIZER, context=CONTEXT, shown=shown)


def ids_of(text):
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def stem(question, so_far=""):
    prompt = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
    )
    return Stem(tuple(prompt), ids_of(so_far), f"{question}/{so_far}")


STEMS = [stem("1+2?"), stem("3+4+5?", "3+4=7\n"), stem("9", "9")]
HOW = Sampling(max_new_tokens=6, stop=("1", "+"))
DRAWS = [Draw(one, 4, HOW) for one in STEMS]


def expected(model, draws=DRAWS):
    """What the server's model draws for these requests, by the seeds that are sent along."""
    writer = InProcessWriter(model, TOKENIZER)
    found = []
    for request in draws:
        row = []
        for sample in range(request.n):
            key = str(stream_seed(3, request.stem.key, sample))
            before = (*request.stem.prompt_ids, *request.stem.prefix_ids)
            row += writer.draw([Draw(Stem(before, (), key), 1, HOW)], 0)[0]
        found.append(row)
    return found


@pytest.mark.parametrize("names", ["texts", "ids", "numbers"])
def test_what_is_drawn_is_what_the_model_drew(model, store, names):
    with Completions(model, names=names) as server:
        found = writer_of(server, store).draw(DRAWS, seed=3)
    assert found == expected(model)
    assert {one.finish for row in found for one in row} == {"end", "stop", "length"}
    for body in server.bodies:
        # Exactly the stem, as ids: the server can add no second BOS.
        assert tuple(body["prompt"]) in {(*s.prompt_ids, *s.prefix_ids) for s in STEMS}
        assert (body["max_tokens"], body["stop"], body["logprobs"]) == (6, ["1", "+"], 1)
        assert "top_k" not in body
    assert len({body["seed"] for body in server.bodies}) == 12


def test_thirty_percent_faults_change_nothing(model, store):
    draws = [Draw(one, 12, HOW) for one in STEMS]
    with Completions(model, seeded(0.3, seed=2, faults=FAULTS)) as server:
        writer = writer_of(server, store)
        assert writer.draw(draws, seed=3) == expected(model, draws)
        assert sum(server.met.values()) >= 8
        assert len(server.met) >= 4
        requests = server.requests
        # All of it is stored now: nothing is asked again.
        assert writer.draw(draws, seed=3) == expected(model, draws)
        assert server.requests == requests
        assert writer.draw(draws[:1], seed=4) != expected(model, draws)[:1]
        assert server.requests > requests
        mass = writer.option_mass(STEMS, {"one": ["1"]})
        scores = writer.score([(STEMS[0], ids_of("3"))])
    local = InProcessWriter(model, TOKENIZER)
    assert scores[0] == pytest.approx(local.score([(STEMS[0], ids_of("3"))])[0], abs=1e-5)
    assert not any(isinstance(x, NoAnswer) for x in (*mass, *scores))


def test_the_key_of_a_call_depends_on_its_ids():
    def key(prompt):
        return Call(prompt, {"seed": 1}, template="t", parser="p").key("m", "r")

    chat = (Message(role="user", content="1"),)
    assert len({key((1, 2)), key((1, 3)), key((12,)), key("[1,2]"), key(chat), key(())}) == 6
    assert key((1, 2)) == key((1, 2))
    assert Call((1, 2), {}, "t", "p").messages is None
    assert Call(chat, {}, "t", "p").messages == chat


def test_scores_are_the_models_own(model, store):
    requests = [(STEMS[0], (*ids_of("3"), END)), (STEMS[1], ids_of("7+5")), (STEMS[2], (END,))]
    local = InProcessWriter(model, TOKENIZER).score(requests)
    with Completions(model) as server:
        found = writer_of(server, store).score(requests)
    for ours, theirs in zip(local, found, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)
    assert server.bodies[0]["echo"] is True


def without_echo(choice, body):
    if body.get("echo"):
        choice["logprobs"] = {"tokens": ["1"], "token_logprobs": [-1.0]}
    return choice


def test_a_server_that_echoes_nothing_cannot_score(model, store):
    with Completions(model, spoil=without_echo) as server:
        writer = writer_of(server, store)
        with pytest.raises(RecipeError, match=r"does not score .* it shows 1 of 9 tokens.* vLLM"):
            writer.score([(STEMS[0], ids_of("3"))])
        assert len(writer.draw(DRAWS, seed=3)) == 3


def refusing_echo(digest, attempt):
    return "400"


def test_a_server_that_calls_scoring_wrong_cannot_score(model, store):
    with (
        Completions(model, refusing_echo) as server,
        pytest.raises(RecipeError, match="calls every such request wrong"),
    ):
        writer_of(server, store).score([(STEMS[0], ids_of("3"))])


def test_option_mass_says_whether_all_of_it_was_seen(model, store):
    options = {"low": ["1", " 2"], "high": ["8", "9"]}
    local = InProcessWriter(model, TOKENIZER).option_mass(STEMS, options)
    everything = len(TOKENIZER)
    for names in ("texts", "numbers"):
        with Completions(model, names=names) as server:
            whole = writer_of(server, store, shown=everything).option_mass(STEMS, options)
            few = writer_of(server, store, shown=2).option_mass(STEMS, options)
            tops = [server.top((*s.prompt_ids, *s.prefix_ids), 2) for s in STEMS]
        assert {body["max_tokens"] for body in server.bodies} <= {1}
        for ours, theirs, some, top in zip(local, whole, few, tops, strict=True):
            assert theirs.mass == pytest.approx(dict(ours.mass), abs=1e-5)
            assert not theirs.is_truncated
            assert some.is_truncated
            # A token that is not shown counts as 0.
            for name, spellings in options.items():
                ids = [ids_of(s.strip())[0] for s in spellings]
                p = [math.exp(top[server.name(i)]) for i in ids if server.name(i) in top]
                assert some.mass[name] == pytest.approx(sum(p), abs=1e-6)
        store = CallStore(store.path.with_name("numbers.sqlite"))
    store.close()


def merged(choice, body):
    """Two tokens shown as one, as where the server's tokenizer is another."""
    tokens, logps = choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"]
    if len(tokens) > 2:
        tokens[:2] = ["".join(tokens[:2])]
        logps[:2] = [sum(logps[:2])]
    return choice


def test_other_tokens_than_ours_are_no_answer(model, store):
    how = Sampling(max_new_tokens=3)
    wanted, found = [], []
    with Completions(model, spoil=merged) as server:
        for sample in range(8):
            one = Draw(Stem(STEMS[0].prompt_ids, (), f"{sample}"), 1, how)
            found += writer_of(server, store).draw([one], seed=3)
            key = str(stream_seed(3, f"{sample}", 0))
            asked = Draw(Stem(STEMS[0].prompt_ids, (), key), 1, how)
            wanted += InProcessWriter(model, TOKENIZER).draw([asked], 0)
    assert 0 < sum(len(row[0].ids) > 2 for row in wanted) < 8
    for row, expect in zip(found, wanted, strict=True):
        if len(expect[0].ids) <= 2:
            assert row == expect
        else:
            assert isinstance(row, NoAnswer)
            assert row.reason == "unanswered"
            assert "not those that our tokenizer makes" in row.detail


def test_samples_that_came_are_the_answer_where_others_failed(model, store):
    lost = {stream_seed(3, STEMS[0].key, sample) for sample in (0, 2)}

    def spoil(choice, body):
        return choice | ({"finish_reason": "content_filter"} if body["seed"] in lost else {})

    with Completions(model, spoil=spoil) as server:
        found = writer_of(server, store).draw(DRAWS, seed=3)
    whole = expected(model)
    assert found == [[whole[0][1], whole[0][3]], whole[1], whole[2]]


def silent_end(choice, body):
    """The end token is neither counted nor shown."""
    if choice["logprobs"]["tokens"][-1] == "<end>":
        for values in choice["logprobs"].values():
            del values[-1]
    return choice


def nameless_end(choice, body):
    if choice["logprobs"]["tokens"][-1] == "<end>":
        choice["logprobs"]["tokens"][-1] = ""
    return choice


def test_an_end_that_is_not_shown_is_not_made_up(model, store, tmp_path):
    how = Sampling(max_new_tokens=12)
    with Completions(model, spoil=silent_end) as server:
        (found,) = writer_of(server, store).draw([Draw(STEMS[0], 8, how)], seed=3)
        assert {one.finish for one in found} == {"length"}
        ended = Draw(stem("4"), 1, how)
        answers = [writer_of(server, store).draw([ended], seed=seed)[0] for seed in range(12)]
    failures = [answer for answer in answers if isinstance(answer, NoAnswer)]
    assert failures
    assert "does not show what ended it" in failures[0].detail
    with (
        Completions(model, spoil=nameless_end) as server,
        CallStore(tmp_path / "2.sqlite") as other,
    ):
        assert writer_of(server, other).draw(DRAWS, seed=3) == expected(model)


def control(choice, body):
    choice["logprobs"]["tokens"][0] = f"token_id:{TOKENIZER.bos_token_id}"
    return choice


def test_a_control_token_ends_no_answer(model, store):
    with Completions(model, names="numbers", spoil=control) as server:
        (row,) = writer_of(server, store).draw(DRAWS[:1], seed=3)
    assert isinstance(row, NoAnswer)
    assert row.reason == "unfinished"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_logprobs": []}, "not one list"),
        ({"tokens": [5] * 30}, "not one list"),
        ({"token_logprobs": [float("nan")] * 30, "tokens": ["1"] * 30}, "no number"),
        ({"token_logprobs": [0.7] * 30, "tokens": ["1"] * 30}, "no number"),
        ({"token_logprobs": ["a"] * 30, "tokens": ["1"] * 30}, "no number"),
        ({"top_logprobs": [{"1": "x"}]}, "likeliest"),
    ],
)
def test_numbers_that_are_none_are_no_answer(model, store, change, said):
    def spoil(choice, body):
        choice["logprobs"] |= change
        return choice

    with Completions(model, spoil=spoil) as server:
        (row,) = writer_of(server, store).draw([Draw(STEMS[0], 1, HOW)], seed=3)
    assert isinstance(row, NoAnswer)
    assert row.reason == "unanswered"
    assert said in row.detail


def test_a_refusal_is_no_answer(model, store):
    def refuse(choice, body):
        return choice | {"finish_reason": "content_filter"}

    with Completions(model, spoil=refuse) as server:
        (row,) = writer_of(server, store).draw([Draw(STEMS[0], 2, HOW)], seed=3)
    assert isinstance(row, NoAnswer)
    assert row.reason == "refused"


def test_a_server_without_logprobs_is_refused(model, store):
    def plain(choice, body):
        return {"text": "1", "finish_reason": "stop", "logprobs": None}

    with (
        Completions(model, spoil=plain) as server,
        pytest.raises(RecipeError, match=r"gives no log-probs .* Serve the model with vLLM"),
    ):
        writer_of(server, store).draw(DRAWS, seed=3)
    # Told at the first answer: no call is tried again.
    assert server.requests <= sum(draw.n for draw in DRAWS)


def test_a_chat_only_server_is_refused_in_one_sentence(model, store):
    with Completions(model) as server:
        url = server.url.replace("/v1", "/chat-only/v1")
        with pytest.raises(RecipeError, match=r"404 at /completions: .*no route.* chat-only"):
            writer_of(server, store, base_url=url).draw(DRAWS, seed=3)


def test_what_cannot_be_asked_is_refused(model, store):
    with Completions(model) as server:
        writer = writer_of(server, store)
        full = Stem(tuple([5] * 60), (), "full")
        assert writer.room(full) == 4
        with pytest.raises(ValueError, match="leaves room for 4 tokens, and 6 were asked for"):
            writer.draw([Draw(full, 1, HOW)], 0)
        with pytest.raises(ValueError, match="no token"):
            writer.draw([Draw(Stem((), (), ""), 1, HOW)], 0)
        with pytest.raises(ValueError, match="no token"):
            writer.score([(STEMS[0], ())])
        with pytest.raises(RecipeError, match="No single token"):
            writer.option_mass(STEMS, {"yes": ["yes"]})
        assert server.requests == 0
        assert writer.draw([], 0) == writer.score([]) == writer.option_mass([], {"1": ["1"]}) == []


def test_ids_and_texts_are_those_of_the_writer_in_process(model, store):
    local = InProcessWriter(model, TOKENIZER)
    with Completions(model) as server:
        writer = writer_of(server, store)
        assert writer.identity == f"m@r at {server.url}"
    prompt = (Message(role="user", content="1+2?"),)
    assert writer.prompt_ids(prompt) == local.prompt_ids(prompt)
    assert writer.answer_ids(prompt, "3") == local.answer_ids(prompt, "3")
    assert writer.end_ids == local.end_ids == {END}
