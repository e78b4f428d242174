"""Vision-language models: TRL's trajectory, what stands for a picture, and degraded pictures."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
import yaml
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from align.data.formats.pairs import pairs_from_rows
from align.data.images import Degraded, png
from align.data.pairs import PreferencePair
from align.data.problems import RowProblem
from align.data.prompts import Prompt
from align.data.row_policy import RowPolicy
from align.data.row_report import RowReport
from align.errors import DataError, RecipeError
from align.policies.base import Sampling
from align.policies.in_process import InProcessPolicy
from align.policies.prompting import Ends, Prompting
from align.progress import progress
from align.reference import tokenizer_digest
from align.tokens.dataset import to_dataset
from align.tokens.encoding import encode_pair, encode_pairs
from align.tokens.vision.columns import Shown
from align.tokens.vision.degrade import degrade
from align.tokens.vision.pixels import PixelReader
from align.trainers import PreferenceConfig, PreferenceTrainer

_spec = importlib.util.spec_from_file_location(
    "vision_in_code", Path(__file__).with_name("vision_in_code.py")
)
assert _spec is not None
assert _spec.loader is not None
vision_in_code = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(vision_in_code)

STEPS = 3
SEEN = ("loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, str]:
    return {
        "llava": vision_in_code.llava(tmp_path_factory.mktemp("llava")),
        "qwen": vision_in_code.qwen(tmp_path_factory.mktemp("qwen")),
        "gemma_3": vision_in_code.gemma_3(tmp_path_factory.mktemp("gemma-3")),
        "gemma_4": vision_in_code.gemma_4(tmp_path_factory.mktemp("gemma-4")),
    }


def settings(folder: Path, **changes) -> dict:
    return {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "per_device_train_batch_size": 3,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "max_length": None,
    } | changes


def lora() -> LoraConfig:
    # The projector too, which is where a picture becomes words.
    names = ["q_proj", "v_proj", "linear_1", "linear_2"]
    return LoraConfig(r=4, lora_alpha=8, target_modules=names, lora_dropout=0.0)


def said(content: str | list) -> dict:
    return {"role": "assistant", "content": content}


def trained(trainer) -> list[dict]:
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("llava", "full"),
        ("llava", "lora"),
        ("qwen", "full"),
        ("gemma_3", "full"),
        ("gemma_4", "full"),
    ],
)
def test_same_trajectory_as_trl(family: str, adapter: str, folders, tmp_path: Path) -> None:
    common = {"train_dataset": vision_in_code.dataset()}
    if family != "llava":
        common["processing_class"] = processor_of(family, folders)
    if adapter == "lora":
        common["peft_config"] = lora()
    theirs = trl.DPOTrainer(
        folders[family],
        args=trl.DPOConfig(**settings(tmp_path / "trl"), beta=0.3),
        **common,
    )
    ours = PreferenceTrainer(
        folders[family],
        args=PreferenceConfig(**settings(tmp_path / "ours")),
        objective={"name": "dpo", "beta": 0.3},
        **common,
    )
    assert ours.backend.backend.name == "padded"
    expected, found = trained(theirs), trained(ours)
    assert len(found) == len(expected) == STEPS
    for step, (mine, trls) in enumerate(zip(found, expected, strict=True)):
        for name in SEEN:
            assert mine[name] == pytest.approx(trls[name], abs=1e-5, rel=1e-5), (step, name)
    assert abs(found[-1]["rewards/margins"]) > 1e-3, "nothing was learned"


def placed_rows() -> list[dict]:
    """Pictures behind, between and before words, several of them, in any turn, and alone."""
    image, red = {"type": "image"}, said("red")

    def text(words: str) -> dict:
        return {"type": "text", "text": words}

    prompts = [
        [{"role": "user", "content": [text("what colour is it ? "), image]}],
        [{"role": "user", "content": [text("is "), image, text(" very "), image, text(" ?")]}],
        [{"role": "user", "content": [image, text("what colour is it ?")]}],
        [
            {"role": "user", "content": [text("x")]},
            {"role": "assistant", "content": [text("0")]},
            {"role": "user", "content": [image, image, text(" what colour ?")]},
        ],
        [
            {"role": "user", "content": [image]},
            {"role": "assistant", "content": [text("it is")]},
            {"role": "user", "content": [text("what colour is "), image]},
        ],
    ]
    rows = []
    for i, prompt in enumerate(prompts):
        many = sum(part == image for turn in prompt for part in turn["content"])
        sizes = ((28, 28), (56, 28)) if i % 2 else ((56, 28), (28, 28))
        images = [vision_in_code.square(c, s) for c, s in zip(("red", "blue"), sizes, strict=True)]
        row = {"images": images[:many], "prompt": prompt}
        rows.append(row | {"chosen": [red], "rejected": [said("very green")]})
    return rows


@pytest.mark.parametrize("family", ["llava", "qwen", "gemma_3", "gemma_4"])
def test_pictures_stand_where_the_messages_have_them_as_in_trl(
    family: str, folders, tmp_path: Path
) -> None:
    """One row a step, in their order, so that each row's loss is compared."""
    rows = placed_rows()
    common = {"train_dataset": Dataset.from_list(rows)}
    if family != "llava":
        common["processing_class"] = processor_of(family, folders)
    own = {"max_steps": len(rows), "per_device_train_batch_size": 1}
    own["train_sampling_strategy"] = "sequential"
    theirs = trl.DPOTrainer(
        folders[family],
        args=trl.DPOConfig(**settings(tmp_path / "trl", **own), beta=0.3),
        **common,
    )
    ours = PreferenceTrainer(
        folders[family],
        args=PreferenceConfig(**settings(tmp_path / "ours", **own)),
        objective={"name": "dpo", "beta": 0.3},
        **common,
    )
    expected, found = trained(theirs), trained(ours)
    assert len(found) == len(expected) == len(rows)
    for step, (mine, trls) in enumerate(zip(found, expected, strict=True)):
        for name in SEEN:
            assert mine[name] == pytest.approx(trls[name], abs=1e-5, rel=1e-5), (step, name)
    assert abs(found[-1]["rewards/margins"]) > 1e-3, "nothing was learned"


@pytest.mark.parametrize("family", ["llava", "qwen", "gemma_3", "gemma_4"])
def test_placed_prompt_ids_are_the_processors_own(family: str, folders) -> None:
    processor = processor_of(family, folders)
    rows = placed_rows()
    pairs, _ = pairs_from_rows(
        (("test", i, row) for i, row in enumerate(rows, 1)), source="test", policy=RowPolicy()
    )
    assert [one.image_places for one in pairs] == [
        ((0, 20),),
        ((0, 3), (0, 9)),
        None,
        ((2, 0), (2, 0)),
        ((0, 0), (2, 15)),
    ]
    for row, one in zip(rows, pairs, strict=True):
        text = processor.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=False
        )
        own = processor(text=[text], images=[row["images"]], add_special_tokens=False)
        assert encode_pair(one, processor, RowPolicy()).prompt_ids == own["input_ids"][0]
        written = json.loads(one.model_dump_json())
        assert PreferencePair.model_validate(written) == one
        (again,), _ = pairs_from_rows([("test", 1, written)], source="t", policy=RowPolicy())
        assert (again.image_places, again.id) == (one.image_places, one.id)


def test_blank_lines_that_gemma_3_sets_become_one_token_with_the_templates(folders) -> None:
    """A line's end, and the two of the picture behind it: one token of three."""
    processor = processor_of("gemma_3", folders)
    lines = ["\n" * n for n in (1, 2, 3, 4)]
    vocabulary = {token: i for i, token in enumerate([*vision_in_code.SPECIAL, "is", *lines])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex("\n+"), "isolated")]
    )
    processor.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        **vision_in_code.GEMMA,
    )
    content = [
        {"type": "text", "text": "is\n"},
        {"type": "image"},
        {"type": "text", "text": "\nis"},
    ]
    asked = [{"role": "user", "content": content}]
    processor.chat_template = processor.chat_template.replace("<boi> ", "<boi>")
    text = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    picture = vision_in_code.square("red")
    own = processor(text=[text], images=[[picture]], add_special_tokens=False)["input_ids"][0]
    placed = pair(
        prompt=[{"role": "user", "content": "is\n\nis"}],
        image_places=[(0, 3)],
        chosen=[said("is")],
        rejected=[said("is is")],
    )
    assert encode_pair(placed, processor, RowPolicy()).prompt_ids == own
    three = vocabulary["\n\n\n"]
    assert [own[own.index(three)], own[-own[::-1].index(three) - 1]] == [three, three]
    assert own.count(three) == 2


def test_pictures_leave_no_mark_in_a_tokenizer_that_pads(folders) -> None:
    processor = processor_of("gemma_4", folders)
    before = tokenizer_digest(processor)
    encode_pair(pair(), processor, RowPolicy())
    ids = torch.zeros(2, 4, dtype=torch.long)
    made = PixelReader(processor)([Shown((ref("red"),)), Shown()], ids)
    assert set(made) == {"pixel_values", "image_position_ids", "mm_token_type_ids"}
    assert tokenizer_digest(processor) == before


def test_crops_beside_a_picture_are_refused(folders) -> None:
    processor = processor_of("gemma_3", folders)
    processor.image_processor.do_pan_and_scan = True
    with pytest.raises(RecipeError, match="do_pan_and_scan = False"):
        encode_pair(pair(), processor, RowPolicy())


def test_a_picture_between_words_leaves_control_tokens_split(folders) -> None:
    processor = processor_of("llava", folders)
    content = "what <image> is </s> it ?"
    placed = pair(prompt=[{"role": "user", "content": content}], image_places=[(0, 8)])
    # Behind "what <im", where the spelling of the placeholder itself is torn in two.
    policy = RowPolicy(on_control_tokens="drop")
    with pytest.raises(RowProblem, match=r"control_tokens.*</s>"):
        encode_pair(placed, processor, policy)
    content = content.replace("</s>", "very")
    placed = pair(prompt=[{"role": "user", "content": content}], image_places=[(0, 8)])
    ids = encode_pair(placed, processor, policy).prompt_ids
    assert ids.count(processor.image_token_id) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"images": []}, "images: missing_field .*prompt.0..content has a place"),
        ({"images": ["a.png", "b.png"]}, "1 places for 2 pictures"),
        ({"chosen": [said([{"type": "image"}])]}, "chosen.0..content: .*outside of the prompt"),
        ({"image_places": [[1, 0]]}, "outside of the prompt"),
        ({"image_places": [[0, 99]]}, "outside of the prompt"),
        ({"image_places": [["x", 0]]}, "image_places: wrong_type"),
    ],
)
def test_places_that_cannot_be_used_are_named(row: dict, message: str) -> None:
    content = [{"type": "text", "text": "x "}, {"type": "image"}]
    whole = {"prompt": [{"role": "user", "content": content}], "images": ["a.png"]}
    whole |= {"chosen": [said("red")], "rejected": [said("blue")]}
    with pytest.raises(DataError, match=message):
        pairs_from_rows([("test", 1, whole | row)], source="test", policy=RowPolicy())


def test_whole_conversations_bring_the_places_of_their_prompt() -> None:
    content = [{"type": "text", "text": "x "}, {"type": "image"}]
    turn = {"role": "user", "content": content}
    row = {side: [turn, said(word)] for side, word in (("chosen", "red"), ("rejected", "blue"))}
    row["images"] = ["a.png"]
    (found,), _ = pairs_from_rows([("test", 1, row)], source="test", policy=RowPolicy())
    assert (found.image_places, len(found.prompt)) == (((0, 2),), 1)
    row["rejected"] = [{"role": "user", "content": [*content[::-1]]}, said("blue")]
    with pytest.raises(DataError, match="stand at different places"):
        pairs_from_rows([("test", 1, row)], source="test", policy=RowPolicy())


def ref(colour: str, size: tuple[int, int] = (28, 28)) -> str:
    return png(vision_in_code.square(colour, size))


def pair(**changes) -> PreferencePair:
    return PreferencePair.model_validate(
        {
            "prompt": [{"role": "user", "content": "what colour is it ?"}],
            "chosen": [{"role": "assistant", "content": "red"}],
            "rejected": [{"role": "assistant", "content": "blue"}],
            "images": [ref("red")],
            "source": "test",
            "row": 1,
        }
        | changes
    )


def processor_of(family: str, folders) -> object:
    if family != "llava":
        return getattr(vision_in_code, f"{family}_processor")()
    return AutoProcessor.from_pretrained(folders[family])


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("sizes", [[(28, 28)], [(56, 28), (28, 28)]])
def test_prompt_ids_are_the_processors_own(family: str, sizes, folders) -> None:
    processor = processor_of(family, folders)
    images = [vision_in_code.square("red", size) for size in sizes]
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": "what colour is it ?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    expected = processor(text=[text], images=[images], add_special_tokens=False)["input_ids"][0]
    shown = pair(images=[png(image) for image in images])
    encoded = encode_pair(shown, processor, RowPolicy())
    assert encoded.prompt_ids == expected
    wide = [size for size in sizes if size != (28, 28)]
    many = encoded.prompt_ids.count(processor.image_token_id)
    # Qwen-VL has one token per 28 x 28 pixels, LLaVA four per picture.
    assert many == (len(sizes) + len(wide) if family == "qwen" else 4 * len(sizes))
    eos = processor.tokenizer.eos_token_id
    assert encoded.chosen_ids == [processor.tokenizer.convert_tokens_to_ids("red"), eos]


def test_a_text_cannot_spell_a_picture(folders) -> None:
    processor = processor_of("llava", folders)
    message = [{"role": "user", "content": "what <image> is it ?"}]
    with pytest.raises(RowProblem, match="control_tokens"):
        encode_pair(pair(prompt=message), processor, RowPolicy(on_control_tokens="drop"))


def test_rows_that_show_pictures_are_refused_by_a_text_model(tiny_tokenizer) -> None:
    tiny_tokenizer.chat_template = vision_in_code.template("")
    try:
        with pytest.raises(RowProblem, match=r"images: unsupported_content .*no processor"):
            encode_pair(pair(), tiny_tokenizer, RowPolicy())
    finally:
        tiny_tokenizer.chat_template = None


def test_a_prompt_with_a_picture_is_never_cut(folders) -> None:
    processor = processor_of("llava", folders)
    words = " ".join(["very"] * 30)
    message = [{"role": "user", "content": f"what {words} ?"}]
    policy = RowPolicy(max_length=32, on_too_long="cut_prompt")
    with pytest.raises(RowProblem, match="a prompt with pictures is not cut"):
        encode_pair(pair(prompt=message), processor, policy)


def test_a_picture_that_is_gone_drops_its_row(folders, tmp_path: Path) -> None:
    processor = processor_of("llava", folders)
    with pytest.raises(RowProblem, match=r"images: unreadable .*none\.png"):
        encode_pair(pair(images=[str(tmp_path / "none.png")]), processor, RowPolicy())
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(RowProblem, match="is no picture"):
        encode_pair(pair(images=[str(tmp_path / "text.png")]), processor, RowPolicy())


def test_other_pictures_on_the_rejected_side_take_the_same_places(folders) -> None:
    processor = processor_of("qwen", folders)
    encode_pair(pair(rejected_images=[ref("blue")]), processor, RowPolicy())
    with pytest.raises(RowProblem, match="another size"):
        encode_pair(pair(rejected_images=[ref("blue", (56, 56))]), processor, RowPolicy())


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 7, 11), (1, 5, 5)])
def test_degraded_are_exactly_so_many_pixels_of_all_channels(shape: tuple[int, ...]) -> None:
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = degrade(pixels, Degraded(share=0.3, seed=5))
    changed = found != pixels
    # floor(0.3 H W): 235 of 784, 23 of 77, 7 of 25.
    assert int(changed[0].sum()) == int(0.3 * shape[1] * shape[2])
    assert bool((changed == changed[:1]).all()), "channels are aligned"
    mean = pixels.double().mean(dim=(1, 2), keepdim=True).float().expand(shape)
    assert torch.equal(found[changed], mean[changed])
    assert torch.equal(found, degrade(pixels, Degraded(share=0.3, seed=5)))
    assert not torch.equal(found, degrade(pixels, Degraded(share=0.3, seed=6)))
    assert not torch.equal(found, degrade(pixels, Degraded(share=0.3, seed=5), number=1))
    assert torch.equal(pixels, degrade(pixels, Degraded(share=0.0)))


def test_patches_of_qwen_lose_the_same_pixels_in_all_channels_and_frames(folders) -> None:
    processor = processor_of("qwen", folders)
    noise = torch.randint(0, 255, (28, 56, 3), generator=torch.Generator().manual_seed(0))
    image = png(Image.fromarray(noise.to(torch.uint8).numpy()))
    reader = PixelReader(processor)
    ids = torch.zeros(2, 4, dtype=torch.long)
    made = reader([Shown((image,)), Shown((image,), Degraded(share=0.3, seed=2))], ids)
    clean, degraded = made["pixel_values"].chunk(2)
    # [N, C, frames, pixels of a patch]
    changed = (clean != degraded).reshape(len(clean), 3, 2, -1)
    assert bool((changed == changed[:, :1, :1]).all())
    assert int(changed[:, 0, 0].sum()) == int(0.3 * 28 * 56)
    assert made["mm_token_type_ids"].shape == ids.shape


def striped(colour: str) -> str:
    """Half of it black, so that the mean is none of its colours."""
    image = vision_in_code.square(colour)
    image.paste((0, 0, 0), (0, 0, 28, 14))
    return png(image)


def image_pairs(n: int, share: float) -> list[PreferencePair]:
    colours = list(vision_in_code.COLOURS)
    return [
        pair(
            images=[striped(colours[i % 4])],
            chosen=[said(colours[i % 4])],
            rejected=[said(colours[i % 4])],
            rejected_images={"method": "pixels", "share": share, "seed": i},
            pair_kind="gt_img",
        )
        for i in range(n)
    ]


def trainer_on(pairs: list[PreferencePair], folders, folder: Path, **changes) -> PreferenceTrainer:
    processor = processor_of("llava", folders)
    rows = encode_pairs(pairs, processor, RowPolicy(), RowReport())
    return PreferenceTrainer(
        folders["llava"],
        args=PreferenceConfig(**settings(folder, **changes)),
        train_dataset=to_dataset(rows),
        processing_class=processor,
        objective={"name": "opa_dpo", "beta": 0.5, "image_weight": 1.0},
    )


def test_a_clean_picture_on_both_sides_teaches_nothing_and_a_degraded_one_does(
    folders, tmp_path: Path
) -> None:
    same = trained(trainer_on(image_pairs(6, 0.0), folders, tmp_path / "same"))
    assert [row["loss"] for row in same] == pytest.approx([math.log(2)] * STEPS, abs=1e-6)
    assert {row["rewards/margins"] for row in same} == {0.0}
    other = trained(trainer_on(image_pairs(6, 0.3), folders, tmp_path / "other"))
    assert other[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(other[-1]["rewards/margins"]) > 1e-4


def test_stored_scores_belong_to_the_pictures(folders, tmp_path: Path) -> None:
    """Same token ids, other pixels: another place in the cache, and other scores."""
    first = trainer_on(image_pairs(4, 0.3), folders, tmp_path / "a")
    again = trainer_on(image_pairs(4, 0.3), folders, tmp_path / "a")
    assert len(list((tmp_path / "cache" / "roles").iterdir())) == 1
    other = trainer_on(image_pairs(4, 0.6), folders, tmp_path / "b")
    assert len(list((tmp_path / "cache" / "roles").iterdir())) == 2
    column = "reference_rejected_logps"
    assert first.train_dataset[column] == again.train_dataset[column]
    assert first.train_dataset[column] != other.train_dataset[column]
    assert first.train_dataset["chosen_ids"] == other.train_dataset["chosen_ids"]


def test_pairs_of_one_picture_stay_in_one_step(folders, tmp_path: Path) -> None:
    """The question is the same in all rows; what makes a prompt is its picture."""
    some = [pair(images=[ref(c)], rejected=[said(w)]) for c in ("red", "grey") for w in WRONG]
    trainer = trainer_on(
        [one.model_copy(update={"pair_kind": "gt_vs_gen"}) for one in some],
        folders,
        tmp_path,
        per_device_train_batch_size=3,
        train_sampling_strategy="group_by_prompt",
    )
    order = list(trainer._get_train_sampler())
    shown = [trainer.train_dataset[i]["chosen_images"][0] for i in order]
    assert len(set(shown[:3])) == len(set(shown[3:])) == 1


WRONG = ("green", "blue", "0")


@pytest.mark.parametrize("family", ["llava", "qwen", "gemma_3", "gemma_4"])
def test_generation_reads_the_picture_as_transformers_does(family: str, folders) -> None:
    processor = processor_of(family, folders)
    model = AutoModelForImageTextToText.from_pretrained(folders[family]).eval()
    # Qwen-VL gives the four tokens of the large one two places only.
    sizes = [(28, 28), (56, 56), (28, 28)]
    prompts = [
        Prompt(
            prompt=pair().prompt if i % 2 else ({"role": "user", "content": "what is it ?"},),
            images=(ref(colour, size),),
            source="test",
            row=i + 1,
        )
        for i, (colour, size) in enumerate(zip(("red", "blue", "grey"), sizes, strict=True))
    ]
    greedy = Sampling(max_new_tokens=6, temperature=0.0)
    policy = InProcessPolicy(model, processor)
    drawn = [Prompting(processor).row(p.prompt, "x", p.images).prompt_ids for p in prompts]
    begun = policy._prompting.begin(prompts, 2, greedy, 256)
    batch = [row for rows in policy._batches(begun, 2) for row in rows]
    ends = Ends(frozenset(), frozenset(), ())
    with torch.no_grad():
        zeros = torch.zeros(len(batch), 6)
        with progress("generate", len(batch)) as advance:
            policy._continue(batch, prompts, begun, zeros, greedy, ends, advance)
        for row in batch:
            ids = torch.tensor([drawn[row.prompt]])
            shown = PixelReader(processor)([Shown(prompts[row.prompt].images or ())], ids)
            expected = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **shown,
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
            assert row.ids == expected[0, ids.shape[1] :].tolist()


@pytest.mark.e2e
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_recipe_trains_a_llava_through_accelerate(
    adapter: bool, folders, root: Path, tmp_path: Path
) -> None:
    lines = []
    for i, row in enumerate(vision_in_code.rows(16)):
        row["images"][0].save(tmp_path / f"{i}.png")
        lines.append(json.dumps(row | {"images": [f"{i}.png"]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    recipe = {
        "model": {"model_name_or_path": folders["llava"]}
        | ({"use_peft": True, "lora_target_modules": ["all-linear"]} if adapter else {}),
        "roles": {"reference": "start"},
        "data": {"pairs": str(tmp_path / "rows.jsonl"), "held_out": 4},
        "objective": {"name": "dpo", "beta": 0.5},
        "train": {
            "learning_rate": 3.0e-3,
            "max_steps": 12,
            "per_device_train_batch_size": 6,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 4,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += [str(root / "scripts" / "train.py"), str(path), "--run", str(run)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["forward"]["backend"] == "padded"
    assert metrics["data"]["dropped"] == {}
    history = json.loads((run / "log_history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[-1] < 0.8 * math.log(2)
    assert AutoProcessor.from_pretrained(run / "model").image_token == "<image>"
