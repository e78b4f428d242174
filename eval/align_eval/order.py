"""What the order did in which a judge saw two outputs: one that prefers a place is worth little.

An unbiased judge calls the output that it saw first the better one about half of the time, where
the order is drawn; asked in both orders it names the same winner twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from align.estimates import proportion


@dataclass(frozen=True)
class OrderEffect:
    """Verdicts by place.

    Attributes:
        first: verdicts for the output that was shown first.
        untied: verdicts for one of the two.
        agreed: questions asked in both orders with the same winner, or twice a tie.
        both: questions with a verdict in both orders; 0 where each is asked in one.
    """

    first: int
    untied: int
    agreed: int = 0
    both: int = 0

    def to_json(self) -> dict[str, Any]:
        """Counts, and the two shares with their 95 % intervals."""
        shares = {
            "first_wins": proportion(self.first, self.untied),
            "agreement": proportion(self.agreed, self.both),
        }
        return {**asdict(self), **{name: share.to_json() for name, share in shares.items()}}

    def in_words(self) -> str:
        """One sentence."""
        first = f"The output shown first won {_of(self.first, self.untied)} untied verdicts"
        text = f"{first}, where a judge without a favourite place comes to half."
        if self.both:
            text += (
                f" Both orders name the same winner for {_of(self.agreed, self.both)} questions."
            )
        return text


def _of(count: int, n: int) -> str:
    return f"{count} of {n} ({100 * count / n:.1f} %)"


def order_effect(verdicts: Iterable[tuple[float | None, ...]]) -> OrderEffect:
    """Counts places.

    Args:
        verdicts: per question P(the output shown first wins) in each order that was asked, 1/2 for
            a tie; None where there is no verdict. In the second order the outputs have changed
            places.
    """
    first = untied = agreed = both = 0
    for question in verdicts:
        known = [value for value in question if value is not None]
        untied += sum(value != 0.5 for value in known)
        first += sum(value > 0.5 for value in known)
        if len(known) == 2:
            straight, swapped = known
            both += 1
            agreed += _side(straight) == -_side(swapped)
    return OrderEffect(first, untied, agreed, both)


def _side(value: float) -> int:
    return (value > 0.5) - (value < 0.5)
