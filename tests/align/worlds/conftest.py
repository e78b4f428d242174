"""A miniature of the world of sums: seconds instead of a minute, and just as complete."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.worlds.sums import Sums, SumsSettings

MINIATURE = SumsSettings(layers=1, width=32, heads=2, steps=5, batch=8)


@pytest.fixture
def align_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory):
    """World, model and tokenizer, read back with the ordinary loaders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        world = Sums(MINIATURE)
        folder = world.base_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return world, model, AutoTokenizer.from_pretrained(folder)
