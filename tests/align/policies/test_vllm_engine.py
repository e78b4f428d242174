"""The engine's side of the conversation, with a stand-in that speaks vLLM's part of it."""

import importlib.util
import json
import sys
import types

import pytest

from align.data.messages import Message
from align.data.prompts import Prompt
from align.errors import RecipeError
from align.policies.base import Failed, Sampling
from align.policies.vllm_engine import VLLMPolicy
from align.worlds import chat
from align.worlds.additions import sums_tokenizer

TOKENIZER = sums_tokenizer()
END = TOKENIZER.eos_token_id
USER = TOKENIZER.convert_tokens_to_ids("<user>")
TEXT = TOKENIZER.encode("80", add_special_tokens=False)


class StandIn(types.ModuleType):
    """Answers every request from `script`: (token ids, finish_reason, stop_reason)."""

    def __init__(self, script):
        super().__init__("vllm")
        self.script = script
        self.requests = []
        self.SamplingParams = lambda **settings: settings
        module = self

        class LLM:
            def __init__(self, **settings):
                module.settings = settings
                config = types.SimpleNamespace(max_model_len=32)
                self.llm_engine = types.SimpleNamespace(model_config=config)

            def get_tokenizer(self):
                return TOKENIZER

            def generate(self, requests, parameters, use_tqdm):
                assert use_tqdm is False
                module.requests = list(zip(requests, parameters, strict=True))
                return [
                    types.SimpleNamespace(
                        outputs=[
                            types.SimpleNamespace(token_ids=ids, finish_reason=why, stop_reason=by)
                        ]
                    )
                    for ids, why, by in module.script[: len(requests)]
                ]

        self.LLM = LLM


@pytest.fixture
def folder(tmp_path):
    model = chat.tiny_llama(TOKENIZER, layers=1, width=16, heads=2, seed=0)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, 20]}))
    return tmp_path


def with_vllm(monkeypatch, script):
    module = StandIn(script)
    module.__spec__ = importlib.util.spec_from_loader("vllm", loader=None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def questions(*texts):
    return [
        Prompt(prompt=(Message(role="user", content=text),), source="test", row=row)
        for row, text in enumerate(texts, start=1)
    ]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_the_recipe_is_refused(folder):
    with pytest.raises(RecipeError, match="vllm is not installed here"):
        VLLMPolicy(folder)


def test_a_folder_without_weights_is_refused(tmp_path, monkeypatch):
    with_vllm(monkeypatch, [])
    with pytest.raises(RecipeError, match="holds no"):
        VLLMPolicy(tmp_path)


def test_every_way_to_end(folder, monkeypatch):
    script = [
        ([*TEXT, END], "stop", END),
        ([*TEXT, END], "stop", None),
        ([*TEXT, 20], "stop", 20),
        (TEXT, "stop", None),
        (TEXT, "length", None),
        ([*TEXT, USER], "stop", USER),
        ([*TEXT, *TEXT], "stop", "08"),
        ([END], "stop", END),
    ]
    module = with_vllm(monkeypatch, script)
    policy = VLLMPolicy(folder, tensor_parallel_size=2)
    assert module.settings["model"] == str(folder)
    assert module.settings["tensor_parallel_size"] == 2
    sampling = Sampling(max_new_tokens=6, temperature=0.7, top_p=0.9, top_k=5, stop=("08",))
    (row,) = policy.generate(questions("17+35+28?"), 8, sampling, seed=3)
    found = [x.reason if isinstance(x, Failed) else x.completion[0].content for x in row]
    assert found == ["80", "80", "80", "80", "unfinished", "unfinished", "8", "empty"]
    assert [x.sample for x in row] == list(range(8))
    assert row[0].policy == policy.identity
    ids = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "17+35+28?"}], add_generation_prompt=True, return_dict=False
    )
    assert all(request == {"prompt_token_ids": ids} for request, _ in module.requests)
    settings = module.requests[0][1]
    assert {name: settings[name] for name in ("n", "max_tokens", "temperature", "top_p")} == {
        "n": 1,
        "max_tokens": 6,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    assert (settings["top_k"], settings["stop"]) == (5, ["08"])
    assert {END, 20, USER} <= set(settings["stop_token_ids"])
    assert len({parameters["seed"] for _, parameters in module.requests}) == 8


def test_order_and_failures_are_kept(folder, monkeypatch):
    module = with_vllm(monkeypatch, [([*TEXT, END], "stop", END)] * 4)
    policy = VLLMPolicy(folder)
    # 32 positions less 6: the middle one has 4 control tokens and 23 characters.
    rows = policy.generate(questions("1?", "1" * 23, "2?"), 2, Sampling(max_new_tokens=6), seed=0)
    assert [[getattr(x, "reason", "text") for x in row] for row in rows] == [
        ["text", "text"],
        ["too_long", "too_long"],
        ["text", "text"],
    ]
    assert [row[0].prompt for row in (rows[0], rows[2])] == [
        p.prompt for p in questions("1?", "2?")
    ]
    assert len(module.requests) == 4


def test_what_it_cannot_do_is_said(folder, monkeypatch):
    with_vllm(monkeypatch, [])
    policy = VLLMPolicy(folder)
    assert not policy.capabilities.logps
    assert not policy.capabilities.reproducible
    with pytest.raises(RecipeError, match="transformers engine"):
        policy.logps([])
    with pytest.raises(ValueError, match="n must be 1"):
        policy.generate([], 0, Sampling(max_new_tokens=1), 0)
    assert policy.generate([], 1, Sampling(max_new_tokens=1), 0) == []
