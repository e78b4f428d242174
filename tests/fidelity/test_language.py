import torch

from tests.fidelity.language import COMPLETIONS, MASK, TOKENS, language, sequences


def test_every_completion_is_written_down_once():
    policy = language(0).reference.policy()
    assert policy.shape == (2, 259)
    assert torch.allclose(policy.exp().sum(-1), torch.ones(2).double())
    assert MASK.sum(1).tolist() == [min(len(words) + 1, 3) for words in COMPLETIONS]
    assert TOKENS[0, 0] == 6  # the empty completion is the end-of-turn token alone


def test_known_answers():
    rows = sequences([0])
    assert len(rows) == 5
    assert not [row for row in rows if not row.ok]
