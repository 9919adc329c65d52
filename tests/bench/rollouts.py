"""Rollouts: useful tokens a second, here and in transformers, and how far that is from what the machine can do.

    python tests/bench/rollouts.py [--work prefix plain samples] [--temperatures 0.8 0] [--device cuda] [--out FILE]
    python tests/bench/rollouts.py --phases         this project alone: prefill and decode against their floor

prefix: 128 questions of 20-60 tokens behind 768 that all share; answers log-normal, mean 78, at most 256. plain: 64
prompts of 100-600, 64 new. samples: 8 of each of 16 prompts of 300, 64 new. Ids are random and lengths drawn from a
seed: a row ends at its length and nowhere else, so that both sides owe the same tokens. What a padded batch computes
beyond a row's length is not counted.

transformers runs twice. As users call it: whole prompts, padded on the left, 8 rows at a time as they come (of every
fourth batch only: it is slow), num_return_sequences for samples. At its best: rows sorted by lengths that nobody could
know in advance, the prefix (or a prompt with several samples) computed once into a cache that each batch expands, and
the batch size and dtype that a trial finds fastest. Its continuous batching was not tried against that; left out is
torch.compile. On CUDA each side does its work twice, and the second time counts.

floor: multiplications by every weight and key that the work needs, at the rate of a large matrix product; with --phases
the step's linears timed alone at that shape, their weights cold, and attention at the matrix product's rate. same: rows
whose greedy tokens are equal on both sides; ties and bfloat16 part them.
"""

import copy
import math
import random
import statistics
import sys
import zlib
from dataclasses import dataclass

import peers
import torch
from peers import Bench, attention_work, layer_linears, middle, multiplied, seconds
from torch.nn import functional as F

from star.decoder import Decoder, Linear
from star.sampler import Sampler

WORKS = ("prefix", "plain", "samples")
BATCHES = (32, 8, 16, 64)  # the likeliest first
TRIAL = 17  # new tokens of a trial


@dataclass(frozen=True)
class Work:
    """What has to be sampled: `samples` of each prompt, of new[i] tokens each, behind the prefix."""

    prefix: list[int]
    prompts: list[list[int]]
    new: list[int]
    samples: int = 1

    @property
    def tokens(self) -> int:
        return self.samples * sum(self.new)


def make(name: str, vocab: int, small: bool) -> Work:
    """The work of this name: the same for all sides, on every machine."""
    rng = random.Random(name)

    def ids(n: int) -> list[int]:
        return [rng.randrange(vocab) for _ in range(n)]

    if name == "prefix":
        n, shared, shortest, longest, mean, cap = (12, 24, 4, 12, 8, 20) if small else (128, 768, 20, 60, 78, 256)
        mu, sigma = math.log(mean) - 0.6**2 / 2, 0.6  # of a log-normal with this mean
        new = [min(cap, max(1, round(rng.lognormvariate(mu, sigma)))) for _ in range(n)]
        return Work(ids(shared), [ids(rng.randint(shortest, longest)) for _ in range(n)], new)
    if name == "plain":
        n, shortest, longest, new = (8, 10, 40, 8) if small else (64, 100, 600, 64)
        return Work([], [ids(rng.randint(shortest, longest)) for _ in range(n)], [new] * n)
    n, length, new, samples = (4, 20, 8, 3) if small else (16, 300, 64, 8)
    return Work([], [ids(length) for _ in range(n)], [new] * n, samples)


def operations(model: Decoder, work: Work) -> float:
    """What it needs at least: each prompt and the prefix once; head and end of the last layer where a token is drawn.
    """
    (blocks, head), last = multiplied(model), sum(m.weight.numel() for m in after_last_keys(model))
    n, seen = len(work.prefix), len(work.prefix) ** 2 / 2
    for prompt, new in zip(work.prompts, work.new, strict=True):
        length, drawn = len(prompt), work.samples * (new - 1)  # the last token is not computed on
        n += length + drawn
        seen += length * (len(work.prefix) + length / 2) + drawn * (len(work.prefix) + length + new / 2)
    return 2 * ((blocks - last) * n + (last + head) * work.tokens) + attention_work(model, seen)


def after_last_keys(model: Decoder) -> list[Linear]:
    """Linears of the last layer behind its first, which makes keys and values: nothing later reads other rows."""
    linears = layer_linears(model)
    return linears[1 - len(linears) // model.config.n_layers :]


@torch.no_grad()
def here(spec: dict) -> dict:
    """The work by this project's sampler, as train.py calls it."""
    model = peers.ours(spec)
    work = make(spec["work"], model.config.vocab, spec["small"])
    rate = peers.matmul_rate(spec["device"], spec["dtype"])
    prompts = [p for p in work.prompts for _ in range(work.samples)]
    new = [min(n, TRIAL) if spec["trial"] else n for n in work.new for _ in range(work.samples)]
    longest = max(len(p) + n for p, n in zip(prompts, new, strict=True))
    Sampler(model, None, longest).generate(prompts[:2], max_new_tokens=2, temperature=0.8)
    peers.forget_peak(spec["device"])
    found = {"rate": rate, "floor": operations(model, work) / rate}
    for temperature in spec["temperatures"]:
        sampler = Sampler(model, None, longest)
        for _ in range(1 if spec["device"] == "cpu" else 2):
            outs = []
            took = seconds(lambda: outs.extend(sampler.generate(  # noqa: B023
                prompts, prefix=work.prefix, max_new_tokens=new, temperature=temperature)))  # noqa: B023
        assert [len(o.tokens) for o in outs] == new
        found |= figures(temperature, sum(new), took, {i: o.tokens for i, o in enumerate(outs)})
    return found | {"peak": peers.peak(spec["device"])}


def figures(temperature: float, tokens: int, took: float, outs: dict[int, list[int]]) -> dict:
    """Rate and, of greedy tokens, what tells one row from another."""
    greedy = {i: zlib.crc32(repr(list(t)).encode()) for i, t in outs.items()} if temperature == 0 else None
    return {f"seconds at {temperature}": took, "tokens/s": tokens / took, f"tokens/s at {temperature}": tokens / took,
            **({"greedy": greedy} if greedy else {})}


class Peer:
    """transformers on this work. best: with what caches and sorting can save."""

    def __init__(self, spec: dict):
        self.model = peers.theirs(spec).eval()
        self.device, self.best = spec["device"], spec["best"]
        self.work = work = make(spec["work"], self.model.config.vocab_size, spec["small"])
        order = list(range(len(work.prompts)))
        if self.best:
            order.sort(key=lambda i: (work.new[i], len(work.prompts[i])))
        n = max(1, spec["batch"] // work.samples)  # prompts at a time
        self.batches = [order[i : i + n] for i in range(0, len(order), n)]
        self.shared = None

    def tensor(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor(rows, device=self.device)

    def cache(self, ids: torch.Tensor):
        """Keys and values of these rows (B, T), without padding."""
        import transformers

        cache = transformers.DynamicCache(config=self.model.config)
        self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def prefill(self) -> None:
        """The prefix, once."""
        if self.best and self.work.prefix:
            self.shared = self.cache(self.tensor([self.work.prefix]))

    def batch(self, rows: list[int], new: int, temperature: float) -> list[list[int]]:
        """`new` tokens of each of these prompts, all samples of a prompt together."""
        prompts, k = [self.work.prompts[i] for i in rows], self.work.samples
        width, prefix = max(map(len, prompts)), self.work.prefix
        ids = self.tensor([[*prefix, *[0] * (width - len(p)), *p] for p in prompts])
        mask = self.tensor([[1] * len(prefix) + [0] * (width - len(p)) + [1] * len(p) for p in prompts])
        options = {"do_sample": temperature > 0, "max_new_tokens": new}
        options |= {"temperature": temperature, "top_k": 0} if temperature else {}
        if self.shared is not None:
            options["past_key_values"] = copy.deepcopy(self.shared)
            options["past_key_values"].batch_repeat_interleave(len(rows))
        elif k > 1 and self.best:
            assert mask.all(), "prompts of one length"
            options["past_key_values"] = self.cache(ids[:, :-1])
            options["past_key_values"].batch_repeat_interleave(k)
            ids, mask = ids.repeat_interleave(k, 0), mask.repeat_interleave(k, 0)
        elif k > 1:
            options["num_return_sequences"] = k
        return self.model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()

    def run(self, batches: list[list[int]], temperature: float) -> dict[int, list[int]]:
        """{row: its tokens}, a row for each sample."""
        self.prefill()
        outs, k = {}, self.work.samples
        for rows in batches:
            found = self.batch(rows, max(self.work.new[i] for i in rows), temperature)
            for at, tokens in enumerate(found):
                i = rows[at // k]
                assert len(tokens) >= self.work.new[i]
                outs[i * k + at % k] = tokens[: self.work.new[i]]
        return outs

    def estimate(self, temperature: float) -> dict:
        """Tokens a second of the whole work, from 1 and from TRIAL tokens of the middle batch."""
        rows = self.batches[len(self.batches) // 2]
        start = seconds(self.prefill)
        self.batch(rows, 2, temperature)
        first, all_ = (seconds(lambda: self.batch(rows, n, temperature)) for n in (1, TRIAL))  # noqa: B023
        steps = [max(self.work.new[i] for i in batch) - 1 for batch in self.batches]
        whole = start + first * len(steps) + (all_ - first) / (TRIAL - 1) * sum(steps)
        return {"tokens/s": self.work.tokens / whole}


@torch.no_grad()
def transformers(spec: dict) -> dict:
    peer = Peer(spec)
    if spec["trial"]:
        return peer.estimate(spec["temperatures"][0])
    batches = peer.batches if peer.best else peer.batches[:: min(4, len(peer.batches))]
    rate = peers.matmul_rate(spec["device"], spec["dtype"])
    peer.batch(peer.batches[0][:2], 2, 0.8)
    peers.forget_peak(spec["device"])
    found = {"rate": rate}
    for temperature in spec["temperatures"]:
        for _ in range(1 if spec["device"] == "cpu" else 2):
            outs = {}
            took = seconds(lambda: outs.update(peer.run(batches, temperature)))  # noqa: B023
        found |= figures(temperature, sum(map(len, outs.values())), took, outs)
    return found | {"peak": peers.peak(spec["device"])}


@torch.no_grad()
def phases(spec: dict) -> dict:
    """Prefill and decode behind a prefix, each in turn with its floor: {name: [(seconds, floor), a round each]}."""
    model, device = peers.ours(spec), spec["device"]
    shared, length, new = (24, 6, 9) if spec["small"] else (768, 40, 41)
    rng, rounds = random.Random(0), spec["rounds"]
    prefix, *prompts = ([rng.randrange(model.config.vocab) for _ in range(n)] for n in (shared, *[length] * 128))
    rate = peers.matmul_rate(device, spec["dtype"])
    own = length + new / 2  # keys of its own that a row sees, on average
    found: dict[str, list[tuple[float, float]]] = {}
    for rows in (64, 128):
        sampler = Sampler(model, rows, length + new)

        def run(n: int, temperature: float = 0.0) -> float:
            return seconds(lambda: sampler.generate(  # noqa: B023
                prompts[:rows], prefix=prefix, max_new_tokens=n, temperature=temperature), device)  # noqa: B023

        sampler.generate(prompts[:1], prefix=prefix, max_new_tokens=new)  # now the prefix is in, and slots are long
        for temperature in (0.0, 0.8):
            run(2 if device == "cpu" else new, temperature)  # slots are enough, graphs recorded
            for _ in range(rounds):
                first = run(1, temperature)
                if temperature == 0 and rows == 64:
                    floor = linears(model, rows, length, device)
                    floor += attention_work(model, rows * length * (shared + length / 2)) / rate
                    found.setdefault(f"prefill, {rows} x {length} tokens behind {shared}", []).append((first, floor))
                step = (run(new, temperature) - first) / (new - 1)
                floor = linears(model, rows, 1, device) + attention_work(model, rows * (shared + own)) / rate
                name = f"decode, {rows} rows behind {shared}, temperature {temperature}"
                found.setdefault(name, []).append((step, floor))
    return {"rate": rate, "phases": found, "peak": peers.peak(device)}


def linears(model: Decoder, rows: int, length: int, device: str) -> float:
    """Seconds of all products with weights of one forward pass of rows x length tokens, each weight in its turn.

    Of the end of the last layer, and of the head, only a token a row is wanted.
    """
    last = set(map(id, after_last_keys(model)))
    shapes = [(m.weight, m.bias, rows if id(m) in last else rows * length) for m in layer_linears(model)]
    shapes.append((*model.head(), rows))
    inputs = {(n, w.shape[1]): torch.randn(n, w.shape[1], dtype=w.dtype, device=device) for w, _, n in shapes}

    def work() -> None:
        for w, b, n in shapes:
            F.linear(inputs[n, w.shape[1]], w, b)

    work()
    return min(seconds(work, device) for _ in range(3 if length == 1 else 1))


def show_phases(bench: Bench) -> None:
    """--phases: a table of shares."""
    spec = bench.best("here", {}, "tokens/s", work="prefix", temperatures=[0.0])
    result = bench.measure("phases", rounds=bench.args.rounds, dtype=spec["dtype"])
    if "error" in result:
        sys.exit(result["error"])
    print(f"\n{spec['dtype']}, {result['rate'] / 1e9:,.0f} GFLOP/s in a matrix product; medians\n")
    print("| phase | ms | floor ms | share |\n|---|---|---|---|")
    shares = {}
    for name, pairs in result["phases"].items():
        took, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
        shares[name] = {"seconds": took, "floor": floor, "share": floor / took}
        print(f"| {name} | {1e3 * took:,.1f} | {1e3 * floor:,.1f} | {floor / took:.0%} |")
    bench.write(dtype=spec["dtype"], phases=shares)


def row(bench: Bench, name: str, temperature: float, sides: dict, found: dict[str, list[dict]]) -> dict:
    """The figures of one work at one temperature."""
    rates = {side: middle(results, f"tokens/s at {temperature}") for side, results in found.items()}
    mine = found["here"]
    figures = {"work": name, "temperature": temperature, "tokens/s": rates,
               "dtype": {side: spec["dtype"] for side, (_, spec) in sides.items()},
               "batch": {side: spec.get("batch") for side, (_, spec) in sides.items()},
               "matmul GFLOP/s": {side: middle(results, "rate") / 1e9 for side, results in found.items()},
               "share": middle(mine, "floor") / middle(mine, f"seconds at {temperature}"),
               "peak": {side: middle(results, "peak") for side, results in found.items()},
               "ratio": {side: rates["here"] / rate for side, rate in rates.items() if side != "here"}}
    if "best" in found:  # the faster of both, should the trials have been wrong
        figures["ratio"]["best"] = min(figures["ratio"].values())
    if temperature == 0 and "best" in found:
        pairs = [(mine[0]["greedy"][i], crc) for i, crc in found["best"][0]["greedy"].items()]
        figures["same"] = sum(a == b for a, b in pairs) / len(pairs)
    return figures


def line(f: dict) -> str:
    def side(name: str) -> str:
        if name not in f["tokens/s"]:
            return " | "
        batch = f", batch {f['batch'][name]}" if f["batch"][name] else ""
        return (f"{f['tokens/s'][name]:,.1f} ({f['dtype'][name]}{batch}; {f['matmul GFLOP/s'][name]:,.0f} GFLOP/s) "
                f"| {f['peak'][name] / 1e9:.2f}")

    cells = [f"{f['work']}, T {f['temperature']:g}", side("here"), f"{f['share']:.0%}", side("best"), side("as called"),
             *(f"{f['ratio'][name]:.2f}" if name in f["ratio"] else "" for name in ("best", "as called")),
             f"{f['same']:.0%}" if "same" in f else ""]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = peers.parser(__doc__)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.8, 0.0], help="samples: only above 0")
    parser.add_argument("--phases", action="store_true")
    args = parser.parse_args()
    if args.work == ["samples"] and max(args.temperatures) <= 0:
        peers.fail(f"--temperatures is {args.temperatures}: greedy samples of a prompt are all alike, give one above 0")
    bench = Bench(__file__, args, () if args.alone or args.phases else ("transformers",),
                  here=here, transformers=transformers, phases=phases)
    if args.phases:
        show_phases(bench)
        return
    rows = []
    for name in args.work:
        temperatures = [t for t in args.temperatures if t > 0 or name != "samples"]
        if not temperatures:
            continue
        given = {"work": name, "temperatures": temperatures}
        sides = {"here": ("here", bench.best("here", {}, "tokens/s", **given))}
        if not args.alone:
            best = bench.best("transformers", {"batch": list(BATCHES)}, "tokens/s", best=True, **given)
            sides |= {"best": ("transformers", best),
                      "as called": ("transformers", best | {"best": False, "batch": 8})}
        found = bench.in_turn(sides, "tokens/s")
        rows += [row(bench, name, t, sides, found) for t in temperatures]
    print("\ntokens/s: medians; / best, / as called: how many times faster than transformers\n")
    print("| work | here | GB | of floor | transformers, best | GB | as called | GB | / best | / as called | same |")
    print("|---" * 11 + "|")
    print("\n".join(map(line, rows)))
    bench.write(rollouts=rows)


if __name__ == "__main__":
    main()
