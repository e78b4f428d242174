"""The sections of a recipe that trains a diffusion model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from align.node import Conflict, Node

SHAPES = "world:shapes"


class DiffusionModel(Node):
    """The text-to-image model that is trained, its precision, its adapter."""

    model_name_or_path: str = Field(min_length=1)
    """Local folder or Hub id of a Stable Diffusion 1.x, 2.x or XL pipeline, or world:shapes."""
    model_revision: str = Field(default="main", min_length=1)
    """Branch, tag or commit hash of a Hub model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's frozen weights under an adapter; what is trained is float32."""
    use_peft: bool = False
    """Train a LoRA adapter in place of all weights."""
    lora_r: int = Field(default=16, ge=1)
    """Rank of the adapter."""
    lora_alpha: int = Field(default=16, ge=1)
    """Scale of the adapter: lora_alpha / lora_r multiplies its output."""
    lora_target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the layers that get an adapter."""

    @property
    def is_world(self) -> bool:
        """Whether the model is built in code."""
        return self.model_name_or_path.startswith("world:")

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if self.is_world and self.model_name_or_path != SHAPES:
            yield (
                "model_name_or_path",
                f"no built-in diffusion model {self.model_name_or_path!r}; there is {SHAPES}",
            )
        if self.dtype != "float32" and not self.use_peft:
            yield (
                "dtype",
                "weights that are trained are float32; write `bf16: true` under train for mixed "
                "precision, or add `use_peft: true`",
            )
        if not self.lora_target_modules:
            yield "lora_target_modules", "is empty; name the layers, such as to_q"


class DiffusionData(Node):
    """The records: a chosen image and its caption, and for Diffusion-DPO a rejected image."""

    records: str = Field(min_length=1)
    """JSON lines or Parquet file, a folder of them, Hub id, or world:shapes."""
    split: str = Field(default="train", min_length=1)
    """Split of a Hub data set."""
    revision: str | None = Field(default=None, min_length=1)
    """Branch, tag or commit hash of a Hub data set."""
    format: Literal["auto", "plain", "pickapic"] = "auto"
    """plain (image, caption, rejected_image) or pickapic (jpg_0, jpg_1, label_0, caption)."""
    resolution: int = Field(default=512, ge=8, multiple_of=8)
    """Pixels of a side; the shorter side is scaled to it and the middle cut out."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most so many records; of a world draw so many, null means 512."""
    held_out: int = Field(default=64, ge=0)
    """Records kept for evaluation."""
    max_dropped: float = Field(default=0.05, ge=0, le=1)
    """Stop when a larger share of the rows cannot be used."""
    encode_batch: int = Field(default=8, ge=1)
    """Images that are encoded together, once, before training."""
    latents_dtype: Literal["float32", "float16"] = "float32"
    """Type in which latents and text embeddings are kept on disk."""
    seed: int = Field(default=0, ge=0)
    """Seed of a world's images and of the choice of held-out records."""


class DiffusionSampler(Node):
    """How images are sampled: the reference's, and those that are measured and shown."""

    scheduler: str | None = "DDIMScheduler"
    """Class of diffusers; null takes the model's own."""
    steps: int = Field(default=50, ge=1)
    """Denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1)
    """Classifier-free guidance; 1 is none. The loss is without guidance whatever stands here."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the scheduler, such as {timestep_spacing: trailing}."""
    batch: int = Field(default=16, ge=1)
    """Images that are sampled together."""


class DiffusionTrain(Node):
    """How a diffusion model is trained: rounds of updates, each against one reference."""

    rounds: int = Field(default=7, ge=1)
    """How often a reference is chosen, samples are made, and a checkpoint is kept (K)."""
    updates_per_round: int = Field(default=30, ge=1)
    """Optimizer steps of a round (M)."""
    pool_size: int | None = Field(default=None, ge=1)
    """Records of a round, each sampled once; null means as many as its updates consume."""
    per_device_train_batch_size: int = Field(default=1, ge=1)
    """Records per device and forward pass."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients make one optimizer step."""
    learning_rate: float = Field(default=2e-5, gt=0, le=1)
    """Peak learning rate; 1e-4 is usual for LoRA."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled weight decay."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Adam's epsilon."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    """How timesteps are drawn; flow-matching models are often trained by logit_normal."""
    timestep_range: tuple[float, float] = (0.0, 1.0)
    """Part of the noise schedule that is drawn from, as shares; 1 is pure noise."""
    bf16: bool = False
    """Mixed precision in bfloat16."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, slower."""
    use_cpu: bool = False
    """Train on the CPU though a GPU is there."""
    sampler: DiffusionSampler = DiffusionSampler()
    """How images are sampled."""
    logging_steps: int = Field(default=10, ge=1)
    """Updates between two logs."""
    save_steps: int | None = Field(default=None, ge=1)
    """Updates between two checkpoints; null saves at the end of each round only."""
    seed: int = Field(default=0, ge=0)
    """Seed of adapters, references, samples, timesteps and noise."""

    @property
    def max_steps(self) -> int:
        """Optimizer steps in all."""
        return self.rounds * self.updates_per_round

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        low, high = self.timestep_range
        if not 0 <= low < high <= 1:
            yield (
                "timestep_range",
                f"found [{low:g}, {high:g}]; write two shares from 0 to 1, the smaller one first",
            )
        if self.warmup_steps >= self.max_steps:
            yield "warmup_steps", f"warm-up lasts as long as the whole run of {self.max_steps}"


class DiffusionEvaluate(Node):
    """What is measured before and after training."""

    suite: tuple[Literal["denoising", "shapes"], ...] = ("denoising",)
    """denoising (error on held-out records) and shapes (reward and shape quality, exact)."""
    n: int = Field(default=192, ge=2)
    """Images that shapes samples and measures."""
    pictures: int = Field(default=16, ge=0)
    """Images in before.png and after.png, of the first held-out captions; 0 draws none."""
    seed: int = Field(default=0, ge=0)
    """Seed of captions, noise and timesteps; before and after share it."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        if len(set(self.suite)) < len(self.suite):
            yield "suite", "an entry stands twice; keep one"
