"""Several ranks make the run that one process makes; and where one of them is gone, the others stop and say which.

Ranks are processes forked from this one, joined over gloo; their words and exit codes come back.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import star.rollout as rollout_module
import train
from checkpoints import SHIPPED
from star import finetune as finetune_module
from star.problem import Example
from star.ranks import ONE, Ranks
from star.rollout import Rollout
from star.run import together as together_module
from star.run.folder import Run
from star.run.lines import read_lines
from star.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")
ARGV = ["--digits", "1-2", "--problems", "16", "--iterations", "2", "--first-steps", "4", "--save-every", "2",
        "--heldout-problems", "6", "--validation", "4", "--slots", "4", "--batch-size", "8", "--temperature", "0.8",
        "--rank", "2", "--dtype", "float64", "--device", "cpu", "--show", "0"]  # in float64 no row depends on others
OTHERS = ["--generators", str(SHIPPED), "--reward", str(SHIPPED), "--reward-by", "likelihood", "--select",
          "correct+reward", "--samples", "2", "--problems", "8", "--iterations", "1"]
MORE = {"plain": [], "others": OTHERS, "8 bits": ["--base-bits", "8", "--iterations", "1"]}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(n, argv, tmp_path, before=lambda rank: None, own=lambda rank: []):
    """Processes of n ranks. before: what a rank does first. own: flags of one rank alone."""
    processes, port = [], free_port()
    for rank in range(n):
        if not (child := os.fork()):
            code = 99
            try:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
                               "LOCAL_WORLD_SIZE": str(n),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                for number, name in ((1, "out"), (2, "err")):
                    os.dup2(os.open(tmp_path / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
                torch.set_num_threads(1)
                together_module.BEAT = 0.2
                before(rank)
                code = train.main([*argv, *own(rank)])
            except SystemExit as e:
                code = e.code
            finally:
                sys.stderr.flush()
                os._exit(code)
        processes.append(child)
    return processes


def end(processes, tmp_path):
    """[(exit code, or the signal negative; what it said on stderr)] of each rank."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in processes]
    return [(code, (tmp_path / f"err-{rank}").read_text()) for rank, code in enumerate(codes)]


def ranks(n, argv, tmp_path, *args, **kw):
    return end(start(n, argv, tmp_path, *args, **kw), tmp_path)


def samples(folder):
    """What was sampled, without how it was written down."""
    return [{k: v for k, v in r.items() if k not in ("chunk", "check")}
            for path in sorted((folder / "samples").iterdir())
            for r in sorted(read_lines(path), key=lambda r: (r["phase"], r["source"], r["problem"], r["sample"]))]


def same(folder, other):
    assert samples(folder) == samples(other)
    one, two = (read_lines(f / "metrics.jsonl") for f in (folder, other))
    assert len(one) == len(two) > 1
    for mine, theirs in zip(one, two, strict=True):
        losses = [m.pop("loss", 0.0) for m in (mine, theirs)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        assert mine == theirs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, of each kind."""
    tmp = tmp_path_factory.mktemp("alone")
    for name, more in MORE.items():
        (code, said), = ranks(1, [*ARGV, *more, "--out", str(tmp / name)], tmp)
        assert code == 0, said
    return tmp


@pytest.mark.parametrize(("n", "name", "own"), [(2, "plain", []), (2, "others", []), (2, "8 bits", ["--shard"])])
def test_ranks_make_the_run_of_one_process(alone, tmp_path, n, name, own):
    argv = [*ARGV, *MORE[name], *own, "--out", str(tmp_path / "run")]
    for code, said in ranks(n, argv, tmp_path):
        assert code == 0, said
    same(alone / name, tmp_path / "run")
    assert (tmp_path / "out-1").read_text() == (tmp_path / "err-1").read_text() == ""  # rank 0 speaks for all
    assert "held-out accuracy" in (tmp_path / "out-0").read_text()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ranks"] == n
    timings = read_lines(tmp_path / "run" / "timings.jsonl")
    assert {t["ranks"] for t in timings} == {n}
    hours = n * sum(sum(t["seconds"].values()) for t in timings) / 3600
    assert f"spent   {hours:.3f} device-hours" in (tmp_path / "out-0").read_text()


def test_the_work_is_dealt(tmp_path):
    """Each rank samples its part alone, and trains on its part of a step."""
    def counted(rank):
        stream, gradients = Sampler.stream, finetune_module.step_gradients

        def streamed(self, prompts, **options):
            print("sampled", len(prompts), file=sys.stderr)
            return stream(self, prompts, **options)

        def trained(model, params, rows, *more):
            print("trained", sum(len(r.starts) - 1 for r in rows), file=sys.stderr)
            return gradients(model, params, rows, *more)

        Sampler.stream, finetune_module.step_gradients = streamed, trained

    argv = [*ARGV, "--iterations", "1", "--no-rationalize", "--batch-size", "5", "--out", str(tmp_path / "run")]
    said = [text for code, text in ranks(2, argv, tmp_path, counted)]
    sampled, trained = ([list(map(int, re.findall(rf"{what} (\d+)", text))) for text in said]
                        for what in ("sampled", "trained"))
    assert sampled == [[2, 3, 8, 2, 3]] * 2  # of 4 to validate, 6 held out, 16 problems, and 4 and 6 again
    assert trained == [[3] * 4, [2] * 4]


@pytest.mark.parametrize(("victim", "phase", "again"), [(1, "train", 1), (0, "generate", 3)])
def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on(alone, tmp_path, victim, phase, again):
    """With another number of ranks, to the same end."""
    def doomed(rank):
        stream, gradients, calls = Sampler.stream, finetune_module.step_gradients, []

        def die(original, at):
            def call(*args, **kw):
                calls.append(1)
                if len(calls) == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kw)
            return call

        if rank == victim and phase == "train":
            finetune_module.step_gradients = die(gradients, 7)  # the third step of the second iteration
        elif rank == victim:
            Sampler.stream = die(stream, 7)  # of that iteration too

    began = time.monotonic()
    ended = ranks(3, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, doomed)
    assert time.monotonic() - began < 30
    assert ended[victim][0] == -signal.SIGKILL
    left = [r for r in range(3) if r != victim]
    assert [ended[r][0] for r in left] == [2, 2]
    assert re.search(rf"error: rank {victim} \(process \d+ on .*\) is gone.* --resume", ended[left[0]][1])
    assert "error" not in ended[left[1]][1]  # torch says in words of its own if the store of all is gone
    for code, said in ranks(again, ["--resume", str(tmp_path / "run")], tmp_path):
        assert code == 0, said
    same(alone / "plain", tmp_path / "run")


def test_what_a_rank_alone_cannot_do_rank_0_says(tmp_path):
    """Its own error, whatever it is, and where: the others wait for it in vain."""
    def broken(rank):
        if rank == 1:
            rollout_module.verdict = lambda *args, **kw: (_ for _ in ()).throw(ValueError("no verdict here"))

    (code, said), (other, nothing) = ranks(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, broken)
    assert code == other == 2
    assert re.search(r"^error: rank 1 \(process \d+ on .*\) stopped: no verdict here \(in ", said, re.M)
    assert nothing == ""


def test_one_that_is_stopped_stops_all(tmp_path):
    """As a cluster does that takes a machine away: nothing is lost, and the line says where to go on."""
    def stopped(rank):
        if rank == 1:
            gradients = finetune_module.step_gradients
            finetune_module.step_gradients = lambda *args: (os.kill(os.getpid(), signal.SIGINT), gradients(*args))[1]

    (code, said), (other, nothing) = ranks(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, stopped)
    assert (code, other, nothing) == (130, 130, "")
    assert re.search(r"^stopped as rank 1 \(process \d+ on .*\) was, in iteration 1, train; go on with: torchrun "
                     rf"--nproc-per-node 2 train.py --resume {tmp_path}/run$", said, re.M)
    assert Run.open(tmp_path / "run").iteration == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_that_are_stopped_are_stopped(tmp_path, number):
    """As torchrun passes it on to all of them, once or twice: by the signal, and with the way to go on."""
    def slow(rank):
        stream = Sampler.stream
        Sampler.stream = lambda *args, **kw: (time.sleep(0.3), stream(*args, **kw))[1]

    processes = start(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, slow)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    for _ in range(2):
        for child in processes:
            os.kill(child, number)
        time.sleep(0.05)
    (code, said), (other, nothing) = end(processes, tmp_path)
    assert (code, other, nothing) == (128 + number, 128 + number, "")
    assert re.search(r"^stopped (as rank 1 .* was, )?in iteration \d, \w+; go on with: torchrun ", said, re.M)


@pytest.mark.parametrize(("own", "what"), [
    (["--lr", "0.1"], "rank 1 has --lr 0.1, and rank 0 has none"),
    (["--lrr", "0.1"], r"rank 1 .* stopped: unrecognized arguments: --lrr 0.1"),
    (["--model", "/nowhere"], "rank 1 has --model /nowhere, and rank 0 has none")])
def test_ranks_that_are_told_otherwise_are_refused(tmp_path, own, what):
    (code, said), (other, nothing) = ranks(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path,
                                           own=lambda rank: own * rank)
    assert code == other == 2
    assert re.fullmatch(f"error: {what}.*\n", said)
    assert nothing == ""
    assert not (tmp_path / "run").exists()


def test_each_host_is_told(tmp_path):
    """Rank 0 speaks on its own host; on another the first rank there says that it came, and why it went."""
    def elsewhere(rank):
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}

    (_, said), (_, there) = ranks(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, elsewhere,
                                  own=lambda rank: ["--seed", "3"] * rank)
    assert said.startswith("error: rank 1 has --seed 3, and rank 0 has none: ")
    assert re.fullmatch(rf"rank 1 of 2 is there; rank 0 \(process \d+ on .*\) speaks for all\n{re.escape(said)}", there)


def test_other_files_under_the_same_name_are_refused(tmp_path):
    """As on a host whose copy is older: by its hash."""
    def older(rank):
        if rank == 1:
            hashed = together_module.inputs
            together_module.inputs = lambda *args: {k: v[::-1] for k, v in hashed(*args).items()}

    (code, said), (other, nothing) = ranks(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, older)
    assert (code, other, nothing) == (2, 2, "")
    assert re.search(rf"error: rank 1 has {re.escape(str(SHIPPED))} \(by its hash\) \w+, and rank 0 has", said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_is_missed(tmp_path, victim):
    """One that is not heard of, on a host that nobody can ask: the others end, though they wait in a collective. Rank 0
    keeps the store here, so that nothing comes back from it either."""
    def hanging(rank):
        together_module.SILENT, together_module.GRACE = 1.0, 0.5
        if rank == victim:
            finetune_module.step_gradients = lambda *args: os.kill(os.getpid(), signal.SIGSTOP)

    processes = start(2, [*ARGV, "--out", str(tmp_path / "run")], tmp_path, hanging)
    code = os.waitstatus_to_exitcode(os.waitpid(processes[1 - victim], 0)[1])
    os.kill(processes[victim], signal.SIGKILL)
    os.waitpid(processes[victim], 0)
    assert code == 2
    said = (tmp_path / f"err-{1 - victim}").read_text()
    assert re.search(rf"error: rank {victim} .* has not been heard of for \d+ s: go on with the run by --resume", said)


def test_ranks_that_do_not_meet(tmp_path):
    def lonely(rank):
        os.environ["WORLD_SIZE"] = "2"
        together_module.MEET = together_module.timedelta(seconds=0.5)

    (code, said), = ranks(1, ARGV, tmp_path, lonely)
    assert code == 2
    assert said.startswith("error: the ranks of this run did not meet (")


def test_other_commands_refuse_to_be_several(monkeypatch, capsys):
    import sample

    monkeypatch.setenv("WORLD_SIZE", "2")
    for local, said in (("0", "error: this command runs in one process"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert sample.main(["--problems", "1"]) == 2
        assert capsys.readouterr().err.startswith(said)


def test_torchrun(tmp_path):
    """README's command."""
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
            "train.py", *ARGV, "--iterations", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "run").finished


def test_samples_of_a_problem_stay_together():
    """Where there are problems enough: rows of four go one by one, those of eight problem by problem."""
    rollout = Rollout.__new__(Rollout)
    rollout.ranks = Ranks(1, 1)
    assert rollout.deal([4, 5, 0, 2, 3], 2) == [[4, 5, 0, 2, 3]]
    rollout.ranks = Ranks(0, 2)
    assert rollout.deal([4, 5, 0, 2, 3, 6, 7], 2) == [[4, 0, 3, 7], [5, 2, 6]]  # of four problems: row by row
    rows = [8, 9, 4, 5, 0, 2, 3, 6, 7, 10, 11, 12, 13, 14, 15]
    assert rollout.deal(rows, 2) == [[8, 9, 0, 6, 7, 12, 13], [4, 5, 2, 3, 10, 11, 14, 15]]


def test_one_process_tells_nobody():
    tensors, value = [torch.ones(2), torch.zeros(3)], object()
    ONE.add(tensors)
    ONE.spread(tensors)
    assert torch.equal(tensors[0], torch.ones(2))
    assert ONE.gather(value) == [value]
    assert ONE.share(value) is value
    assert Ranks(1, 3).mine(range(8)) == range(1, 8, 3)
    assert Ranks(2, 3).mine([Example((1, 2), 1)]) == []
