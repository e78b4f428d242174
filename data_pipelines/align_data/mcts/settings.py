"""What the two searches for step-level pairs are told.

Xie et al. 2024 (arXiv 2405.00451): PUCT, self-evaluation, the path is committed to step by step.
Putta et al. 2024 (Agent Q, arXiv 2408.07199): UCB1, a critic's ranking mixed with rollouts, one
search from the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from align.node import Conflict
from align_data.settings import PipelineSettings

# Simulations per child of the node that the search stands on.
_PER_CHILD = 5
_LETTERS = 26
_MAX_STEPS = 16
_LENGTH_PENALTY = 1.25

# The two searches once were one class with the keys of both, and mcts's draws stay keyed by what
# that class held: these keys too, and null for a key at its default where null once named it.
_ONCE_HELD: Mapping[str, Any] = MappingProxyType(
    {"run": "mcts", "variant": "xie", "ranking": "critic", "mix": 0.5, "threshold": 0.1}
)
_ONCE_NULL = ("breadth", "pairs_from", "max_pairs", "labels", "keep_trees")


class SearchSettings(PipelineSettings):
    """What both searches read."""

    kind: ClassVar[Literal["xie", "agent_q"]]
    """As records of trees call the search."""
    pipeline: ClassVar[Literal["mcts", "agentq"]]
    """As rows call the search, in their column of that name."""

    root_simulations: int | None = Field(default=None, ge=1)
    """Simulations from the question; null takes 5 per child. The paper has 5 in all, its program
    256."""
    first_breadth: int = Field(default=4, ge=1)
    """Steps drawn behind the question."""
    depth: int = Field(default=4, ge=1)
    """Steps of an answer. What is still unfinished then is drawn to its end in one piece; for mcts,
    by beyond_depth, a simulation that has come so far from where it began may end instead."""
    step: Literal["line", "sentence", "chunk"] = "line"
    """What a step is: a line, a sentence, or what the published program makes of step_tokens
    drawn at once: all of it, save where it ended at once or stopped within a sentence."""
    step_tokens: int = Field(default=128, ge=1)
    """Tokens of a step at most."""
    finish_tokens: int = Field(default=512, ge=1)
    """Tokens at most of what is drawn to the answer's end in one piece."""
    min_step_characters: int = Field(default=4, ge=1)
    """A step with fewer, such as an empty line or `2.`, is drawn on: it is glued to the next."""
    answer_ends: tuple[str, ...] = ()
    """Texts that end an answer as the end token does, such as the header of a next question; they
    and what follows are cut off."""
    first_temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature behind the question."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature behind a step."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the likeliest tokens that have this probability together."""
    top_k: int = Field(default=0, ge=0)
    """Sample from so many likeliest tokens; 0 takes all."""
    exploration: float = Field(default=1.0, ge=0)
    """Weight of what is seldom visited: c of PUCT or of UCB1."""
    critic_sees: Literal["answer", "nothing"] = "answer"
    """Whether the critic's prompts hold the known answer."""
    min_visits: int = Field(default=1, ge=0)
    """A pair with a side visited less often is dropped."""
    chunk: int = Field(default=64, ge=1)
    """Trees that are searched together: what fills a batch, is journaled and resumed."""

    @property
    def from_root(self) -> int:
        """Simulations from the question."""
        return self.root_simulations or _PER_CHILD * self.first_breadth

    @property
    def last_step(self) -> int | None:
        """Steps after which an answer counts as cut off; None where it is drawn to its end."""
        return None


class XieSettings(SearchSettings):
    """The search of Xie et al.: it commits to a path, step by step."""

    kind: ClassVar[Literal["xie", "agent_q"]] = "xie"
    pipeline: ClassVar[Literal["mcts", "agentq"]] = "mcts"

    simulations: int | None = Field(default=None, ge=1)
    """Simulations from each step that the search commits to; null takes 5 per child. The paper has
    5 in all, its program 64."""
    breadth: int = Field(default=2, ge=1)
    """Steps drawn behind a step. Equal ones count once."""
    beyond_depth: Literal["finish", "stop"] = "finish"
    """What happens at `depth`; stop needs a confidence, because no answer is reached."""
    max_steps: int = Field(default=_MAX_STEPS, ge=1)
    """Steps of an answer under `beyond_depth: stop`, after which it counts as cut off."""
    length_penalty: float = Field(default=_LENGTH_PENALTY, ge=0)
    """lambda: the prior of a step of L tokens is exp(sum of log-probs / L^lambda)."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per step."""
    backup: Literal["xie", "mean"] = "xie"
    """How a simulation moves the values above it: xie (children weighted by visits, an unvisited
    one as if visited once) or mean (running mean of the returns)."""
    value: Literal["program", "undiscounted", "paper"] = "program"
    """Value of a step from its confidence C and outcome O. program: C / max(depth - 3, 1), or the
    parent's where C is 0, plus O, rewarded by what it adds to the parent's; undiscounted: C + O,
    rewarded alike; paper: C + O, rewarded in full at each step."""
    confidence: Literal["none", "options", "grades"] = "options"
    """Self-evaluation: none, options (probability that the step is called correct) or grades (four
    graded options, for questions without an answer)."""
    confidence_scale: Literal["mass", "normalised"] = "mass"
    """The probability of the option as it is, or within the two options."""
    root_count: Literal["once", "twice"] = "once"
    """Visits that a simulation adds where it starts; the published program counts twice."""
    reject: Literal["lowest_q", "random"] = "lowest_q"
    """The rejected sibling: the worst (the paper), or any but the best (what the program does)."""
    min_q_gap: float = Field(default=0.0, ge=0)
    """A pair whose values are closer is dropped."""
    equal_q: Literal["drop", "keep"] = "drop"
    """What becomes of a pair with equal values."""
    pairs_from: Literal["committed", "all"] = "committed"
    """Siblings on the committed path only, or in the whole tree."""
    max_pairs: int = Field(default=8, ge=1)
    """Pairs of one tree at most, those nearest the question."""
    labels: Literal["visits", "hard", "sampled"] = "visits"
    """visits: preference = 1 - N rejected / (N chosen + N rejected), at least 1/2; hard: none;
    sampled: the better one is chosen with probability sigmoid(difference of the values)."""
    keep_trees: Literal["right", "all"] = "right"
    """Whether the answer that the search ends with must be right for its pairs to be kept."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.beyond_depth == "stop" and self.confidence == "none":
            yield "beyond_depth", "without a confidence an unfinished answer has no value"
        if self.beyond_depth == "finish" and self.max_steps != _MAX_STEPS:
            yield "max_steps", "only `beyond_depth: stop` reads it; take it out"
        if self.backup == "mean" and self.root_count == "twice":
            yield "root_count", "a mean counts each simulation once; write once, or `backup: xie`"
        if self.confidence != "options" and self.confidence_scale != "mass":
            yield "confidence_scale", "only `confidence: options` reads it; take it out"

    @property
    def from_step(self) -> int:
        """Simulations from each step that the search commits to."""
        return self.simulations or _PER_CHILD * self.breadth

    @property
    def last_step(self) -> int | None:
        """Of an answer under `beyond_depth: stop`."""
        return self.max_steps if self.beyond_depth == "stop" else None

    def hashed(self) -> dict[str, Any]:
        """All keys of this class, as earlier versions wrote them."""
        found = self.fields_of(XieSettings)
        for key in _ONCE_NULL:
            if found[key] == XieSettings.model_fields[key].default:
                found[key] = None
        return found | dict(_ONCE_HELD)


class AgentQSettings(SearchSettings):
    """The search of Agent Q: every simulation begins at the question."""

    kind: ClassVar[Literal["xie", "agent_q"]] = "agent_q"
    pipeline: ClassVar[Literal["mcts", "agentq"]] = "agentq"
    length_penalty: ClassVar[float] = _LENGTH_PENALTY
    """Of the priors that rows tell; the search itself reads none."""

    breadth: int = Field(default=4, ge=1)
    """Steps drawn behind a step. Equal ones count once."""
    ranking: Literal["critic", "none"] = "critic"
    """Whether a critic ranks the steps drawn from one place, with one question per rank."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """alpha: a step's score is mix * (mean outcome) + (1 - mix) * (its rank, from 1 to 0)."""
    threshold: float = Field(default=0.1, ge=0)
    """theta: siblings whose scores differ by no more make no pair."""
    pairs_from: Literal["committed", "all"] = "all"
    """Siblings on the committed path only, or in the whole tree."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Pairs of one tree at most, those nearest the question; null takes all."""
    labels: Literal["hard", "sampled"] = "hard"
    """hard: none; sampled: the better one is chosen with probability sigmoid(difference of the
    scores)."""
    keep_trees: Literal["right", "all"] = "all"
    """Whether the answer that the search ends with must be right for its pairs to be kept."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.ranking == "none" and self.mix < 1:
            yield "mix", "there is no ranking to mix in; write `mix: 1`, or `ranking: critic`"
        if self.ranking == "critic" and max(self.first_breadth, self.breadth) > _LETTERS:
            yield "breadth", f"the critic names at most {_LETTERS} steps by letters"

    def hashed(self) -> dict[str, Any]:
        """All keys of this class."""
        return self.fields_of(AgentQSettings) | {"run": "agent_q"}


Search: TypeAlias = XieSettings | AgentQSettings
