"""The `train` section: how the policy is trained, by the names of trl.DPOConfig."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field

from align.node import Conflict, Node

Optimizer: TypeAlias = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adafactor",
    "adamw_anyprecision", "adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "sgd", "adagrad",
    "adamw_bnb_8bit", "adamw_8bit", "ademamix_8bit", "lion_8bit", "lion_32bit", "paged_adamw_32bit",
    "paged_adamw_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit",
    "paged_lion_8bit", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
    "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise",
    "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo", "grokadamw",
    "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw",
    "apollo_adamw_layerwise", "stable_adamw",
]  # fmt: skip
Scheduler: TypeAlias = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "reduce_lr_on_plateau", "cosine_with_min_lr", "cosine_warmup_with_min_lr",
    "warmup_stable_decay", "greedy",
]  # fmt: skip

OF_THE_FOREST = ("token_budget", "forest_backend")


class Train(Node):
    """How the policy is trained; names and defaults of trl.DPOConfig, and two of the forest."""

    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """Peak learning rate."""
    lr_scheduler_type: Scheduler = "linear"
    """Course of the learning rate."""
    lr_scheduler_kwargs: dict[str, Any] | None = None
    """Further settings of the schedule, such as {num_cycles: 1}."""
    warmup_steps: float = Field(default=0, ge=0)
    """Steps of warm-up; below 1 a share of all steps."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the pairs."""
    max_steps: int = Field(default=-1, ge=-1)
    """Optimizer steps in all; -1 lets num_train_epochs decide."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Pairs per device and optimizer step before accumulation."""
    per_device_eval_batch_size: int = Field(default=8, ge=1)
    """Pairs per device and forward pass in evaluation."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients make one optimizer step."""
    token_budget: Annotated[int, Field(ge=16)] | Literal["auto"] | None = None
    """Tokens of one forward pass at most; null means the whole batch at once, auto what fits."""
    forest_backend: Literal["auto", "tree", "tree_varlen", "tree_flex", "padded"] = "auto"
    """How log-probs are computed; auto takes what fits the device and gives the model's own."""
    optim: Optimizer = "adamw_torch_fused"
    """The optimizer."""
    optim_args: str | None = None
    """Further settings of the optimizer, as `key=value, key=value`."""
    optim_target_modules: str | tuple[str, ...] | None = None
    """Layers that a low-rank optimizer (galore, apollo) works on."""
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    """Decoupled weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Adam's epsilon."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them."""
    bf16: bool | None = None
    """Mixed precision in bfloat16; null means wherever fp16 is off and the device can."""
    fp16: bool = False
    """Mixed precision in float16 with loss scaling."""
    bf16_full_eval: bool = False
    """Evaluate with the weights themselves in bfloat16."""
    fp16_full_eval: bool = False
    """Evaluate with the weights themselves in float16."""
    tf32: bool | None = None
    """TensorFloat-32 matrix products on Ampere GPUs and later."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass: less memory, about 20 % slower."""
    gradient_checkpointing_kwargs: dict[str, Any] | None = None
    """Further settings, such as {use_reentrant: false}."""
    activation_offloading: bool = False
    """Keep activations in the memory of the host."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""
    torch_compile_backend: str | None = None
    """Backend of torch.compile."""
    torch_compile_mode: str | None = None
    """Mode of torch.compile."""
    torch_empty_cache_steps: int | None = Field(default=None, ge=1)
    """Empty the device's memory cache every so many steps."""
    neftune_noise_alpha: float | None = Field(default=None, ge=0)
    """Strength of noise on the embeddings while training (NEFTune)."""
    disable_dropout: bool = True
    """Switch the model's own dropout off."""
    router_aux_loss_coef: float | None = Field(default=None, ge=0)
    """Weight of the load-balancing loss of a mixture of experts."""
    logging_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When metrics are logged."""
    logging_steps: float = Field(default=10, gt=0)
    """Steps between two logs; below 1 a share of all steps."""
    logging_first_step: bool = False
    """Log the first step too."""
    log_level: Literal["detail", "debug", "info", "warning", "error", "critical", "passive"] = (
        "passive"
    )
    """Log level of transformers on the main process."""
    disable_tqdm: bool | None = None
    """No progress bars."""
    report_to: str | tuple[str, ...] | None = "none"
    """Trackers that get the metrics: none, all, wandb, tensorboard, trackio, ..."""
    run_name: str | None = None
    """Name of the run in a tracker."""
    project: str = "huggingface"
    """Project of the run in a tracker."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When the held-out pairs are evaluated while training."""
    eval_steps: float | None = Field(default=None, gt=0)
    """Steps between two evaluations; below 1 a share of all steps; null means logging_steps."""
    eval_delay: float = Field(default=0, ge=0)
    """Epochs or steps before the first evaluation."""
    eval_on_start: bool = False
    """Evaluate once before the first step."""
    eval_accumulation_steps: int | None = Field(default=None, ge=1)
    """Batches of evaluation kept on the device before they move to the host."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When checkpoints are saved."""
    save_steps: float = Field(default=500, gt=0)
    """Steps between two checkpoints; below 1 a share of all steps."""
    save_total_limit: int | None = Field(default=None, ge=1)
    """Checkpoints kept at most; null keeps all."""
    save_only_model: bool = False
    """Checkpoints without optimizer: smaller, and no run resumes from them."""
    load_best_model_at_end: bool = False
    """End with the best checkpoint in place of the last."""
    metric_for_best_model: str | None = None
    """The metric that says which checkpoint is best."""
    greater_is_better: bool | None = None
    """Whether a greater metric_for_best_model is better."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of adapter weights, dropout and the order of the pairs."""
    data_seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of the order of the pairs alone."""
    full_determinism: bool = False
    """Deterministic kernels throughout: reproducible on one machine, slower."""
    use_cpu: bool = False
    """Train on the CPU though a GPU is there."""
    train_sampling_strategy: Literal[
        "random", "sequential", "group_by_length", "group_by_prompt"
    ] = "random"
    """Order of the pairs; group_by_prompt keeps the pairs of a prompt or tree in one step."""
    dataloader_drop_last: bool = False
    """Leave out the last batch where it is not full."""
    dataloader_num_workers: int = Field(default=0, ge=0)
    """Processes that load batches."""
    dataloader_pin_memory: bool = True
    """Pin the memory of batches."""
    dataloader_persistent_workers: bool = False
    """Keep the loading processes between epochs."""
    dataloader_prefetch_factor: int | None = Field(default=None, ge=1)
    """Batches that each loading process prepares ahead."""
    skip_memory_metrics: bool = True
    """Do not measure memory in each phase."""
    ddp_find_unused_parameters: bool | None = None
    """DDP looks for parameters without gradient."""
    ddp_bucket_cap_mb: int | None = Field(default=None, ge=1)
    """Size of DDP's gradient buckets in MiB."""
    ddp_broadcast_buffers: bool | None = None
    """DDP sends the model's buffers from the first process to all."""
    ddp_static_graph: bool | None = None
    """DDP takes it that every step uses the same parameters."""
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None = None
    """Backend of the process group."""
    ddp_timeout: int = Field(default=1800, ge=1)
    """Seconds that a process waits for the others."""

    def arguments(self) -> dict[str, Any]:
        """The keywords for trl.DPOConfig: every field of this section that is one of its."""
        arguments = self.model_dump(exclude=set(OF_THE_FOREST))
        lists = ("report_to", "optim_target_modules")
        return arguments | {k: list(arguments[k]) for k in lists if type(arguments[k]) is tuple}

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.max_steps == 0:
            yield "max_steps", "0 steps train nothing; write a number from 1 on, or -1 for epochs"
        for key in ("logging_steps", "eval_steps", "save_steps", "warmup_steps"):
            value = cast("float | None", getattr(self, key))
            if value is not None and value > 1 and value != int(value):
                yield key, f"found {value}; write a whole number of steps, or a share below 1"
        if self.fp16 and self.bf16:
            yield "fp16", "bf16 is on as well; keep one of the two"
        if self.fp16_full_eval and self.bf16_full_eval:
            yield "fp16_full_eval", "bf16_full_eval is on as well; keep one of the two"
        if (
            self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
            and self.eval_strategy == "no"
        ):
            yield (
                "lr_scheduler_type",
                f"{self.lr_scheduler_type} follows an evaluation; write `eval_strategy: steps`",
            )
        if self.load_best_model_at_end and self.save_strategy not in ("best", self.eval_strategy):
            yield (
                "load_best_model_at_end",
                f"checkpoints (save_strategy: {self.save_strategy}) and evaluations "
                f"(eval_strategy: {self.eval_strategy}) must come together; write the same word "
                "for both",
            )
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            yield "save_strategy", "best needs a metric; write `metric_for_best_model: eval_loss`"
        if self.save_strategy == "best" and self.eval_strategy == "no":
            yield "save_strategy", "best needs evaluations; write `eval_strategy: steps`"
        if self.dataloader_num_workers == 0:
            for key in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
                if getattr(self, key):
                    yield key, "no process loads batches; write `dataloader_num_workers: 2`"
