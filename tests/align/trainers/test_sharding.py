"""What several processes decide together, what cannot be sharded, and the files they start by."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

from align.errors import RecipeError
from align.reference import weights_digest
from align.trainers import ranks, sharding
from align.trainers.ranks import of_main, same_number, seen

LAUNCH_FILES = sorted((Path(__file__).parents[3] / "recipes/accelerate").glob("*.yaml"))


def processes(distributed: DistributedType, **more: Any) -> Any:
    state = SimpleNamespace(deepspeed_plugin=more.pop("deepspeed_plugin", None))
    return SimpleNamespace(distributed_type=distributed, state=state, **more)


def test_the_first_version_of_fsdp_is_refused() -> None:
    first = processes(DistributedType.FSDP, is_fsdp2=False)
    with pytest.raises(RecipeError, match="fsdp_version: 2"):
        sharding.refuse_unknown_sharding(
            first, SimpleNamespace(torch_compile=False, token_budget=None), []
        )


def test_compilation_of_shards_is_refused() -> None:
    second = processes(DistributedType.FSDP, is_fsdp2=True)
    sharding.refuse_unknown_sharding(
        second, SimpleNamespace(torch_compile=False, token_budget=None), ["reference"]
    )
    with pytest.raises(RecipeError, match="Take torch_compile out"):
        sharding.refuse_unknown_sharding(
            second, SimpleNamespace(torch_compile=True, token_budget=None), []
        )


def test_a_budget_is_not_looked_for_on_shards() -> None:
    args = SimpleNamespace(torch_compile=False, token_budget="auto")
    with pytest.raises(RecipeError, match="Set a number of tokens"):
        sharding.refuse_unknown_sharding(processes(DistributedType.FSDP, is_fsdp2=True), args, [])
    sharding.refuse_unknown_sharding(processes(DistributedType.MULTI_GPU), args, [])


@pytest.mark.parametrize(
    ("stage", "roles", "is_refused"), [(3, ["guide"], True), (3, [], False), (2, ["guide"], False)]
)
def test_roles_are_refused_under_zero3_alone(stage, roles, is_refused) -> None:
    here = processes(DistributedType.DEEPSPEED, deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    args = SimpleNamespace(torch_compile=False, token_budget=None)
    if not is_refused:
        sharding.refuse_unknown_sharding(here, args, roles)
        return
    with pytest.raises(RecipeError, match=r"roles\.guide .*fsdp2\.yaml"):
        sharding.refuse_unknown_sharding(here, args, roles)


class Rank:
    """One of two threads that stand for processes."""

    num_processes = 2
    device = "cpu"

    def __init__(self, wire: list[Any], *, is_main: bool) -> None:
        self.wire, self.is_main_process = wire, is_main


@pytest.fixture
def two_ranks(monkeypatch):
    """A main process, and another that hears what it says."""
    wire: list[Any] = []
    said = threading.Event()

    def broadcast(objects: list[Any], from_process: int) -> None:
        assert from_process == 0
        if threading.current_thread() is threading.main_thread():
            wire[:] = objects
            said.set()
        else:
            said.wait(10)
            objects[:] = wire

    monkeypatch.setattr(ranks, "broadcast_object_list", broadcast)
    return Rank(wire, is_main=True), Rank(wire, is_main=False)


def on_both(two_ranks: Any, decide: Any) -> list[Any]:
    found: list[Any] = [None, None]

    def ask(number: int) -> None:
        try:
            found[number] = of_main(two_ranks[number], decide)
        except RecipeError as error:
            found[number] = str(error)

    other = threading.Thread(target=ask, args=(1,))
    other.start()
    ask(0)
    other.join()
    return found


def test_one_process_looks_and_all_hear(two_ranks) -> None:
    looked: list[int] = []

    def decide() -> str:
        looked.append(1)
        return "checkpoint-7"

    assert on_both(two_ranks, decide) == ["checkpoint-7", "checkpoint-7"]
    assert len(looked) == 1


def test_what_one_process_refuses_all_refuse(two_ranks) -> None:
    def decide() -> str:
        raise RecipeError("another run's")

    assert on_both(two_ranks, decide) == ["another run's", "another run's"]


def test_a_path_that_appears_later_is_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ranks, "LOOK_EVERY", 0.01)
    path = tmp_path / "scores"
    assert not seen(path, within=0.05)
    later = threading.Timer(0.1, path.mkdir)
    later.start()
    assert seen(path, within=10)
    later.join()


def test_parts_on_top_count_for_nothing(monkeypatch) -> None:
    rank: Any = Rank([], is_main=True)
    rank.gather = lambda here: torch.cat([here, torch.tensor([3])])
    parts = [{"row_index": torch.tensor([4, 5]), "counts": torch.ones(2)}]
    found = same_number(rank, parts)
    assert [part["counts"].tolist() for part in found] == [[1, 1], [0, 0], [0, 0]]


def test_a_digest_does_not_depend_on_who_hashes() -> None:
    model = torch.nn.Linear(3, 2)
    one = SimpleNamespace(is_main_process=True, num_processes=1)
    assert sharding.whole_digest(model, one) == weights_digest(model)
    without = sharding.whole_digest(model, one, without=["bias"])
    assert without == weights_digest(model, without=["bias"]) != weights_digest(model)


def test_weights_that_deepspeed_split_have_no_digest() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.ds_id = 0  # type: ignore[attr-defined]
    one = SimpleNamespace(is_main_process=True, num_processes=1)
    with pytest.raises(RecipeError, match="zero3_init_flag: false"):
        sharding.whole_digest(model, one)


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_a_launch_file_is_accelerates(path, monkeypatch) -> None:
    """A key of a section that is no option of the launcher would be set and read by nobody."""
    config = load_config_from_file(str(path))
    args = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    sections = (getattr(config, "fsdp_config", None), getattr(config, "deepspeed_config", None))
    for section in sections:
        assert [key for key in section or {} if not hasattr(args, key)] == []
    args, _, _ = _validate_launch_command(args)
    assert args.num_processes == config.num_processes
    assert args.use_fsdp == (config.distributed_type == DistributedType.FSDP)
    assert args.use_deepspeed == (config.distributed_type == DistributedType.DEEPSPEED)
    if args.use_fsdp:
        for name, value in prepare_multi_gpu_env(args).items():
            if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP")):
                monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert "SHARDED" in str(plugin.state_dict_type)
        # accelerate would leave 4-bit weights of the other processes unread.
        assert plugin.cpu_ram_efficient_loading == ("qlora" not in path.stem)
    if args.use_deepspeed:
        assert args.zero_stage == int(path.stem[-1])
