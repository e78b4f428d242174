"""A world in a user's own file: found by its path, and asked only for what it can do."""

from pathlib import Path

import pytest

from align.data.messages import Message
from align.data.prompts import Prompt
from align.errors import RecipeError
from align.worlds import world
from align.worlds.base import World
from align.worlds.bytes import Bytes

TINY = """
from align.data.messages import Message
from align.data.prompts import Prompt
from align.worlds.base import World
from align.worlds.bytes import Bytes


class Tiny(World):
    name = "tiny"

    def base_model(self):
        return Bytes().base_model()


class Asking(Tiny):
    name = "asking"

    def prompts(self, split, n, *, seed):
        said = (Message(role="user", content=split),)
        return [Prompt(prompt=said, source="t", row=i + 1) for i in range(n)]


made = Asking()


class Stranger:
    name = "stranger"


class Unfinished(World):
    name = "unfinished"
"""

PROMPT = Prompt(prompt=(Message(role="user", content="Hi"),), source="t", row=1)
ABILITIES = {
    "prompts": lambda of: of.prompts("train", 2, seed=0),
    "right answers": lambda of: of.question(PROMPT),
    "judge": lambda of: of.judge(),
    "judge of right and wrong": lambda of: of.checks(loosely=False),
    "pairs": lambda of: of.sample_pairs(
        None, None, problems=1, samples_per_problem=2, temperature=1.0, seed=0
    ),
    "measure": lambda of: of.measure(None, None, reference=None, n=1, seed=0),
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "worlds.py"
    path.write_text(TINY)
    return path


def test_it_is_found_by_its_path(own: Path, align_cache: Path) -> None:
    for word in (f"world:{own}:Tiny", f"{own}:Tiny"):
        found = world(word)
        assert isinstance(found, World)
        assert (type(found).__name__, found.name, found.judged_by) == ("Tiny", "tiny", None)
    assert world(f"world:{own}:Tiny").base_model() == Bytes().base_model()
    # A value will do as well as a class, and what it overrides it can do.
    made = world(f"world:{own}:made")
    assert [prompt.row for prompt in made.prompts("held_out", 2, seed=0)] == [1, 2]


@pytest.mark.parametrize("what", list(ABILITIES))
def test_what_it_lacks_is_told_with_its_name(own: Path, what: str) -> None:
    with pytest.raises(RecipeError, match=f"world:tiny has no {what}"):
        ABILITIES[what](world(f"world:{own}:Tiny"))
    assert world(f"world:{own}:Tiny").outcome("Hi", "Hi") is None


def test_what_is_no_world_is_refused(own: Path) -> None:
    with pytest.raises(RecipeError, match=r"Stranger.* is no child of align\.worlds\.base\.World"):
        world(f"world:{own}:Stranger")
    with pytest.raises(RecipeError, match="has no 'Tyny'; did you mean `Tiny`"):
        world(f"world:{own}:Tyny")
    with pytest.raises(RecipeError, match=r"there is no file .*none\.py"):
        world(f"world:{own.with_name('none.py')}:Tiny")
    with pytest.raises(RecipeError, match=r"Unfinished.* cannot be made .*base_model"):
        world(f"world:{own}:Unfinished")
