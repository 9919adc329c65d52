"""Frozen weights shared out over two processes, on torch's fully_shard: what a whole model says, in half the memory,
whoever has more to do; and a rank that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, SHIPPED, random_decoder, refused, stirred
from pretended_cuda import pretended

import checkpoints
from star import shard
from star.config import StarConfig
from star.finetune import finetune, fingerprint
from star.loop import star
from star.lora import add_lora, off, put, remove_lora, reset, trainable
from star.problem import Example, Finished
from star.ranks import ONE, Ranks
from star.run.plan import build, make_plan, opening
from star.sampler import Sampler
from star.shard import Turns

FAMILIES = [
    {},
    {"d_model": 520, "head_dim": 130, "n_layers": 1, "d_ff": 21},  # wide enough to make inputs again; rows odd
    {"tied": True, "norm": "layer", "bias_qkv": True, "bias_o": True, "bias_mlp": True, "gated": False},
    {"block": "parallel", "n_layers": 3, "fused": ("qkv_proj", "gate_up_proj")},
    {"block": "sandwich", "norm": "rms+1", "qk_norm": True, "attn_cap": 9.0, "windows": (3, None)},
]
PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]
HOW = {"max_new_tokens": 9, "prefix": [14, 15, 16], "temperature": 0.8}
EXAMPLES = [Example(tuple((i * 7 + j) % 23 for j in range(3 + 2 * i)), 2) for i in range(9)]
TRAINING = {"steps": 4, "lr": 1e-2, "batch_size": 5, "micro_tokens": 24}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def shared(rank, **kw):
    """The ranks, a model in shares, and the same whole."""
    turns, (model, whole) = Turns(rank, 2), (stirred(random_decoder(**kw)) for _ in range(2))
    for block in model.layers:
        turns.split(block)
    turns.join(model)
    return turns, model, whole


def held(model):
    """Bytes of the blocks' frozen weights in this process."""
    frozen = (p for p in model.layers.parameters() if not p.requires_grad)
    return sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in frozen)


def far(a, b):
    return (a - b).abs().max().item()


@torch.no_grad()
def logits(rank):
    """How far from the whole model, with adapters and without; rank 1 asks once, rank 0 three times."""
    found = []
    for fields, dtype in zip(FAMILIES, DTYPES * 2, strict=False):
        turns, model, whole = shared(rank, dtype=dtype, **fields)
        for n in range(1 if rank else 3):
            ids = torch.arange(4 + n + 5 * rank).view(1, -1) * 3 % 23
            said = [model(ids), whole(ids)]
            with off(model), off(whole):
                said += [model(ids), whole(ids)]
            found.append([far(*said[:2]), far(*said[2:]), far(said[0], said[2]), held(model) / held(whole)])
        turns.gather(None)  # while rank 0 asks again
    return found


def sampled(rank):
    """Tokens as of the whole model, drawn by few, by both, by none; rank 1 has the fewer."""
    turns, model, whole = shared(rank, dtype=torch.float64)
    found = []
    for share in ([PROMPTS, []], [PROMPTS[:1], PROMPTS[1:]], [PROMPTS, PROMPTS[:2]]):
        mine = share[rank]
        ours, theirs = (Sampler(m, slots=2, max_len=30, merge=merge) for m, merge in ((model, None), (whole, False)))
        ours, merges = ours.generate(mine, **HOW), ours.merges()
        turns.gather(None)
        found.append([merges, [list(c.tokens) for c in ours] == [list(c.tokens) for c in theirs.generate(mine, **HOW)]])
    return found


def trained(rank):
    """Losses and adapters of a few steps, on two cores, which work side by side where weights are whole."""
    found = []
    torch.set_num_threads(2)
    for dtype, recompute, fields in ((torch.float64, False, {}), (torch.float32, True, FAMILIES[1]),
                                     (torch.float64, True, FAMILIES[4]), (torch.float32, False, FAMILIES[3])):
        turns, model, whole = shared(rank, dtype=dtype, **fields)
        before = fingerprint(model)
        stats = finetune(model, EXAMPLES, **TRAINING, recompute=recompute, ranks=turns)
        expected = finetune(whole, EXAMPLES, **TRAINING, recompute=recompute)
        a, b = (torch.cat([p.detach().flatten() for p in trainable(m).values()]) for m in (model, whole))
        put(model, trainable(whole))
        few = finetune(model, EXAMPLES[:1], steps=2, lr=1e-3, batch_size=1, ranks=turns).losses  # none for rank 1
        found.append({"dtype": str(dtype), "losses": stats.losses, "expected": expected.losses, "adapters": far(a, b),
                      "few": few,
                      "expected few": finetune(whole, EXAMPLES[:1], steps=2, lr=1e-3, batch_size=1).losses,
                      "frozen": type(before) is torch.Tensor and torch.equal(before, fingerprint(model))})
    return found


@torch.no_grad()
def forgets(rank):
    """The record that torch keeps of the blocks' order: the longest, and what is left of it."""
    turns, model, whole = shared(rank, dtype=torch.float64)
    ids, found = torch.arange(5)[None], []
    for _ in range(5):
        for _ in range(0 if rank else 3):
            assert far(model(ids), whole(ids)) < 1e-12
        found.append(len(getattr(model._get_fsdp_state()._comm_ctx, "post_forward_order", [])))
        turns.gather(None)
    return found


def loaded(rank, folder):
    """A folder's weights in shares: the most that stood in memory at once, and what the model says. Then others'
    adapters on it."""
    turns, model, whole = Turns(rank, 2), checkpoints.outline(SHIPPED), checkpoints.load_model(SHIPPED)
    add_lora(model, rank=4)
    total, most = held(add_lora(whole, rank=4)), []

    def split(block):
        most.append(sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in model.layers.parameters()
                        if not p.is_meta and not p.requires_grad) / total)
        turns.split(block)

    checkpoints.fill(model, "cpu", split)
    turns.join(model)
    reset(model)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        said = [far(model(ids), whole(ids))]
        for i, p in enumerate(trainable(whole).values()):
            p.normal_(generator=torch.Generator().manual_seed(i))
        checkpoints.save_adapter(whole, folder / f"whole-{rank}")
        checkpoints.load_adapter(model, folder / f"whole-{rank}")
        said.append(far(model(ids), whole(ids)))
        checkpoints.save_adapter(model, folder / f"shares-{rank}")
    written = [(folder / f"{name}-{rank}" / "adapter_model.safetensors").read_bytes() for name in ("whole", "shares")]
    remove_lora(whole)
    checkpoints.save_adapter(add_lora(whole, rank=3), folder / f"whole-{rank}")
    return {"most": max(most), "held": held(model) / total, "blocks": len(model.layers), "far": said,
            "described": checkpoints.describe(model) == checkpoints.describe(whole),
            "written": written[0] == written[1],
            "refused": refused(checkpoints.load_adapter, model, folder / f"whole-{rank}")}


def looped(rank):
    """An iteration of Algorithm 1 by two ranks that share the weights, and by one that has them."""
    found = []
    for shares, ranks in ((True, Ranks(rank, 2)), (False, ONE)):
        config = StarConfig(iterations=1, problems=7, heldout_problems=5, first_steps=3, batch_size=4, merge=False,
                            shard=shares, device="cpu", slots=2)
        plan = make_plan(config, {"digits": "1-2"}, ranks=ranks)
        sampler = build(plan)
        opening(plan, sampler)
        events = star(sampler, plan.tokenizer, plan.task, plan.config, pool=plan.others.pool, ranks=plan.ranks)
        found.append([event.metrics for event in events if isinstance(event, Finished)])
    return {"metrics": found, "sharded": type(plan.ranks).__name__}


def dies(rank):
    """What rank 0 hears, and after how many seconds, when rank 1 is killed: in a backward, a forward, in talk."""
    turns, model, _ = shared(rank)
    model(torch.arange(5)[None]).sum().backward()
    loss, began, found = model(torch.arange(5)[None]).sum(), time.monotonic(), []
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    for call in (loss.backward, lambda: model(torch.arange(5)[None]), lambda: turns.gather(1)):
        try:
            call()
        except ConnectionError as e:
            found.append(str(e))
    return {"said": found, "seconds": time.monotonic() - began}


def process(rank, folder):
    """One of two ranks: all of the above, one after the other."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", rank=rank, world_size=2, store=store, timeout=timedelta(seconds=60))
    shard.FORGET = 7
    for call in (logits, sampled, trained, forgets, loaded, looped, dies):
        found = call(rank, folder) if call is loaded else call(rank)
        (folder / f"{call.__name__}-{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # rank 1 is gone


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both ranks found, by the name of the function."""
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    ranks = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=env, stderr=subprocess.PIPE,
                              text=True) for rank in range(2)]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, -signal.SIGKILL], "\n".join(errors)
    assert not any(errors), "\n".join(errors)
    return {call: [json.loads(file.read_text()) for file in sorted(folder.glob(f"{call}-?.json"))]
            for call in ("logits", "sampled", "trained", "forgets", "loaded", "looped", "dies")}


def test_logits_are_those_of_the_whole_model(found):
    for rank, said in enumerate(found["logits"]):
        assert len(said) == len(FAMILIES) * (1 if rank else 3)
        for adapted, plain, between, share in said:
            assert adapted == plain == 0.0
            assert between > 0.01
            assert 0.4 < share < 0.6


def test_tokens_are_those_of_the_whole_model_whoever_has_more_rows(found):
    assert found["sampled"] == [[[False, True]] * 3] * 2


def test_training_is_that_of_one_process(found):
    ours, theirs = found["trained"]
    for a, b in zip(ours, theirs, strict=True):
        near = 1e-9 if a["dtype"] == "torch.float64" else 1e-4
        assert a["losses"] == b["losses"] == pytest.approx(a["expected"], rel=near)
        assert a["few"] == b["few"] == pytest.approx(a["expected few"], rel=near)
        assert a["adapters"] < (1e-9 if near < 1e-4 else 1e-2)  # AdamW makes much of a gradient that is rounding
        assert a["frozen"]
        assert b["frozen"]


def test_torch_remembers_no_more_than_some_forwards(found):
    ours, theirs = found["forgets"]
    assert ours == [6, 12, 18, 6, 12]  # two blocks, three forwards, and gone after the first seven and more
    assert theirs == [0, 6, 12, 0, 6]


def test_a_rank_reads_a_block_at_a_time_and_keeps_its_share(found):
    for said in found["loaded"]:
        n = said["blocks"]
        assert said["held"] == pytest.approx(0.5, abs=0.02)
        assert said["most"] == pytest.approx((n - 1) / n / 2 + 1 / n, abs=0.02)
        assert said["far"] == [0.0, 0.0]
        assert said["described"]
        assert said["written"]
        assert "ranks, alpha or modules are not those" in said["refused"]


def test_an_iteration_is_that_of_one_process(found):
    ours, theirs = found["looped"]
    assert ours["metrics"] == theirs["metrics"]
    shared, alone = ours["metrics"]
    assert [m["iteration"] for m in shared] == [0, 1]
    for a, b in zip(shared, alone, strict=True):
        assert a.pop("loss", 0) == pytest.approx(b.pop("loss", 0), rel=1e-4)
        assert a == b


def test_memory_that_runs_out_is_not_tried_again(monkeypatch):
    """The others are half-way through the same pass."""
    tries = []

    def full(*args):
        tries.append(args)
        raise torch.OutOfMemoryError("CUDA out of memory")

    turns = Turns(3, 4)
    turns._hidden, turns._forwards = full, 0
    refused(turns._forward, None, words=("memory ran out on rank 3", "--slots", "--micro-tokens"))
    turns._hidden = lambda *args: 1 / 0
    refused(turns._forward, None, words=("division",), error=ZeroDivisionError)
    model = stirred(random_decoder())
    model.sharded = True
    monkeypatch.setattr("star.finetune.step_gradients", full)
    with pytest.raises(torch.OutOfMemoryError):
        finetune(model, EXAMPLES, **TRAINING)
    assert len(tries) == 2


def test_ranks_that_need_different_things_are_told(monkeypatch):
    turns = Turns(1, 2)
    monkeypatch.setattr(turns, "_ask", lambda need: 2)
    with torch.no_grad():
        refused(turns.hidden, None, words=("rank 1", "(1)", "(2)", "same program"))


@pytest.mark.parametrize("sharded", [True, False])
def test_no_step_is_recorded_that_waits_for_others(sharded):
    with pretended() as cuda:
        model = random_decoder().to("cuda")
        model.sharded = sharded
        Sampler(model, slots=2, max_len=40, merge=False).generate([[1, 2], [3]], max_new_tokens=30)
    assert bool(cuda.recordings) is not sharded


def test_what_shares_weights_reads_none_of_them_alone():
    model = random_decoder()
    model.sharded = True
    with pytest.raises(AssertionError, match="no process has all weights"):
        dict(model.tensors())


def test_when_a_rank_dies_the_others_know_it_at_once(found):
    (said,) = found["dies"]
    assert len(said["said"]) == 3
    assert 0.4 < said["seconds"] < 10


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
