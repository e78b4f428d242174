"""What a policy's log-probs say about held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from align.errors import MachineError, RecipeError
from align.estimates import Estimate
from align.evaluation import Measurement, Subject
from align.forest import Backend, TokenRow
from align.policies.pair_scores import TokenBudget, backend_for, score_pairs
from align.policies.start import Start
from align.reference import PAIR_SCORES, RoleScores, cache_root, rows_digest
from align.tokens.dataset import scored_columns, to_dataset
from align.tokens.tokenized_pair import TokenizedPair
from align.tokens.vision.columns import sides_of
from align.tokens.vision.pixels import pictures_of
from align.types import Logps, Pair
from align_eval.metrics import preference_metrics

MEASURED = 1024  # pairs at most, where the recipe does not say
START = "start"


class Preference(Measurement):
    """Accuracy, margins and log-ratios on the held-out pairs, relative to the start policy."""

    run: Literal["preference"] = "preference"
    """Which evaluation."""
    needs_pairs: ClassVar[bool] = True

    def estimates(self, subject: Subject) -> Mapping[str, Estimate]:
        """The metrics of `preference_metrics`.

        Raises:
            RecipeError: there are no held-out pairs.
        """
        return preference_metrics(*self.scored(subject))

    def scored(self, subject: Subject) -> tuple[Pair[Logps], Pair[Logps]]:
        """Log-probs [nats] of the held-out pairs, of the policy and of its start.

        Raises:
            RecipeError: there are no held-out pairs.
        """
        if not subject.held_out:
            raise RecipeError(
                "evaluate.suite asks for 'preference' and there are no held-out pairs: keep "
                "some rows out of training, or take 'preference' out of the suite."
            )
        found = subject.in_memory(self.run)
        pairs = HeldOut.of(subject.held_out[: subject.n or MEASURED], found.tokenizer)
        scoring = Scoring(
            pairs, backend_for(found.model, pairs.rows), subject.pairs_at_once, subject.token_budget
        )
        if found.start.is_model(found.model):
            start = scoring.of_start(found.start)
            return start, start
        policy = scoring.of(found.model, "policy")
        return policy, scoring.of_start(found.start)


@dataclass(frozen=True)
class HeldOut:
    """Pairs that are measured on, as token rows.

    Attributes:
        pairs: tokenised.
        rows: their two sides.
        pictures: what a vision-language model reads beside them; None where no pair shows any.
    """

    pairs: Sequence[TokenizedPair]
    rows: Pair[list[TokenRow]]
    pictures: Any

    @classmethod
    def of(cls, pairs: Sequence[TokenizedPair], tokenizer: Any) -> HeldOut:
        """Of these pairs, with a processor in place of the tokenizer where there are pictures."""
        chosen, rejected = zip(*(sides_of(pair.pair) for pair in pairs), strict=True)
        return cls(
            pairs,
            Pair(
                [TokenRow(pair.prompt_ids, pair.chosen_ids) for pair in pairs],
                [TokenRow(pair.prompt_ids, pair.rejected_ids) for pair in pairs],
            ),
            pictures_of(tokenizer, [*chosen, *rejected]),
        )

    @property
    def key(self) -> str:
        """Sha256 over token ids and pictures, in hex."""
        dataset = to_dataset(self.pairs)
        return rows_digest(dataset, scored_columns(dataset))


@dataclass(frozen=True)
class Scoring:
    """How the log-probs of held-out pairs are computed: alike for a policy and its start.

    Attributes:
        held_out: the pairs.
        backend: how they are laid out.
        pairs_at_once: of one forward pass, where `token_budget` is no number.
        token_budget: tokens of one forward pass.
    """

    held_out: HeldOut
    backend: Backend
    pairs_at_once: int
    token_budget: TokenBudget

    def of(self, model: Any, who: str) -> Pair[Logps]:
        """Of a model in memory."""
        return score_pairs(
            model,
            self.held_out.rows,
            self.backend,
            pairs_at_once=self.pairs_at_once,
            token_budget=self.token_budget,
            pictures=self.held_out.pictures,
            title=f"score {who}",
        )

    def of_start(self, start: Start) -> Pair[Logps]:
        """Of the start policy: kept from an earlier evaluation, or computed once and kept.

        Raises:
            MachineError: what was just kept cannot be read back.
        """
        if start.identity is None:
            return self.of(start.model, START)
        # The layout rounds in its own way, so a policy equal to its start is at distance 0.
        if isinstance(self.token_budget, int):
            passes = f"{self.token_budget}"
        else:
            passes = f"{self.token_budget or 'pairs'}-{self.pairs_at_once}"
        kept = RoleScores(
            cache_root() / "roles",
            start.identity,
            self.held_out.key,
            f"{self.backend.name}-{passes}",
        )
        if (columns := kept.load(START)) is None:
            found = self.of(start.model, START)
            kept.save(_cells(found.chosen), _cells(found.rejected))
            columns = kept.load(START)
        if columns is None:
            raise MachineError(
                f"The start policy's scores were written to {kept.folder} and cannot be read back "
                "there. Set ALIGN_CACHE to a folder on a disk that works."
            )
        chosen, rejected = (_logps(columns[name]) for name in PAIR_SCORES.of(START))
        return Pair(chosen, rejected)


def _cells(logps: Logps) -> list[Any]:
    return [row[mask].float().numpy() for row, mask in zip(logps.token, logps.mask, strict=True)]


def _logps(cells: Any) -> Logps:
    rows = [torch.tensor(row, dtype=torch.float32) for row in cells]
    return Logps(
        pad_sequence(rows, batch_first=True),
        pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True),
    )
