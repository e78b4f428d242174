"""A miniature backbone that reads the characters of sums, and pairs whose better side is plain."""

import random
from pathlib import Path

import pytest

from align.data.messages import Message
from align.data.pairs import PreferencePair
from align.worlds.additions import sums_tokenizer
from align.worlds.chat import tiny_llama
from align_data.uncertainty.settings import Classifier

TEMPLATE = "{query}\n{first}\n{second}"


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = sums_tokenizer()
    model = tiny_llama(tokenizer, layers=3, width=32, heads=2, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def settings() -> Classifier:
    """All weights trained, units left out of the blocks."""
    return Classifier(
        template=TEMPLATE,
        max_length=64,
        lora=None,
        dropout_in="blocks",
        learning_rate=3e-3,
        epochs=3,
        pairs_per_step=16,
        held_out=0.2,
    )


@pytest.fixture(scope="session")
def labelled() -> list[PreferencePair]:
    """The response whose first digit is higher is the better one."""
    draw = random.Random(0)
    pairs: list[PreferencePair] = []
    while len(pairs) < 240:
        low, high = sorted(draw.sample("0123456789", 2))
        tail = "".join(draw.choice("0123456789") for _ in range(draw.randint(0, 3)))
        pairs.append(
            PreferencePair(
                prompt=(Message(role="user", content=f"{draw.randint(10, 99)}+{len(pairs)}?"),),
                chosen=(Message(role="assistant", content=high + tail),),
                rejected=(Message(role="assistant", content=low + tail),),
                source="made",
                row=len(pairs) + 1,
            )
        )
    return pairs
