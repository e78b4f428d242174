import json

import pytest

from align.data.messages import Message
from align.errors import DataError, RecipeError
from align.judges.base import Comparison
from align_data.uncertainty.files import make_estimator, open_estimator
from align_data.uncertainty.settings import Likelihood, Lora

ITEMS = [Comparison((Message(role="user", content="1+2?"),), "31", "4", "")]


def kinds(settings):
    whole = settings.model_copy(update={"epochs": 1})
    low_rank = {"lora": Lora(r=4), "dropout_in": "adapter"}
    return {
        "whole": whole,
        "adapter": whole.model_copy(update=low_rank),
        "likelihood": Likelihood(),
    }


@pytest.mark.parametrize("kind", ["whole", "adapter", "likelihood"])
def test_what_was_made_is_opened_again_and_is_the_same_each_time(
    kind, settings, backbone, labelled, tmp_path
):
    chosen = kinds(settings)[kind]
    identities, readings = set(), set()
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        fit = make_estimator(chosen, backbone, labelled[:24], folder)
        assert json.loads((folder / "fit.json").read_text())["pairs"] == fit.pairs
        for _ in range(2):
            found = open_estimator(chosen, backbone, folder, seed=3)
            identities.add(found.identity)
            readings.add(found.read(ITEMS, [None, 0, 1])[0])
    assert len(identities) == len(readings) == 1
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert not any(str(backbone).encode() in content for content in files.values())


def test_a_folder_without_a_scale_is_refused(backbone, tmp_path):
    with pytest.raises(DataError, match=r"likelihood\.json is missing"):
        open_estimator(Likelihood(), backbone, tmp_path, seed=0)


def test_an_architecture_without_a_head_is_refused(settings, backbone, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((backbone / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(RecipeError, match="no classifying head"):
        make_estimator(settings, tmp_path, [], tmp_path)
