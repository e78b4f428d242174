"""Trainers, drop-in where `trl.DPOTrainer` stands; the only room that imports trl."""

from align.trainers.config import PreferenceConfig
from align.trainers.named import (
    DPOConfig,
    DPOTrainer,
    RDPOConfig,
    RDPOTrainer,
    RPOConfig,
    RPOTrainer,
)
from align.trainers.preference import PreferenceTrainer

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "PreferenceConfig",
    "PreferenceTrainer",
    "RDPOConfig",
    "RDPOTrainer",
    "RPOConfig",
    "RPOTrainer",
]
