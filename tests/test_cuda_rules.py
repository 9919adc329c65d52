"""What CUDA asks of the code, checked without a GPU: the project runs on tests/pretended_cuda.py, with values.

There a wait, a copy from the host, a mask or a mixed device inside a recorded step raises, freed memory is found, and
what a step leaves behind in the graphs' pool is spoilt: a run that ends with the CPU's tokens has kept the rules.
"""

import contextlib
import gc
import json
import weakref

import pytest
import torch
from conftest import random_decoder, stirred
from pretended_cuda import Graph, RuleBroken, pretended

import train
from kernels.graph import EAGER, MOST, Graphs
from star.cache import KVCache
from star.drift import drift
from star.finetune import finetune
from star.problem import Example
from star.sampler import Sampler

SAMPLING = {"greedy": {}, "T": {"temperature": 0.9}, "top k, top p": {"temperature": 0.9, "top_k": 5, "top_p": 0.9}}
PROMPTS = [[1 + (i + j) % 20 for j in range(1 + i % 5)] for i in range(11)]  # in 4 slots: refills, then fewer rows
NEW = [26 - 2 * i for i in range(11)]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors; and the fewer the threads, the fewer ways to add up."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sampler(device, slots=4, **fields):
    return Sampler(random_decoder(dtype=torch.float32, **fields).to(device), slots, max_len=40)


def drawn(out):
    return [(c.tokens, c.finish) for c in out]


def on(device):
    """device: cpu, cuda, hip (an AMD card, which torch calls cuda) or mps."""
    return contextlib.nullcontext() if device == "cpu" else pretended(kind=device)


# sampling


@pytest.mark.parametrize(("options", "prefix"), [({}, ()), *((o, (4, 5, 6)) for o in SAMPLING.values())],
                         ids=["without a prefix", *SAMPLING])
def test_replayed_steps_draw_what_a_cpu_draws(options, prefix):
    asked = options | {"prefix": prefix, "max_new_tokens": NEW, "stop_ids": (3,)}
    expected = sampler("cpu").generate(PROMPTS, **asked)
    with pretended() as cuda:
        there = sampler("cuda")
        for _ in range(2):  # addresses are the same in a later call, or its replays would write into the air
            found = there.generate(PROMPTS, **asked)
            assert drawn(found) == drawn(expected)
        assert cuda.replays > 30
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), rtol=0, atol=1e-4)


FAMILIES = {"a kernel for its heads": {"head_dim": 8},
            "alibi": {"ropes": (), "alibi": True},
            "windows, caps": {"attn_cap": 9.0, "logit_cap": 5.0, "windows": (None, 8), "block": "sandwich"},
            "ungated, biases": {"norm": "layer", "block": "parallel", "gated": False, "bias_qkv": True}}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES)
def test_every_kind_of_model_keeps_the_rules(fields, dtype):
    """Its adapters live. In bfloat16 a GPU takes a kernel that rounds otherwise."""
    found = {}
    for device in ("cpu", "cuda"):
        with on(device) as cuda:
            there = Sampler(stirred(random_decoder(dtype=dtype, **fields).to(device)), 4, max_len=40, merge=False)
            found[device] = drawn(there.generate(PROMPTS[:5], prefix=[4, 5], max_new_tokens=24))
    assert cuda.replays > 0
    assert found["cuda"] == found["cpu"] or dtype is torch.bfloat16


def test_waits_grow_with_looks_and_not_with_steps():
    with pretended() as cuda:
        sampler("cuda").generate(PROMPTS[:4], max_new_tokens=32)
    assert cuda.replays >= 32 - 2 * EAGER  # of each key the first calls are run
    assert cuda.waits["item"] == 0
    assert cuda.waits["tolist"] <= 4 + 3, cuda.waits  # a look every 8 steps, and what has finished, twice


def test_few_recordings_and_none_for_what_is_known():
    with pretended() as cuda:
        there = sampler("cuda")
        for n, new in ((11, NEW), (3, 20), (6, 9)) * 2:
            there.generate(PROMPTS[:n], max_new_tokens=new if n > 10 else [new] * n)
        known = len(cuda.recordings)
        assert 0 < known <= MOST
        there.generate(PROMPTS, max_new_tokens=NEW)
        assert len(cuda.recordings) == known


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_cache_is_left_behind(device, monkeypatch):
    made, before = [], KVCache.__init__

    def init(self, *args, **kw):
        before(self, *args, **kw)
        made.append(weakref.ref(self))

    monkeypatch.setattr(KVCache, "__init__", init)
    with on(device):
        first, second = sampler(device), sampler(device)
        gc.collect()
        gc.disable()  # a cycle would wait for it, and its gigabytes with it
        try:
            for there in (first, second):
                there.generate(PROMPTS, prefix=[4, 5], max_new_tokens=NEW)
                next(there.stream(PROMPTS, max_new_tokens=NEW))  # and one that nobody read to its end
            first.release()
            del there, second
            alive = sum(r() is not None for r in made)
        finally:
            gc.enable()
    assert made
    assert alive == 0, f"{alive} of {len(made)} caches wait for a garbage collection"


# training, and a whole run


@pytest.mark.parametrize("options", [{"micro_tokens": 60}, {"micro_tokens": 60, "recompute": True}, {}])
def test_training_steps_are_those_of_a_cpu(options):
    examples = [Example(tuple(1 + (i + j) % 20 for j in range(6 + 3 * i)), 2 + i % 3) for i in range(8)]
    losses = {}
    for device in ("cpu", "cuda"):
        with on(device) as cuda:
            model = stirred(random_decoder(dtype=torch.float32).to(device))
            before = cuda and cuda.waits.copy()
            losses[device] = finetune(model, examples, 4, 1e-2, batch_size=6, **options).losses
            waits = cuda and cuda.waits - before
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-5, atol=0)
    assert losses["cuda"][-1] < losses["cuda"][0]
    assert waits["item"] <= 2 * 4 + 2, waits  # the loss of each step; and whether frozen weights stayed


def test_a_whole_run_has_the_metrics_of_a_cpu(tmp_path, own_folder, capsys):
    flags = ["--iterations", "1", "--problems", "16", "--first-steps", "2", "--batch-size", "8", "--slots", "8",
             "--max-new-tokens", "40", "--heldout-problems", "6", "--show", "0", "--digits", "1-2"]
    found = []
    for device in ("cpu", "cuda", "mps"):
        with on(device) as cuda:
            assert train.main([*flags, "--device", device, "--out", str(tmp_path / device)]) == 0, capsys.readouterr()
        lines = (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
        if device == "cuda":
            assert cuda.replays > 20
            assert len(cuda.recordings) <= 4, "graphs outlast training, where memory holds both: none is made again"
    losses = [[m.pop("loss") for m in run[1:]] for run in found]
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-4)] * 2
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("device", "dtype"), [("hip", torch.bfloat16), ("mps", torch.bfloat16),
                                               ("mps", torch.float32)])
def test_other_makers_cards_draw_and_learn_as_a_cpu(device, dtype):
    """Nothing is recorded there, and no kernel is called by its name; steps are run one by one."""
    examples = [Example(tuple(1 + (i + j) % 20 for j in range(6 + 3 * i)), 2 + i % 3) for i in range(8)]
    found, losses = {}, {}
    for where in ("cpu", device):
        with on(where) as there, pytest.MonkeyPatch.context() as patch:
            if where != "cpu":
                patch.setattr("kernels.attention.flash", None)
                patch.setattr("kernels.packed.varlen", None)
            model = stirred(random_decoder(dtype=dtype, head_dim=8).to(where.replace("hip", "cuda")))
            asked = {"prefix": (4, 5, 6), "max_new_tokens": [n // 2 for n in NEW], "stop_ids": (3,),
                     **SAMPLING["top k, top p"]}
            found[where] = drawn(Sampler(model, 4, max_len=40).generate(PROMPTS, **asked))
            losses[where] = finetune(model, examples, 2, 1e-2, batch_size=6, micro_tokens=60).losses
            drift(model, examples)
    assert not there.recordings
    assert not any("nonzero" in what for what in there.waits)
    assert found[device] == found["cpu"] or dtype is torch.bfloat16  # which rounds otherwise, in another order
    steps, off = (2, 1e-5) if dtype is torch.float32 else (1, 1e-2)
    assert losses[device][:steps] == pytest.approx(losses["cpu"][:steps], rel=off)


# graphs


def counted(device="cuda"):
    """A step that adds to a number on the device, and the number."""
    total = torch.zeros((), device=device, dtype=torch.int64)

    def step(by: int) -> None:
        total.add_(by)

    return step, total


def test_a_key_is_recorded_once_it_has_come_often_enough():
    with pretended() as cuda:
        step, total = counted()
        graphs = Graphs(torch.device("cuda"))
        for call in range(1, 2 * EAGER):
            graphs(step, 1)
            assert total.item() == call
            assert len(cuda.recordings) == (call > EAGER)
        assert cuda.replays == EAGER - 1


def test_a_cpu_runs_every_call():
    (step, total), graphs = counted("cpu"), Graphs(torch.device("cpu"))
    for call in range(1, 2 * EAGER):
        graphs(step, 1)
        assert total.item() == call
    assert not graphs.of_key


def test_past_the_most_graphs_keys_are_run():
    with pretended() as cuda:
        step, total = counted()
        graphs = Graphs(torch.device("cuda"))
        for _ in range(EAGER + 2):
            for key in range(MOST + 3):
                graphs(step, key)
        assert len(cuda.recordings) == MOST
        assert total.item() == (EAGER + 2) * sum(range(MOST + 3))


@pytest.mark.parametrize("where", ["the step", "its end"])
def test_what_cannot_be_recorded_is_run_once_a_call(where, monkeypatch):
    """A GPU that is full says so inside the recording, or where it ends; other keys are recorded all the same."""
    with pretended() as cuda:
        step, total = counted()
        end, freed = Graph.capture_end, []

        def failing(by: int) -> None:
            step(by)
            if cuda.recording and where == "the step" and by == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

        def ends(graph: Graph) -> None:
            end(graph)
            if where == "its end" and key == 1:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")

        monkeypatch.setattr(Graph, "capture_end", ends)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(cuda.recording))
        graphs, said = Graphs(torch.device("cuda")), "step is not recorded, and so slower: CUDA [^\n]*$"
        for key in (1, 1000):
            before = total.item()
            with pytest.warns(UserWarning, match=said) if key == 1 else contextlib.nullcontext():
                for call in range(1, EAGER + 6):
                    graphs(failing, key)
                    assert total.item() == before + call * key
            assert cuda.recording is None
            assert cuda.replays == (5 if key == 1000 else 0)
        assert freed == [None, None]  # room for the pool, made before each recording


def test_an_error_of_the_step_itself_ends_the_recording_and_is_raised():
    with pretended() as cuda:
        step, total = counted()

        def wrong(by: int) -> None:
            step(by)
            assert not cuda.recording, "a rule"

        graphs = Graphs(torch.device("cuda"))
        for _ in range(EAGER):
            graphs(wrong, 1)
        with pytest.raises(AssertionError, match="a rule"):
            graphs(wrong, 1)
        assert cuda.recording is None
        assert total.item() == EAGER


def test_the_second_device_records_its_own_steps():
    with pretended(devices=2) as cuda:
        there = sampler("cuda:1")
        found = there.generate(PROMPTS, max_new_tokens=NEW)
        assert cuda.current == 0
        assert cuda.replays > 20
    assert drawn(found) == drawn(sampler("cpu").generate(PROMPTS, max_new_tokens=NEW))


# the tool itself


def there(x):
    """A tensor of the second device, made before the recording began."""
    return x.elsewhere


@pytest.mark.parametrize(("fault", "says"), [
    (lambda x: x.sum().item(), "item inside a recording"),
    (lambda x: bool(x.sum() > 0), "item inside a recording"),
    (lambda x: x.tolist(), "tolist inside a recording"),
    (lambda x: x.cpu(), "copy to the host inside a recording"),
    (lambda x: torch.zeros(2).copy_(x), "copy_ to the host inside a recording"),
    (lambda x: x[x > 0], "index by a mask inside a recording"),
    (lambda x: x.nonzero(), "nonzero, whose shape depends on values, inside"),
    (lambda x: x.add_(torch.tensor([1.0, 2.0], device=x.device)), "tensor from the host inside a recording"),
    (lambda x: x + torch.ones(2).to(x), "copy to the device inside a recording"),
    (lambda x: x.copy_(torch.ones(2)), "copy_ from the host inside a recording"),
    (lambda x: x[torch.tensor([0])], "index by an index on the host inside a recording"),
    (lambda x: x + torch.ones(2), "add.Tensor|add: a tensor of the host.*met the device"),
    (lambda x: torch.ones(2)[x.long()], "a tensor of the host is indexed by one of the device"),
    (lambda x: x + there(x), "tensors of cuda:0 and cuda:1 met"),
    (lambda x: there(x).add_(1), "on cuda:1 while cuda:0 records"),
])  # fmt: skip
def test_faults_inside_a_recording_are_found(fault, says):
    with pretended(devices=2) as cuda:
        x, graph = torch.ones(2, device="cuda"), torch.cuda.CUDAGraph()
        x.elsewhere = torch.ones(2, device="cuda:1")
        graph.capture_begin()
        with pytest.raises(RuleBroken, match=says):
            fault(x)
        graph.capture_end()
        assert not cuda.waits


@pytest.mark.parametrize(("fault", "what"), [
    (lambda x: x.sum().item(), "item"), (lambda x: x.tolist(), "tolist"), (lambda x: x.cpu(), "copy to the host"),
    (lambda x: x[x > 0], "index by a mask"), (lambda x: torch.ones(2).to(x), "copy to the device"),
    (lambda x: torch.tensor([1.0], device=x.device), "tensor from the host"),
])  # fmt: skip
def test_outside_a_recording_waits_are_counted(fault, what):
    with pretended() as cuda:
        fault(torch.ones(2, device="cuda"))
        assert sum(cuda.waits.values()) == cuda.waits[what] == 1


def test_a_recording_has_no_effect_and_a_replay_one():
    with pretended():
        x, total, graph = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda"), torch.cuda.CUDAGraph()
        graph.capture_begin()
        left = x * 2
        total += left
        graph.capture_end()
        assert total.tolist() == [0, 0]
        graph.replay(), graph.replay()
        assert total.tolist() == [4, 4]
        x.fill_(5)
        graph.replay()
        assert total.tolist() == [14, 14]
        assert left.isnan().all()  # another graph may have written there


def test_freed_memory_and_what_moved_are_found():
    with pretended():
        state = {"x": torch.ones(2, device="cuda"), "total": torch.zeros(2, device="cuda")}
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin()
        state["total"] += state["x"]
        graph.capture_end()
        graph.replay()
        moved, state["x"] = state["x"], torch.full((2,), 7.0, device="cuda")
        graph.replay()
        assert state["total"].tolist() == [2, 2]  # the former x is read
        del moved
        with pytest.raises(RuleBroken, match="freed memory"):
            graph.replay()


def test_devices_that_are_there():
    with pretended() as cuda:
        x = torch.ones(2, device="cuda")
        assert (x.device, x.is_cuda, x.is_cpu, (x * 2).device) == (torch.device("cuda:0"), True, False, x.device)
        assert (x.cpu().device.type, x.to("cpu").is_cuda, torch.zeros_like(x).is_cuda) == ("cpu", False, True)
        assert x.to("cuda") is x
        assert x.to(torch.float64).is_cuda
        pinned = torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        assert pinned.is_cuda
        assert cuda.waits["copy to the device"] == 0
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.ones(2, device="cuda:1")
