"""The miniature world of the worlds' own tests, for suites that measure it."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.evaluation import Subject, Weights
from align.policies.in_process import InProcessPolicy
from align.policies.start import Start
from align.tokens.tokenized_pair import TokenizedPair
from align.worlds.additions import prompt_ids, prompt_of, solution_of
from align.worlds.sums import Sums, SumsSettings


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory):
    """World, model, another model, and their tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = {"layers": 1, "width": 32, "heads": 2, "steps": 2, "batch": 8}
        folders = [Sums(SumsSettings(**settings, seed=seed)).base_model() for seed in (0, 1)]
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in folders
    )
    return Sums(), policy, reference, AutoTokenizer.from_pretrained(folders[0])


@pytest.fixture
def held_out(miniature) -> list[TokenizedPair]:
    """Seven pairs of the world: the right solution over a wrong one."""
    world, _, _, tokenizer = miniature
    pairs = []
    for row, operands in enumerate(world.problems("held_out", 7, seed=0), start=1):
        right, wrong = solution_of(operands), f"{row}+1=2\n2+2=4\n4"
        sides = [
            [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
            for text in (right, wrong)
        ]
        pair = PreferencePair(
            prompt=(Message(role="user", content=prompt_of(operands)),),
            chosen=(Message(role="assistant", content=right),),
            rejected=(Message(role="assistant", content=wrong),),
            source="test",
            row=row,
        )
        pairs.append(TokenizedPair(prompt_ids(tokenizer, operands), *sides, pair))
    return pairs


@pytest.fixture
def subject_of(miniature, held_out) -> Callable[..., Subject]:
    """Function: changes -> the miniature's policy against its reference, six questions of it."""
    _, policy, reference, tokenizer = miniature

    def subject(*, reference=reference, **changes) -> Subject:
        settings = {
            "name": "miniature",
            "policy": lambda: InProcessPolicy(policy, tokenizer),
            "weights": lambda: Weights(policy, tokenizer, Start.in_memory(reference)),
            "held_out": held_out,
            "n": 6,
            "seed": 0,
        }
        return Subject(**(settings | changes))

    return subject
