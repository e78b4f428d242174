"""What benchmarks with a judge share: outputs read or generated once, and a caller with a store."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Field

from align.evaluation import Benchmark, Subject
from align.servers.caller import CachedCaller
from align.servers.calls import CallStore, calls_file
from align.servers.endpoint import Endpoint, OpenAICaller
from align.servers.gate import Limits
from align_eval.outputs import AnswerSampling, Outputs, in_words, kept_outputs

NonEmpty: TypeAlias = Annotated[str, Field(min_length=1)]

GENERATED = "generated.jsonl"


class JudgedBenchmark(Benchmark):
    """A benchmark whose outputs a language model behind a server judges."""

    sampling: AnswerSampling = AnswerSampling()
    """How the recipe's model writes its outputs: greedily where the recipe does not say."""
    annotator: Endpoint
    """Where the language model that judges is served."""
    limits: Limits = Limits()
    """How hard the annotator is asked, and how long."""
    seed: int = Field(default=0, ge=0)
    """Seed of the model's outputs, and of the bootstrap where there is one."""
    max_failed: float = Field(default=0.01, ge=0, le=1)
    """Share of the questions that may fail before there is no score."""
    limit: int | None = Field(default=None, ge=1)
    """Questions at most, the first ones of the file; null takes all. The score of a part is
    comparable with no leaderboard."""
    calls_each: ClassVar[int] = 2
    """Calls of the annotator for each question."""

    def settings(self) -> Any:
        """Without `limits`: how hard a server is asked moves no number."""
        return self.model_dump(mode="json", exclude={"limits"})

    def planned(self) -> list[str]:
        """What would be asked of whom; reads every file that the recipe names.

        Raises:
            AlignError: a file is none of its kind, or lacks a question's row.
        """
        asked, there = len(self.prompts()), self.there()
        is_part = self.limited() is not None
        who = f"{self.annotator.model} at {self.annotator.base_url}"
        lines = [
            f"questions: {f'the first {asked} of {there}' if is_part else asked}",
            f"judge: {who}, at most {asked * self.calls_each} calls, repeated tries aside",
        ]
        if self.asks_policy():
            return [*lines, f"answers: {in_words(self.sampling)}"]
        outputs = self.read()
        return [*lines, f"answers: {len(outputs.texts)} of {outputs.generator}"]

    def limited(self) -> tuple[int, int] | None:
        """Number of questions asked, and of all; None where these are all."""
        there = self.there()
        return None if self.limit is None or self.limit >= there else (self.limit, there)

    def measure(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Judges outputs that are read, or generated once and kept in `folder`."""
        with CallStore(calls_file(folder)) as store:
            caller = CachedCaller(self.judge_caller(), store, self.limits)
            return self.judge(self._outputs(subject, folder), caller, folder)

    def _outputs(self, subject: Subject, folder: Path) -> Outputs:
        if not self.asks_policy():
            return self.read()
        return kept_outputs(
            folder / GENERATED,
            subject.policy(),
            self.prompts(),
            generator=self.called() or subject.name,
            sampling=self.sampling,
            seed=self.seed,
            source=self.run,
        )

    def judge_caller(self) -> OpenAICaller:
        """What asks the annotator."""
        return OpenAICaller(self.annotator)

    @abstractmethod
    def called(self) -> str | None:
        """The model's name in tables, where the recipe gives one."""

    @abstractmethod
    def prompts(self) -> dict[str, str]:
        """What the model is asked, by the key of the question."""

    @abstractmethod
    def there(self) -> int:
        """Number of questions in the file, whatever `limit` says."""

    @abstractmethod
    def read(self) -> Outputs:
        """The outputs that the recipe names."""

    @abstractmethod
    def judge(self, outputs: Outputs, caller: CachedCaller, folder: Path) -> dict[str, Any]:
        """Judges, scores and writes everything to `folder`; returns what results.json holds."""
