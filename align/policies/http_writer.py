"""A writer behind an OpenAI-compatible `/completions` route, such as vLLM's.

Stems are sent as token ids, made by the served model's own tokenizer here: the server adds nothing
to them, and no second beginning-of-sequence token. The tokens of an answer are, in this order, the
ids that the server names (vLLM does with `return_token_ids: true` among the endpoint's extra
fields), or those that our tokenizer makes of its text, where they spell the very pieces that the
server lists. Any other answer is `NoAnswer`: log-probs of other tokens are no log-probs of ours.

Log-probs must be the model's own, before temperature, top_k and top_p: vLLM gives them with
`--logprobs-mode raw_logprobs`, its default. `transformers serve` and chat-only servers have no such
route; there is no way to continue an answer on them.

Samples are requests of their own with a seed of their own, kept in the call store: a served engine
is not batch-invariant, so a run is continued from what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.policies.base import Sampling, stream_seed
from align.policies.local_tokens import LocalTokens, check_room, ids_of
from align.policies.shown import NO_LOGPS, Shown, shown_id, shown_of, trouble
from align.policies.writer import Draw, Drawn, Finish, NoAnswer, OptionMass, Stem
from align.servers.caller import CachedCaller
from align.servers.server import Call, Reply, Unanswered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXACT = "on vLLM, put return_token_ids: true among the endpoint's extra fields"

# Names what is sent and what of the answer is kept; goes into every key of the call store.
TEMPLATE = "openai-tokens-1"
PARSER = "tokens-1"


@dataclass(frozen=True)
class _Sample:
    """One request for one continuation."""

    request: int
    stem: Stem
    sampling: Sampling
    sample: int


class HttpWriter(LocalTokens):
    """A writer behind an endpoint.

    Args:
        caller: of the model's endpoint, with store and limits.
        tokenizer: of the served model.
        context: tokens that the server takes, prompt and answer together.
        ends: end tokens of the served model's generation config, besides those of the tokenizer
            and its chat template.
        shown: likeliest tokens that the server shows at most; 20 for vLLM, 5 for OpenAI.
    """

    def __init__(
        self,
        caller: CachedCaller,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        ends: Sequence[int] = (),
        shown: int = 20,
    ) -> None:
        if context < 1 or shown < 1:
            raise ValueError(f"context and shown must be 1 or more, not {context} and {shown}.")
        self.caller = caller
        super().__init__(tokenizer, list(ends))
        self.context = context
        self.shown = shown
        self._shows = False

    @property
    def identity(self) -> str:
        """`model@revision at URL`."""
        server = self.caller.caller
        return f"{server.model}@{server.revision} at {server.address}"

    def room(self, stem: Stem) -> int:
        """Tokens that may follow the stem in the server's context."""
        return self.context - len(stem.prompt_ids) - len(stem.prefix_ids)

    def draw(self, requests: Sequence[Draw], seed: int) -> list[list[Drawn] | NoAnswer]:
        """Continuations, in the order of the requests.

        Where some of a request's samples fail, the others are its answer.

        Raises:
            ValueError: a request asks for no sample, or for more tokens than there is room for.
            AlignError: what no other try can mend; what was answered by then is stored.
        """
        for request in requests:
            check_room(self.room(request.stem), request.n, request.sampling.max_new_tokens)
        samples = [
            _Sample(number, request.stem, request.sampling, sample)
            for number, request in enumerate(requests)
            for sample in range(request.n)
        ]
        replies = self._ask([self._call(one, seed) for one in samples])
        found: list[list[Drawn]] = [[] for _ in requests]
        failed: dict[int, NoAnswer] = {}
        for one, reply in zip(samples, replies, strict=True):
            answer = reply if isinstance(reply, NoAnswer) else self._drawn(one, reply)
            if isinstance(answer, NoAnswer):
                failed[one.request] = answer
            else:
                found[one.request].append(answer)
        return [drawn or failed[number] for number, drawn in enumerate(found)]

    def score(
        self, requests: Sequence[tuple[Stem, tuple[int, ...]]]
    ) -> list[tuple[float, ...] | NoAnswer]:
        """Log-probs [nats] of the ids of each continuation behind its stem, by `echo`.

        Raises:
            RecipeError: the server does not give log-probs of what it is sent.
            ValueError: a continuation or a stem has no token.
            AlignError: what no other try can mend; what was answered by then is stored.
        """
        if not all(ids for _, ids in requests):
            raise ValueError("A continuation has no token, so it has no log-probs.")
        # Some servers write a token whatever max_tokens says; it comes behind those that count.
        parameters = {"max_tokens": 0, "temperature": 1.0, "echo": True, "logprobs": 1}
        calls = [self._of(ids_of(stem) + ids, parameters) for stem, ids in requests]
        replies = self._ask(calls)
        fit = any(len(ids) <= self.room(stem) for stem, ids in requests)
        if fit and all(isinstance(x, NoAnswer) and x.reason == "rejected" for x in replies):
            raise self._no_scores("calls every such request wrong")
        found: list[tuple[float, ...] | NoAnswer] = []
        for (stem, ids), reply in zip(requests, replies, strict=True):
            if isinstance(reply, NoAnswer):
                found.append(reply)
                continue
            begin = len(ids_of(stem))
            logps = tuple(
                logp for logp in reply.logps[begin : begin + len(ids)] if logp is not None
            )
            if len(reply.logps) > begin + len(ids) + 1 or len(logps) < len(ids):
                raise self._no_scores(f"shows {len(reply.logps)} of {begin + len(ids)} tokens")
            found.append(logps)
        return found

    def option_mass(
        self, stems: Sequence[Stem], options: Mapping[str, Sequence[str]]
    ) -> list[OptionMass | NoAnswer]:
        """Probability of each option at the token behind each stem, of those that are shown.

        Args:
            stems: questions that end where the answer is to come.
            options: name -> spellings. Every single token whose text is a spelling, white space
                around it aside, counts for that option.

        Raises:
            RecipeError: no token of the vocabulary spells an option, or two options share one.
            AlignError: what no other try can mend; what was answered by then is stored.
        """
        ids = self._prompting.option_ids(options)
        parameters = {"max_tokens": 1, "temperature": 1.0, "seed": 0, "logprobs": self.shown}
        replies = self._ask([self._of(ids_of(stem), parameters) for stem in stems])
        return [
            reply if isinstance(reply, NoAnswer) else self._mass(reply, ids, options)
            for reply in replies
        ]

    def _mass(
        self, shown: Shown, ids: Mapping[str, list[int]], options: Mapping[str, Sequence[str]]
    ) -> OptionMass | NoAnswer:
        if not shown.likeliest:
            return NoAnswer("unanswered", "the server shows no likeliest tokens")
        texts = [(self._shown_text(token), logp) for token, logp in shown.likeliest[0].items()]
        mass: dict[str, float] = {}
        is_truncated = False
        for name, spellings in options.items():
            wanted = {spelling.strip() for spelling in spellings}
            p = [math.exp(logp) for text, logp in texts if text.strip() in wanted]
            mass[name] = min(1.0, math.fsum(p))
            is_truncated |= len(p) < len(ids[name])
        return OptionMass(mass, is_truncated)

    def _shown_text(self, token: str) -> str:
        number = shown_id(token)
        return token if number is None else self._prompting.text_of(number)

    def _call(self, one: _Sample, seed: int) -> Call:
        sampling = one.sampling
        parameters: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": stream_seed(seed, one.stem.key, one.sample),
            "logprobs": 1,
        }
        if sampling.top_k:
            # No field of OpenAI's: vLLM takes it, a server that does not says so.
            parameters["top_k"] = sampling.top_k
        if sampling.stop:
            parameters["stop"] = list(sampling.stop)
        return self._of(ids_of(one.stem), parameters, one.sample)

    def _of(self, ids: tuple[int, ...], parameters: Mapping[str, Any], sample: int = 0) -> Call:
        everything = {**parameters, **self.caller.caller.extra}
        return Call(ids, everything, template=TEMPLATE, parser=PARSER, sample=sample)

    def _ask(self, calls: Sequence[Call]) -> list[Shown | NoAnswer]:
        replies = self.caller.ask(calls, self._trouble)
        return [
            NoAnswer(reply.reason, reply.detail)
            if isinstance(reply, Unanswered)
            else shown_of(reply)
            for reply in replies
        ]

    def _trouble(self, call: Call, reply: Reply) -> Unanswered | None:
        """As `trouble`; a server whose first answer shows no log-probs will show none later."""
        problem = trouble(call, reply)
        if problem is None:
            self._shows = True
        elif NO_LOGPS in problem.detail and not self._shows:
            raise RecipeError(
                f"{self.identity} gives no log-probs of the tokens it writes, and a search needs "
                "them. Serve the model with vLLM, or name its weights as a folder or Hub id."
            )
        return problem

    def _no_scores(self, what: str) -> RecipeError:
        return RecipeError(
            f"{self.identity} does not score a given text: asked for the log-probs of what it is "
            f"sent (echo with logprobs), it {what}. Serve the model with vLLM, name its weights as "
            "a folder or Hub id, or choose settings that score no given text."
        )

    def _drawn(self, one: _Sample, shown: Shown) -> Drawn | NoAnswer:
        behind = ids_of(one.stem)[-1]
        ids = self._matched(shown, behind) if shown.ids is None else shown.ids
        if ids is None:
            detail = "the server's tokens are not those that our tokenizer makes of its text"
            return NoAnswer("unanswered", f"{detail}; {EXACT}")
        finish: Finish | None = None
        length = 0
        while finish is None and length < len(ids):
            length += 1
            last = ids[length - 1]
            if last in self._end_ids:
                finish = "end"
            elif last in self._control:
                return NoAnswer("unfinished", "a control token that ends no answer was drawn")
            elif one.sampling.stop and self._prompting.has_stopped(
                ids[:length], behind, one.sampling.stop
            ):
                finish = "stop"
        if finish is None and length >= one.sampling.max_new_tokens:
            finish = "length"
        if finish is None:
            detail = f"the server ended after {length} tokens and does not show what ended it"
            return NoAnswer("unanswered", f"{detail} (finish_reason {shown.finish}); {EXACT}")
        logps = [logp for logp in shown.logps[:length] if logp is not None]
        if len(logps) < length:
            return NoAnswer("unanswered", "the server gives no log-prob of a token it wrote")
        kept = tuple(ids[:length])
        return Drawn(kept, tuple(logps), self.text(kept, behind), finish)

    def _matched(self, shown: Shown, behind: int) -> tuple[int, ...] | None:
        """Our ids of the server's text, where they are spelled in the server's own pieces."""
        pieces = list(shown.tokens)
        ends = {self._prompting.text_of(i): i for i in sorted(self._end_ids, reverse=True)}
        end = ends.get(pieces[-1]) if pieces else None
        if end is None and shown.finish == "stop" and pieces[-1:] == [""]:
            # Some servers count the end token and show no text of it.
            end = next(iter(self._end_ids)) if len(self._end_ids) == 1 else None
        if end is not None:
            pieces.pop()
        ids = self._prompting.continued("".join(pieces))
        spelled = [
            self._prompting.text([i], before)
            for before, i in zip([behind, *ids], ids, strict=False)
        ]
        if spelled != pieces:
            return None
        return (*ids, *([] if end is None else [end]))
