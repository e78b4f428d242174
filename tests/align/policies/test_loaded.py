import pytest
import torch
from torch import nn

from align.policies.loaded import evaluating


def test_evaluating_restores_after_a_failure():
    model = nn.Sequential(nn.Dropout(), nn.Linear(1, 1))
    model[0].eval()

    def fail():
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise KeyError

    with pytest.raises(KeyError):
        evaluating(model)(fail)()
    assert [module.training for module in model.modules()] == [True, False, True]
    assert torch.is_grad_enabled()


def test_evaluating_takes_several_models():
    models = [nn.Dropout(), nn.Dropout().eval()]
    with evaluating(*models):
        assert not models[0].training
        assert not models[1].training
    assert [model.training for model in models] == [True, False]
