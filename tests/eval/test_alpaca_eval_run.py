"""AlpacaEval runs end to end, against a local judge that fails 30 % of all requests."""

import builtins
import gzip
import json
import math
from pathlib import Path

import pytest

from align.errors import DataError, MachineError, RecipeError
from align.policies.base import Failed, Sampling, completion_of
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore
from align.servers.endpoint import Endpoint, OpenAICaller
from align_eval.alpaca_eval import package, prompts_of
from align_eval.alpaca_eval.annotator import JudgeCaller, Pairing, messages_of
from align_eval.alpaca_eval.run import AlpacaEval, outputs_of, run_alpaca_eval
from align_eval.outputs import generate_outputs
from tests.align.judges.fault_server import FAULTS, FaultServer, seeded
from tests.eval.judge_servers import LogprobServer, caller_of, logit, names_the_better


def files(tmp_path, n, *, left_out=0):
    reference, ours = (
        [
            {"dataset": "d", "instruction": f"do {i}", "output": f"{name} {i}", "generator": name}
            for i in range(n)
        ]
        for name in ("base", "mine")
    )
    (tmp_path / "base.json").write_text(json.dumps(reference))
    # In another order, as published files are now and then.
    (tmp_path / "mine.json").write_text(json.dumps(ours[::-1][left_out:]))
    return str(tmp_path / "base.json"), str(tmp_path / "mine.json")


def node_of(server, reference, outputs, **settings):
    endpoint = Endpoint(base_url=server.url, model="judge", revision="1", timeout=1.5)
    return AlpacaEval(
        reference_outputs=reference,
        outputs=outputs,
        annotator=endpoint,
        **{"runner": "own", "max_failed": 0.0, **settings},
    )


def run(node, server, folder, **limits):
    with CallStore(folder / "calls.sqlite") as store:
        caller = caller_of(server, store, node.judge_caller(), **limits)
        return run_alpaca_eval(node, outputs_of(node), caller, folder)


def switched(i):
    return Pairing(f"do {i}", "", "").is_switched


def truth(i, name="mine"):
    """The preference that the scripted judge has, whichever side it sees first."""
    return 1 + 1 / (1 + math.exp(logit(f"base {i}", f"{name} {i}")))


@pytest.mark.parametrize("reading", ["logprobs", "text"])
def test_a_run_with_faults_loses_nothing(tmp_path, reading):
    n = 50
    kind = LogprobServer if reading == "logprobs" else FaultServer
    arguments = () if reading == "logprobs" else (names_the_better,)
    with kind(*arguments, script=seeded(0.3, seed=0)) as server:
        node = node_of(server, *files(tmp_path, n), reading=reading)
        found = run(node, server, tmp_path / "run")
        assert sum(server.met.values()) > 20
        assert max(server.answered.values()) == 1
        assert sum(server.answered.values()) == n
        requests = server.requests
        assert run(node, server, tmp_path / "run") == found
        assert server.requests == requests
    assert (found["n"], found["n_judged"], found["n_failed"], found["flag"]) == (n, n, 0, None)
    exact = [truth(i) for i in range(n)]
    if reading == "text":
        exact = [float(round(value)) for value in exact]
    assert found["scores"]["win_rate"] == pytest.approx(100 * (sum(exact) / n - 1), abs=1e-9)
    rows = json.loads((tmp_path / "run" / "annotations.json").read_text())
    assert [row["preference"] for row in rows] == pytest.approx(exact, abs=1e-9)
    assert rows[0]["generator_1"] == "base"
    assert rows[0]["generator_2"] == "mine"
    provenance = found["provenance"]
    assert provenance["judge"]["base_url"] == server.url
    assert set(provenance["inputs"]) == {"reference_outputs", "outputs"}
    table = (tmp_path / "run" / "table.md").read_text()
    assert "offline estimate" not in table
    assert found["scores"]["length_controlled_win_rate"] is None
    assert "There is no length-controlled win rate" in table
    assert "df_gamed.csv" in table
    assert f"{n} rows, {n} judged, 0 failed" in table
    assert found["scores"]["low"] < found["scores"]["win_rate"] < found["scores"]["high"]
    # The scripted judge has no favourite place, and the order is drawn.
    order = found["order"]
    first = sum((value < 1.5) != switched(i) for i, value in enumerate(exact))
    assert (order["first"], order["untied"], order["both"]) == (first, n, 0)
    assert f"The output shown first won {first} of {n}" in table
    assert (tmp_path / "run" / "leaderboard.csv").read_text().startswith(",win_rate,standard_error")


@pytest.mark.e2e
def test_the_official_805_with_faults(tmp_path, shared_data):
    names = (
        "reference_gpt4_1106_preview_model_outputs.json.gz",
        "vicuna-7b-v1.5/model_outputs.json.gz",
    )
    paths = [str(shared_data / "alpaca_eval" / name) for name in names]
    with LogprobServer(script=seeded(0.3, seed=1)) as server:
        found = run(node_of(server, *paths), server, tmp_path)
        assert set(server.met) == set(FAULTS)
    assert (found["n"], found["n_judged"], found["n_failed"]) == (805, 805, 0)
    base, mine = (json.loads(gzip.decompress(Path(path).read_bytes())) for path in paths)
    ours = {row["instruction"]: row["output"] for row in mine}
    exact = [1 / (1 + math.exp(logit(row["output"], ours[row["instruction"]]))) for row in base]
    assert found["scores"]["win_rate"] == pytest.approx(100 * sum(exact) / 805, abs=1e-9)


def test_what_failed_is_counted_refused_and_alone_asked_again(tmp_path):
    n = 40
    doomed = {f"do {i}" for i in range(3)}

    def refuses(body_text):
        return any(f'"""{text}"""' in body_text for text in doomed)

    with LogprobServer() as server:
        seen = {}
        original = server._completion

        def completion(path, body, text=None):
            if refuses(body["messages"][-1]["content"]) and not seen.get("mended"):
                return server._refusal()
            return original(path, body, text)

        server._completion = completion
        node = node_of(server, *files(tmp_path, n), max_failed=0.01)
        with pytest.raises(DataError, match=r"3 of 40 failed \(7.5 %; 3 refused\).*only what fail"):
            run(node, server, tmp_path / "run", answer_tries=2)
        content = json.loads((tmp_path / "run" / "results.json").read_text())
        assert content["scores"] is None
        assert (content["n_judged"], content["n_failed"], content["reasons"]) == (
            37,
            3,
            {"refused": 3},
        )
        assert not (tmp_path / "run" / "table.md").exists()
        # With a wider limit the number comes with its flag.
        wide = node.model_copy(update={"max_failed": 0.1})
        flagged = run(wide, server, tmp_path / "run", answer_tries=2)
        assert "not comparable" in flagged["flag"]
        assert flagged["flag"] in (tmp_path / "run" / "table.md").read_text()
        requests = server.requests
        seen["mended"] = True
        whole = run(node, server, tmp_path / "run")
        assert server.requests == requests + 3
        assert (whole["n_judged"], whole["n_failed"], whole["flag"]) == (n, 0, None)


def test_missing_equal_and_empty_outputs(tmp_path):
    reference, outputs = files(tmp_path, 10, left_out=2)
    rows = json.loads((tmp_path / "mine.json").read_text())
    rows[0]["output"] = f"base {rows[0]['instruction'].split()[1]}"
    rows[1]["output"] = "  "
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    with LogprobServer() as server:
        found = run(node_of(server, reference, outputs, max_failed=1.0), server, tmp_path / "run")
        assert server.requests == 6
    assert found["reasons"] == {"no output": 1, "no output (not in the file)": 2}
    assert (found["n"], found["n_judged"], found["n_failed"]) == (10, 7, 3)
    assert found["scores"]["n_draws"] == 1


def test_foreign_and_repeated_instructions_are_refused(tmp_path):
    reference, outputs = files(tmp_path, 4)
    rows = json.loads((tmp_path / "mine.json").read_text())
    node = node_of(LogprobServerAddress, reference, outputs)
    for bad, words in (
        ([*rows, {**rows[0], "instruction": "another"}], "1 of 5 rows answer an instruction"),
        ([*rows, rows[0]], "row 5 has the instruction of an earlier row"),
        ([{**rows[0], "generator": "other"}, *rows[1:]], "names 2 generators"),
        ([{"output": "x"}], "has no instruction"),
    ):
        (tmp_path / "mine.json").write_text(json.dumps(bad))
        with pytest.raises(DataError, match=words):
            outputs_of(node)


class LogprobServerAddress:
    url = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(("answer", "fault"), [("m", None), ("\n", None), ("m", "400")])
def test_a_server_without_log_probs_is_named_at_the_first_answer(tmp_path, answer, fault):
    with FaultServer(lambda _: answer, lambda *_: fault) as server:
        # What a server says that knows the fields and does not offer them.
        server._secret = lambda: "logprobs are not supported"
        node = node_of(server, *files(tmp_path, 5))
        with pytest.raises(RecipeError, match=r"no top_logprobs.*reading: text"):
            run(node, server, tmp_path / "run", concurrency=1)
        assert server.requests == 1


def test_one_answer_without_log_probs_among_others_is_asked_again(tmp_path):
    with LogprobServer() as server:
        original, calls = server._completion, []

        def completion(path, body, text=None):
            calls.append(body)
            content = json.loads(original(path, body, text))
            if len(calls) == 3:
                del content["choices"][0]["logprobs"]
            return json.dumps(content)

        server._completion = completion
        node = node_of(server, *files(tmp_path, 6))
        found = run(node, server, tmp_path / "run", concurrency=1)
        assert (found["n_judged"], server.requests) == (6, 7)


def test_a_reading_of_log_probs_needs_its_own_caller(tmp_path):
    with FaultServer(names_the_better) as server:
        node = node_of(server, *files(tmp_path, 3))
        plain = OpenAICaller(node.annotator)
        outputs = outputs_of(node)
        with CallStore(tmp_path / "x.sqlite") as store:
            caller = CachedCaller(plain, store)
            with pytest.raises(RecipeError, match="judge_caller"):
                run_alpaca_eval(node, outputs, caller, tmp_path)
    assert isinstance(node.judge_caller(), JudgeCaller)


class Policy:
    identity = "a policy"

    def generate(self, prompts, n, sampling, seed):
        return [
            [
                Failed(p, 0, "unfinished", "")
                if p.row == 3
                else completion_of(
                    p, f"mine {p.prompt[0].content.split()[1]}", policy="x", sample=0
                )
            ]
            for p in prompts
        ]


def test_a_model_writes_its_own_outputs(tmp_path):
    reference, _ = files(tmp_path, 12)
    with LogprobServer() as server:
        node = node_of(server, reference, None, max_failed=0.1)
        with pytest.raises(RecipeError, match="outputs: is null"):
            outputs_of(node)
        outputs = generate_outputs(
            Policy(),
            prompts_of(node),
            generator="mine",
            sampling=Sampling(max_new_tokens=8),
            seed=0,
            source="alpaca_eval",
        )
        with CallStore(tmp_path / "calls.sqlite") as store:
            caller = caller_of(server, store, node.judge_caller())
            found = run_alpaca_eval(node, outputs, caller, tmp_path / "run")
    assert (found["n"], found["n_judged"], found["n_failed"]) == (12, 11, 1)
    assert found["reasons"] == {"no output (unfinished)": 1}
    written = json.loads((tmp_path / "run" / "model_outputs.json").read_text())
    assert len(written) == 11
    assert set(written[0]) == {"dataset", "instruction", "output", "generator"}
    exact = [truth(i) - 1 for i in range(12) if i != 2]
    assert found["scores"]["win_rate"] == pytest.approx(100 * sum(exact) / 11, abs=1e-9)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("x", name="pkg_resources"), "setuptools 81 and later"),
        (ModuleNotFoundError("x", name="alpaca_eval"), "cannot be imported.*runner: own"),
        (TypeError("multiple values for keyword"), "fails on import .TypeError"),
    ],
)
def test_a_package_that_cannot_be_used_is_told_in_one_sentence(monkeypatch, error, words):
    original = builtins.__import__

    def failing(name, *rest, **kwargs):
        if name == "alpaca_eval":
            raise error
        return original(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(MachineError, match=words):
        package.load_package()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("reading", ["logprobs", "text"])
def test_the_package_gives_what_our_own_run_gives(tmp_path, reading):
    pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed")
    kind = LogprobServer if reading == "logprobs" else FaultServer
    arguments = () if reading == "logprobs" else (names_the_better,)
    found, preferences = {}, {}
    with kind(*arguments) as server:
        for runner in ("own", "package"):
            node = node_of(server, *files(tmp_path, 30), reading=reading, runner=runner)
            found[runner] = run(node, server, tmp_path / runner)
            rows = json.loads((tmp_path / runner / "annotations.json").read_text())
            preferences[runner] = {row["instruction"]: row["preference"] for row in rows}
            assert found[runner]["provenance"]["runner"] == runner
    weights = [found[runner]["scores"].pop("length_controlled_weights") for runner in found]
    assert weights[0] == pytest.approx(weights[1])
    assert found["own"]["scores"] == pytest.approx(found["package"]["scores"])
    assert preferences["own"] == pytest.approx(preferences["package"])
    assert set(server.answered.values()) == {2}


@pytest.mark.filterwarnings("default")
def test_the_judge_reads_what_the_package_would_send(shared_data):
    pytest.importorskip("alpaca_eval", reason="alpaca-eval is not installed")
    import pandas as pd
    from alpaca_eval import constants, utils

    path = shared_data / "alpaca_eval" / "vicuna-7b-v1.5" / "annotations.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    template = constants.EVALUATORS_CONFIG_DIR / "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
    pairings = [Pairing(row["instruction"], row["output_1"], row["output_2"]) for row in rows]
    shown = [(p.model, p.baseline) if p.is_switched else (p.baseline, p.model) for p in pairings]
    table = pd.DataFrame(
        {
            "instruction": [p.instruction for p in pairings],
            "output_1": [first for first, _ in shown],
            "output_2": [second for _, second in shown],
        }
    )
    prompts, _ = utils.make_prompts(table, template.read_text())
    for prompt, pairing in zip(prompts, pairings, strict=True):
        ours = [message.model_dump() for message in messages_of(pairing)]
        assert utils.prompt_to_chatml(prompt) == ours
