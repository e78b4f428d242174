"""Policies behind an OpenAI-compatible HTTP server: vLLM, `transformers serve`, hosted models.

A served engine is not batch-invariant, so its samples are not reproducible; that a run can be
continued rests on the call store, which keeps every answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align.data.completions import Completion
from align.data.images import content_of, data_uri
from align.data.prompts import Prompt
from align.errors import RecipeError
from align.policies.base import Capabilities, Failed, Sampling, completion_of, sample_seed
from align.servers.caller import CachedCaller
from align.servers.server import Call, Reply, Unanswered, no_text

if TYPE_CHECKING:
    from align.forest.rows import TokenRow
    from align.types import Logps

logger = logging.getLogger(__name__)

# Names what is sent and what of the answer is kept; goes into every key of the call store.
TEMPLATE = "openai-http-1"
PARSER = "completion-1"


class HttpPolicy:
    """A policy behind an endpoint.

    Conversations go to `/chat/completions`, plain prompts to `/completions`.

    Args:
        caller: of the model's endpoint, with store and limits.
    """

    capabilities = Capabilities(logps=False, reproducible=False)

    def __init__(self, caller: CachedCaller) -> None:
        self.caller = caller

    @property
    def identity(self) -> str:
        """`model@revision at URL`."""
        server = self.caller.caller
        return f"{server.model}@{server.revision} at {server.address}"

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """`n` samples of every prompt: outer list in the order of the prompts, inner by sample.

        Every sample is a request of its own with a seed of its own, because not every server knows
        `n`, and a part of an answer could not be kept.

        Raises:
            AlignError: what no other try can mend; what was answered by then is stored.
        """
        wanted = [(prompt, sample) for prompt in prompts for sample in range(n)]
        calls = [
            Call(
                prompt=prompt.prompt,
                parameters=self._parameters(prompt, sample, sampling, seed),
                template=TEMPLATE,
                parser=PARSER,
                sample=sample,
                images=tuple(data_uri(content_of(ref)) for ref in prompt.images or ()),
            )
            for prompt, sample in wanted
        ]
        replies = self.caller.ask(calls, lambda _, reply: no_text(reply))
        samples = [
            self._sample(prompt, sample, reply, sampling)
            for (prompt, sample), reply in zip(wanted, replies, strict=True)
        ]
        rows = [samples[i * n : (i + 1) * n] for i in range(len(prompts))]
        _warn_of_copies(rows, sampling)
        return rows

    def _parameters(
        self, prompt: Prompt, sample: int, sampling: Sampling, seed: int
    ) -> dict[str, Any]:
        is_chat = not isinstance(prompt.prompt, str)
        parameters: dict[str, Any] = {
            "max_completion_tokens" if is_chat else "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sample_seed(seed, prompt, sample),
        }
        if sampling.top_k:
            # No field of OpenAI's: vLLM takes it, a server that does not says so.
            parameters["top_k"] = sampling.top_k
        if sampling.stop:
            parameters["stop"] = list(sampling.stop)
        return {**parameters, **self.caller.caller.extra}

    def _sample(
        self, prompt: Prompt, sample: int, reply: Reply | Unanswered, sampling: Sampling
    ) -> Completion | Failed:
        if isinstance(reply, Unanswered):
            return Failed(prompt, sample, reply.reason, reply.detail)
        text = reply.text
        # vLLM leaves the stop text out of its answer, `transformers serve` leaves it in.
        for stop in sampling.stop:
            text = text.split(stop, maxsplit=1)[0]
        if not text.strip():
            return Failed(prompt, sample, "empty", "nothing before the stop text")
        finished = reply.finish != "length" or text != reply.text
        if not finished and not sampling.keep_unfinished:
            detail = f"no end within {sampling.max_new_tokens} tokens"
            return Failed(prompt, sample, "unfinished", detail)
        return completion_of(prompt, text, policy=self.identity, sample=sample, finished=finished)

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Not offered.

        Raises:
            RecipeError: always.
        """
        raise RecipeError(
            f"The policy {self.identity} is behind HTTP and gives no log-probs of token rows. Name "
            "its weights as a folder or hub id where log-probs are needed."
        )


def _warn_of_copies(rows: Sequence[Sequence[Completion | Failed]], sampling: Sampling) -> None:
    """Says so where a server seems to ignore the temperature."""
    drawn = [[s.completion for s in row if isinstance(s, Completion)] for row in rows]
    several = [row for row in drawn if len(row) > 1]
    is_random = sampling.temperature > 0 and sampling.top_k != 1
    if is_random and len(several) > 1 and all(row.count(row[0]) == len(row) for row in several):
        logger.warning(
            "All samples of each of %d prompts are copies of each other, at temperature %g: the "
            "server seems not to sample. `transformers serve` samples only where do_sample is true "
            "in the model's generation_config.json.",
            len(several),
            sampling.temperature,
        )
