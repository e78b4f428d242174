"""`align chat` with piped lines: history, commands, two models, and an answer that is stopped."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from align.app.chatting import Speaker, Talk
from align.app.cli import main
from align.data.messages import Message
from align.policies.base import Sampling
from align.policies.token_writer import InProcessWriter
from align.policies.writer import Draw, Stem
from align.stages import policies
from tests import tiny_loops, tiny_models


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Function: lines from a pipe and further words of the command -> exit code, stdout, stderr."""

    def run(lines: str, *words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        code = 0
        try:
            main(["chat", *map(str, words), "--max-new-tokens", "8"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def talk(policy: Path) -> Talk:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(policy)
    writer = InProcessWriter(model, tiny_loops.letters_tokenizer(), rows=1)
    sampling = Sampling(max_new_tokens=8, temperature=0.0)
    return Talk([Speaker("it", writer)], sampling, 0, io.StringIO())


def shown(talk: Talk) -> str:
    to: Any = talk._to
    return to.getvalue()


def test_each_line_is_a_question_and_the_conversation_goes_on(
    policy: Path, tmp_path: Path, chat: Any
) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = f"abc\n\nbcd\n/save {saved}\n/quit\nnever\n"
    code, said, _ = chat(lines, policy, "--temperature", 0)
    assert code == 0
    assert "never" not in said
    (row,) = [json.loads(line) for line in saved.read_text().splitlines()]
    turns = row["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [turn["content"] for turn in turns[::2]] == ["abc", "bcd"]
    answers = [turn["content"] for turn in turns[1::2]]
    assert said == (
        f"> abc\n{answers[0]}\n> bcd\n{answers[1]}\n> /save {saved}\n(appended to {saved})\n"
        "> /quit\n"
    )
    # The end of the pipe ends it too, and the same questions get the same answers.
    code, again, _ = chat("abc\nbcd\n", policy, "--temperature", 0)
    assert code == 0
    assert again == said[: len(again)]


def test_the_second_question_is_asked_behind_the_first(talk: Talk) -> None:
    seen: list[tuple[str, ...]] = []
    writer = talk.speakers[0].writer
    prompt_ids = writer.prompt_ids

    def watching(prompt: Any) -> Any:
        seen.append(tuple(f"{turn.role} {turn.content}" for turn in prompt))
        return prompt_ids(prompt)

    writer.prompt_ids = watching  # type: ignore[method-assign]
    for line in ("abc", "bcd", "/system ab", "abc", "/reset", "abc", "/system", "abc"):
        assert talk.hear(line)
    first = seen[1][1].removeprefix("assistant ")
    assert first
    assert seen == [
        ("user abc",),
        ("user abc", f"assistant {first}", "user bcd"),
        ("system ab", "user abc"),
        ("system ab", "user abc"),
        ("user abc",),
    ]


def test_two_models_answer_beside_each_other(
    tmp_path: Path, chat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_models.build_llama(tmp_path / "base")
    adapter = tiny_models.build_adapter(tmp_path / "adapter", base)
    saved = tmp_path / "talk.jsonl"
    code, said, _ = chat(
        f"What is it?\n/save {saved}\n", adapter, "--compare", base, "--system", "Be kind."
    )
    assert code == 0
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["model"] for row in rows] == [str(adapter), str(base)]
    assert [row["messages"][0]["content"] for row in rows] == ["Be kind."] * 2
    answers = [row["messages"][-1]["content"] for row in rows]
    assert answers[0] != answers[1]
    # Alone each says the same as beside the other; the base is in memory once.
    for model, expected in ((adapter, answers[0]), (base, answers[1])):
        _, alone, _ = chat("What is it?\n", model, "--system", "Be kind.")
        assert expected in alone
    loaded: list[str] = []
    load = policies.load_policy
    monkeypatch.setattr(
        policies, "load_policy", lambda s, folder: loaded.append(folder) or load(s, folder)
    )
    chat("What is it?\n", base, "--compare", adapter)
    assert loaded == [str(base)]
    order = [said.index(text) for text in (f"[{adapter}]", answers[0], f"[{base}]", answers[1])]
    assert order == sorted(order)


def test_ctrl_c_ends_the_answer_and_not_the_program(talk: Talk) -> None:
    pieces: list[str] = []
    write = talk.write

    def impatient(text: str) -> None:
        write(text)
        pieces.append(text)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    talk.sampling = Sampling(max_new_tokens=8, temperature=1.0)
    for talk.seed in range(40):
        talk.hear("/reset")
        talk.hear("abc")
        (_, whole) = talk.speakers[0].said
        if len(whole.content) > 2:
            break
    talk.hear("/reset")
    talk.write = impatient  # type: ignore[method-assign]
    assert talk.hear("abc")
    assert shown(talk).endswith(f"{whole.content[:2]}\n(stopped)\n")
    # What was said of it stays in the conversation.
    assert talk.speakers[0].said == [
        Message(role="user", content="abc"),
        Message(role="assistant", content=whole.content[:2]),
    ]
    assert talk.hear("bcd")


def test_commands_that_are_none_and_files_that_cannot_be_written(
    talk: Talk, tmp_path: Path
) -> None:
    assert talk.hear("/sing")
    assert "There is no command /sing" in shown(talk)
    assert talk.hear("/save")
    assert "name a file" in shown(talk)
    assert talk.hear(f"/save {tmp_path}/no/such/place")
    assert "cannot be written" in shown(talk)
    assert talk.hear("/help")
    assert not talk.hear("/quit")


def test_a_full_context_and_a_cut_answer_are_said(talk: Talk) -> None:
    talk.sampling = Sampling(max_new_tokens=1, temperature=0.0)
    talk.hear("abc")
    assert "(cut at 1 tokens)" in shown(talk)
    talk.hear("a" * 70)
    assert "fills the model's context" in shown(talk)
    # A question that was not answered is not remembered.
    assert len(talk.speakers[0].said) == 2


def test_a_model_without_turns_is_refused(tmp_path: Path, chat: Any) -> None:
    base = tiny_models.build_llama(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    code, _, said = chat("abc\n", base)
    assert code == 2
    assert "align generate" in said


def test_broken_characters_are_held_back_until_they_are_whole(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_models.build_llama(tmp_path / "base", initializer_range=0.02)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    writer = InProcessWriter(model, AutoTokenizer.from_pretrained(base), rows=1)
    stem = Stem(writer.prompt_ids((Message(role="user", content="a"),)), (), "a")
    for seed in range(5):
        # A random model draws bytes that are no characters, and some that are parts of one.
        pieces: list[str] = []
        request = Draw(stem, 1, Sampling(max_new_tokens=60))
        drawn = writer.stream(request, seed, pieces.append)
        assert "".join(pieces) == drawn.text
        assert all(not piece.endswith("\ufffd") for piece in pieces[:-1])
