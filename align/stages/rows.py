"""The shortest way to a stage of one's own: rows in, rows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from align.errors import DataError
from align.loops.artefacts import read_lines, write_lines
from align.loops.stage import StageContext, StageNode
from align.node import own_code
from align.stages.workshop import Workshop


class RowsStage(StageNode):
    """A stage that makes rows of rows; children state `run` and override `rows`.

    class Shorter(RowsStage):
        run: Literal["shorter"] = "shorter"
        most: int = 200

        def rows(self, rows, context):
            return [row for row in rows if len(str(row["chosen"])) <= self.most]
    """

    takes: ClassVar[str] = "pairs"
    """What it reads: completions, judged or pairs."""
    gives: ClassVar[str] = "pairs"
    """What it leaves."""
    version: ClassVar[int] = 1
    """Raised when a change of the code outside of the node's own file changes the rows."""
    needs_prompts: ClassVar[bool] = False

    def rows(
        self, rows: list[dict[str, Any]], context: StageContext
    ) -> Iterable[Mapping[str, Any]]:
        """The rows that the next stage reads, JSON-ready; `context.seed` is for draws."""
        raise NotImplementedError

    def stage(self, workshop: Workshop) -> MappedRows:
        """The stage."""
        return MappedRows(self)


@dataclass
class MappedRows:
    """A `RowsStage` as the loop runs it."""

    node: RowsStage
    name: str = field(init=False)
    version: int = field(init=False)
    reads: tuple[str, ...] = field(init=False)
    writes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.node.folder_name
        self.version = self.node.version
        self.reads, self.writes = (self.node.takes,), (self.node.gives,)

    def settings(self) -> Mapping[str, Any]:
        """The node, and the source of its class."""
        return self.node.model_dump(mode="json") | {"code": own_code(self.node)}

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Writes the rows that the node makes.

        Raises:
            DataError: it made none.
        """
        taken = list(read_lines(context.input(self.node.takes)))
        given = [dict(row) for row in self.node.rows(taken, context)]
        if not given:
            raise DataError(
                f"Round {context.round}: {self.node.run} makes no row of {len(taken)}. Look at its "
                "settings, and at the rows of the stage before it."
            )
        write_lines(context.output(self.node.gives), given)
        return {"read": len(taken), "rows": len(given)}
