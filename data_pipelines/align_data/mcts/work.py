"""Questions in, step pairs and whole trees out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.data.built import Built
from align.data.problems import DroppedRow, Reason, RowProblem
from align.data.questions import Question
from align.data.records import content_id
from align.policies.writer import Writer
from align_data.mcts.expansion import SearchFailed
from align_data.mcts.lockstep import search_together
from align_data.mcts.search import TreeSearch
from align_data.mcts.settings import AgentQSettings, Search
from align_data.mcts.step_pairs import Origin, step_pairs
from align_data.mcts.verify import Verifier


class MCTSWork:
    """Searches a chunk of questions together.

    Args:
        settings: of the pipeline.
        writer: the policy, which draws the steps.
        verifier: checks finished answers.
        critic: evaluates and ranks steps; None takes the policy itself, as both papers do.
        seed: of all draws.
        config_hash: of the settings.
        round: of a loop; 0 outside of one.
    """

    def __init__(
        self,
        settings: Search,
        writer: Writer,
        verifier: Verifier,
        critic: Writer | None = None,
        *,
        seed: int,
        config_hash: str,
        round: int = 0,  # noqa: A002
    ) -> None:
        self.settings = settings
        self.writer = writer
        self.critic = critic or writer
        self.verifier = verifier
        self.seed = seed
        self.config_hash = config_hash
        self.round = round

    def uid(self, question: Question, identity: str) -> str:
        """Of the unit of work; draws are keyed by it."""
        return content_id(
            "mcts",
            question.id,
            self.config_hash,
            identity,
            self.verifier.identity,
            self.round,
        )

    def __call__(self, units: Sequence[Question]) -> list[Built]:
        """One result per question, in their order."""
        identity = self.writer.identity
        found: list[TreeSearch | RowProblem | SearchFailed] = []
        for question in units:
            try:
                search = TreeSearch(
                    question,
                    self.uid(question, identity),
                    self.settings,
                    self.writer,
                    self.critic,
                    self.verifier,
                    self.seed,
                )
                if not search.expansion.has_room(search.tree.root):
                    raise RowProblem("too_long", "prompt", "no room for an answer behind it")
            except RowProblem as problem:
                found.append(problem)
                continue
            if isinstance(self.settings, AgentQSettings) and not search.can_verify:
                detail = "agent_q needs an outcome, and this question's answer is not known"
                found.append(SearchFailed("not_judged", detail))
                continue
            found.append(search)
        searches = [one for one in found if isinstance(one, TreeSearch)]
        failures = search_together(searches, self.writer, self.critic, self.seed)
        why = {id(one): failure for one, failure in zip(searches, failures, strict=True)}
        built: list[Built] = []
        for question, one in zip(units, found, strict=True):
            uid = self.uid(question, identity)
            if not isinstance(one, TreeSearch):
                built.append(_lost(question, uid, one, {}))
            elif (failure := why[id(one)]) is not None:
                built.append(_lost(question, uid, failure, dict(one.counts)))
            else:
                built.append(self._built(one, identity))
        return built

    def _built(self, search: TreeSearch, identity: str) -> Built:
        tree, question = search.tree, search.question
        origin = Origin(
            question=question,
            uid=search.uid,
            prompt_ids=search.expansion.prompt_ids,
            text=search.expansion.text,
            model=identity,
            config_hash=self.config_hash,
            seed=self.seed,
            round=self.round,
            can_verify=search.can_verify,
        )
        pairs, dropped = step_pairs(tree, self.settings, origin)
        right = tree.nodes[tree.committed[-1]].outcome
        counts = dict(search.counts)
        counts |= {
            "nodes": len(tree.nodes) - 1,
            "right_trees": int(right is True),
            "trees_without_choice": int(not pairs and not dropped),
        }
        record: dict[str, Any] = {
            "tree_id": search.uid,
            "prompt": question.model_dump(mode="json")["prompt"],
            "answer": question.answer,
            "solution": question.solution,
            "source": question.source,
            "row": question.row,
            "config_hash": self.config_hash,
            "policy": identity,
            "critic": self.critic.identity if self.critic is not self.writer else identity,
            "verifier": self.verifier.identity,
            "variant": self.settings.kind,
            "right": right,
            "answer_text": search.expansion.text(tree.nodes[tree.committed[-1]]),
            **tree.to_json(),
        }
        return Built(
            uid=search.uid,
            read=len(pairs) + len(dropped),
            pairs=tuple(pairs),
            dropped=tuple(dropped),
            counts={key: value for key, value in sorted(counts.items()) if value},
            record=record,
        )


def _lost(
    question: Question, uid: str, failure: RowProblem | SearchFailed, counts: dict[str, int]
) -> Built:
    """A question that gave no tree; it counts as one candidate."""
    if isinstance(failure, RowProblem):
        dropped = DroppedRow.of(failure, question.source, question.row)
    else:
        # A code of a policy's failure is told in the detail; rows know it as failed.
        is_unjudged = failure.reason == "not_judged"
        reason: Reason = "not_judged" if is_unjudged else "failed"
        detail = failure.detail if is_unjudged else f"{failure.reason}: {failure.detail}"
        dropped = DroppedRow(
            source=question.source,
            row=question.row,
            field="tree",
            reason=reason,
            detail=detail,
        )
    return Built(
        uid=uid,
        read=1,
        dropped=(dropped,),
        counts={key: value for key, value in sorted(counts.items()) if value},
        record={"tree_id": uid, "failed": dropped.reason, "detail": dropped.detail},
    )
