"""Code of a user's own that raises: one of each thing that may. The tests copy it elsewhere."""

from contextlib import contextmanager
from typing import ClassVar, Literal

import torch

from align.evaluation import Measurement
from align.judges.base import JudgeNode
from align.judges.rule import RuleJudge
from align.objectives import Objective
from align.stages.rows import RowsStage


class Scoring(JudgeNode):
    by: Literal["scoring"] = "scoring"
    gives: ClassVar = "scores"

    @contextmanager
    def open(self, bench):
        yield RuleJudge("scoring", lambda _, text: {}[text])  # judge


class Stage(RowsStage):
    run: Literal["faulty"] = "faulty"

    def rows(self, rows, context):
        return [row["no_such_column"] for row in rows]  # stage


class Loss(Objective, frozen=True):
    name: Literal["faulty_loss"] = "faulty_loss"
    beta: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})

    def __call__(self, inputs):
        return torch.zeros(2) + torch.zeros(3)  # objective


class Measure(Measurement):
    run: Literal["faulty_measure"] = "faulty_measure"

    def estimates(self, subject):
        return round("1")  # measurement


@contextmanager
def engine(loading):
    raise AssertionError  # engine
    yield


def reader(row):
    return row["no such column"]  # reader
