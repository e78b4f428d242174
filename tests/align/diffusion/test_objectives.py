"""The identities of the formulas, on hand-made errors and on a network of two numbers."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from align.diffusion.objectives import (
    DenoisingErrors,
    DiffusionDPO,
    DiffusionSFT,
    SePPO,
    anchor,
    pairwise_denoising_loss,
    squared_error,
)
from align.types import Pair

LOG_2 = math.log(2)
CHOSEN = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.1]], dtype=torch.float64)
SAMPLE = torch.tensor([[0.4, 1.5, -0.6], [-0.9, 0.2, 2.0]], dtype=torch.float64)
TARGET = torch.tensor([[0.1, 0.2, -0.3], [1.0, -1.0, 0.4]], dtype=torch.float64)


def errors_of(theta: Tensor, z: Tensor) -> Tensor:
    """A denoiser of two weights: scale and shift."""
    return squared_error(TARGET[: len(z)], theta[0] * z + theta[1], "mean")


def both(theta: Tensor, reference: Tensor, w: Tensor = CHOSEN, r: Tensor = SAMPLE):
    return DenoisingErrors(
        Pair(errors_of(theta, w), errors_of(theta, r)),
        Pair(errors_of(reference, w), errors_of(reference, r)),
    )


def gradient(loss: Tensor, theta: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), theta, retain_graph=True)[0]


@pytest.fixture
def theta() -> Tensor:
    return torch.tensor([0.8, -0.2], dtype=torch.float64, requires_grad=True)


REFERENCE = torch.tensor([0.5, 0.1], dtype=torch.float64)


def test_golden_by_hand() -> None:
    # d_chosen = 0.2 - 0.5 = -0.3, so a = +1; d_sample = 0.9 - 0.8 = 0.1; B = 10 / 2 = 5;
    # logit = -5 (-0.3 - 0.1) = 2, loss = log(1 + e^-2).
    # Second record: d_chosen = 0.6 - 0.5 = 0.1, so a = -1; d_sample = 0.1;
    # logit = -5 (0.1 + 0.1) = -1.
    errors = DenoisingErrors(
        Pair(torch.tensor([0.2, 0.6]), torch.tensor([0.9, 0.9])),
        Pair(torch.tensor([0.5, 0.5]), torch.tensor([0.8, 0.8])),
    )
    output = SePPO(beta=10)(errors)
    expected = torch.tensor([math.log1p(math.exp(-2)), math.log1p(math.exp(1))])
    torch.testing.assert_close(output.loss, expected)
    assert output.metrics["flip_rate"].tolist() == [0, 1]
    torch.testing.assert_close(output.metrics["rewards/chosen"], torch.tensor([1.5, -0.5]))
    # Without the flip the second record is -5 (0.1 - 0.1) = 0.
    assert SePPO(beta=10, anchor_flip=False)(errors).loss[1].item() == pytest.approx(LOG_2)


def test_policy_equal_to_reference_gives_log_2(theta: Tensor) -> None:
    output = SePPO(beta=2000)(both(theta, theta.detach().clone()))
    assert output.loss.tolist() == [LOG_2, LOG_2]
    assert output.metrics["flip_rate"].tolist() == [0, 0]
    assert output.metrics["rewards/accuracies"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("beta", [0.5, 40.0, 2000.0])
def test_without_the_flip_it_is_diffusion_dpo_bit_for_bit(theta: Tensor, beta: float) -> None:
    # One SPIN-Diffusion step: the sample of the reference counts as the rejected image.
    errors = both(theta, REFERENCE)
    spin, dpo = SePPO(beta=beta, anchor_flip=False)(errors), DiffusionDPO(beta=beta)(errors)
    assert torch.equal(spin.loss, dpo.loss)
    assert torch.equal(gradient(spin.loss, theta), gradient(dpo.loss, theta))
    # Where the anchor says +1 of its own accord, SePPO is the same too.
    good = torch.tensor([0.15, 0.05], dtype=torch.float64, requires_grad=True)
    errors = both(good, torch.tensor([3.0, 3.0], dtype=torch.float64))
    assert torch.equal(SePPO(beta=beta)(errors).loss, DiffusionDPO(beta=beta)(errors).loss)


def test_a_flipped_record_is_symmetric_in_its_images(theta: Tensor) -> None:
    one = pairwise_denoising_loss(both(theta, REFERENCE), 7.0, -1.0).loss
    other = pairwise_denoising_loss(both(theta, REFERENCE, SAMPLE, CHOSEN), 7.0, -1.0).loss
    assert torch.equal(one, other)
    contrast = pairwise_denoising_loss(both(theta, REFERENCE), 7.0, 1.0).loss
    swapped = pairwise_denoising_loss(both(theta, REFERENCE, SAMPLE, CHOSEN), 7.0, 1.0).loss
    assert not torch.allclose(contrast, swapped)


def test_without_the_sample_the_gradient_is_parallel_to_fine_tuning(theta: Tensor) -> None:
    errors = both(theta, REFERENCE, CHOSEN[:1], SAMPLE[:1])
    scale = 7.0
    loss = pairwise_denoising_loss(errors, scale, 0.0).loss
    d = errors.policy.chosen - errors.reference.chosen  # type: ignore[operator,union-attr]
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(-scale * d))
    fine_tuning = gradient(DiffusionSFT()(errors).loss, theta)
    factor = scale * torch.sigmoid(scale * d)
    torch.testing.assert_close(gradient(loss, theta), factor * fine_tuning)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_at_the_reference(theta: Tensor, sign: float) -> None:
    scale = 7.0
    errors = both(theta, theta.detach().clone())
    found = gradient(pairwise_denoising_loss(errors, scale, sign).loss, theta)
    chosen = gradient(errors.policy.chosen, theta)  # type: ignore[arg-type]
    sample = gradient(errors.policy.rejected, theta)  # type: ignore[arg-type]
    torch.testing.assert_close(found, scale / 2 * (chosen - sign * sample))


def test_equal_images(theta: Tensor) -> None:
    scale = 7.0
    same = both(theta, REFERENCE, CHOSEN, CHOSEN)
    contrast = pairwise_denoising_loss(same, scale, 1.0).loss
    # For any policy: log 2, and nothing to learn.
    assert contrast.tolist() == [LOG_2, LOG_2]
    assert gradient(contrast, theta).tolist() == [0, 0]
    at_reference = both(theta, theta.detach().clone(), CHOSEN, CHOSEN)
    learnt = gradient(pairwise_denoising_loss(at_reference, scale, -1.0).loss, theta)
    of_error = gradient(at_reference.policy.chosen, theta)  # type: ignore[arg-type]
    torch.testing.assert_close(learnt, scale * of_error)


def test_scale() -> None:
    far = DenoisingErrors(
        Pair(torch.tensor([0.9]), torch.tensor([0.1])),
        Pair(torch.tensor([0.1]), torch.tensor([0.9])),
    )
    assert SePPO(beta=1e-8)(far).loss.item() == pytest.approx(LOG_2, abs=1e-6)
    # A beta for means, divided by the number of values, is the same loss with sums.
    beta, values = 6.0, CHOSEN.shape[1]

    def loss(reduction, of: float) -> Tensor:
        def one(x: Tensor, weight: float) -> Tensor:
            return squared_error(TARGET, weight * x, reduction)

        errors = DenoisingErrors(
            Pair(one(CHOSEN, 0.8), one(SAMPLE, 0.8)), Pair(one(CHOSEN, 0.5), one(SAMPLE, 0.5))
        )
        return SePPO(beta=of, error_reduction=reduction)(errors).loss

    torch.testing.assert_close(loss("sum", beta / values), loss("mean", beta))
    assert not torch.allclose(loss("sum", beta), loss("mean", beta))


def test_anchor() -> None:
    policy = torch.tensor([1.0, 2.0, 1.0], requires_grad=True)
    found = anchor(policy, torch.tensor([2.0, 1.0, 1.0]))
    assert found.tolist() == [1, -1, 1]
    assert not found.requires_grad


def test_no_gradient_through_anchor_or_reference(theta: Tensor) -> None:
    reference = REFERENCE.clone().requires_grad_()
    errors = both(theta, reference)
    loss = SePPO(beta=10)(errors).loss
    sign = anchor(errors.policy.chosen.detach(), errors.reference.chosen.detach())  # type: ignore[union-attr]
    constant = pairwise_denoising_loss(errors, 5.0, sign).loss
    assert torch.equal(gradient(loss, theta), gradient(constant, theta))
    assert torch.autograd.grad(loss.sum(), reference, allow_unused=True)[0] is None


def test_errors_are_float32_or_wider() -> None:
    x = torch.full((2, 4), 1.0, dtype=torch.bfloat16)
    assert squared_error(x, x + 1, "mean").dtype == torch.float32
    assert squared_error(x, x + 1, "sum").tolist() == [4, 4]
    assert squared_error(x.double(), x.double(), "sum").dtype == torch.float64


def test_metrics_carry_no_gradient(theta: Tensor) -> None:
    for objective in (SePPO(), DiffusionDPO(), DiffusionSFT()):
        output = objective(both(theta, REFERENCE))
        assert output.loss.shape == (2,)
        assert all(not metric.requires_grad for metric in output.metrics.values())


@pytest.mark.parametrize(
    "field", [{"beta": 0}, {"beta": -1}, {"bta": 1}, {"error_reduction": "max"}]
)
def test_bad_fields_are_refused(field: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        SePPO(**field)  # type: ignore[arg-type]
