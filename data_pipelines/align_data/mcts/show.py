"""A saved tree to look at: as text, and as a piece of an HTML page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from align.data.messages import Message
from align.judges.table import question_of
from align_data.mcts.tree import Node, Tree

# Stands before a step that the search committed to.
_COMMITTED = "*"


def tree_as_text(record: Mapping[str, Any]) -> str:
    """The tree of `Built.record`, one line per node; `*` marks the path that was committed to."""
    tree = _tree(record)
    lines = [_head(record)]

    def write(node: Node, before: str) -> None:
        children = tree.children(node)
        for child in children:
            is_last = child is children[-1]
            mark = _COMMITTED if child.number in tree.committed else " "
            branch = "└─" if is_last else "├─"
            lines.append(f"{before}{branch}{mark}{_label(child)}  {_one_line(child.text)}")
            write(child, before + ("   " if is_last else "│  "))

    write(tree.root, "")
    return "\n".join(lines) + "\n"


def tree_as_html(record: Mapping[str, Any]) -> str:
    """The same as nested `<details>`, open along the committed path; no style of its own."""
    tree = _tree(record)

    def written(node: Node) -> str:
        on_path = node.number in tree.committed
        step = f"<code>{html.escape(_one_line(node.text))}</code>"
        if on_path:
            step = f"<strong>{step}</strong>"
        summary = f"{html.escape(_label(node))} {step}"
        if not node.children:
            return f"<li>{summary}</li>"
        inside = "".join(written(child) for child in tree.children(node))
        opened = " open" if on_path else ""
        return f"<li><details{opened}><summary>{summary}</summary><ul>{inside}</ul></details></li>"

    inside = "".join(written(child) for child in tree.children(tree.root))
    return f'<div class="search-tree"><p>{html.escape(_head(record))}</p><ul>{inside}</ul></div>\n'


def _tree(record: Mapping[str, Any]) -> Tree:
    return Tree.from_json({key: record[key] for key in ("nodes", "committed", "frozen")})


def _head(record: Mapping[str, Any]) -> str:
    prompt = record["prompt"]
    messages = (
        prompt if isinstance(prompt, str) else tuple(Message.model_validate(m) for m in prompt)
    )
    ended = {True: "right", False: "wrong", None: "not verified"}[record["right"]]
    return f"{_one_line(question_of(messages))}  [{record['tree_id']}, answer {ended}]"


def _label(node: Node) -> str:
    parts = [f"Q {node.q:+.2f}", f"N {node.visits}", f"p {node.prior:.2f}"]
    if node.confidence is not None:
        parts.append(f"C {node.confidence:.2f}")
    if node.rank_value is not None:
        parts.append(f"rank {node.rank_value:.2f}")
    if node.outcome is not None:
        parts.append("right" if node.outcome else "wrong")
    if node.is_cut:
        parts.append("cut off")
    return f"[{', '.join(parts)}]"


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
