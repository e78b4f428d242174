"""The search for step-level pairs: `pipeline: {run: mcts, ...}`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from align.recipe.base import Conflict, Section

# Field -> the only variant that reads it.
_READ_BY = {
    "simulations": "xie",
    "beyond_depth": "xie",
    "max_steps": "xie",
    "length_penalty": "xie",
    "gamma": "xie",
    "backup": "xie",
    "value": "xie",
    "confidence": "xie",
    "confidence_scale": "xie",
    "root_count": "xie",
    "reject": "xie",
    "min_q_gap": "xie",
    "equal_q": "xie",
    "ranking": "agent_q",
    "mix": "agent_q",
    "threshold": "agent_q",
}
# Simulations per child of the node that the search stands on.
_PER_CHILD = 5
_LETTERS = 26
_MAX_STEPS = 16


class MCTS(Section):
    """Monte-Carlo tree search over the steps of an answer; sibling steps become pairs."""

    run: Literal["mcts"] = "mcts"
    """Which pipeline."""
    variant: Literal["xie", "agent_q"] = "xie"
    """xie (2405.00451: PUCT, self-evaluation, the path is committed to step by step) or agent_q
    (2408.07199: UCB1, a critic's ranking mixed with rollouts, one search from the question)."""
    root_simulations: int | None = Field(default=None, ge=1)
    """Simulations from the question; null takes 5 per child. The paper has 5 in all, its program
    256."""
    simulations: int | None = Field(default=None, ge=1)
    """Simulations from each step that the search commits to; null takes 5 per child. The paper has
    5 in all, its program 64."""
    first_breadth: int = Field(default=4, ge=1)
    """Steps drawn behind the question."""
    breadth: int | None = Field(default=None, ge=1)
    """Steps drawn behind a step; null takes 2 for xie and 4 for agent_q. Equal ones count once."""
    depth: int = Field(default=4, ge=1)
    """Steps of an answer. What is still unfinished then is drawn to its end in one piece, or, by
    beyond_depth, a simulation that has come so far from where it began ends."""
    beyond_depth: Literal["finish", "stop"] = "finish"
    """What happens at `depth`; stop needs a confidence, because no answer is reached."""
    max_steps: int = Field(default=_MAX_STEPS, ge=1)
    """Steps of an answer under `beyond_depth: stop`, after which it counts as cut off."""
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
    length_penalty: float = Field(default=1.25, ge=0)
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
    critic_sees: Literal["answer", "nothing"] = "answer"
    """Whether the prompts of self-evaluation and ranking hold the known answer."""
    root_count: Literal["once", "twice"] = "once"
    """Visits that a simulation adds where it starts; the published program counts twice."""
    ranking: Literal["critic", "none"] = "critic"
    """Whether a critic ranks the steps drawn from one place, with one question per rank."""
    mix: float = Field(default=0.5, ge=0, le=1)
    """alpha: a step's score is mix * (mean outcome) + (1 - mix) * (its rank, from 1 to 0)."""
    threshold: float = Field(default=0.1, ge=0)
    """theta: siblings whose scores differ by no more make no pair."""
    pairs_from: Literal["committed", "all"] | None = None
    """Siblings on the committed path only, or in the whole tree; null takes committed for xie and
    all for agent_q."""
    reject: Literal["lowest_q", "random"] = "lowest_q"
    """The rejected sibling: the worst (the paper), or any but the best (what the program does)."""
    min_q_gap: float = Field(default=0.0, ge=0)
    """A pair whose values are closer is dropped."""
    equal_q: Literal["drop", "keep"] = "drop"
    """What becomes of a pair with equal values."""
    min_visits: int = Field(default=1, ge=0)
    """A pair with a side visited less often is dropped."""
    max_pairs: int | None = Field(default=None, ge=1)
    """Pairs of one tree at most, those nearest the question; null takes 8 for xie and all for
    agent_q."""
    labels: Literal["visits", "hard", "sampled"] | None = None
    """visits: preference = 1 - N rejected / (N chosen + N rejected), at least 1/2; hard: none;
    sampled: the better one is chosen with probability sigmoid(difference of the values). null
    takes visits for xie and hard for agent_q."""
    keep_trees: Literal["right", "all"] | None = None
    """Whether the answer that the search ends with must be right for its pairs to be kept; null
    takes right for xie and all for agent_q."""
    chunk: int = Field(default=64, ge=1)
    """Trees that are searched together: what fills a batch, is journaled and resumed."""

    def conflicts(self) -> Iterator[Conflict]:  # noqa: D102
        for key, variant in _READ_BY.items():
            default = type(self).model_fields[key].default
            if self.variant != variant and getattr(self, key) != default:
                yield key, f"only {variant} reads it; take it out"
        if self.variant == "agent_q":
            if self.ranking == "none" and self.mix < 1:
                yield "mix", "there is no ranking to mix in; write `mix: 1`, or `ranking: critic`"
            if self.labels == "visits":
                yield "labels", "agent_q pairs by scores; write hard or sampled"
            if self.ranking == "critic" and max(self.first_breadth, self.children) > _LETTERS:
                yield "breadth", f"the critic names at most {_LETTERS} steps by letters"
            return
        if self.beyond_depth == "stop" and self.confidence == "none":
            yield "beyond_depth", "without a confidence an unfinished answer has no value"
        if self.beyond_depth == "finish" and self.max_steps != _MAX_STEPS:
            yield "max_steps", "only `beyond_depth: stop` reads it; take it out"
        if self.backup == "mean" and self.root_count == "twice":
            yield "root_count", "a mean counts each simulation once; write once, or `backup: xie`"
        if self.confidence != "options" and self.confidence_scale != "mass":
            yield "confidence_scale", "only `confidence: options` reads it; take it out"

    @property
    def children(self) -> int:
        """Steps drawn behind a step."""
        return self.breadth or (2 if self.variant == "xie" else 4)

    @property
    def from_root(self) -> int:
        """Simulations from the question."""
        return self.root_simulations or _PER_CHILD * self.first_breadth

    @property
    def from_step(self) -> int:
        """Simulations from each step that the search commits to."""
        return self.simulations or _PER_CHILD * self.children

    @property
    def most_pairs(self) -> int | None:
        """Of one tree; None for all."""
        return self.max_pairs or (8 if self.variant == "xie" else None)

    @property
    def pairs_are_from(self) -> Literal["committed", "all"]:
        """Which siblings make pairs."""
        return self.pairs_from or ("committed" if self.variant == "xie" else "all")

    @property
    def labelled_by(self) -> Literal["visits", "hard", "sampled"]:
        """What a pair's label is."""
        return self.labels or ("visits" if self.variant == "xie" else "hard")

    @property
    def trees_kept(self) -> Literal["right", "all"]:
        """Whose pairs are kept."""
        return self.keep_trees or ("right" if self.variant == "xie" else "all")
