"""A real HTTP server on loopback that speaks OpenAI's interface and fails by a seeded script.

Which request fails, and how, depends on the request's body and on how often it came, never on the
order of arrival: a run with any number of connections meets the same faults.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

# What may happen to one request. The last two are whole, well-formed answers of the server.
FAULTS = (
    "429",
    "429 Retry-After",
    "500",
    "503",
    "timeout",
    "reset",
    "cut",
    "garbage",
    "refusal",
    "wrong verdict",
)
Script = Callable[[str, int], str | None]


def no_faults(_digest: str, _attempt: int) -> None:
    return None


def seeded(rate: float, seed: int, faults: Sequence[str] = FAULTS) -> Script:
    """Every request fails with probability `rate`, independently."""

    def script(digest: str, attempt: int) -> str | None:
        draw = random.Random(f"{seed}/{digest}/{attempt}")
        return draw.choice(faults) if draw.random() < rate else None

    return script


class FaultServer:
    """Answers every request with `answer(body)`, unless the script has a fault for it.

    Attributes:
        finish: the finish_reason of the true answers.
        delay: seconds before any answer.
        requests: how many arrived.
        answered: how many got the true answer, by the digest of their body.
        met: how often each fault was met.
        most_open: most requests that were open at the same time.
        hanging: requests that wait for their client to give up.
        bodies: of the requests, in the order of arrival.
        headers: of the latest request.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str], script: Script = no_faults) -> None:
        self.answer = answer
        self.script = script
        self.finish = "stop"
        self.delay = 0.0
        self.requests = 0
        self.answered: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.most_open = 0
        self.hanging = 0
        self.bodies: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self._attempts: Counter[str] = Counter()
        self._open = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultServer:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one_request(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _one_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)
        }
        content = await reader.readexactly(int(self.headers["content-length"]))
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            return await self._respond(head[0].split()[1], content, reader, writer)
        finally:
            self._open -= 1

    async def _respond(
        self, path: str, content: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        digest = hashlib.sha256(content).hexdigest()
        self.requests += 1
        attempt = self._attempts[digest]
        self._attempts[digest] += 1
        body = json.loads(content)
        self.bodies.append(body)
        fault = self.script(digest, attempt)
        if fault is not None:
            self.met[fault] += 1
        await asyncio.sleep(self.delay)
        match fault:
            case "timeout":
                self.hanging += 1
                try:
                    await reader.read()  # returns once the client has given up
                finally:
                    self.hanging -= 1
                return False
            case "reset":
                transport_socket = writer.get_extra_info("socket")
                lingering = struct.pack("ii", 1, 0)
                transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
                writer.transport.abort()
                return False
            case None:
                self.answered[digest] += 1
                return await self._send(writer, 200, self._completion(path, body))
            case "refusal":
                return await self._send(writer, 200, self._refusal())
            case "wrong verdict":
                text = "VERDICT 00000000: A\nVERDICT: B\n" + self.answer(body).replace(": ", ":: ")
                return await self._send(writer, 200, self._completion(path, body, text))
            case "empty":
                return await self._send(writer, 200, self._completion(path, body, "  \n"))
            case "garbage":
                return await self._send(writer, 200, "<html>busy \u2026</html>")
            case "not a completion":
                return await self._send(writer, 200, json.dumps({"choices": [{"message": 5}]}))
            case "cut":
                whole = self._completion(path, body).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                    + str(len(whole)).encode()
                    + b"\r\n\r\n"
                    + whole[: len(whole) // 2]
                )
                await writer.drain()
                return False
            case "429 Retry-After":
                return await self._send(writer, 429, '{"error": {}}', "Retry-After: 2\r\n")
            case _:
                error = json.dumps({"error": {"message": f"scripted {fault} {self._secret()}"}})
                return await self._send(writer, int(fault), error)

    def _secret(self) -> str:
        """The client's key: a server that repeats it must not get it into a message."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def _completion(self, path: str, body: dict[str, Any], text: str | None = None) -> str:
        text = self.answer(body) if text is None else text
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish}
        if path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        return json.dumps({"object": "x", "choices": [choice], "usage": usage})

    def _refusal(self) -> str:
        message = {"role": "assistant", "content": None, "refusal": "I will not."}
        return json.dumps({"choices": [{"finish_reason": "stop", "message": message}]})

    async def _send(
        self, writer: asyncio.StreamWriter, status: int, text: str, header: str = ""
    ) -> bool:
        data = text.encode()
        kind = "application/json" if text.startswith("{") else "text/html"
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{header}"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        await writer.drain()
        return True
