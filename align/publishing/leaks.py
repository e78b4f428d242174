"""Secrets and the home folder's path in bytes that are about to leave the machine.

What is looked for: the shapes of well-known tokens, also in base64, and the values of the
environment's variables that are named like secrets, in every form in which a file may hold them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_NOT_SECRET_NAME = re.compile(r"^TOKENIZERS_|KEYBOARD|KEYMAP", re.IGNORECASE)
_TOKEN_SHAPES = (
    ("a Hugging Face token", rb"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    ("an API key (sk-...)", rb"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}"),
    ("an AWS access key", rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("an AWS secret key", rb"(?i:aws_secret_access_key)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+=]{40}"),
    ("a GitHub token", rb"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    ("a GitLab token", rb"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", rb"(?<![A-Za-z0-9])xox[abeprs]-[A-Za-z0-9-]{10,}"),
    ("a Google API key", rb"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}"),
    (
        "an Authorization header",
        rb"(?i:authorization)[\"']?\s*[:=]\s*[\"']?(?i:bearer|basic)\s+\S{8,}",
    ),
    ("a private key", rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    ("a signed web token", rb"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
    ("a password in an address", rb"[a-z][a-z0-9+.-]{1,15}://[^\s/:@\"'<>{}]+:[^\s/@\"'<>{}]{3,}@"),
)
SHAPES = tuple((what, re.compile(shape)) for what, shape in _TOKEN_SHAPES)


def known_secrets(secrets: Sequence[str]) -> list[tuple[str, re.Pattern[bytes]]]:
    """What to call each known secret, and the pattern of every form it may stand in."""
    named = [("the access token of this push", secret) for secret in secrets]
    named += [
        (f"the value of the environment variable {name}", value)
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and not _NOT_SECRET_NAME.search(name)
    ]
    return [
        (what, re.compile(b"|".join(re.escape(form) for form in _forms(value))))
        for what, value in named
        if len(value) >= 8
    ]


def _forms(value: str) -> set[bytes]:
    """The ways in which a secret may stand in a file: plain, escaped, hexadecimal, base64."""
    raw = value.encode("utf-8", errors="surrogateescape")
    forms = {raw, json.dumps(value)[1:-1].encode(), raw.hex().encode()}
    forms.add(urllib.parse.quote(raw, safe="").encode())
    for shift in range(3):
        # Inside a longer text the value may begin at any of three places of a base64 group; of its
        # code only the characters that no neighbour touches are sure.
        first = (0, 2, 3)[shift]
        last = (0, 3, 2)[(shift + len(raw)) % 3]
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            code = encode(b"\0" * shift + raw)
            forms.add(code[first : len(code) - last])
    return forms


def secrets_in(
    content: bytes, needles: Sequence[tuple[str, re.Pattern[bytes]]], *, is_vocabulary: bool
) -> Iterator[tuple[str, int]]:
    """(what, position) of everything found in `content`."""
    for what, pattern in [*needles, *home_patterns(is_vocabulary=is_vocabulary)]:
        match = pattern.search(content)
        if match:
            yield what, match.start()
    if is_vocabulary:
        return
    for run in re.finditer(rb"[A-Za-z0-9+/_-]{24,}={0,2}", content):
        code = run.group().rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
        decoded = base64.b64decode(code[: len(code) - len(code) % 4] + _tail(code))
        for what, pattern in SHAPES:
            if pattern.search(decoded):
                yield f"{what} in base64", run.start()


def _tail(code: bytes) -> bytes:
    rest = code[len(code) - len(code) % 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""


def home_patterns(*, is_vocabulary: bool) -> Iterator[tuple[str, re.Pattern[bytes]]]:
    """Patterns of the home folder's path."""
    for home in {str(Path.home()), os.environ.get("HOME", "")}:
        if len(home) > 1:
            after = rb"/\w" if is_vocabulary else rb"(?![\w-])"
            yield "the path of the home folder", re.compile(re.escape(os.fsencode(home)) + after)


def home_as_tilde(path: Path) -> str:
    """`path` as a shell takes it, without naming the home folder."""
    text, home = str(path), str(Path.home())
    if len(home) > 1 and (text == home or text.startswith(home + "/")):
        return "~" + text[len(home) :]
    return text
