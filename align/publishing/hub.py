"""Pushing a finished run to the Hub: one commit from saved files only, so it can be repeated."""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from httpx2 import TransportError
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from align.errors import AlignError, MachineError, RecipeError
from align.publishing.leaks import SHAPES, home_as_tilde, home_patterns, known_secrets
from align.publishing.publishable import File, choose, made_folder, publishable_files

log = logging.getLogger(__name__)
T = TypeVar("T")
ATTEMPTS = 5
RETRIED_STATUS = frozenset({408, 409, 412, 429, 500, 502, 503, 504})
LONGEST_WAIT_S = 120.0


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do.

    Attributes:
        repo: namespace/name.
        private: what the repository says of itself; in a dry run, what would be asked for.
        files: what is, or would be, in the commit.
        left_out: path in the run folder and reason, for everything else that lies there.
        left_in_repo: files of the repository that are not part of this push; they stay there.
        commit: the commit the repository stands at; None in a dry run.
        is_new_commit: False where the repository already held exactly this.
        url: where to look at it; None in a dry run.
    """

    repo: str
    private: bool
    files: tuple[File, ...]
    left_out: tuple[tuple[str, str], ...]
    left_in_repo: tuple[str, ...] = ()
    commit: str | None = None
    is_new_commit: bool = False
    url: str | None = None

    def listing(self) -> str:
        """What goes, what stays and why, one file per line."""
        kind = "private" if self.private else "PUBLIC"
        state = f"at commit {self.commit}" if self.commit else "dry run, nothing was sent"
        lines = [f"{self.repo} ({kind}; {state})"]
        for file in self.files:
            lines.append(
                f"  {file.name}  {file.size:,} bytes" + (f"  ({file.note})" * bool(file.note))
            )
        lines += [f"  not sent: {name}  ({reason})" for name, reason in self.left_out]
        lines += [f"  stays in the repository: {name}" for name in self.left_in_repo]
        return "\n".join(lines)


def push(
    run_dir: Path,
    repo: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> PushResult:
    """Send a finished run to the Hub as one commit; the same content again makes no new commit.

    Call it from the main process only: every process that calls it would push. A push that failed
    is simply repeated.

    Args:
        run_dir: the run's folder.
        repo: namespace/name.
        private: ask for a private repository. An existing public one is then refused.
        dry_run: check and list, without any connection.
        revision: branch; created where missing.
        token: access token; by default the one that `hf auth login` or HF_TOKEN gives.
        endpoint: address of another Hub; by default HF_ENDPOINT or huggingface.co.
        sleep: how to wait between attempts, in seconds.

    Raises:
        NotPublishable: see `publishable_files`.
        RecipeError: the repository's name or visibility does not fit.
        MachineError: no connection, no permission, or no answer after several attempts.
    """
    run_dir = Path(run_dir)
    kind = made_folder(run_dir)
    _check_address(repo, endpoint)
    secrets = [value for value in (token, get_token()) if value]
    files = tuple(publishable_files(run_dir, secrets=secrets))
    left_out = tuple(choose(run_dir)[1])
    if dry_run:
        return PushResult(repo, private, files, left_out)

    # repo_info is typed as the sum of all kinds of repositories.
    api: Any = HfApi(endpoint=endpoint, token=token, library_name="align-toolkit")
    hub = _Hub(run_dir, repo, api.endpoint, secrets, sleep)
    hub.call(
        "creating the repository",
        lambda: api.create_repo(repo, private=private, repo_type=kind, exist_ok=True),
    )
    info = hub.call(
        "reading the repository's visibility", lambda: api.repo_info(repo, repo_type=kind)
    )
    if private and info.private is not True:
        raise RecipeError(
            f"{repo} on {api.endpoint} is public (or does not say that it is private), and a "
            "private push was asked for. Nothing was sent. Make the repository private in its "
            f"settings, choose another name, or say that the {kind} may be public with "
            "hub.private=false; then " + hub.retry
        )
    if revision is not None:
        hub.call(
            "creating the branch",
            lambda: api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True),
        )
    head = hub.call(
        "reading the branch", lambda: api.repo_info(repo, revision=revision, repo_type=kind)
    )

    # create_commit and not upload_folder: that one may split into several commits (xet storage).
    # The operations are made anew for every attempt because huggingface_hub marks them as used.
    commit = hub.call(
        "sending the files",
        lambda: api.create_commit(
            repo,
            operations=[
                CommitOperationAdd(
                    path_in_repo=file.name,
                    path_or_fileobj=file.source if file.content is None else file.content,
                )
                for file in files
            ],
            commit_message=f"{kind.capitalize()}, card, recipe and metrics of one run",
            repo_type=kind,
            revision=revision,
        ),
    )
    sent = {file.name for file in files}
    left_in_repo = tuple(
        sibling.rfilename
        for sibling in head.siblings or []
        if sibling.rfilename not in sent and sibling.rfilename != ".gitattributes"
    )
    if left_in_repo:
        log.warning(
            "%s also holds files that are not part of this run: %s. They stay; delete them there "
            "if they are of an earlier model.",
            repo,
            ", ".join(left_in_repo),
        )
    return PushResult(
        repo=repo,
        private=bool(info.private),
        files=files,
        left_out=left_out,
        left_in_repo=left_in_repo,
        commit=commit.oid,
        is_new_commit=commit.oid != head.sha,
        url=f"{api.endpoint}/{repo}" if kind == "model" else f"{api.endpoint}/datasets/{repo}",
    )


def _check_address(repo: str, endpoint: str | None) -> None:
    try:
        validate_repo_id(repo)
        fits = repo.count("/") == 1
    except HFValidationError:
        fits = False
    if not fits:
        raise RecipeError(
            f"hub.repo: {repo!r} is not the name of a repository. Write it as namespace/name, for "
            "example ana/llama3-rpo, with letters, digits, '-', '_' and '.' only."
        )
    if "@" in urllib.parse.urlsplit(endpoint or os.environ.get("HF_ENDPOINT", "")).netloc:
        raise RecipeError(
            "The Hub's address holds a user name or password, which every message would show. Give "
            "the bare address and log in with `hf auth login` or the variable HF_TOKEN."
        )


@dataclass(frozen=True)
class _Hub:
    """One push's conversation: attempts, waiting, and errors that hold no secret."""

    run_dir: Path
    repo: str
    endpoint: str
    secrets: Sequence[str]
    sleep: Callable[[float], None]

    @property
    def retry(self) -> str:
        return f"push again with `align push {home_as_tilde(self.run_dir)} --repo {self.repo}`."

    def call(self, doing: str, request: Callable[[], T]) -> T:
        """What `request` returns, after up to five attempts.

        Raises:
            AlignError: one paragraph without secrets.
        """
        failure = AlignError()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return request()
            except Exception as error:
                is_passing, wait, failure = self._judge(doing, error, attempt)
            if not is_passing or attempt == ATTEMPTS:
                break
            log.warning("%s: %s failed, attempt %d of %d", self.repo, doing, attempt, ATTEMPTS)
            self.sleep(wait)
        # Outside the except block on purpose: the caught error carries the request, with its
        # Authorization header, and would travel along as __context__.
        raise failure

    def _judge(self, doing: str, error: Exception, attempt: int) -> tuple[bool, float, AlignError]:
        """Whether another attempt may help, how long to wait (s), and what to tell the user."""
        # huggingface_hub wraps a failed upload of one file in a RuntimeError.
        wrapped = error.__cause__ if isinstance(error, RuntimeError) else None
        cause = wrapped if isinstance(wrapped, Exception) else error
        wait = float(2 ** (attempt - 1))
        at = f"{self.repo} on {self.endpoint}: {doing} failed"
        if isinstance(cause, OfflineModeIsEnabled):
            text = (
                f"{at}, because HF_HUB_OFFLINE is set. Nothing was sent. Unset it, and {self.retry}"
            )
            return False, wait, MachineError(text)
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            after = cause.response.headers.get("Retry-After", "")
            if after.isdigit():
                wait = min(max(wait, float(after)), LONGEST_WAIT_S)
            said = self._without_secrets(cause.server_message or "")
            answer = f"{at}: the Hub answered {status}" + (f" ({said})" if said else "")
            if status in RETRIED_STATUS:
                text = f"{answer}, {attempt} times. The run is saved whole; later, {self.retry}"
                return True, wait, MachineError(text)
            if status == 401:
                how = (
                    "Log in with `hf auth login`, or set HF_TOKEN to a token that may write; then "
                )
                return False, wait, MachineError(f"{answer}. {how}{self.retry}")
            if status == 403:
                how = (
                    f"The token may not write to {self.repo.split('/')[0]}: use one with write "
                    "permission there, or another namespace; then "
                )
                return False, wait, MachineError(f"{answer}. {how}{self.retry}")
            if status == 404:
                how = "Check the namespace, the name and the branch; then "
                return False, wait, RecipeError(f"{answer}. {how}{self.retry}")
            return False, wait, RecipeError(f"{answer}. Mend what it names; then {self.retry}")
        said = f"{type(cause).__name__}: {self._without_secrets(str(cause))}"
        if isinstance(cause, OSError | RuntimeError) or _is_transport_error(cause):
            text = (
                f"{at}, {attempt} times ({said}). The run is saved whole; when the network is "
                f"there, {self.retry}"
            )
            return True, wait, MachineError(text)
        return False, wait, RecipeError(f"{at} ({said}). Mend what it names; then {self.retry}")

    def _without_secrets(self, text: str) -> str:
        """One line of at most 300 characters, with every known or likely secret blotted out."""
        raw = " ".join(text.split()).encode("utf-8", errors="replace")
        for _, pattern in [*known_secrets(self.secrets), *SHAPES]:
            raw = pattern.sub(b"<secret>", raw)
        for _, pattern in home_patterns(is_vocabulary=False):
            raw = pattern.sub(b"~", raw)
        return raw.decode("utf-8", errors="replace")[:300]


def _is_transport_error(error: BaseException) -> bool:
    # A gateway's HTML page where JSON was expected ends in a JSONDecodeError.
    return isinstance(error, TransportError | json.JSONDecodeError)
