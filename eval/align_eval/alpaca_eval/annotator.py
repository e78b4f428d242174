"""AlpacaEval 2's annotator: which of two outputs a language model calls the better one.

The judge reads the two outputs under the names m and M and answers with one of them; their order is
drawn per instruction, as the package draws it. The preference is the probability of its first
token (`logprobs`), or the one name that it answers (`text`, for servers without log-probs).

Source: tatsu-lab/alpaca_eval 0.6.6 (Apache-2.0), evaluators_configs/weighted_alpaca_eval_gpt4_turbo
and alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt. Differs from it: the conversation is built
before the texts are put in, so that an output which holds chat markers or a placeholder stays
inside its quotes; the package cuts such a conversation at the marker.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from align.data.messages import Message
from align.data.records import content_id
from align.errors import RecipeError
from align.servers.caller import CachedCaller
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.server import Call, Rejected, Reply, Transient, Unanswered, no_text
from align_eval.row_files import Row

Reading = Literal["logprobs", "text"]
SYSTEM = (
    "You are a highly efficient assistant, who evaluates and selects the best large language model "
    "(LLMs) based on the quality of their responses to a given instruction. This process will be "
    "used to create a leaderboard reflecting the most accurate and human-preferred answers."
)
USER = '''\
I require a leaderboard for various large language models. I'll provide you with prompts given to \
these models and their corresponding outputs. Your task is to assess these responses, and select \
the model that produces the best output from a human perspective.

## Instruction

{
    "instruction": """{instruction}""",
}

## Model Outputs

Here are the unordered outputs from the models. Each output is associated with a specific model, \
identified by a unique model identifier.

{
    {
        "model_identifier": "m",
        "output": """{output_1}"""
    },
    {
        "model_identifier": "M",
        "output": """{output_2}"""
    }
}

## Task

Evaluate the models based on the quality and relevance of their outputs, and select the model that \
generated the best output. Answer by providing the model identifier of the best model. We will use \
your output as the name of the best model, so make sure your output only contains one of the \
following model identifiers and nothing else (no quotes, no spaces, no new lines, ...): m or M.

## Best Model Identifier'''
TEMPLATE = f"alpaca-eval-clf-{content_id(SYSTEM, USER)[:8]}"
PARSERS: Mapping[Reading, str] = {
    "logprobs": "alpaca-eval-logprobs-1",
    "text": "alpaca-eval-name-1",
}
_FIELD = re.compile(r"\{(instruction|output_1|output_2)\}")
_NAME = re.compile(r"""[\s"'`*]*([mM])[\s"'`*.]*""")


@dataclass(frozen=True)
class Pairing:
    """One instruction with the baseline's and the model's output."""

    instruction: str
    baseline: str
    model: str
    dataset: str | None = None

    @property
    def is_switched(self) -> bool:
        """Whether the judge sees the model's output first; drawn as the package draws it."""
        seed = f"is_switched_outputs{self.instruction}0"
        return random.Random(seed).choices([False, True], k=1)[0]


@dataclass(frozen=True)
class Found:
    """What the judge said of one pairing.

    Attributes:
        preference: in [1, 2], 2 for the model; None where there is none.
        reply: as it stands in the call store, or why there is no usable one; None where nothing
            was asked.
    """

    preference: float | None
    reply: Reply | Unanswered | None


class JudgeCaller(OpenAICaller):
    """An endpoint whose replies carry the likeliest first tokens of a chat completion.

    Args:
        endpoint: where.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._gives_tokens = False

    async def _send(self, client: Any, call: Call) -> Reply:
        kept = _KeptResponse(client)
        try:
            reply = await super()._send(kept, call)
        except Rejected as rejected:
            if "logprob" in str(rejected).lower() and not self._gives_tokens:
                raise self._no_tokens(str(rejected)) from rejected
            raise
        likely = kept.first_token()
        if likely:
            self._gives_tokens = True
            return replace(reply, logprobs={"top_logprobs": [likely]})
        problem = no_text(reply)
        if problem is not None and problem.reason == "refused":
            return reply
        if not self._gives_tokens:
            raise self._no_tokens("its first answer has none")
        raise Transient("the answer has no top_logprobs")

    def _no_tokens(self, how: str) -> RecipeError:
        return RecipeError(
            f"The server of {self.model} at {self.address} gives no top_logprobs ({how}), and the "
            "preference is read off them. vLLM gives them; for a server that does not, such as "
            "`transformers serve`, write `reading: text` beside the annotator."
        )


class _KeptResponse:
    """Stands where the client does, for `client.with_raw_response.chat.completions.create`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._text = ""
        self.with_raw_response = self.chat = self.completions = self

    async def create(self, **request: Any) -> Any:
        response = await self._client.with_raw_response.chat.completions.create(**request)
        self._text = response.http_response.text
        return response

    def first_token(self) -> dict[str, float]:
        """Log-probs of the likeliest first tokens; empty where the answer has none."""
        try:
            (choice, *_) = json.loads(self._text)["choices"]
            tokens = choice["logprobs"]["content"][0]["top_logprobs"]
            return {str(token["token"]): float(token["logprob"]) for token in tokens}
        except (ValueError, KeyError, IndexError, TypeError):
            return {}


def messages_of(pairing: Pairing) -> tuple[Message, ...]:
    """What the judge reads."""
    outputs = (pairing.baseline, pairing.model)
    if pairing.is_switched:
        outputs = outputs[::-1]
    texts = {
        "instruction": pairing.instruction,
        "output_1": outputs[0],
        "output_2": outputs[1],
    }
    # All fields at once: a text that spells a field stays as it is.
    user = _FIELD.sub(lambda match: texts[match[1]], USER)
    return Message(role="system", content=SYSTEM), Message(role="user", content=user)


def parse_reply(reply: Reply, reading: Reading) -> float | None:
    """In [1, 2], 2 for the second output shown; None where the reply has no verdict."""
    if reading == "text":
        match = _NAME.fullmatch(reply.text)
        return None if match is None else 1.0 if match[1] == "m" else 2.0
    likely: Mapping[str, float] = (reply.logprobs or {}).get("top_logprobs", [{}])[0]
    first, second = (likely.get(name, -math.inf) for name in ("m", "M"))
    if max(first, second) == -math.inf:
        return None
    return 2 - math.exp(first - max(first, second)) / sum(
        math.exp(value - max(first, second)) for value in (first, second)
    )


def annotate(caller: CachedCaller, pairings: Sequence[Pairing], *, reading: Reading) -> list[Found]:
    """One finding per pairing, in their order; equal or empty outputs are not sent.

    Args:
        caller: of a `JudgeCaller` where the reading is `logprobs`, with store and limits.
        pairings: to be judged.
        reading: what of the reply counts.

    Raises:
        AlignError: what no other try can mend; what was answered by then is stored.
    """
    asked = [p for p in pairings if _is_asked(p)]
    calls = [
        Call(messages_of(p), parameters_of(caller, reading), TEMPLATE, PARSERS[reading])
        for p in asked
    ]
    replies = iter(caller.ask(calls, lambda _, reply: _trouble(reply, reading)))
    return [
        _found(pairing, next(replies), reading) if _is_asked(pairing) else _unasked(pairing)
        for pairing in pairings
    ]


def _is_asked(pairing: Pairing) -> bool:
    return bool(pairing.model.strip()) and pairing.model != pairing.baseline


def parameters_of(caller: CachedCaller, reading: Reading) -> dict[str, Any]:
    """What goes along with every call to the judge."""
    # The package's own: one token at temperature 1 where the log-probs are read.
    settings: dict[Reading, dict[str, Any]] = {
        "logprobs": {
            "max_completion_tokens": 1,
            "temperature": 1.0,
            "logprobs": True,
            "top_logprobs": 5,
        },
        "text": {"max_completion_tokens": 8, "temperature": 0.0},
    }
    return {**settings[reading], **caller.caller.extra}


def _trouble(reply: Reply, reading: Reading) -> Unanswered | None:
    problem = no_text(reply)
    if problem is not None and problem.reason == "empty" and reply.logprobs:
        # The one token may be white space; its neighbours count.
        problem = None
    if problem is None and parse_reply(reply, reading) is None:
        problem = Unanswered("unparsable", f"neither m nor M (finish_reason {reply.finish})")
    return problem


def _found(pairing: Pairing, reply: Reply | Unanswered, reading: Reading) -> Found:
    if isinstance(reply, Unanswered):
        return Found(None, reply)
    value = parse_reply(reply, reading)
    assert value is not None
    return Found(3 - value if pairing.is_switched else value, reply)


def _unasked(pairing: Pairing) -> Found:
    if pairing.model == pairing.baseline:
        return Found(1.5, None)
    return Found(None, Unanswered("no output", "the model's output is empty; not asked"))


def reasons_of(found: Sequence[Found]) -> dict[str, int]:
    """Failures by reason."""
    counts = Counter(f.reply.reason for f in found if isinstance(f.reply, Unanswered))
    return dict(sorted(counts.items()))


def annotation_rows(
    pairings: Sequence[Pairing],
    found: Sequence[Found],
    *,
    generators: tuple[str, str],
    annotator: str,
) -> list[Row]:
    """annotations.json in the official format; a failed one has the preference null."""
    rows: list[Row] = []
    for pairing, one in zip(pairings, found, strict=True):
        text = one.reply.text if isinstance(one.reply, Reply) else None
        rows.append(
            {
                "instruction": pairing.instruction,
                "output_1": pairing.baseline,
                "generator_1": generators[0],
                "dataset": pairing.dataset,
                "output_2": pairing.model,
                "generator_2": generators[1],
                "annotator": annotator,
                "preference": one.preference,
                "preference_raw_completion": text,
            }
        )
    return rows
