"""align: preference alignment of language models, centred on the DPO family.

The names below are the library without a recipe; docs/library.md shows each of them at work. They
are imported when they are asked for: `import align` itself loads neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from align.data.built import BuiltPair
    from align.data.questions import Question
    from align.data.row_report import RowReport
    from align.diffusion import SePPOConfig, SePPOTrainer
    from align.forest import TokenRow, forest_logps
    from align.judges.base import Answer, Comparison, JudgeFailed, Prefers, Refused, Tie
    from align.judges.instructions import InstructionJudge
    from align.judges.pairwise_llm import PairwiseLLM
    from align.judges.preference_model import PreferenceModelJudge
    from align.judges.reward_model import RewardModelJudge
    from align.judges.rule import RuleJudge, known_answer_judge
    from align.judges.table import TableJudge
    from align.judges.weighted import WeightedJudge
    from align.loops.engine import Loop
    from align.loops.stage import Stage, StageContext, given
    from align.objectives import (
        APO,
        CDPO,
        DPO,
        INPO,
        IPO,
        OPADPO,
        P3O,
        RDPO,
        REBEL,
        RPO,
        SPO,
        SPPO,
        TGDPO,
        CoPG,
        NashMP,
        Objective,
        objective_from,
    )
    from align.runs.ledger import Ledger
    from align.servers.cached import cached_caller
    from align.servers.endpoint import Endpoint
    from align.trainers import (
        APOConfig,
        APOTrainer,
        CDPOConfig,
        CDPOTrainer,
        CoPGConfig,
        CoPGTrainer,
        DPOConfig,
        DPOTrainer,
        INPOConfig,
        INPOTrainer,
        IPOConfig,
        IPOTrainer,
        NashMPConfig,
        NashMPTrainer,
        OPADPOConfig,
        OPADPOTrainer,
        P3OConfig,
        P3OTrainer,
        PreferenceConfig,
        PreferenceTrainer,
        RDPOConfig,
        RDPOTrainer,
        REBELConfig,
        REBELTrainer,
        RPOConfig,
        RPOTrainer,
        SPOConfig,
        SPOTrainer,
        SPPOConfig,
        SPPOTrainer,
        TGDPOConfig,
        TGDPOTrainer,
    )
    from align.types import Logps, ObjectiveOutput, Pair, PairInputs
    from align.worlds import world

    def mcts_step_pairs(
        model: Any,
        tokenizer: Any,
        questions: Sequence[Question | tuple[Any, str | None]],
        *,
        settings: Any = None,
        verify: Any = None,
        seed: int = 0,
    ) -> tuple[list[BuiltPair], RowReport]:
        """Of `align_data.mcts.in_memory`, which this room may not import."""
        ...


# Name -> module:object.
_WHERE = {
    "APOConfig": "align.trainers:APOConfig",
    "APOTrainer": "align.trainers:APOTrainer",
    "CDPOConfig": "align.trainers:CDPOConfig",
    "CDPOTrainer": "align.trainers:CDPOTrainer",
    "CoPGConfig": "align.trainers:CoPGConfig",
    "CoPGTrainer": "align.trainers:CoPGTrainer",
    "DPOConfig": "align.trainers:DPOConfig",
    "DPOTrainer": "align.trainers:DPOTrainer",
    "INPOConfig": "align.trainers:INPOConfig",
    "INPOTrainer": "align.trainers:INPOTrainer",
    "IPOConfig": "align.trainers:IPOConfig",
    "IPOTrainer": "align.trainers:IPOTrainer",
    "NashMPConfig": "align.trainers:NashMPConfig",
    "NashMPTrainer": "align.trainers:NashMPTrainer",
    "OPADPOConfig": "align.trainers:OPADPOConfig",
    "OPADPOTrainer": "align.trainers:OPADPOTrainer",
    "P3OConfig": "align.trainers:P3OConfig",
    "P3OTrainer": "align.trainers:P3OTrainer",
    "PreferenceConfig": "align.trainers:PreferenceConfig",
    "PreferenceTrainer": "align.trainers:PreferenceTrainer",
    "RDPOConfig": "align.trainers:RDPOConfig",
    "RDPOTrainer": "align.trainers:RDPOTrainer",
    "REBELConfig": "align.trainers:REBELConfig",
    "REBELTrainer": "align.trainers:REBELTrainer",
    "RPOConfig": "align.trainers:RPOConfig",
    "RPOTrainer": "align.trainers:RPOTrainer",
    "SPOConfig": "align.trainers:SPOConfig",
    "SPOTrainer": "align.trainers:SPOTrainer",
    "SPPOConfig": "align.trainers:SPPOConfig",
    "SPPOTrainer": "align.trainers:SPPOTrainer",
    "TGDPOConfig": "align.trainers:TGDPOConfig",
    "TGDPOTrainer": "align.trainers:TGDPOTrainer",
    "APO": "align.objectives:APO",
    "CDPO": "align.objectives:CDPO",
    "CoPG": "align.objectives:CoPG",
    "DPO": "align.objectives:DPO",
    "INPO": "align.objectives:INPO",
    "IPO": "align.objectives:IPO",
    "NashMP": "align.objectives:NashMP",
    "OPADPO": "align.objectives:OPADPO",
    "P3O": "align.objectives:P3O",
    "RDPO": "align.objectives:RDPO",
    "REBEL": "align.objectives:REBEL",
    "RPO": "align.objectives:RPO",
    "SPO": "align.objectives:SPO",
    "SPPO": "align.objectives:SPPO",
    "TGDPO": "align.objectives:TGDPO",
    "Objective": "align.objectives:Objective",
    "objective_from": "align.objectives:objective_from",
    "Logps": "align.types:Logps",
    "ObjectiveOutput": "align.types:ObjectiveOutput",
    "Pair": "align.types:Pair",
    "PairInputs": "align.types:PairInputs",
    "TokenRow": "align.forest:TokenRow",
    "forest_logps": "align.forest:forest_logps",
    "Question": "align.data.questions:Question",
    "Loop": "align.loops.engine:Loop",
    "Stage": "align.loops.stage:Stage",
    "StageContext": "align.loops.stage:StageContext",
    "given": "align.loops.stage:given",
    "InstructionJudge": "align.judges.instructions:InstructionJudge",
    "Ledger": "align.runs.ledger:Ledger",
    "Answer": "align.judges.base:Answer",
    "Comparison": "align.judges.base:Comparison",
    "JudgeFailed": "align.judges.base:JudgeFailed",
    "Prefers": "align.judges.base:Prefers",
    "Refused": "align.judges.base:Refused",
    "Tie": "align.judges.base:Tie",
    "RuleJudge": "align.judges.rule:RuleJudge",
    "known_answer_judge": "align.judges.rule:known_answer_judge",
    "TableJudge": "align.judges.table:TableJudge",
    "PairwiseLLM": "align.judges.pairwise_llm:PairwiseLLM",
    "PreferenceModelJudge": "align.judges.preference_model:PreferenceModelJudge",
    "RewardModelJudge": "align.judges.reward_model:RewardModelJudge",
    "WeightedJudge": "align.judges.weighted:WeightedJudge",
    "cached_caller": "align.servers.cached:cached_caller",
    "Endpoint": "align.servers.endpoint:Endpoint",
    "SePPOConfig": "align.diffusion:SePPOConfig",
    "SePPOTrainer": "align.diffusion:SePPOTrainer",
    "world": "align.worlds:world",
    "mcts_step_pairs": "align_data.mcts.in_memory:mcts_step_pairs",
}

__all__ = [
    "APO",
    "CDPO",
    "DPO",
    "INPO",
    "IPO",
    "OPADPO",
    "P3O",
    "RDPO",
    "REBEL",
    "RPO",
    "SPO",
    "SPPO",
    "TGDPO",
    "APOConfig",
    "APOTrainer",
    "Answer",
    "CDPOConfig",
    "CDPOTrainer",
    "CoPG",
    "CoPGConfig",
    "CoPGTrainer",
    "Comparison",
    "DPOConfig",
    "DPOTrainer",
    "Endpoint",
    "INPOConfig",
    "INPOTrainer",
    "IPOConfig",
    "IPOTrainer",
    "InstructionJudge",
    "JudgeFailed",
    "Ledger",
    "Logps",
    "Loop",
    "NashMP",
    "NashMPConfig",
    "NashMPTrainer",
    "OPADPOConfig",
    "OPADPOTrainer",
    "Objective",
    "ObjectiveOutput",
    "P3OConfig",
    "P3OTrainer",
    "Pair",
    "PairInputs",
    "PairwiseLLM",
    "PreferenceConfig",
    "PreferenceModelJudge",
    "PreferenceTrainer",
    "Prefers",
    "Question",
    "RDPOConfig",
    "RDPOTrainer",
    "REBELConfig",
    "REBELTrainer",
    "RPOConfig",
    "RPOTrainer",
    "Refused",
    "RewardModelJudge",
    "RuleJudge",
    "SPOConfig",
    "SPOTrainer",
    "SPPOConfig",
    "SPPOTrainer",
    "SePPOConfig",
    "SePPOTrainer",
    "Stage",
    "StageContext",
    "TGDPOConfig",
    "TGDPOTrainer",
    "TableJudge",
    "Tie",
    "TokenRow",
    "WeightedJudge",
    "cached_caller",
    "forest_logps",
    "given",
    "known_answer_judge",
    "mcts_step_pairs",
    "objective_from",
    "world",
]


if not TYPE_CHECKING:  # a checker would take any name then

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}")
        from importlib import import_module

        module, _, attribute = _WHERE[name].partition(":")
        try:
            value = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "diffusers":
                raise
            from align.errors import MachineError

            raise MachineError(
                f"align.{name} needs diffusers, which is not installed. Install the extra: "
                "pip install 'align-toolkit[diffusion]'."
            ) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _hint(name: str) -> str:
    """The nearest right name. Python asks for dunders, and for submodules not imported yet."""
    if name.startswith("_"):
        return ""
    from align.nearest import did_you_mean

    return did_you_mean(name, __all__)
