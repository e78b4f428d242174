"""An engine that steps inside the backward pass, as DeepSpeed's does, takes one step a step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper, DeepSpeedOptimizerWrapper
from transformers import AutoModelForCausalLM, TrainerCallback

from align.errors import NumericalError
from align.trainers import PreferenceConfig, PreferenceTrainer
from tests.align.trainers.groups_in_code import settings

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")

STEPS = 3
MAX_NORM = 0.5


class Engine:
    """What `accelerate` calls of `deepspeed.DeepSpeedEngine`, with the step itself.

    Attributes:
        calls: how often each was called, `boundaries` with what.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.optimizer: Any = trainer.optimizer.optimizer
        self.boundaries: list[bool] = []
        self.backwards = self.steps = 0
        self.norm = torch.zeros(())

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundaries.append(is_boundary)

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool = True) -> None:
        assert not scale_wrt_gas, "the loss is a share of its step already"
        self.backwards += 1
        loss.backward()

    def step(self) -> None:
        assert self.boundaries[-1]
        self.steps += 1
        weights = list(self.trainer.model.parameters())
        self.norm = torch.nn.utils.clip_grad_norm_(weights, MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> torch.Tensor:
        return self.norm


class Handed(TrainerCallback):
    """Hands the run to the engine once `accelerate` has prepared everything else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.trainer: Any = None
        self.engine: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, setattr_ = self.trainer, self.monkeypatch.setattr
        self.engine = Engine(trainer)
        accelerator = trainer.accelerator
        deepspeed = property(lambda _: DistributedType.DEEPSPEED)
        setattr_(type(accelerator), "distributed_type", deepspeed)
        setattr_(trainer, "is_deepspeed_enabled", True)
        # transformers gives the inputs of a model under DeepSpeed the type of its weights.
        plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
        setattr_(type(accelerator.state), "deepspeed_plugin", property(lambda _: plugin))
        accelerator.deepspeed_engine_wrapped = DeepSpeedEngineWrapper(self.engine)
        # Steps nowhere itself.
        trainer.optimizer = DeepSpeedOptimizerWrapper(trainer.optimizer.optimizer)


@pytest.fixture
def make(tiny_folder, tiny_tokenizer, tmp_path, pairs):
    def build(**changes: Any) -> PreferenceTrainer:
        kept = {"max_steps": STEPS, "per_device_train_batch_size": 4, "max_grad_norm": MAX_NORM}
        kept |= {"gradient_accumulation_steps": 2, "lr_scheduler_type": "linear"}
        return PreferenceTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float64),
            args=PreferenceConfig(**settings(str(tmp_path / "out"), **(kept | changes))),
            train_dataset=pairs,
            processing_class=tiny_tokenizer,
            objective={"name": "dpo", "beta": 0.3},
        )

    return build


@pytest.fixture
def handed(make, monkeypatch) -> Any:
    def build(**changes: Any) -> tuple[PreferenceTrainer, Handed]:
        trainer, to_engine = make(**changes), Handed(monkeypatch)
        to_engine.trainer = trainer
        trainer.add_callback(to_engine)
        return trainer, to_engine

    return build


def test_passes_of_a_batch_are_no_steps_of_the_engine(make, handed) -> None:
    plain = make()
    plain.train()
    trainer, to_engine = handed(token_budget=24)
    trainer.train()
    engine = to_engine.engine
    assert engine.steps == STEPS == trainer.state.global_step
    assert engine.backwards >= 5 * STEPS, "the budget should split every batch"
    assert len(engine.boundaries) == engine.backwards
    assert sum(engine.boundaries) == STEPS
    for (name, expected), found in zip(
        plain.model.named_parameters(), trainer.model.parameters(), strict=True
    ):
        assert torch.allclose(found, expected, rtol=0, atol=1e-9), name
    both = ([row["grad_norm"] for row in t.state.log_history[:STEPS]] for t in (plain, trainer))
    assert next(both) == pytest.approx(next(both), rel=1e-9)


def test_a_bad_loss_stops_before_the_engine_steps(handed) -> None:
    trainer, to_engine = handed(token_budget=24)
    embedding = trainer.model.get_input_embeddings()

    def poison(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + torch.nan if torch.is_grad_enabled() else output

    embedding.register_forward_hook(poison)
    with pytest.raises(NumericalError, match="Step 1: the loss of"):
        trainer.train()
    assert to_engine.engine.backwards > 0
    assert to_engine.engine.steps == 0
