"""The miniature world of the worlds' own tests, for suites that measure it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

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
