"""A judge that reads what it is asked as a careful reader would: by the fences of its code."""

import re
from contextlib import asynccontextmanager

from align.servers.server import Reply

CODE = re.compile(r"the code ([0-9a-f]{8}), a colon, and A, B or TIE\.\Z")


def read(body):
    """(code, request, answer A, answer B) of a request's body."""
    text = body["messages"][-1]["content"]
    code = CODE.search(text)[1]
    parts = [
        re.search(rf"^<{name} {code}>\n(.*?)\n</{name} {code}>$", text, re.S | re.M)[1]
        for name in ("request", "answer A", "answer B")
    ]
    return code, *parts


def quality(answer):
    """The number in the answer's own mark, which no attack of the tests contains."""
    return int(re.search(r"\[quality (\d+)\]", answer)[1])


def winner(first, second):
    a, b = quality(first), quality(second)
    return "A" if a > b else "B" if b > a else "TIE"


def by_quality(body):
    code, _, first, second = read(body)
    return f"I looked at both.\nVERDICT {code}: {winner(first, second)}"


class InMemory:
    """A model server without a network: `answer` gets what would be the request's body."""

    model, revision, address = "judge", "1", "memory"

    def __init__(self, answer):
        self.answer = answer
        self.extra = {}
        self.bodies = []

    @asynccontextmanager
    async def connect(self):
        async def send(call):
            body = {"messages": [message.model_dump() for message in call.prompt]}
            self.bodies.append(body)
            return Reply(self.answer(body), "stop")

        yield send
