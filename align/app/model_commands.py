"""The commands that a model is named to: `align init | generate | chat | merge`.

As in `align.app.cli`, each is one call into this room, imported when it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer()

ModelWord = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a run's folder, an adapter's folder, a Hub id, world:NAME, or "
        "smollm2-135m-instruct.",
    ),
]
DType = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"] | None,
    typer.Option(
        "--dtype", help="Type of the weights; the saved one, and of an adapter its run's."
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Where an adapter's base lies, if not where it lay in training."),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p", max=1, help="Sample from the likeliest tokens that have this probability."
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", min=0, help="Sample from so many likeliest tokens; 0 takes all.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same.")]


@app.command(
    epilog="Example: align init --model smollm2-135m-instruct --data pairs.jsonl --method dpo"
)
def init(
    model: Annotated[str, typer.Option("--model", help="Hub id, folder, world:NAME or name.")],
    data: Annotated[
        str,
        typer.Option("--data", help="Preference pairs, or prompts with --loop: file or Hub id."),
    ],
    method: Annotated[
        str, typer.Option("--method", help="The formula: dpo, rpo, ipo, sppo, ...")
    ] = "dpo",
    out: Annotated[Path, typer.Option("--out", help="The recipe to write.")] = Path("recipe.yaml"),
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns", help="ours=theirs, as chosen=better,rejected=worse; dots lead into lists."
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split of a Hub data set.")] = "train",
    loop: Annotated[bool, typer.Option("--loop", help="A recipe of rounds, from prompts.")] = False,
    reward: Annotated[
        str | None,
        typer.Option("--reward", help="Of a loop: file.py:function, or a reward's name."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over --out.")] = False,
) -> None:
    """Write a commented starter recipe that fits the data, the model and this machine."""
    from align.app.starter.command import init_recipe
    from align.app.starter.wish import Wish

    wish = Wish(model, data, method, split, tuple(columns or ()), loop, reward)
    _say(init_recipe(wish, out, may_replace=force))


@app.command(epilog="Example: align generate outputs/my-run prompts.jsonl -o answers.jsonl")
def generate(
    model: ModelWord,
    prompts: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="JSON Lines, CSV, Parquet, a Hub id, a .txt file of lines, or - for stdin.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON Lines; what it holds is kept. Else stdout."),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers per prompt.")] = 1,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="A text that ends an answer; repeatable.")
    ] = None,
    seed: Seed = 0,
    batch_rows: Annotated[
        int, typer.Option("--batch-rows", min=1, help="Answers drawn at a time.")
    ] = 64,
    split: Annotated[str, typer.Option("--split", help="Split of a Hub data set.")] = "train",
    dtype: DType = None,
    base: Base = None,
) -> None:
    """Answer a file of prompts: one JSON line each; the same command again goes on."""
    from align.app.generating import generate as generate_answers
    from align.app.generating import sampling_of

    sampling = sampling_of(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=tuple(stop or ()),
    )
    done = generate_answers(
        model,
        prompts,
        output,
        sampling=sampling,
        samples=samples,
        seed=seed,
        batch_rows=batch_rows,
        split=split,
        dtype=dtype,
        base=base,
    )
    # Rows without -o stand alone on stdout.
    (sys.stderr if output is None else sys.stdout).write(done + "\n")


@app.command(epilog="Example: align chat outputs/my-run --compare smollm2-135m-instruct")
def chat(
    model: ModelWord,
    compare: Annotated[
        str | None, typer.Option("--compare", help="A second model, asked the same.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="The system message; else the template's.")
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    top_k: TopK = 0,
    seed: Seed = 0,
    dtype: DType = None,
    base: Base = None,
) -> None:
    """Talk with a model in the terminal; piped lines are questions."""
    from align.app.chatting import chat as talk
    from align.app.generating import sampling_of

    sampling = sampling_of(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
    )
    talk(model, compare, system=system, sampling=sampling, seed=seed, dtype=dtype, base=base)


@app.command(epilog="Example: align merge outputs/my-run -o merged --gguf model.gguf")
def merge(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_ADAPTER", help="A run's folder, or an adapter's folder."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to make; RUN/merged or ADAPTER-merged."),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option("--dtype", help="Type that is saved; the one that the base was saved in."),
    ] = None,
    base: Base = None,
    dequantize: Annotated[
        bool,
        typer.Option("--dequantize", help="Add an adapter of a quantised base to the plain one."),
    ] = False,
    gguf: Annotated[
        Path | None,
        typer.Option("--gguf", help="Write a GGUF file too (Llama family)."),
    ] = None,
    gguf_type: Annotated[
        Literal["f16", "bf16", "q8_0"], typer.Option("--gguf-type", help="Of its matrices.")
    ] = "f16",
) -> None:
    """Add an adapter to its base, save the whole model, and check what was saved."""
    from align.app.merging import merge as merge_adapter

    _say(
        merge_adapter(
            model,
            output,
            dtype=dtype,
            base=base,
            dequantize=dequantize,
            gguf=gguf,
            gguf_type=gguf_type,
        )
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
