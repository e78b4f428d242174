"""What a chat template must be like for any row: told before the first one is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.data.messages import Message
from align.data.problems import RowProblem
from align.errors import DataError
from align.tokens.chat_template import ANSWER, ChatTemplate, probe
from align.tokens.control_tokens import ControlTokens
from align.tokens.text_ids import TextIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_template(
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    texts: TextIds,
    control: ControlTokens,
) -> None:
    """Refuse a template that cannot hold one end token.

    Raises:
        DataError: no conversation can be used with this tokenizer.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            "The rows are conversations and the tokenizer has no chat template: choose an "
            "instruction-tuned model, set tokenizer.chat_template, or give the rows as plain "
            "text (prompt, chosen and rejected as strings)."
        )
    prompt = probe(("user",))
    answer = Message(role="assistant", content=ANSWER)
    try:
        before = template.render(prompt, "generation")
        after = template.render((*prompt, answer), "conversation")
    except RowProblem as problem:
        raise DataError(
            f"The tokenizer's chat template cannot render one question and its answer "
            f"({problem.detail}): mend tokenizer.chat_template, or give the rows as plain text."
        ) from problem
    lead, found, _ = after.removeprefix(before).partition(answer.content)
    trouble = None
    if not after.startswith(before):
        trouble = "renders the question in another way once it is answered"
    elif not found:
        trouble = "does not write the answer's text as it is"
    elif control.spelling.search(lead):
        trouble = (
            "opens the assistant's turn only with the answer: it ignores add_generation_prompt"
        )
    elif control.count(texts.ids(after)) == control.count(texts.ids(before)):
        trouble = "writes no end token behind an answer, so generation would never stop"
    bos = tokenizer.bos_token_id
    if trouble is None and bos is not None and texts.ids(before)[:2] == [bos, bos]:
        trouble = "writes the beginning-of-sequence token twice"
    if trouble is not None:
        raise DataError(
            f"The tokenizer's chat template {trouble}. Training on it would show the model a "
            "context that generation never makes: mend tokenizer.chat_template, or give the "
            "rows as plain text."
        )
