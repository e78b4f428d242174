"""vLLM in this process, where it is installed; it needs a GPU and its own transformers version.

Training and vLLM rarely fit into one environment or one GPU: a vLLM server behind
`align.policies.openai_http` is the usual way, this one is for machines that only generate.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.completions import Completion
from align.data.prompts import Prompt
from align.errors import RecipeError
from align.forest.rows import TokenRow
from align.policies.base import Capabilities, Failed, Sampling, sample_seed
from align.policies.prompting import Begun, End, Ends, Prompting
from align.reference import digest, tokenizer_digest
from align.runs.manifest import file_digest

if TYPE_CHECKING:
    from align.types import Logps


class VLLMPolicy:
    """A folder with a model, read by vLLM.

    Every sample is a request of its own with a seed of its own. vLLM still rounds by batch, so the
    same call may give other samples.

    Args:
        folder: of the model and its tokenizer.
        gpu_memory_utilization: fraction of the GPU's memory that vLLM takes at once.
        tensor_parallel_size: GPUs that share the model.

    Raises:
        RecipeError: vLLM is not installed, or `folder` holds no weights.
    """

    capabilities = Capabilities(logps=False, reproducible=False)

    def __init__(
        self,
        folder: Path,
        *,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel_size: int = 1,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise RecipeError(
                "The recipe asks for the vLLM engine and vllm is not installed here: install "
                "align-toolkit[vllm] on a machine with a GPU, point the recipe at a vLLM server, "
                "or take the transformers engine."
            )
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise RecipeError(
                f"{folder} holds no *.safetensors, so there is no model for vLLM to read: give the "
                "folder of a model that was saved by transformers."
            )
        self._vllm: Any = importlib.import_module("vllm")
        self._engine: Any = self._vllm.LLM(
            model=str(folder),
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size,
        )
        tokenizer = self._engine.get_tokenizer()
        self._prompting = Prompting(tokenizer)
        settings = folder / "generation_config.json"
        named = json.loads(settings.read_text()) if settings.is_file() else {}
        self._end_ids: int | list[int] | None = named.get("eos_token_id")
        parts = [*(file_digest(file) for file in weights), tokenizer_digest(tokenizer)]
        self.identity = digest(parts)[:16]

    def logps(self, rows: Sequence[TokenRow]) -> Logps:
        """Refused: vLLM's kernels round otherwise than the model that is trained."""
        raise RecipeError(
            "The vLLM engine does not score rows: score them with the transformers engine, whose "
            "log-probs are those of training."
        )

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: Sampling, seed: int
    ) -> list[list[Completion | Failed]]:
        """`n` samples of every prompt: outer list in the order of the prompts, inner by sample.

        Raises:
            DataError: no such prompt can be used with this tokenizer.
        """
        if n < 1:
            raise ValueError(f"n must be 1 or more, not {n}.")
        config = self._engine.llm_engine.model_config
        begun = self._prompting.begin(prompts, n, sampling, config.max_model_len)
        ends = self._prompting.ends(begun, self._end_ids, sampling)
        asked = [(number, sample) for number in begun.ids for sample in range(n)]
        parameters = [
            self._vllm.SamplingParams(
                n=1,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                stop=list(sampling.stop) or None,
                stop_token_ids=sorted(ends.whole | ends.control),
                seed=sample_seed(seed, prompts[number], sample),
            )
            for number, sample in asked
        ]
        requests = [{"prompt_token_ids": begun.ids[number]} for number, _ in asked]
        answers = self._engine.generate(requests, parameters, use_tqdm=False) if asked else []
        for (number, sample), answer in zip(asked, answers, strict=True):
            self._keep(begun, prompts[number], number, sample, answer.outputs[0], sampling, ends)
        return begun.results

    def _keep(
        self,
        begun: Begun,
        prompt: Prompt,
        number: int,
        sample: int,
        output: Any,
        sampling: Sampling,
        ends: Ends,
    ) -> None:
        ids = list(output.token_ids)
        end: End | None = None
        if output.finish_reason == "stop" and isinstance(output.stop_reason, str):
            end = "stop"
        elif output.finish_reason == "stop":
            # The token that ended it comes last; stop_reason is None for the model's own.
            last = output.stop_reason
            if ids and ids[-1] in ends.whole | ends.control:
                last = ids.pop()
            end = "control" if last in ends.control else "end"
        begun.results[number].append(
            self._prompting.written(
                prompt,
                sample,
                ids,
                end,
                behind=begun.ids[number][-1],
                sampling=sampling,
                identity=self.identity,
            )
        )
