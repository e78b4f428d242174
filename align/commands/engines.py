# pyright: basic
"""What generates in a loop: the newest policy in this process, vLLM, or a server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.commands.policies import borrowed_policy
from align.loops.stage import StageContext
from align.recipe.stages import Generate

if TYPE_CHECKING:
    from align.commands.stages import Workshop
    from align.policies.endpoint import Endpoint


@contextlib.contextmanager
def generating_policy(workshop: Workshop, node: Generate, context: StageContext) -> Iterator[Any]:
    """The policy that a generate stage asks."""
    if node.server is not None:
        from align.policies.openai_http import HttpPolicy

        with cached_caller(node.server, context.loop) as caller:
            yield HttpPolicy(caller)
    elif node.engine == "vllm":
        from align.policies.vllm_engine import VLLMPolicy

        yield VLLMPolicy(context.input("policy"))
    else:
        from align.policies.in_process import InProcessPolicy

        with borrowed_policy(context, workshop.recipe, workshop.start) as model:
            yield InProcessPolicy(model, workshop.tokenizer, rows=node.batch_rows)


@contextlib.contextmanager
def cached_caller(server: Endpoint, loop: Path) -> Iterator[Any]:
    """A caller whose answers are kept in the loop's folder, whichever round asked first."""
    from align.loops.caller import CachedCaller
    from align.loops.calls import CallStore
    from align.policies.endpoint import OpenAICaller

    with CallStore(loop / "calls.sqlite") as store:
        yield CachedCaller(OpenAICaller(server), store)
