"""Any causal language model of transformers as a writer: tokens in, tokens and log-probs out.

Each stem is read once for all its samples, and rows that have ended leave the batch. The uniform
number of every draw belongs to (seed, key of the stem, sample index, step) and to nothing else; see
`align.policies.sampling` for what that means. Log-probs come from the same forward passes as the
draws.

Control tokens that end no answer, and rows of the embedding without a token, are never drawn: no
text spells them. Their probability stays in the log-probs, which are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.forest import PADDED, Backend, TokenRow, choose_backend, score_rows
from align.forest.attention import attending
from align.forest.model import add_edge_head, read_pack
from align.policies.base import Sampling, stream_seed
from align.policies.loaded import LoadedModel, evaluating
from align.policies.local_tokens import LocalTokens, check_room, ids_of
from align.policies.reading import Reading
from align.policies.sampling import Step, draw, runs_of, steps, uniforms
from align.policies.writer import Draw, Drawn, Finish, NoAnswer, OptionMass, Stem
from align.progress import Phase, progress
from align.types import Logps, at_least_float32

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens of one scoring pass, shared beginnings counted each time.
PACKED = 32_768
# The way of scoring is checked against the model's own on so many of the shortest rows.
PROBED = 4


@dataclass
class _Row:
    """One sample on its way.

    Attributes:
        stem: what it continues.
        sampling: how.
        sample: its number among the samples of its request.
        into: where it goes once it has ended.
        ids: drawn so far.
        logps: nats, one per id.
        finish: how it ended; None while it goes on.
    """

    stem: Stem
    sampling: Sampling
    sample: int
    into: list[_Row]
    ids: list[int] = field(default_factory=list[int])
    logps: list[float] = field(default_factory=list[float])
    finish: Finish | None = None


class InProcessWriter(LocalTokens):
    """A loaded model as a writer; model and random state are left as they were found.

    Args:
        model: on its device; it may be trained between calls, and `identity` notices.
        tokenizer: of the model.
        rows: samples of one forward pass.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, rows: int = 128
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows must be 1 or more, not {rows}.")
        self.model = model
        self.rows = rows
        self._loaded = LoadedModel(model, tokenizer)
        super().__init__(tokenizer, self._loaded.ends)
        self._backend: Backend | None = None
        self._may_draw: Tensor | None = None
        self._drawable = set(tokenizer.get_vocab().values()) - self._control

    @property
    def identity(self) -> str:
        """16 hex digits over weights and tokenizer; hashed anew after the weights have changed."""
        return self._loaded.identity

    def room(self, stem: Stem) -> int:
        """Tokens that may follow the stem in the model's context."""
        return self._loaded.longest - len(stem.prompt_ids) - len(stem.prefix_ids)

    def draw(self, requests: Sequence[Draw], seed: int) -> list[list[Drawn] | NoAnswer]:
        """Continuations, in the order of the requests; a process in memory always answers.

        Requests of different stop texts and lengths share batches; only those of another
        temperature, top_p or top_k do not.

        Raises:
            ValueError: a request asks for no sample, for more tokens than there is room for, or
                continues a stem without a token.
        """
        found: list[list[_Row]] = [[] for _ in requests]
        waiting: dict[tuple[float, float, int], list[tuple[Draw, list[_Row]]]] = {}
        for request, into in zip(requests, found, strict=True):
            how, length = request.sampling, len(ids_of(request.stem))
            check_room(self._loaded.longest - length, request.n, how.max_new_tokens)
            alike = waiting.setdefault((how.temperature, how.top_p, how.top_k), [])
            alike.append((request, into))
        samples = sum(request.n for request in requests)
        with evaluating(self.model), progress("draw", samples, "samples") as advance:
            for alike in waiting.values():
                for batch in self._batches(alike):
                    self._continue(batch, seed, advance)
                    for row in batch:
                        row.into.append(row)
        return [[self._drawn(row) for row in rows] for rows in found]

    def stream(self, request: Draw, seed: int, say: Callable[[str], None]) -> Drawn:
        """The first sample that `draw` gives for a request, its text said as it comes.

        Args:
            request: what is continued, and how.
            seed: of the draw.
            say: is given each further piece of the text; whole characters, and never an end token.

        Raises:
            ValueError: as for `draw`.
        """
        stem, how = request.stem, request.sampling
        check_room(self._loaded.longest - len(ids_of(stem)), 1, how.max_new_tokens)
        row = _Row(stem, how, 0, [])
        said = 0
        with evaluating(self.model):
            for _ in self._steps([row], seed):
                text = self.text(row.ids, _last(stem))
                # The bytes of one character may come in several tokens.
                if len(text) > said and not text.endswith("\ufffd"):
                    say(text[said:])
                    said = len(text)
        drawn = self._drawn(row)
        if len(drawn.text) > said:
            say(drawn.text[said:])
        return drawn

    def score(
        self, requests: Sequence[tuple[Stem, tuple[int, ...]]]
    ) -> list[tuple[float, ...] | NoAnswer]:
        """Log-probs [nats] of the ids of each continuation behind its stem.

        Beginnings that requests share are read once, where the model's attention allows it.

        Raises:
            ValueError: a continuation or a stem has no token.
        """
        rows = [TokenRow(ids_of(stem), ids) for stem, ids in requests]
        for k, row in enumerate(rows):
            if not row.completion_ids:
                raise ValueError(f"continuation {k} has no token, so it has no log-probs.")
        # Neighbours in this order share the longest beginnings.
        order = sorted(range(len(rows)), key=lambda k: tuple(rows[k].tokens().tolist()))
        found: dict[int, tuple[float, ...]] = {}
        with evaluating(self.model), progress("score", len(rows)) as advance:
            for batch in self._packs(order, rows):
                logps = self._logps([rows[k] for k in batch])
                advance(len(batch), tokens=sum(len(rows[k]) for k in batch))
                for k, token in zip(batch, logps.token.tolist(), strict=True):
                    found[k] = tuple(token[: len(rows[k].completion_ids)])
        return [found[k] for k in range(len(rows))]

    def _packs(self, order: Sequence[int], rows: Sequence[TokenRow]) -> Iterator[list[int]]:
        """Numbers of the rows of each forward pass."""
        batch: list[int] = []
        tokens = 0
        for k in order:
            if batch and (len(batch) == self.rows or tokens + len(rows[k]) > PACKED):
                yield batch
                batch, tokens = [], 0
            batch.append(k)
            tokens += len(rows[k])
        if batch:
            yield batch

    def _logps(self, rows: Sequence[TokenRow]) -> Logps:
        if self._backend is None:
            add_edge_head(self._loaded.plain)
            few = sorted(rows, key=len)[:PROBED]
            self._backend = choose_backend(self.model, [*few, *few[::-1]]).backend
        if self._backend is PADDED:
            return score_rows(self.model, rows, batch_size=self.rows)
        pack = self._backend.lay_out(rows).to(self.model.device)
        with attending(self.model, pack.implementation):
            edge = read_pack(self.model, pack).logps
        assert edge is not None
        return pack.rows(0, len(rows), edge)

    def option_mass(
        self, stems: Sequence[Stem], options: Mapping[str, Sequence[str]]
    ) -> list[OptionMass | NoAnswer]:
        """Probability of each option at the token behind each stem.

        Args:
            stems: questions that end where the answer is to come.
            options: name -> spellings. Every single token whose text is a spelling, white space
                around it aside, counts for that option.

        Raises:
            RecipeError: no token of the vocabulary spells an option, or two options share one.
            ValueError: a stem has no token.
        """
        ids = self._prompting.option_ids(options)
        order = sorted(range(len(stems)), key=lambda k: _length(stems[k]))
        found: dict[int, OptionMass] = {}
        with evaluating(self.model), progress("ask", len(stems), "questions") as advance:
            for start in range(0, len(order), self.rows):
                batch = order[start : start + self.rows]
                prompts = [ids_of(stems[k]) for k in batch]
                logits = Reading(self.model, prompts, [1] * len(batch)).logits
                p = at_least_float32(logits).softmax(dim=1)
                mass = {name: p[:, i].sum(dim=1).clamp(max=1.0).tolist() for name, i in ids.items()}
                for place, k in enumerate(batch):
                    found[k] = OptionMass({name: mass[name][place] for name in options})
                advance(len(batch), tokens=sum(map(len, prompts)))
        return [found[k] for k in range(len(stems))]

    def _batches(self, alike: Sequence[tuple[Draw, list[_Row]]]) -> Iterator[list[_Row]]:
        """Rows by length of their stems, the samples of one stem together and in order."""
        batch: list[_Row] = []
        for request, into in sorted(alike, key=lambda x: _length(x[0].stem)):
            if batch and len(batch) + request.n > self.rows:
                yield batch
                batch = []
            for sample in range(request.n):
                if len(batch) == self.rows:
                    yield batch
                    batch = []
                batch.append(_Row(request.stem, request.sampling, sample, into))
        if batch:
            yield batch

    def _continue(self, batch: list[_Row], seed: int, advance: Phase) -> None:
        """Draws every row of `batch` to its end."""
        for step in self._steps(batch, seed):
            ended = sum(batch[k].finish is not None for k in step.rows)
            advance(ended, tokens=len(step.rows))

    def _steps(self, batch: list[_Row], seed: int) -> Iterator[Step]:
        """Draws one token more for every row of `batch`, until all have ended."""
        seeds = [stream_seed(seed, row.stem.key, row.sample) for row in batch]
        most = max(row.sampling.max_new_tokens for row in batch)
        uniform = uniforms(seeds, most).to(self.model.device)
        reading = Reading(self.model, *runs_of([ids_of(row.stem) for row in batch]))
        spelled = self._spelled(reading.logits)

        def choose(logits: Tensor, uniform: Tensor) -> Tensor:
            return draw(logits.masked_fill(~spelled, -torch.inf), uniform, batch[0].sampling)

        for step in steps(reading, uniform, choose, lambda k: batch[k].finish is None):
            for k, i, logp in zip(step.rows, step.ids, step.logps(), strict=True):
                self._append(batch[k], i, logp)
            yield step

    def _spelled(self, logits: Tensor) -> Tensor:
        """[V] bool: tokens that may be drawn."""
        rows = logits.shape[1]
        if self._may_draw is None or len(self._may_draw) != rows:
            self._may_draw = torch.zeros(rows, dtype=torch.bool)
            self._may_draw[[i for i in self._drawable if i < rows]] = True
        self._may_draw = self._may_draw.to(logits.device)
        return self._may_draw

    def _append(self, row: _Row, i: int, logp: float) -> None:
        row.ids.append(i)
        row.logps.append(logp)
        stop = row.sampling.stop
        if i in self._end_ids:
            row.finish = "end"
        elif stop and self._prompting.has_stopped(row.ids, _last(row.stem), stop):
            row.finish = "stop"
        elif len(row.ids) == row.sampling.max_new_tokens:
            row.finish = "length"

    def _drawn(self, row: _Row) -> Drawn:
        assert row.finish is not None
        text = self.text(row.ids, _last(row.stem))
        return Drawn(tuple(row.ids), tuple(row.logps), text, row.finish)


def _length(stem: Stem) -> int:
    return len(stem.prompt_ids) + len(stem.prefix_ids)


def _last(stem: Stem) -> int:
    return (stem.prefix_ids or stem.prompt_ids)[-1]
