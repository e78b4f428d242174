"""The configuration of the named trainer."""

from __future__ import annotations

from align.diffusion.objectives import SePPO
from align.diffusion.settings import DiffusionTrain


# Node is frozen by its configuration, which pyright does not see.
class SePPOConfig(SePPO, DiffusionTrain, frozen=True):  # pyright: ignore[reportGeneralTypeIssues]
    """The fields of SePPO's formula beside those of training; each default stands there."""

    @property
    def objective(self) -> SePPO:
        """The formula alone."""
        return SePPO(**{name: getattr(self, name) for name in SePPO.model_fields})

    @property
    def training(self) -> DiffusionTrain:
        """The rest."""
        return DiffusionTrain(**{name: getattr(self, name) for name in DiffusionTrain.model_fields})
