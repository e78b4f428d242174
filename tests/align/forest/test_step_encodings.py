"""A step as the end of a whole answer, or as the completion of a longer prompt: one DPO logit."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from align.forest import PADDED, TREE, TokenRow, score_rows
from align.forest.attention import attending
from align.forest.model import add_edge_head, read_pack

END = 2
PROMPTS = [(1, 7, 8, 9, 3), (1, 10, 3), (1, 7, 8, 9, 11, 12, 3)]
PREFIXES = [(13, 14, 15, 16), (), (17,) * 20]
STEPS = [((18, 19, 20), (18, 21)), ((22, END), (23, 24, 25)), ((26,), (27, 28, 29, END))]


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.3,
            )
        )
        .eval()
        .double()
    )


def whole_answers(side: int) -> list[TokenRow]:
    """Prompt, and the answer so far with its next step."""
    return [
        TokenRow(prompt, (*prefix, *steps[side]))
        for prompt, prefix, steps in zip(PROMPTS, PREFIXES, STEPS, strict=True)
    ]


def steps_only(side: int) -> list[TokenRow]:
    """The answer so far belongs to the prompt."""
    return [
        TokenRow((*prompt, *prefix), steps[side])
        for prompt, prefix, steps in zip(PROMPTS, PREFIXES, STEPS, strict=True)
    ]


def totals(policy, rows, backend):
    if backend == "own":
        return score_rows(policy, rows).total()
    pack = {"tree": TREE, "padded": PADDED}[backend].lay_out(rows)
    with torch.no_grad(), attending(policy, pack.implementation):
        edge = read_pack(policy, pack).logps
    return pack.rows(0, len(rows), edge).total()


@pytest.mark.parametrize("backend", ["own", "tree", "padded"])
def test_both_encodings_have_one_dpo_logit(backend):
    policy, reference = model(0), model(1)
    if backend != "own":
        add_edge_head(policy)
        add_edge_head(reference)

    def logits(encode):
        chosen, rejected = encode(0), encode(1)
        ratios = [
            totals(policy, rows, backend) - totals(reference, rows, backend)
            for rows in (chosen, rejected)
        ]
        return ratios[0] - ratios[1]

    h_whole, h_step = logits(whole_answers), logits(steps_only)
    assert h_whole.tolist() == pytest.approx(h_step.tolist(), abs=1e-5)
    # The prefixes' own log-ratios, which cancel, are far from 0.
    own = [
        totals(policy, rows, backend) - totals(reference, rows, backend)
        for rows in (whole_answers(0), steps_only(0))
    ]
    assert float((own[0] - own[1]).abs().max()) > 1.0
    assert float(h_whole.abs().min()) > 1e-3
