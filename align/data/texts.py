"""What the texts of a row must be: a prompt that asks, completions that answer it."""

from __future__ import annotations

from collections.abc import Container, Mapping

from align.data.messages import LONE_SURROGATE, Text
from align.data.problems import RowProblem
from align.data.row_policy import OnEmpty


def check_texts(
    prompt: Text,
    completions: Mapping[str, Text],
    pictured: Container[int] = (),
    on_empty: OnEmpty = "drop",
) -> None:
    """Raise the first thing that is wrong with a row's texts.

    Args:
        prompt: what every completion continues.
        completions: each by what errors call it.
        pictured: numbers of the prompt's messages that show a picture, which may say nothing else.
        on_empty: as in `RowPolicy`.

    Raises:
        RowProblem: `bad_unicode`, `wrong_roles`, `empty_prompt` or `empty_completion`.
    """
    _check_unicode(prompt, "prompt")
    _check_prompt(prompt, pictured, on_empty)
    for at, completion in completions.items():
        _check_unicode(completion, at)
        _check_completion(completion, at)


def _check_unicode(text: Text, at: str) -> None:
    messages = (
        (("", text),)
        if isinstance(text, str)
        else tuple((f"[{i}].content", message.content) for i, message in enumerate(text))
    )
    for where, content in messages:
        found = LONE_SURROGATE.search(content)
        if found:
            raise RowProblem(
                "bad_unicode", at + where, f"lone surrogate at character {found.start() + 1}"
            )


def _check_prompt(prompt: Text, pictured: Container[int], on_empty: OnEmpty) -> None:
    if isinstance(prompt, str):
        if not prompt.strip() and on_empty != "keep_prompt":
            raise RowProblem("empty_prompt", "prompt", f"{len(prompt)} characters, all white space")
        return
    if not prompt:
        raise RowProblem("empty_prompt", "prompt", "no message")
    for i, message in enumerate(prompt):
        if message.role == "system" and i > 0:
            raise RowProblem("wrong_roles", f"prompt[{i}].role", "a system turn that is not first")
        silent = not message.content.strip() and i not in pictured
        if message.role in ("user", "assistant") and silent:
            raise RowProblem("empty_prompt", f"prompt[{i}].content", f"empty {message.role} turn")
    if prompt[-1].role not in ("user", "tool"):
        raise RowProblem(
            "wrong_roles",
            f"prompt[{len(prompt) - 1}].role",
            f"the prompt ends with a {prompt[-1].role} turn, so there is nothing to answer",
        )


def _check_completion(completion: Text, at: str) -> None:
    if isinstance(completion, str):
        if not completion.strip():
            raise RowProblem(
                "empty_completion", at, f"{len(completion)} characters, all white space"
            )
        return
    if not completion:
        raise RowProblem("empty_completion", at, "no message")
    if len(completion) != 1 or completion[0].role != "assistant":
        roles = ", ".join(message.role for message in completion[:4])
        raise RowProblem(
            "wrong_roles",
            at,
            f"{len(completion)} turns ({roles}); a completion is one assistant turn",
        )
    if not completion[0].content.strip():
        raise RowProblem("empty_completion", f"{at}[0].content", "empty assistant turn")
