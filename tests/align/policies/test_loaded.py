import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from align.policies.loaded import evaluating, plain_model


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


def test_the_inner_model_of_an_adapted_one_is_plain_too():
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    wrapped = get_peft_model(LlamaForCausalLM(config), LoraConfig(target_modules=["q_proj"]))
    inner = wrapped.get_base_model()
    # peft leaves its settings on the model that it wraps.
    assert hasattr(inner, "peft_config")
    assert plain_model(wrapped) is inner
    assert plain_model(inner) is inner
