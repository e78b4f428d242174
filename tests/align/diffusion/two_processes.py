"""What is started twice in test_two_processes.py: one small run, its state as JSON."""

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from align.diffusion.denoiser import DiffusersDenoiser, Sampler
from align.diffusion.objectives import SePPO
from align.diffusion.policies import TwoAdapters, TwoNetworks
from align.diffusion.replay import state_digest
from align.diffusion.trainer import DiffusionTrainer
from align.worlds.unet import scheduler_from_scratch
from tests.align.diffusion.small import random_records, settings, small_network

kind, folder = sys.argv[1], Path(sys.argv[2])
accelerator = Accelerator(cpu=True)
network = small_network()
policy = (
    TwoAdapters(network, rank=2, alpha=4, target_modules=("to_q", "to_v"), seed=0)
    if kind == "adapters"
    else TwoNetworks(network)
)
trainer = DiffusionTrainer(
    policy,
    DiffusersDenoiser(scheduler_from_scratch(50), Sampler(steps=2, guidance_scale=1.0)),
    SePPO(beta=40),
    settings(gradient_accumulation_steps=2),
    random_records(),
    output_dir=folder / "run",
    accelerator=accelerator,
)
pools = []
start = trainer._start_round


def watched(*args):
    pool = start(*args)
    pools.append(pool.rows)
    return pool


trainer._start_round = watched
log = trainer.train()
about = {
    "weights": state_digest(policy.state()),
    "reference": state_digest(policy.reference_state()),
    "log": log,
    "pools": pools,
    "processes": accelerator.num_processes,
}
(folder / f"{accelerator.process_index}.json").write_text(json.dumps(about))
accelerator.end_training()
