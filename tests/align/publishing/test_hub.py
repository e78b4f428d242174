"""Pushing a run to a real HTTP server on this machine: what arrives, what never may."""

import base64
import importlib.util
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from align.errors import AlignError, DataError, MachineError, RecipeError
from align.publishing.cards import dataset_card, model_card, write_model_card
from align.publishing.hub import push
from align.publishing.origins import shown_name
from align.publishing.publishable import NotPublishable, publishable_files

REPO = "ana/sums-rpo"

# huggingface_hub 2.4.0 uploads git-LFS files with httpx2's old spelling `data=` (lfs.py,
# _upload_single_part).
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

# 12 canaries. Their parts are joined here so that no scanner of this repository mistakes them for
# real ones.
TOKEN = "hf_" + "StandInStandInStandInStandInStandIn01"
CANARIES = {
    "hub token": TOKEN,
    "hub token in base64": base64.b64encode(TOKEN.encode()).decode(),
    "openai key": "sk-" + "proj-Canary0123456789abcdefABCDEF",
    "aws key id": "AKIA" + "CANARY0123456789",
    "aws secret key": "aws_secret_access_key = " + "Canary/0123456789+abcdefghijABCDEFGHIJ01",
    "github token": "ghp_" + "Canary0123456789abcdefghijABCDEFGHIJ",
    "slack token": "xoxb-" + "0123456789-canary",
    "authorization header": "Authorization: Bearer " + "canary-0123456789",
    "password in an address": "https://ana:" + "canary-pass@example.org/x",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "variable of the environment": "0123456789canaryfromtheenvironment",
    "home folder": "/home/ana-canary/secret-project",
}


def _stand_in():
    path = Path(__file__).resolve().parents[2] / "stand_in_hub.py"
    spec = importlib.util.spec_from_file_location("stand_in_hub", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stand_in_hub"] = module
    spec.loader.exec_module(module)
    return module


stand_in = _stand_in()
Fault = stand_in.Fault


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    with stand_in.stand_in_hub() as server:
        yield server
    close_session()


@pytest.fixture
def canaries_in_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", CANARIES["variable of the environment"])
    monkeypatch.setenv("HOME", "/home/ana-canary")


def estimate(value, half_width, n=1024):
    return {"value": value, "low": value - half_width, "high": value + half_width, "n": n}


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "rpo-tiny"
    model = run / "model"
    model.mkdir(parents=True)
    save_file({"lm_head.weight": torch.arange(12.0)}, model / "model.safetensors")
    write(model / "config.json", {"model_type": "llama", "hidden_size": 128})
    write(model / "generation_config.json", {"eos_token_id": 1})
    write(model / "tokenizer.json", {"model": {"vocab": {"a": 0, "/root": 1}}})
    write(model / "tokenizer_config.json", {"eos_token": "<e>"})
    (model / "chat_template.jinja").write_text("{{ messages }}")
    recipe = {
        "model": {"model_name_or_path": "world:sums"},
        "data": {"pairs": "world:sums", "split": "train"},
        "objective": {"name": "rpo", "beta": 0.1, "eta": 0.01},
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    metrics = {
        "before": {"sums/sampled_accuracy": estimate(0.385, 0.03)},
        "after": {"sums/sampled_accuracy": estimate(0.522, 0.03)},
        "n": 1024,
        "seed": 0,
        "versions": {"trl": "1.16.0"},
        "data": {"read": 10, "kept": 8, "dropped": {"equal": 2}},
    }
    write(run / "metrics.json", metrics)
    write_model_card(run)
    return run


def write(path, node):
    path.write_text(json.dumps(node))


def make_adapter(run, base):
    model = run / "model"
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "config.json").unlink()
    write(model / "adapter_config.json", {"base_model_name_or_path": base, "r": 8})
    write_model_card(run)


PUBLISHED = [
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "metrics.json",
    "model.safetensors",
    "recipe.yaml",
    "tokenizer.json",
    "tokenizer_config.json",
]


def push_to(hub, run, **keywords):
    waits = keywords.pop("waits", [])
    keywords = {"token": TOKEN, "endpoint": hub.url, "sleep": waits.append, **keywords}
    return push(run, REPO, **keywords)


def test_exactly_the_files_arrive_in_one_commit_of_a_private_repository(hub, run_dir):
    result = push_to(hub, run_dir)
    repo = hub.repos[REPO]
    assert repo.private is True
    assert result.private is True
    assert json.loads(hub.seen("POST /api/repos/create")[0].body)["visibility"] == "private"
    assert len(repo.commits["main"]) == 1
    assert sorted(repo.branches["main"]) == PUBLISHED
    for name, content in repo.branches["main"].items():
        folder = run_dir if name in ("recipe.yaml", "metrics.json") else run_dir / "model"
        assert content == (folder / name).read_bytes(), name
    assert result.commit == repo.commits["main"][0].oid
    assert result.is_new_commit
    assert result.url == f"{hub.url}/{REPO}"


def test_the_same_content_again_makes_no_new_commit_and_a_change_makes_one(hub, run_dir):
    first = push_to(hub, run_dir)
    second = push_to(hub, run_dir)
    assert len(hub.repos[REPO].commits["main"]) == 1
    assert not second.is_new_commit
    assert second.commit == first.commit
    write(run_dir / "model" / "generation_config.json", {"eos_token_id": 2})
    third = push_to(hub, run_dir)
    assert third.is_new_commit
    assert list(hub.repos[REPO].commits["main"][1].changed) == ["generation_config.json"]


def test_a_branch_is_made_and_main_stays_empty(hub, run_dir):
    push_to(hub, run_dir, revision="seed-1")
    repo = hub.repos[REPO]
    assert sorted(repo.branches["seed-1"]) == PUBLISHED
    assert repo.branches["main"] == {}
    assert not push_to(hub, run_dir, revision="seed-1").is_new_commit


def test_a_dry_run_lists_everything_and_connects_to_nothing(hub, run_dir):
    torch.save({"a": 1}, run_dir / "model" / "training_args.bin")
    result = push_to(hub, run_dir, dry_run=True)
    assert hub.requests == []
    assert sorted(file.name for file in result.files) == PUBLISHED
    assert result.commit is None
    assert ("model/training_args.bin", "may be a pickle, which runs code when loaded") in (
        result.left_out
    )
    listing = result.listing()
    assert "ana/sums-rpo (private; dry run, nothing was sent)" in listing
    size = (run_dir / "model" / "model.safetensors").stat().st_size
    assert f"model.safetensors  {size:,} bytes" in listing
    assert "not sent: model/training_args.bin" in listing


def test_files_of_an_earlier_push_stay_and_are_named(hub, run_dir, caplog):
    push_to(hub, run_dir)
    hub.repos[REPO].branches["main"]["adapter_model.safetensors"] = b"old"
    result = push_to(hub, run_dir)
    assert result.left_in_repo == ("adapter_model.safetensors",)
    assert "adapter_model.safetensors" in caplog.text


def test_an_existing_public_repository_is_refused_before_any_file_is_sent(hub, run_dir):
    hub.repos[REPO] = stand_in.Repo(private=False)
    with pytest.raises(RecipeError, match="is public") as raised:
        push_to(hub, run_dir)
    assert "hub.private=false" in str(raised.value)
    assert [r for r in hub.requests if "commit" in r.path or "preupload" in r.path] == []
    assert hub.repos[REPO].branches["main"] == {}
    assert push_to(hub, run_dir, private=False).private is False
    assert sorted(hub.repos[REPO].branches["main"]) == PUBLISHED


def test_a_hub_that_makes_it_public_all_the_same_is_noticed(hub, run_dir):
    hub.creates_public_whatever_is_asked = True
    with pytest.raises(RecipeError, match="is public"):
        push_to(hub, run_dir)
    assert hub.seen("preupload") == []


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    "on", ["/api/repos/create", "GET /api/models", "/commit/", "validate-yaml"]
)
def test_a_passing_failure_is_tried_again(hub, run_dir, status, on):
    hub.faults = [Fault(on=on, status=status, times=2)]
    waits = []
    push_to(hub, run_dir, waits=waits)
    assert waits == [1.0, 2.0]
    assert len(hub.repos[REPO].commits["main"]) == 1


def test_the_hubs_own_waiting_time_is_kept_but_bounded(hub, run_dir):
    hub.faults = [
        Fault(on="repos/create", status=429, headers={"Retry-After": "7"}),
        Fault(on="repos/create", status=429, headers={"Retry-After": "86400"}),
    ]
    waits = []
    push_to(hub, run_dir, waits=waits)
    assert waits == [7.0, 120.0]


def test_an_answer_lost_after_the_commit_makes_no_second_commit(hub, run_dir):
    hub.faults = [Fault(on="/commit/", lose_answer=True)]
    result = push_to(hub, run_dir)
    assert len(hub.repos[REPO].commits["main"]) == 1
    assert result.commit == hub.repos[REPO].commits["main"][0].oid
    assert len(hub.seen("/commit/")) == 1


def test_a_lasting_failure_ends_after_five_attempts(hub, run_dir):
    hub.faults = [Fault(on="repos/create", status=503, times=99)]
    waits = []
    with pytest.raises(MachineError, match="answered 503") as raised:
        push_to(hub, run_dir, waits=waits)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(hub.requests) == 5
    assert f"--repo {REPO}" in str(raised.value)


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [(401, MachineError, "hf auth login"), (403, MachineError, "may not write to ana")],
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(hub, run_dir, status, kind, says):
    hub.faults = [Fault(on="/commit/", status=status, times=99)]
    waits = []
    with pytest.raises(kind, match=says) as raised:
        push_to(hub, run_dir, waits=waits)
    assert waits == []
    assert "align push " in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_repository_or_namespace_is_named(hub, run_dir):
    hub.faults = [Fault(on="GET /api/models", status=404, times=99)]
    with pytest.raises(RecipeError, match="answered 404"):
        push_to(hub, run_dir)
    with pytest.raises(MachineError, match="may not write to bob"):
        push(run_dir, "bob/x", token=TOKEN, endpoint=hub.url)


def test_a_wrong_token_is_told_and_not_shown(hub, run_dir):
    wrong = "hf_" + "WrongWrongWrongWrongWrongWrongWrong12"
    with pytest.raises(MachineError, match="answered 401") as raised:
        push_to(hub, run_dir, token=wrong)
    assert wrong not in str(raised.value)


def test_no_network_is_told_in_one_paragraph(hub, run_dir):
    waits = []
    with pytest.raises(MachineError, match="when the network is there") as raised:
        push(run_dir, REPO, token=TOKEN, endpoint="http://127.0.0.1:1", sleep=waits.append)
    assert len(waits) == 4
    assert "\n" not in str(raised.value)


def test_offline_mode_is_told_at_once(hub, run_dir, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    waits = []
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        push_to(hub, run_dir, waits=waits)
    assert waits == []


@pytest.mark.parametrize("repo", ["sums", "a/b/c", "ana/with space", "ana/--", ""])
def test_a_bad_name_is_refused_before_connecting(hub, run_dir, repo):
    with pytest.raises(RecipeError, match="namespace/name"):
        push(run_dir, repo, token=TOKEN, endpoint=hub.url)
    assert hub.requests == []


def test_an_address_with_a_password_is_refused_and_not_shown(run_dir):
    with pytest.raises(RecipeError, match="user name or password") as raised:
        push(run_dir, REPO, endpoint="https://ana:" + "canary-pass@example.org")
    assert "canary" not in str(raised.value)


def occurrences(haystack: bytes, canary: str) -> int:
    raw = canary.encode()
    forms = {raw, base64.b64encode(raw), raw.hex().encode()}
    return sum(haystack.count(form) for form in forms)


def received(hub) -> bytes:
    """Every byte that arrived save the Authorization headers, and the files decoded."""
    parts = [content for repo in hub.repos.values() for content in repo.branches["main"].values()]
    for request in hub.requests:
        headers = {k: v for k, v in request.headers.items() if k.lower() != "authorization"}
        parts += [request.path.encode(), str(headers).encode(), request.body]
    return b"\n".join(parts)


def everything_in(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts += [repr(error), str(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@pytest.mark.usefixtures("canaries_in_environment")
def test_nothing_secret_arrives_though_the_run_folder_is_full_of_it(hub, run_dir, caplog):
    caplog.set_level(logging.DEBUG)
    everything = "\n".join(CANARIES.values())
    torch.save({"hub_token": everything}, run_dir / "model" / "training_args.bin")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "x.pkl"):
        torch.save({"x": everything}, run_dir / "model" / name)
    for name in ("ledger.jsonl", ".env", "trainer_state.json", "log.txt", "model/modeling_x.py"):
        (run_dir / name).write_text(everything)
    (run_dir / "checkpoint-3").mkdir()
    (run_dir / "checkpoint-3" / "config.json").write_text(everything)
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text())
    recipe["data"]["pairs"] = CANARIES["home folder"] + "/pairs.jsonl"
    recipe["roles"] = {"reference": "/mnt/ana-canary/sft-8b"}
    (run_dir / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    make_adapter(run_dir, CANARIES["home folder"] + "/llama-base")

    hub.faults = [Fault(on="GET /api/models", status=503, echo_headers=True)]
    result = push_to(hub, run_dir)

    arrived = received(hub)
    assert len(arrived) > 1000
    for kind, canary in CANARIES.items():
        assert occurrences(arrived, canary) == 0, kind
        assert canary not in caplog.text, kind
        assert canary not in repr(result) + result.listing() or kind == "home folder", kind
    assert b"ana-canary" not in arrived
    expected = {"config.json", "model.safetensors"}
    sent = hub.repos[REPO].branches["main"]
    assert set(sent) == (set(PUBLISHED) - expected) | {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # zip (torch.save), and pickle protocols 2 to 5
    assert not any(c.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")) for c in sent.values())
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "llama-base"
    sent_recipe = yaml.safe_load(sent["recipe.yaml"])
    assert sent_recipe["data"]["pairs"] == "pairs.jsonl"
    assert sent_recipe["roles"]["reference"] == "sft-8b"
    assert sent_recipe["objective"] == recipe["objective"]
    notes = {file.name: file.note for file in result.files}
    assert notes["adapter_config.json"] == (
        "base_model_name_or_path: local path sent as 'llama-base'"
    )
    assert "data.pairs: local path sent as 'pairs.jsonl'" in notes["recipe.yaml"]
    # What is on disk stays as it was.
    assert "/llama-base" in (run_dir / "model" / "adapter_config.json").read_text()


def test_the_token_travels_only_in_the_header_of_the_hubs_own_addresses(hub, run_dir):
    push_to(hub, run_dir)
    assert TOKEN.encode() not in received(hub)
    storage = hub.seen("PUT /storage/")
    assert len(storage) == 1
    assert "authorization" not in {name.lower() for name in storage[0].headers}


@pytest.mark.usefixtures("canaries_in_environment")
@pytest.mark.parametrize("kind", CANARIES)
@pytest.mark.parametrize("file", ["model/generation_config.json", "recipe.yaml", "model/README.md"])
def test_each_canary_in_a_published_file_stops_the_push(hub, run_dir, kind, file, caplog):
    caplog.set_level(logging.DEBUG)
    path = run_dir / file
    if file.endswith(".md"):
        path.write_text(path.read_text() + "\nseen: " + CANARIES[kind] + "\n")
    elif file.endswith(".json"):
        path.write_text(json.dumps({"note": f"x {CANARIES[kind]} y"}))
    else:
        recipe = yaml.safe_load(path.read_text())
        recipe["train"] = {"run_name": "x " + CANARIES[kind]}
        path.write_text(yaml.safe_dump(recipe, width=1000))
    with pytest.raises(NotPublishable, match="Secrets would be published") as raised:
        push_to(hub, run_dir)
    assert hub.requests == []
    assert path.name in str(raised.value)
    assert CANARIES[kind] not in everything_in(raised.value) + caplog.text


def test_a_token_of_unknown_owner_is_found_inside_base64(run_dir):
    other = "user:hf_" + "OtherOtherOtherOtherOther1234567890"
    text = "x = " + base64.b64encode(other.encode()).decode()
    (run_dir / "model" / "README.md").write_text(text)
    with pytest.raises(NotPublishable, match="a Hugging Face token in base64"):
        publishable_files(run_dir)


@pytest.mark.parametrize("before", ["", "u", "us"])
def test_a_known_secret_is_found_in_base64_at_each_of_the_three_places(run_dir, before):
    secret = "canary-0123456789"
    code = base64.b64encode(f"{before}{secret}:tail".encode()).decode()
    (run_dir / "model" / "README.md").write_text("x = " + code)
    with pytest.raises(NotPublishable, match="the access token of this push"):
        publishable_files(run_dir, secrets=[secret])


def test_a_secret_in_the_header_of_the_weights_is_found(run_dir):
    save_file(
        {"w": torch.zeros(2)},
        run_dir / "model" / "model.safetensors",
        metadata={"source": CANARIES["github token"]},
    )
    with pytest.raises(NotPublishable, match=r"model\.safetensors, line 1, holds a GitHub token"):
        publishable_files(run_dir)


def test_a_word_of_a_vocabulary_is_no_path_but_a_path_in_it_is(run_dir, monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    publishable_files(run_dir)
    write(run_dir / "model" / "tokenizer.json", {"from": "/root/models/x"})
    with pytest.raises(NotPublishable, match="the path of the home folder"):
        publishable_files(run_dir)


def test_short_values_and_switches_of_the_environment_are_no_secrets(run_dir, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "messages")
    monkeypatch.setenv("MY_KEY", "llama")
    assert len(publishable_files(run_dir)) == len(PUBLISHED)


@pytest.mark.usefixtures("canaries_in_environment")
@pytest.mark.parametrize("status", [401, 403, 404, 400, 503])
def test_a_server_that_echoes_the_headers_leaks_nothing_into_the_error(
    hub, run_dir, status, caplog
):
    caplog.set_level(logging.DEBUG)
    hub.faults = [Fault(on="GET /api/models", status=status, times=99, echo_headers=True)]
    with pytest.raises(AlignError) as raised:
        push_to(hub, run_dir)
    told = everything_in(raised.value) + caplog.text
    assert TOKEN not in told
    assert "Bearer hf_" not in told
    assert raised.value.__context__ is None


PROTOCOL_0 = b"cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tokenizer.model",
        "tokenizer.json",
        "config.json",
        "merges.txt",
        "README.md",
        "../curves.png",
        "../recipe.yaml",
        "../metrics.json",
    ],
)
@pytest.mark.parametrize("form", ["torch.save", "protocol 4", "protocol 0"])
def test_a_pickle_under_an_innocent_name_stops_the_push(run_dir, tmp_path, name, form):
    if form == "torch.save":
        torch.save({"a": torch.zeros(2)}, tmp_path / "pickle")
        raw = (tmp_path / "pickle").read_bytes()
    elif form == "protocol 4":
        raw = b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94."
    else:
        raw = PROTOCOL_0
    (run_dir / "model" / name).write_bytes(raw)
    with pytest.raises(NotPublishable, match=Path(name).name):
        publishable_files(run_dir)


def test_weights_that_are_cut_off_stop_the_push(run_dir):
    path = run_dir / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    # 12 float32 are 48 bytes; 4 of them are gone.
    with pytest.raises(NotPublishable, match=r"promises 48 bytes of weights and 44 are there"):
        publishable_files(run_dir)


@pytest.mark.parametrize(
    "name", ["metrics.json", "recipe.yaml", "model/README.md", "model/config.json"]
)
def test_an_unfinished_run_is_refused(run_dir, name):
    (run_dir / name).unlink()
    with pytest.raises(NotPublishable, match=Path(name).name):
        publishable_files(run_dir)


def test_a_shard_that_the_index_names_must_be_there(run_dir):
    write(
        run_dir / "model" / "model.safetensors.index.json",
        {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}},
    )
    with pytest.raises(NotPublishable, match="model-00002-of-00002"):
        publishable_files(run_dir)


def test_a_link_out_of_the_run_folder_is_refused(run_dir, tmp_path):
    (tmp_path / "elsewhere.json").write_text("{}")
    (run_dir / "model" / "vocab.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(NotPublishable, match="leads out of the run folder"):
        publishable_files(run_dir)


def test_a_model_folder_on_another_disk_is_followed(run_dir, tmp_path):
    (run_dir / "model").rename(tmp_path / "big-disk")
    (run_dir / "model").symlink_to(tmp_path / "big-disk")
    assert sorted(file.name for file in publishable_files(run_dir)) == PUBLISHED


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_model_card_says_what_was_trained_on_what_with_which_result(run_dir):
    card = (run_dir / "model" / "README.md").read_text()
    metadata = front_matter(card)
    assert metadata["license"] == "unknown"
    assert metadata["library_name"] == "transformers"
    assert "rpo" in metadata["tags"]
    # A built-in world is no id of the Hub, which would refuse it.
    assert "base_model" not in metadata
    assert "datasets" not in metadata
    assert "- `beta` = 0.1" in card
    assert "- `eta` = 0.01" in card
    assert "arXiv:2405.16436" in card
    assert "| dropped: equal | 2 |" in card
    assert "| kept | 8 |" in card
    # .385 - .03 = .355, .522 + .03 = .552
    assert "| sampled accuracy, % | 38.5 [35.5, 41.5] | 52.2 [49.2, 55.2] | 1,024 |" in card
    assert "- trl 1.16.0" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_the_model_card_names_hub_sources_and_hides_local_folders():
    recipe = {
        "model": {"model_name_or_path": "/scratch/ana/runs/sft-8b"},
        "data": {"pairs": "HuggingFaceH4/ultrafeedback_binarized@abc", "split": "train_prefs"},
        "objective": {"name": "dpo", "beta": 0.1},
    }
    card = model_card(recipe, {"before": {}, "after": {}}, {}, adapter={"r": 8}, licence="mit")
    metadata = front_matter(card)
    assert metadata["datasets"] == ["HuggingFaceH4/ultrafeedback_binarized"]
    assert metadata["license"] == "mit"
    assert metadata["library_name"] == "peft"
    assert "base_model" not in metadata
    assert "The local `sft-8b` after preference training" in card
    assert "/scratch" not in card
    assert "PeftModel.from_pretrained" in card
    assert "Nothing was measured." in card
    recipe["model"]["model_name_or_path"] = "meta-llama/Meta-Llama-3-8B"
    card = model_card(recipe, {"before": {}, "after": {}}, {})
    assert front_matter(card)["base_model"] == "meta-llama/Meta-Llama-3-8B"


def test_the_card_of_a_broken_run_is_refused(run_dir):
    (run_dir / "recipe.yaml").write_text("[")
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        write_model_card(run_dir)


def test_the_data_set_card_counts_rows_and_names_sources():
    card = dataset_card(
        "/data/ana/pairs",
        ["Anthropic/hh-rlhf@main", "/data/ana/own.jsonl"],
        {"read": 2312, "kept": 2300, "dropped": {"equal": 5, "too_long": 7}},
        how_made="Judged by a reward model.",
    )
    assert front_matter(card)["source_datasets"] == ["Anthropic/hh-rlhf"]
    assert "# pairs\n" in card
    assert "- the local `own.jsonl`" in card
    assert "/data" not in card
    assert "| read | 2,312 |" in card
    assert "| dropped: too_long | 7 |" in card


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("gpt2", "gpt2"),
        ("world:sums", "world:sums"),
        ("/scratch/ana/sft-8b/", "sft-8b"),
        ("~/models/x", "x"),
        ("../x/y", "y"),
        ("outputs/deep/er/dpo", "dpo"),
        (r"C:\Users\ana\m", "m"),
        ("/c/hub/models--meta-llama--Llama-3.2-1B/snapshots/abc", "meta-llama/Llama-3.2-1B"),
    ],
)
def test_names_as_strangers_see_them(name, shown):
    assert shown_name(name) == shown


def test_a_data_set_goes_to_a_repository_of_data_sets(hub, tmp_path):
    import datasets

    run = tmp_path / "made"
    (run / "dataset" / "data").mkdir(parents=True)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    file = run / "dataset" / "data" / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list([row]).to_parquet(file)
    card = dataset_card("made", ["world:sums"], {"read": 1, "kept": 1}, how_made="By hand.", size=1)
    (run / "dataset" / "README.md").write_text(card)
    (run / "recipe.yaml").write_text("seed: 0\n")
    write(run / "metrics.json", {"before": {}, "after": {}})
    result = push_to(hub, run)
    assert result.url is not None
    assert result.url.endswith(f"/datasets/{REPO}")
    assert set(hub.repos) == {f"datasets/{REPO}"}
    held = hub.repos[f"datasets/{REPO}"].branches["main"]
    assert held["data/train-00000-of-00001.parquet"] == file.read_bytes()
    assert set(held) - {".gitattributes"} == {
        "README.md",
        "data/train-00000-of-00001.parquet",
        "metrics.json",
        "recipe.yaml",
    }
