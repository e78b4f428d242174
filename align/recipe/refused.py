"""Keys that other projects know and recipes do not, with what to write in their place."""

from __future__ import annotations

from collections.abc import Mapping

_OBJECTIVE_SAYS = (
    "the formula is the objective section's; write `objective: {name: dpo, beta: 0.1}`"
)
_ROLE_SAYS = "frozen policies are named roles; write `roles: {reference: start}`, or a path"
_HUB_SAYS = "pushing is the hub section's; write `hub: {push: true, repo: owner/name}`"
_LAUNCH_SAYS = (
    "how processes share the work is accelerate's; start with `accelerate launch --config_file "
    "recipes/accelerate/<mode>.yaml scripts/train.py RECIPE`"
)
_NOT_FINITE_SAYS = "a value that is not finite always stops the run here; take this key out"
# Keys of TRL and transformers that have no meaning here, with what to write in their place.
REFUSED: Mapping[str, Mapping[str, str]] = {
    "train": {
        "loss_type": f"TRL's losses are off; {_OBJECTIVE_SAYS}",
        "loss_weights": "a weighted sum is an objective; write `objective: {name: sum, of: "
        "[{weight: 0.8, objective: {name: dpo}}, {weight: 0.2, objective: {name: chosen_nll}}]}`",
        "ld_alpha": "it belongs to the formula; write `objective: {name: ld_dpo, alpha: 0.5}`",
        "f_divergence_type": "it belongs to the formula; write `objective: {name: dpo, "
        "f_divergence: forward_kl}`",
        "f_alpha_divergence_coef": "it belongs to the formula; write `objective: {name: dpo, "
        "f_divergence: alpha_divergence, alpha: 0.5}`",
        "use_weighting": "it belongs to the formula; write `objective: {name: wpo, alignment: "
        "sampled}`, or `pair_weight: wpo` beside a term of a sum",
        "label_smoothing": "the noise rate is the objective's; write `objective: {name: cdpo, "
        "label_smoothing: 0.1}`, or rdpo with flip_probability for TRL's `robust`",
        "label_smoothing_factor": "it belongs to cross-entropy training; write `objective: {name: "
        "cdpo, label_smoothing: 0.1}`",
        "beta": "it belongs to the formula; write `beta` under objective",
        "discopop_tau": "it belongs to the formula; write `objective: {name: discopop, tau: 0.05}`",
        "use_liger_kernel": "Liger's fused loss computes TRL's formula, not yours; save memory "
        "by `gradient_checkpointing: true`",
        "liger_kernel_config": "Liger's fused loss computes TRL's formula, not yours; take it out",
        "precompute_ref_log_probs": "every role is scored once and cached; take this key out",
        "precompute_ref_batch_size": "roles are scored in `per_device_eval_batch_size` pairs; "
        "write that",
        "sync_ref_model": "a reference that moves is another method; in a loop write `reference: "
        "round_start` under roles",
        "ref_model_mixup_alpha": _ROLE_SAYS,
        "ref_model_sync_steps": _ROLE_SAYS,
        "ref_model": _ROLE_SAYS,
        "ref_model_init_kwargs": _ROLE_SAYS,
        "reference_free": "an objective says itself whether it has a reference; simpo, cpo, orpo, "
        "alphapo and slic have none",
        "max_length": "it belongs to the rows; write `max_length` under data",
        "max_prompt_length": "prompts have no limit of their own; write `max_length` and "
        "`on_too_long: cut_prompt` under data",
        "max_completion_length": "completions have no limit of their own; write `max_length` and "
        "`on_too_long: cut_completion` under data",
        "truncation_mode": "it belongs to the rows; write `on_too_long: drop | cut_prompt | "
        "cut_completion` under data",
        "pad_to_multiple_of": "rows are padded to the longest of their forward pass; take it out",
        "padding_free": "TRL 1.16 takes this key and switches it off; take it out",
        "pad_token": "the tokenizer says it; set it there and save the tokenizer",
        "dataset_num_proc": "rows are tokenised by us, in one pass; take it out",
        "model_init_kwargs": "the model section says how the model is loaded; write its keys there",
        "trust_remote_code": "it belongs to the model section; write it there",
        "output_dir": "the command names the folder; write `--run DIR` on the command line",
        "overwrite_output_dir": "a run overwrites no other; write `--run DIR` with a new folder",
        "resume_from_checkpoint": "running the same command again resumes; take it out",
        "ignore_data_skip": "a resumed run always goes on at the same pair; take it out",
        "restore_callback_states_from_checkpoint": "a resumed run restores everything; take it out",
        "push_to_hub": _HUB_SAYS,
        "hub_model_id": _HUB_SAYS,
        "hub_private_repo": "write `private: true | false` under hub",
        "hub_strategy": _HUB_SAYS,
        "hub_always_push": _HUB_SAYS,
        "hub_revision": _HUB_SAYS,
        "hub_token": "secrets do not stand in recipes; log in once with `hf auth login`",
        "warmup_ratio": "transformers 5 has no such key; write `warmup_steps: 0.1` (below 1 it "
        "is a share of all steps)",
        "evaluation_strategy": "transformers 5 has no such key; write `eval_strategy`",
        "logging_dir": "transformers 5 has no such key; metrics are in the run's folder",
        "group_by_length": "transformers 5 has no such key; write `train_sampling_strategy: "
        "group_by_length`",
        "no_cuda": "transformers 5 has no such key; write `use_cpu: true`",
        "logging_nan_inf_filter": _NOT_FINITE_SAYS,
        "auto_find_batch_size": "a batch that changes by itself changes the result; write a "
        "smaller `per_device_train_batch_size` and more `gradient_accumulation_steps`",
        "remove_unused_columns": "the trainer knows which columns it reads; take it out",
        "local_rank": _LAUNCH_SAYS,
        "deepspeed": _LAUNCH_SAYS,
        "fsdp": _LAUNCH_SAYS,
        "fsdp_config": _LAUNCH_SAYS,
        "accelerator_config": _LAUNCH_SAYS,
        "parallelism_config": _LAUNCH_SAYS,
        "do_train": "the command says what is done; take it out",
        "do_eval": "the command says what is done; write `eval_strategy`",
        "do_predict": "the command says what is done; take it out",
    },
    "model": {
        "torch_dtype": "transformers 5 has no such key; write `dtype`",
        "revision": "TRL names it `model_revision`; write that",
        "device_map": _LAUNCH_SAYS,
        "quantization_config": "write `load_in_4bit: true` or `load_in_8bit: true`",
        "lora_task_type": "adapters are always CAUSAL_LM here; take it out",
        "tokenizer": "the tokenizer is the model's own; take it out",
        "ref_model": _ROLE_SAYS,
    },
    "data": {
        "max_prompt_length": "prompts have no limit of their own; write `max_length` and "
        "`on_too_long: cut_prompt`",
        "truncation_mode": "write `on_too_long: drop | cut_prompt | cut_completion`",
    },
    "hub": {"token": "secrets do not stand in recipes; log in once with `hf auth login`"},
    "": {
        "reward": "objectives read scores from the data's columns; take it out, or write `kind: "
        "reward` to train a reward model",
        "evaluations": "there is one list; write `evaluate: {suite: [{run: alpaca_eval, ...}]}`",
    },
}
# What people call a key elsewhere, where the spelling is too far away to be found by letters.
OTHER_NAMES: Mapping[str, str] = {
    "lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "batch_size": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "accumulate": "train.gradient_accumulation_steps",
    "scheduler": "train.lr_scheduler_type",
    "warmup": "train.warmup_steps",
    "optimizer": "train.optim",
    "grad_clip": "train.max_grad_norm",
    "loss": "objective",
    "name": "model.model_name_or_path",
    "base_model": "model.model_name_or_path",
    "path": "model.model_name_or_path",
    "dataset": "data.pairs",
    "dataset_name": "data.pairs",
    "file": "data.pairs",
    "files": "data.pairs",
    "evaluation": "evaluate",
    "eval": "evaluate",
    "policy": "model",
    "training": "train",
    "repo_id": "hub.repo",
    "rank": "model.lora_r",
}
