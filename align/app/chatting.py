# pyright: basic
"""`align chat`: a conversation in the terminal, with one model or with two beside each other.

On a terminal questions are typed and answers come word by word; Ctrl-C ends an answer, not the
program. From a pipe each line is a question or a command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from align.app.named_models import DType, NamedModel, named_model
from align.data.messages import Message
from align.data.problems import RowProblem
from align.errors import RecipeError
from align.policies.base import Sampling
from align.policies.start import AdapterOff
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Stem

HELP = """/reset          forget the conversation
/system TEXT    begin anew under a system message; without TEXT, without one
/save FILE      append the conversation to FILE, one JSON line
/help           this list
/quit           leave (also Ctrl-D); Ctrl-C ends an answer"""


@dataclass
class Speaker:
    """One model in a conversation.

    Attributes:
        name: how it is shown.
        writer: it, loaded.
        said: the conversation with it, without a system message.
    """

    name: str
    writer: InProcessWriter
    said: list[Message] = field(default_factory=list[Message])


def chat(
    model: str,
    compare: str | None,
    *,
    system: str | None,
    sampling: Sampling,
    seed: int,
    dtype: DType | None,
    base: str | None,
) -> None:
    """Talks until /quit or the end of the input.

    Args:
        model: as `named_model` takes it.
        compare: a second model, which is asked the same.
        system: the system message; None leaves it to the chat template.
        sampling: how answers are drawn.
        seed: of the draws: the same questions get the same answers.
        dtype: as `named_model` takes it.
        base: of `model`, likewise.

    Raises:
        RecipeError: no such model, or one without a chat template.
    """
    named = [named_model(model, base=base, dtype=dtype)]
    if compare is not None:
        named.append(named_model(compare, dtype=dtype))
    talk = Talk(_speakers(named), sampling, seed, sys.stdout)
    if system is not None:
        talk.system = Message(role="system", content=system)
    is_typed = sys.stdin.isatty()
    if is_typed:
        talk.write(f"{' and '.join(one.word for one in named)}. /help lists the commands.\n")
    for line in _typed() if is_typed else _piped(talk.write):
        if not talk.hear(line):
            return


def _speakers(named: Sequence[NamedModel]) -> list[Speaker]:
    """The models, loaded; an adapter beside its own base is loaded once, for both.

    Raises:
        RecipeError: one is no chat model.
    """
    tokenizers = [_chat_tokenizer(one) for one in named]
    adapters = [one for one in named if one.base is not None]
    bases = [one for one in named if one.base is None]
    shared = adapters and bases and _is_base_of(bases[0], adapters[0])
    models = {one.word: one.model() for one in (adapters if shared else named)}
    if shared:
        models[bases[0].word] = AdapterOff(models[adapters[0].word])
    return [
        Speaker(one.word, InProcessWriter(models[one.word], tokenizer, rows=1))
        for one, tokenizer in zip(named, tokenizers, strict=True)
    ]


def _is_base_of(base: NamedModel, adapter: NamedModel) -> bool:
    assert adapter.base is not None
    if not Path(base.folder).is_dir():
        return base.folder == adapter.base
    return Path(base.folder).resolve() == Path(adapter.base).resolve()


def _chat_tokenizer(named: NamedModel) -> Any:
    tokenizer = named.tokenizer()
    word = named.word
    if hasattr(tokenizer, "image_processor"):
        raise RecipeError(f"{word} reads pictures, and `align chat` talks with text models only.")
    if tokenizer.chat_template is None:
        raise RecipeError(
            f"{word} has no chat template, so it does not know turns: it is no chat model. Let it "
            f"continue texts with `align generate {word} PROMPTS`."
        )
    return tokenizer


def _typed() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` its line editing
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n/quit leaves.\n")


def _piped(write: Callable[[str], None]) -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            write(f"> {line.strip()}\n")
            yield line


class Talk:
    """A conversation with one or two models.

    Args:
        speakers: who answer, in this order.
        sampling: how.
        seed: of the draws.
        to: where answers are written.
    """

    def __init__(self, speakers: list[Speaker], sampling: Sampling, seed: int, to: TextIO) -> None:
        self.speakers = speakers
        self.sampling = sampling
        self.seed = seed
        self.system: Message | None = None
        self._to = to

    def write(self, text: str) -> None:
        """Shows `text` at once."""
        self._to.write(text)
        self._to.flush()

    def hear(self, line: str) -> bool:
        """Answers a question or obeys a command; False where it is to leave."""
        line = line.strip()
        if not line.startswith("/"):
            if line:
                self._ask(line)
            return True
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        match command:
            case "/quit":
                return False
            case "/reset":
                self._forget()
            case "/system":
                self._forget()
                self.system = Message(role="system", content=rest) if rest else None
            case "/save":
                self._save(rest)
            case "/help":
                self.write(HELP + "\n")
            case _:
                self.write(f"There is no command {command}. They are:\n{HELP}\n")
        return True

    def _forget(self) -> None:
        for speaker in self.speakers:
            speaker.said.clear()
        self.write("(a new conversation)\n")

    def _ask(self, question: str) -> None:
        for speaker in self.speakers:
            if len(self.speakers) > 1:
                self.write(f"[{speaker.name}]\n")
            asked = Message(role="user", content=question)
            pieces: list[str] = []

            def say(piece: str, pieces: list[str] = pieces) -> None:
                pieces.append(piece)
                self.write(piece)

            note = self._answer(speaker, asked, say)
            self.write("\n" if note is None else f"\n({note})\n")
            answer = "".join(pieces)
            if answer.strip():
                speaker.said += [asked, Message(role="assistant", content=answer)]

    def _answer(self, speaker: Speaker, asked: Message, say: Callable[[str], None]) -> str | None:
        """Lets a speaker answer; what is to be remarked, if anything."""
        beginning = [] if self.system is None else [self.system]
        turns = (*beginning, *speaker.said, asked)
        try:
            ids = speaker.writer.prompt_ids(turns)
        except RowProblem as problem:
            return f"the model's chat template cannot take that: {problem.detail}"
        stem = Stem(ids, (), f"turn {len(turns)}")
        room = speaker.writer.room(stem)
        if room < 1:
            return f"the conversation of {len(ids)} tokens fills the model's context; /reset"
        how = self.sampling.model_copy(
            update={"max_new_tokens": min(self.sampling.max_new_tokens, room)}
        )
        try:
            drawn = speaker.writer.stream(Draw(stem, 1, how), self.seed, say)
        except KeyboardInterrupt:
            return "stopped"
        if drawn.finish == "length":
            return f"cut at {how.max_new_tokens} tokens"
        return None if drawn.text.strip() else "no answer: it ended at once"

    def _save(self, name: str) -> None:
        if not name:
            self.write("/save FILE: name a file.\n")
            return
        path = Path(name).expanduser()
        beginning = [] if self.system is None else [self.system]
        try:
            with path.open("a", encoding="utf-8") as file:
                for speaker in self.speakers:
                    row: dict[str, Any] = {
                        "model": speaker.name,
                        "messages": [
                            turn.model_dump(mode="json") for turn in (*beginning, *speaker.said)
                        ],
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            self.write(f"{path} cannot be written ({error.strerror}).\n")
            return
        self.write(f"(appended to {path})\n")
