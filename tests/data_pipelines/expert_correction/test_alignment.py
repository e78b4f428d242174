"""The alignment teaches ground truths and revisions, and nothing else, to a tiny model."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.messages import Message
from align.data.questions import Candidates
from align.errors import DataError
from align.forest import score_rows
from align.policies.local_tokens import LocalTokens
from align.policies.prompting import Prompting
from align.worlds.additions import prompt_of, solution_of, sums_tokenizer
from align.worlds.chat import tiny_llama
from align_data.expert_correction import ExpertCorrectionWork
from align_data.expert_correction.alignment import Response, align_on_policy, responses_in
from align_data.expert_correction.settings import (
    ExpertCorrectionSettings,
    OnPolicyAlignmentSettings,
)
from align_data.expert_correction.world import SumsExpert

TOKENIZER = sums_tokenizer()
SETTINGS = {"rank": 8, "alpha": 128, "learning_rate": 1e-2, "batch": 8, "epochs": 6}


def responses(n=16):
    units = [
        Candidates(
            prompt=(Message(role="user", content=prompt_of((10 + k, 20, 30))),),
            responses=(f"{10 + k}+20=99\n99+30=129\n129",),
            solution=solution_of((10 + k, 20, 30)),
            policy="p",
            source="s",
            row=k + 1,
        )
        for k in range(n)
    ]
    encoder = LocalTokens(TOKENIZER, None)
    work = ExpertCorrectionWork(
        ExpertCorrectionSettings(), SumsExpert(), encoder, seed=0, config_hash="h"
    )
    return responses_in(work(units))


def model():
    return tiny_llama(TOKENIZER, layers=1, width=32, heads=2, seed=0)


def aligned(folder, some=None, seed=0, **given):
    settings = OnPolicyAlignmentSettings.model_validate({**SETTINGS, **given})
    return align_on_policy(
        model(), TOKENIZER, some or responses(), settings, seed=seed, folder=folder
    )


def mean_logp(loaded, some):
    rows = [Prompting(TOKENIZER).row(one.prompt, one.response) for one in some]
    logps = score_rows(loaded, rows)
    return float(logps.total().double().sum() / logps.mask.sum())


def test_ground_truth_and_revision_become_likely(tmp_path):
    state = torch.random.get_rng_state()
    found = aligned(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state)
    # 16 prompts with a ground truth and a revision each; 32 / 8 steps, 6 epochs.
    assert (found.learned, found.steps, found.dropped) == (32, 24, ())
    assert found.losses[-1] < found.losses[0] - 0.15
    for kind in ("gt", "rev"):
        assert found.after[kind] > found.before[kind] + 0.15
    # It learns the right answers, so they gain on the policy's own.
    assert found.after["gt"] - found.after["gen"] > found.before["gt"] - found.before["gen"]
    # The first loss is the mean over the first batch's tokens, before any step.
    assert found.losses[0] == pytest.approx(-found.before["gt"], abs=0.1)
    assert found.merging < 1e-5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    gt = [one for one in responses() if one.kind == "gt"]
    assert mean_logp(loaded, gt) == pytest.approx(found.after["gt"], abs=1e-5)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == len(TOKENIZER)


def test_the_same_seed_gives_the_same_weights_whatever_the_forward_batches(tmp_path):
    a, b, c = (
        aligned(tmp_path / name, epochs=2, **given)
        for name, given in (("a", {}), ("b", {}), ("c", {"batch_rows": 3}))
    )
    assert a == b
    # Adam makes more of the rounding at every step.
    assert c.losses[:6] == pytest.approx(a.losses[:6], abs=1e-4)
    read = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert read[0] == read[1]
    assert aligned(tmp_path / "d", seed=1, epochs=1).losses != a.losses


def test_the_policys_own_responses_are_never_learned(tmp_path):
    some = responses()
    without = [one for one in some if one.kind != "gen"]
    a, b = (
        aligned(tmp_path / name, them, epochs=2) for name, them in (("a", some), ("b", without))
    )
    assert a.losses == b.losses
    assert "gen" not in b.after
    with pytest.raises(DataError, match="None of the 16"):
        aligned(tmp_path / "c", [one for one in some if one.kind == "gen"])


def test_an_adapter_alone(tmp_path):
    found = aligned(tmp_path / "model", save="adapter")
    about = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"]) == (8, 128)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert found.merging is None


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    prompt = (Message(role="user", content="1+1+1?"),)
    empty = Response(prompt=prompt, response=" ", kind="gt", source="s", row=7)
    long = Response(prompt=prompt, response="1" * 90, kind="rev", source="s", row=8)
    found = aligned(tmp_path / "model", [*responses(2), empty, long], max_length=64)
    assert [(row.row, row.reason) for row in found.dropped] == [
        (7, "empty_completion"),
        (8, "too_long"),
    ]
    assert found.learned == 4
    assert all(map(math.isfinite, found.losses))
