"""`transformers serve` as policy and judge, end to end: a real process, a real model, real HTTP.

The model is a tiny one that has learned four answers by heart: two as a policy, and the verdicts of
one comparison in both orders, codes included, which are the same whenever they are asked again.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch

from align.data.messages import Message
from align.data.prompts import Prompt
from align.judges.base import Comparison, JudgeFailed, Prefers
from align.judges.pairwise_llm import PairwiseLLM, PairwiseSettings
from align.policies.base import Sampling
from align.policies.openai_http import HttpPolicy
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import Limits
from align.worlds import chat
from align.worlds.bytes import bytes_tokenizer
from tests.align.judges.scripted import InMemory, by_quality

for package in ("fastapi", "uvicorn"):
    pytest.importorskip(package, reason="transformers serve needs transformers[serving]")

ANSWERS = {"count to 2": "one two [quality 2]", "count to 3": "one two three [quality 2]"}
PROMPTS = [
    Prompt(prompt=(Message(role="user", content=question),), source="test", row=row)
    for row, question in enumerate(ANSWERS, start=1)
]
BAD = "no [quality 1]"
LEARNED = Comparison(PROMPTS[0].prompt, ANSWERS["count to 2"], BAD, id="learned")
NEW = Comparison(PROMPTS[1].prompt, ANSWERS["count to 3"], BAD, id="new")
SETTINGS = PairwiseSettings(criterion="Which?", max_new_tokens=24)
SAMPLING = Sampling(max_new_tokens=24, temperature=0.0)


def lessons(model, tmp_path):
    """(messages, answer) of what the model is to know."""
    yield from (
        ([message.model_dump() for message in prompt.prompt], answer)
        for prompt, answer in zip(PROMPTS, ANSWERS.values(), strict=True)
    )
    scripted = InMemory(by_quality)
    scripted.model = model
    with CallStore(tmp_path / "lessons.sqlite") as store:
        PairwiseLLM(CachedCaller(scripted, store), SETTINGS).compare([LEARNED])
    for body in scripted.bodies:
        yield body["messages"], by_quality(body).splitlines()[-1]


def learned_by_heart(folder, tmp_path):
    """Saves a model that gives the answers of all lessons when it is asked greedily."""
    tokenizer = bytes_tokenizer(1024)
    rows = [
        (
            tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"],
            [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
        )
        for messages, answer in lessons(str(folder), tmp_path)
    ]
    longest = max(len(answer) for _, answer in rows)
    width = max(len(prompt) for prompt, _ in rows) + longest
    # [B, S] token ids, padded on the left; [B, T] labels, -100 where there is no answer token.
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, width - len(prompt) - len(answer) :] = torch.tensor(prompt + answer)
        labels[i, longest - len(answer) :] = torch.tensor(answer)
    mask = (ids != tokenizer.pad_token_id).long()
    model = chat.tiny_llama(tokenizer, layers=1, width=64, heads=2, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            logits_to_keep=longest + 1,
        ).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
        if loss < 0.005:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def endpoint(tmp_path):
    folder = tmp_path / "model"
    learned_by_heart(folder, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                    break
            except urllib.error.URLError:
                time.sleep(0.1)
        yield Endpoint(base_url=f"http://127.0.0.1:{port}/v1", model=str(folder), revision="1")
    finally:
        server.terminate()
        server.wait()


@pytest.mark.e2e
def test_one_served_model_is_policy_and_judge(endpoint, tmp_path):
    with CallStore(tmp_path / "calls.sqlite") as store:
        caller = CachedCaller(OpenAICaller(endpoint), store, Limits(answer_tries=2))
        policy, judge = HttpPolicy(caller), PairwiseLLM(caller, SETTINGS)
        # Two samples at temperature 0 are two calls with one answer.
        rows = policy.generate(PROMPTS, 2, SAMPLING, seed=0)
        assert [[sample.completion[0].content for sample in row] for row in rows] == [
            [answer, answer] for answer in ANSWERS.values()
        ]
        written = rows[0][0].completion[0].content
        turned = Comparison(LEARNED.prompt, BAD, written, id="turned")
        learned, backwards, new = judge.compare([LEARNED, turned, NEW])
        assert (learned, backwards) == (Prefers("first", 1.0), Prefers("second", 0.0))
        # What the model has learned about another call carries the code of that call.
        assert isinstance(new, JudgeFailed)
        assert new.reason == "unparsable"
        # 4 samples and the 2 orders of one comparison, turned or not, are kept; each order of the
        # comparison without a verdict cost its two tries.
        assert len(store) == 4 + 2
        assert caller.spent.requests == 4 + 2 + 2 * 2
        assert caller.spent.completion_tokens > 0
        assert policy.generate(PROMPTS, 2, SAMPLING, seed=0) == rows
        assert judge.compare([LEARNED]) == [learned]
        assert caller.spent.requests == 4 + 2 + 2 * 2
