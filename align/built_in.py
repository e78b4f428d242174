"""What the toolkit itself offers by name: kind -> name -> `module:object`, read lazily."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal[
    "objective", "stage", "judge", "reward", "world", "evaluation", "task", "policy", "reader"
]
KINDS: tuple[Kind, ...] = get_args(Kind)

BUILT_IN: Mapping[Kind, Mapping[str, str]] = MappingProxyType(
    {
        "objective": {
            "alphapo": "align.objectives:AlphaPO",
            "anchored_down": "align.objectives:AnchoredDown",
            "anchored_zero": "align.objectives:AnchoredZero",
            "aot": "align.objectives:AOT",
            "aot_unpaired": "align.objectives:AOTUnpaired",
            "apo": "align.objectives:APO",
            "bco": "align.objectives:BCO",
            "beta_dpo": "align.objectives:BetaDPO",
            "cal_dpo": "align.objectives:CalDPO",
            "cdpo": "align.objectives:CDPO",
            "chipo": "align.objectives:ChiPO",
            "chosen_nll": "align.objectives:ChosenNLL",
            "copg": "align.objectives:CoPG",
            "cpo": "align.objectives:CPO",
            "discopop": "align.objectives:DiscoPOP",
            "dpo": "align.objectives:DPO",
            "dpop": "align.objectives:DPOP",
            "exo": "align.objectives:EXO",
            "hinge": "align.objectives:Hinge",
            "inpo": "align.objectives:INPO",
            "ipo": "align.objectives:IPO",
            "ld_dpo": "align.objectives:LDDPO",
            "nash_mp": "align.objectives:NashMP",
            "nca": "align.objectives:NCA",
            "odpo": "align.objectives:ODPO",
            "opa_dpo": "align.objectives:OPADPO",
            "orpo": "align.objectives:ORPO",
            "p3o": "align.objectives:P3O",
            "rdpo": "align.objectives:RDPO",
            "rebel": "align.objectives:REBEL",
            "refuel": "align.objectives:REFUEL",
            "rpo": "align.objectives:RPO",
            "simpo": "align.objectives:SimPO",
            "slic": "align.objectives:SLiC",
            "spo": "align.objectives:SPO",
            "sppo": "align.objectives:SPPO",
            "sum": "align.objectives:Sum",
            "tdpo": "align.objectives:TDPO",
            "tgdpo": "align.objectives:TGDPO",
            "wpo": "align.objectives:WPO",
            # over groups of completions
            "anchored_zero_unpaired": "align.objectives:AnchoredZeroUnpaired",
            "bco_unpaired": "align.objectives:BCOUnpaired",
            "copg_group": "align.objectives:CoPGGroup",
            "direct_advantage": "align.objectives:DirectAdvantage",
            "gepo": "align.objectives:GEPO",
            "group_relative": "align.objectives:GroupRelative",
            "kto": "align.objectives:KTO",
            "lipo": "align.objectives:LiPO",
            "nft": "align.objectives:NFT",
            "plackett_luce": "align.objectives:PlackettLuce",
            "remax": "align.objectives:ReMax",
            "rto": "align.objectives:RTO",
            "trpa": "align.objectives:TRPA",
        },
        "stage": {
            "generate": "align.stages.generate:Generate",
            "judge": "align.stages.judge:Judge",
            "select": "align.stages.select:Select",
            "mcts": "align_data.mcts.stage:MCTS",
            "agent_q": "align_data.mcts.stage:AgentQ",
            "self_reference": "align_data.self_reference.stage:SelfReference",
            "uncertainty": "align_data.uncertainty.stage:Uncertainty",
            "expert_correction": "align_data.expert_correction.stage:ExpertCorrection",
            "on_policy_alignment": "align_data.expert_correction.on_policy:OnPolicyAlignment",
            "train": "align.stages.train:TrainRound",
            "evaluate": "align.stages.evaluate:EvaluateRound",
        },
        "judge": {
            "world": "align.judges.world:WorldJudge",
            "answers": "align.judges.rule:KnownAnswers",
            "reward_model": "align.judges.reward_model:RewardModel",
            "preference_model": "align.judges.preference_model:PreferenceModel",
            "implicit": "align.judges.implicit:ImplicitReward",
            "llm": "align.judges.pairwise_llm:LanguageModel",
            "rewards": "align.judges.weighted:WeightedRewards",
            "instructions": "align.judges.instructions:InstructionsMet",
        },
        "reward": {
            "length": "align.judges.functions:length",
            "earnest": "align.judges.instructions:earnest",
        },
        "world": {
            "sums": "align.worlds.sums:Sums",
            "styles": "align.worlds.styles:Styles",
            "scenes": "align.worlds.scenes:Scenes",
            "bytes": "align.worlds.bytes:Bytes",
            "instructions": "align.worlds.instructions:Instructions",
        },
        "evaluation": {
            "preference": "align_eval.preference:Preference",
            "answers": "align_eval.answers:Answers",
            "world": "align_eval.world:WorldMeasure",
            "alpaca_eval": "align_eval.alpaca_eval.run:AlpacaEval",
            "arena_hard": "align_eval.arena_hard.run:ArenaHard",
            "win_rate": "align_eval.win_rate_run:WinRate",
            "tasks": "align_eval.task_run:Tasks",
            "ifeval": "align_eval.ifeval.run:IFEval",
        },
        "task": {
            "gsm8k": "align_eval.task_files:gsm8k",
            "styles": "align_eval.task_files:styles",
            "sums": "align_eval.task_files:sums",
        },
        "policy": {
            "transformers": "align.policies.engines:in_process",
            "vllm": "align.policies.engines:vllm",
        },
        "reader": {
            "auto": "align.data.formats.readers:guessed",
            "trl": "align.data.formats.trl:read_trl",
            "hh": "align.data.formats.hh:read_hh",
            "sharegpt": "align.data.formats.sharegpt:read_sharegpt",
        },
    }
)
