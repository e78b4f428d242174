"""The search with a real model in process: tiny and random, so its answers do not matter."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.messages import Message
from align.data.questions import Question
from align.data.row_policy import RowPolicy
from align.forest import score_rows
from align.forest.rows import TokenRow
from align.policies.token_writer import InProcessWriter
from align.tokens.encoding import encode_pair
from align.worlds.bytes import Bytes
from align_data.mcts.settings import XieSettings
from align_data.mcts.verify import KnownAnswerVerifier, gsm8k_answer
from align_data.mcts.work import MCTSWork
from tests.data_pipelines.mcts.scripted_writer import Says

SETTINGS = XieSettings(
    first_breadth=3,
    depth=2,
    root_simulations=6,
    simulations=3,
    step_tokens=12,
    finish_tokens=16,
    pairs_from="all",
    keep_trees="all",
    min_visits=0,
)


@pytest.fixture(scope="module")
def writer():
    folder = Bytes().base_model()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return InProcessWriter(model, AutoTokenizer.from_pretrained(folder))


def asked(n):
    return [
        Question(prompt=(Message(role="user", content=f"Say {i}."),), source="test", row=i + 1)
        for i in range(n)
    ]


def shape(built):
    return [
        [
            (node["text"], node["ids"], node["visits"], node["children"])
            for node in one.record["nodes"]
        ]
        for one in built
    ]


def test_batches_change_no_tree_and_rows_train_as_they_were_drawn(writer):
    work = MCTSWork(SETTINGS, writer, Says(lambda t: len(t) % 2 == 0), seed=3, config_hash="x")
    questions = asked(5)
    together = work(questions)
    assert shape(together) == shape([one for q in questions for one in work([q])])
    assert [b.model_dump_json() for b in together] == [b.model_dump_json() for b in work(questions)]
    pairs = [pair for one in together for pair in one.pairs]
    assert len(pairs) > 5
    for pair in pairs:
        encoded = encode_pair(pair, writer.tokenizer, RowPolicy())
        assert tuple(encoded.prompt_ids) == pair.prompt_ids
        assert tuple(encoded.chosen_ids) == pair.chosen_ids
        assert tuple(encoded.rejected_ids) == pair.rejected_ids


def test_the_log_probs_of_the_nodes_are_the_models_own(writer):
    work = MCTSWork(SETTINGS, writer, Says(lambda t: True), seed=3, config_hash="x")
    [one] = work(asked(1))
    nodes = one.record["nodes"]
    prompt_ids = writer.prompt_ids(asked(1)[0].prompt)
    last = next(node for node in reversed(nodes) if not node["children"])
    path = [last]
    while path[0]["parent"]:
        path.insert(0, nodes[path[0]["parent"]])
    ids = [i for node in path for i in node["ids"]]
    logps = [p for node in path for p in node["logps"]]
    found = score_rows(writer.model, [TokenRow(list(prompt_ids), ids)]).total()
    assert sum(logps) == pytest.approx(float(found[0]), abs=1e-3)


def test_real_questions_run_end_to_end(writer, shared_data):
    lines = (shared_data / "gsm8k" / "gsm8k_test.jsonl").read_text().splitlines()[:6]
    rows = [json.loads(line) for line in lines]
    questions = [
        Question(
            prompt=(Message(role="user", content=row["question"]),),
            answer=gsm8k_answer(row["answer"]),
            solution=row["answer"],
            source="gsm8k",
            row=number,
        )
        for number, row in enumerate(rows, start=1)
    ]
    assert all(question.answer for question in questions)
    work = MCTSWork(SETTINGS, writer, KnownAnswerVerifier(), seed=0, config_hash="x")
    built = work(questions)
    assert [one.read for one in built] == [len(one.pairs) + len(one.dropped) for one in built]
    finished = [one for one in built if "nodes" in one.record]
    for one in finished:
        said = [node["confidence"] for node in one.record["nodes"][1:]]
        assert all(0 <= value <= 1 for value in said)
        # Random weights spread their probability.
        assert len({round(value, 6) for value in said}) > 1
        assert json.loads(json.dumps(one.record)) == one.model_dump(mode="json")["record"]
    assert finished
