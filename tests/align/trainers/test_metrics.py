"""Metrics are sums over counts: exact, resumable, and every row once."""

import json

import pytest
import torch
from accelerate import Accelerator

from align.forest import TokenRow
from align.forest.model import EdgeOutput
from align.forest.pack import tree_pack
from align.trainers.metrics import SeenOnce, SumsOverCounts, statistics_of
from align.trainers.pair_kind import row_values
from align.types import Logps, ObjectiveOutput, Pair


def rows(numerators: list[float], counts: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(numerators), torch.tensor(counts)


def test_a_mean_weighs_rows_and_not_batches() -> None:
    """(1 + 2 + 3) + 10 over 4 rows is 4; the mean of the batches' means would be 6."""
    sums = SumsOverCounts()
    sums.add({"loss": rows([1.0, 2.0, 3.0], [1, 1, 1])})
    sums.add({"loss": rows([10.0], [1])})
    assert sums.means() == {"loss": 4.0}


def test_a_mean_per_token_weighs_tokens() -> None:
    """6 nats over 2 tokens and 1 over 5: 7 / 7 = 1; the mean over rows would be 1.6."""
    sums = SumsOverCounts()
    sums.add({"entropy": rows([6.0, 1.0], [2, 5])})
    assert sums.means() == {"entropy": 1.0}


def test_a_metric_without_a_count_is_absent_and_not_zero() -> None:
    sums = SumsOverCounts()
    assert sums.means() == {}
    sums.add({"loss": rows([1.0], [1]), "ratio": rows([0.0], [0])})
    assert sums.means() == {"loss": 1.0}


def test_a_metric_that_only_some_batches_have_counts_where_it_is() -> None:
    sums = SumsOverCounts()
    sums.add({"loss": rows([1.0], [1])})
    sums.add({"loss": rows([3.0], [1]), "extra": rows([8.0], [2])})
    assert sums.means() == {"loss": 2.0, "extra": 4.0}


def test_many_small_numbers_are_not_lost_beside_a_large_one() -> None:
    """In float32, 2^24 + 1 = 2^24."""
    sums = SumsOverCounts()
    sums.add({"loss": rows([2.0**24], [0])})
    for _ in range(4):
        sums.add({"loss": rows([1.0], [1])})
    assert sums.means() == {"loss": (2**24 + 4) / 4}


def test_sums_survive_a_checkpoint_bit_by_bit() -> None:
    sums = SumsOverCounts()
    sums.add({"loss": rows([0.1, 1 / 3], [1, 1]), "entropy": rows([1e-30, 7.7], [3, 4])})
    restored = SumsOverCounts()
    restored.restore(json.loads(json.dumps(sums.to_json())))
    for one in (sums, restored):
        one.add({"loss": rows([0.7], [1]), "entropy": rows([0.3], [1])})
    assert restored.to_json() == sums.to_json()
    sums.clear()
    assert sums.means() == {}
    assert restored.means() != {}


def test_a_row_that_comes_again_is_dropped_within_and_across_batches() -> None:
    """Rows 5, 6, 5 and then 6, 7: the repeated ones carry other numbers, to be seen if counted."""
    seen = SeenOnce(Accelerator(cpu=True))
    first = seen.gather(torch.tensor([5, 6, 5]), {"loss": rows([1.0, 2.0, 100.0], [1, 2, 1])})
    assert first["loss"][0].tolist() == [1.0, 2.0]
    assert first["loss"][1].tolist() == [1.0, 2.0]
    second = seen.gather(
        torch.tensor([6, 7]), {"loss": rows([100.0, 3.0], [1, 1]), "more": rows([9.0, 4.0], [1, 1])}
    )
    assert {name: value.tolist() for name, (value, _) in second.items()} == {
        "loss": [3.0],
        "more": [4.0],
    }
    third = seen.gather(torch.tensor([7]), {"loss": rows([1.0], [1])})
    sums = SumsOverCounts()
    sums.add(third)
    assert sums.means() == {}


def pair_of(chosen: list[list[float]], rejected: list[list[float]]) -> Pair[Logps]:
    sides = [torch.tensor(side) for side in (chosen, rejected)]
    return Pair(*(Logps(side, side.ne(0)) for side in sides))


OUTCOME = ObjectiveOutput(
    loss=torch.tensor([0.5, 0.25], requires_grad=True),
    reward=Pair(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 1.0])),
    metrics={"own": torch.tensor([7.0, 9.0])},
)


def test_row_values_of_two_pairs_by_hand() -> None:
    """Two pairs that share the prompt 1 2: chosen 3 4 and 5; rejected 3 and 6 7 8.

    The two rows that begin with 3 share that edge. Entropy of an edge is its token, so chosen has
    3 + 4 and 5, rejected 3 and 6 + 7 + 8; the mean logit is ten times that. Right are 3, 6 and 8.
    """
    rows = [TokenRow([1, 2], ids) for ids in ([3, 4], [5], [3], [6, 7, 8])]
    pack = tree_pack(rows, shortest_shared=1)
    assert sorted(pack.target.tolist()) == [3, 4, 5, 6, 7, 8]
    token = pack.target.float()
    output = EdgeOutput(
        entropy=token, mean_logits=10 * token, is_top1=torch.isin(token, torch.tensor([3, 6, 8.0]))
    )
    policy = pair_of([[-1.0, -2.0], [-4.0, 0.0]], [[-3.0, 0.0, 0.0], [-1.0, -1.0, -1.0]])
    found = row_values(OUTCOME, policy, statistics_of(pack, output))
    expected = {
        "loss": ([0.5, 0.25], [1, 1]),
        "rewards/chosen": ([2, 1], [1, 1]),
        "rewards/rejected": ([-1, 1], [1, 1]),
        "rewards/margins": ([3, 0], [1, 1]),
        "rewards/accuracies": ([1, 0], [1, 1]),
        "rewards/ties": ([0, 1], [1, 1]),
        "logps/chosen": ([-3, -4], [1, 1]),
        "logps/rejected": ([-3, -3], [1, 1]),
        "own": ([7, 9], [1, 1]),
        "logits/chosen": ([70, 50], [2, 1]),
        "logits/rejected": ([30, 210], [1, 3]),
        "entropy": ([7 + 3, 5 + 21], [3, 4]),
        "mean_token_accuracy": ([1, 0], [2, 1]),
    }
    assert found.keys() == expected.keys()
    for name, (numerators, counts) in expected.items():
        assert found[name][0].tolist() == pytest.approx(numerators), name
        assert found[name][1].tolist() == counts, name
        assert not found[name][0].requires_grad, name


def test_a_pass_without_statistics_leaves_those_metrics_out() -> None:
    pack = tree_pack([TokenRow([1], [2]), TokenRow([1], [3])])
    policy = pair_of([[-1.0], [-4.0]], [[-3.0], [-1.0]])
    found = row_values(OUTCOME, policy, statistics_of(pack, EdgeOutput(logps=torch.zeros(2))))
    assert "entropy" not in found
    assert "loss" in found


def test_log_ratios_are_the_policys_log_probs_less_the_frozen_ones() -> None:
    pack = tree_pack([TokenRow([1], [2]), TokenRow([1], [3])])
    policy = pair_of([[-1.0, -2.0], [-4.0, 0.0]], [[-3.0, 0.0], [-1.0, -1.0]])
    frozen = pair_of([[-2.0, -2.0], [-3.0, 0.0]], [[-3.0, 0.0], [-5.0, -1.0]])
    statistics = statistics_of(pack, EdgeOutput(logps=torch.zeros(2)))
    found = row_values(OUTCOME, policy, statistics, frozen)
    # (-1 - 2) - (-2 - 2) and -4 + 3; 0 and (-1 - 1) - (-5 - 1).
    assert found["logratios/chosen"][0].tolist() == [1.0, -1.0]
    assert found["logratios/rejected"][0].tolist() == [0.0, 4.0]
    assert "logratios/chosen" not in row_values(OUTCOME, policy, statistics)
