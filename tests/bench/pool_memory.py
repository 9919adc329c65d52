"""Peak memory of an iteration with two other models and a judge, against the two largest of the models.

    python tests/bench/pool_memory.py

Random decoders in the alphabet of the model that ships, of 60, 240, 180 and 120 MiB in float32; a run of one iteration
in a process of its own, whose resident memory is read every 5 ms. Linux only. What it may take: the weights of the two
largest models, and what the run's own plan counts beside weights.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import checkpoints
from checkpoints.families import decoder_config
from star.config import StarConfig
from star.decoder import Decoder, Linear
from star.loop import star
from star.problem import Phase
from star.reward import RewardModel
from star.run.plan import build, make_plan

MIB = 2**20
SIZES = {"student": 1, "first": 4, "second": 3, "judge": 2}  # layers of about 60 MB


def resident():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) * 1024


def make(folder):
    """Four random folders; the judge has five attributes."""
    base = checkpoints.load_model(checkpoints.SHIPPED).source.config
    for name, layers in SIZES.items():
        raw = base | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": layers,
                      "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128}
        model = Decoder(decoder_config(raw)[0])
        generator = torch.Generator().manual_seed(layers)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Linear):
                    module.weight.normal_(0, module.weight.shape[1] ** -0.5, generator=generator)
        if name == "judge":
            head = torch.randn(5, 1024, generator=generator)
            labels = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
            checkpoints.save_reward_model(RewardModel(model, head, labels, None, 0), folder / name, raw)
        else:
            checkpoints.save_model(model, folder / name, raw)
        shutil.copy(checkpoints.SHIPPED / "tokenizer.model", folder / name)


def run(folder):
    """One iteration; prints the figures."""
    others = [str(folder / name) for name in ("first", "second")]
    config = StarConfig(model=str(folder / "student"), generators=",".join(others), reward=str(folder / "judge"),
                        select="reward-blind", iterations=1, problems=64, heldout_problems=8, first_steps=2, slots=64,
                        temperature=1.0, merge=False)
    before = resident()  # the interpreter, torch
    peak, stop = {}, threading.Event()
    phase = ["start"]

    def watch():
        while not stop.is_set():
            peak[phase[0]] = max(peak.get(phase[0], 0), resident() - before)
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    plan = make_plan(config, {})
    sampler = build(plan)
    for event in star(sampler, plan.tokenizer, plan.task, config, pool=plan.others.pool):
        if isinstance(event, Phase):
            phase[0] = f"{event.name} {event.source}"
    stop.set()
    thread.join()
    sizes = {name: sum(f.stat().st_size for f in (folder / name).glob("*.safetensors")) for name in SIZES}
    largest = sum(sorted(sizes.values())[-2:])
    beside = plan.memory.most - plan.memory.weights - sizes["first"]
    print("models    " + ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in sizes.items()))
    print("peak      " + ", ".join(f"{name} {size / MIB:.0f}" for name, size in peak.items()))
    print(f"limit     the two largest {largest / MIB:.0f} MiB, and {beside / MIB:.0f} MiB of caches and the like by "
          f"the plan; all four are {sum(sizes.values()) / MIB:.0f} MiB")
    most = max(peak.values())
    print(f"result    {most / MIB:.0f} MiB, {most / (largest + beside):.2f} of the limit")
    return 0 if most <= largest + beside else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(run(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        sys.exit(subprocess.run([sys.executable, __file__, made]).returncode)
