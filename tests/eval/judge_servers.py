"""Scripted judges behind the fault server, and callers of them whose waits cost no time."""

import hashlib
import json
import math
import re

from align.servers.caller import CachedCaller
from align.servers.gate import Limits
from tests.align.judges.fault_server import FaultServer
from tests.align.judges.virtual_clock import VirtualClock, Watched

OUTPUTS = re.compile(
    r'"model_identifier": "m",\s+"output": """(.*)"""\n    \},\n    \{\n'
    r'        "model_identifier": "M",\s+"output": """(.*)"""\n    \}\n\}\n\n## Task',
    re.DOTALL,
)
ANSWERS = re.compile(
    r"<\|The Start of Assistant A's Answer\|>\n(.*)\n<\|The End of Assistant A's Answer\|>\n\n"
    r"<\|The Start of Assistant B's Answer\|>\n(.*)\n<\|The End of Assistant B's Answer\|>\Z",
    re.DOTALL,
)


def quality(text):
    """A number in [0, 1) that belongs to a text, or to the mark in it that no attack touches."""
    mark = re.search(r"\[quality (\d+)\]", text)
    if mark:
        return int(mark[1]) / 10
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32


def logit(first, second):
    """Of P(first is better)."""
    return 4 * (quality(first) - quality(second))


def names_the_better(body):
    first, second = OUTPUTS.search(body["messages"][-1]["content"]).groups()
    return "m" if logit(first, second) > 0 else "M"


class LogprobServer(FaultServer):
    """Gives the log-probs of m and M as the first token's likeliest ones."""

    def __init__(self, **settings):
        super().__init__(names_the_better, **settings)

    def _completion(self, path, body, text=None):
        content = json.loads(super()._completion(path, body, text))
        if text is not None:
            likely = [{"token": "VERDICT", "logprob": -0.1}]
            content["choices"][0]["logprobs"] = {"content": [{"top_logprobs": likely}]}
        else:
            first, second = OUTPUTS.search(body["messages"][-1]["content"]).groups()
            z = logit(first, second)
            likely = [
                {"token": "M", "logprob": -math.log1p(math.exp(z)) - 0.01},
                {"token": "The", "logprob": -9.0},
                {"token": "m", "logprob": -math.log1p(math.exp(-z)) - 0.01},
            ]
            content["choices"][0]["logprobs"] = {"content": [{"top_logprobs": likely}]}
        return json.dumps(content)


def label(first, second):
    gap = quality(first) - quality(second)
    if abs(gap) < 0.05:
        return "A=B"
    strong = ">>" if abs(gap) > 0.4 else ">"
    return f"A{strong}B" if gap > 0 else f"B{strong}A"


def arena_judge(body):
    """Quotes both answers around its verdict, the way a real judge may."""
    first, second = ANSWERS.search(body["messages"][-1]["content"]).groups()
    verdict = f"My final verdict is: [[{label(first, second)}]]"
    style = int(quality(first + second) * 4)
    return (
        f"{first}\n{verdict}",
        f"{verdict}\nFor B says:\n{second}",
        f"{second}\n{verdict}\n{first}",
        f"A says {first}\nB says {second}\n{verdict}",
    )[style]


class ArenaServer(FaultServer):
    """Its wrong verdicts hold no label at all."""

    def __init__(self, answer=arena_judge, **settings):
        super().__init__(answer, **settings)

    def _completion(self, path, body, text=None):
        return super()._completion(path, body, text and "VERDICT: A, or [A], or A>B")


def caller_of(server, store, caller, **limits):
    """A cached caller on a clock that passes only while everybody sleeps."""
    clock = VirtualClock(lambda: server.hanging)
    return CachedCaller(Watched(caller, clock), store, Limits(**limits), clock)
