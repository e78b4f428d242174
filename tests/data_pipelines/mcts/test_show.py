from html.parser import HTMLParser

from align.data.questions import Question
from align_data.mcts.settings import XieSettings
from align_data.mcts.show import tree_as_html, tree_as_text
from align_data.mcts.stage import MCTS, AgentQ
from align_data.mcts.work import MCTSWork
from tests.data_pipelines.mcts.scripted_writer import Says, ScriptedWriter, every_step

OPTIONS = {
    "": ["a < b\n", "c & d\n"],
    "a < b\n": ["yes$"],
    "c & d\n": ["no$"],
}


def record():
    settings = XieSettings(confidence="none", first_breadth=2, root_simulations=8)
    writer = ScriptedWriter(every_step(OPTIONS))
    job = MCTSWork(settings, writer, Says(lambda t: "yes" in t), seed=0, config_hash="x")
    [one] = job([Question(prompt="<q>?", source="test", row=1)])
    return one.record


def test_as_text():
    head, *lines = tree_as_text(record()).splitlines()
    assert head.startswith("<q>?")
    assert head.endswith("answer right]")
    assert [line[:6].split("[")[0] for line in lines] == [
        "├─*",
        "│  └─*",
        "└─ ",
        "   └─ ",
    ]
    assert lines[0].endswith("a < b\\n")
    assert "Q +1.00" in lines[1]
    assert "right" in lines[1]
    assert "Q -1.00" in lines[3]
    assert "wrong" in lines[3]
    assert lines[2].endswith("c & d\\n")


def test_as_html():
    text = tree_as_html(record())
    assert "a &lt; b\\n" in text
    assert "<q>" not in text
    assert text.count("<details open>") == 1

    opened: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag, attrs):
            opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Balanced().feed(text)
    assert opened == []


def test_the_stages_of_both_searches_show_their_records():
    tree = record()
    for node in (MCTS, AgentQ, MCTS(verify="world")):
        assert node.show(tree, as_html=False) == tree_as_text(tree)
        assert node.show(tree, as_html=True) == tree_as_html(tree)
