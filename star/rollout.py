"""Many problems in, judged rationales out: what every phase but training does (lines 3 to 6 of Algorithm 1).

It takes its sampler and tokenizer, so that several models can each have one (star/pool). It chooses no problems, trains
nothing and writes nothing: star/loop does, and whoever listens to its events.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence

from star import prompts
from star.config import StarConfig
from star.device import out_of_memory
from star.draws import seed_of
from star.evaluate import verdict
from star.problem import STUDENT, Chunk, Completion, Event, Generation, Note, Phase, Problem, Tick
from star.ranks import ONE, Ranks
from star.sampler import Sampler
from star.tasks import Task, ask

CHUNK = 8  # generations of a chunk for each slot: what a stop may lose, against slots that run empty at its end


class Rollout:
    """Samples rationales for problems in the phases of an iteration, and judges them.

    given: generations that a stopped run had already made; they are not made again. ranks: the processes that share
    the work; each hears what all of them made, in the same order.
    """

    source = STUDENT  # who writes; star/pool has others

    def __init__(self, sampler: Sampler, tokenizer, task: Task, config: StarConfig, given: Iterable[Generation] = (),
                 ranks: Ranks = ONE):
        self.sampler, self.tokenizer, self.task, self.config, self.ranks = sampler, tokenizer, task, config, ranks
        # of a rank's part of a chunk, in slots: it stays when memory runs out and rows become fewer
        self.size = min(ranks.gather(sampler.slots))
        self.given = {g.key: g for g in given}

    def run(self, n: int, phase: str, problems: Sequence[Problem]) -> Generator[Event, None, list[Generation]]:
        """Judged generations, problem by problem, in their order; as many of each as the phase has samples."""
        samples, *_ = self.config.sampling(phase)
        if not samples:
            return []
        yield Phase(n, phase, len(problems) * samples, self.source)
        hinted = phase == "rationalize"
        few_shot = self.config.shows_examples(self.iteration_of(n, phase), hinted)
        by_examples: dict[str, list[Problem]] = {}  # few-shot text -> problems: those that share it share its cache
        for p in problems:
            by_examples.setdefault(self.task.few_shot(p, hinted) if few_shot else "", []).append(p)
        done: dict[tuple, Generation] = {}
        for part in by_examples.values():
            done |= yield from self._sample(n, phase, part, hinted, few_shot)
        return [done[n, phase, p.id, k, self.source] for p in problems for k in range(samples)]

    def iteration_of(self, n: int, phase: str) -> int:
        """Of the model that samples in a phase of iteration n: M_{n-1} before training, M_n after it; M_0 is the base.
        """
        return n - 1 if phase in ("generate", "rationalize") else n

    def complete(self, n: int, phase: str, problems: Sequence[Problem]) -> list[Generation]:
        """`run` to its end, for callers to whom its events mean nothing."""
        return result(self.run(n, phase, problems))

    def _sample(
        self, n: int, phase: str, problems: Sequence[Problem], hinted: bool, few_shot: bool
    ) -> Generator[Event, None, dict[tuple, Generation]]:
        """The generations of a phase for problems behind one few-shot text, by key, chunk by chunk."""
        samples, temperature, top_k, top_p = self.config.sampling(phase)
        encoded = [prompts.encode(self.task, p, self.tokenizer, hinted, few_shot) for p in problems]
        prefix, rest = prompts.split_prefix(encoded)
        # keys[i]: of problem i // samples
        keys = [(n, phase, p.id, k, self.source) for p in problems for k in range(samples)]
        order = sorted(range(len(keys)), key=lambda i: len(rest[i // samples]))
        done: dict[int, Generation] = {}
        size = CHUNK * self.size * self.ranks.size
        for start in range(0, len(order), size):  # chunks do not depend on what is given
            chunk = order[start : start + size]
            for i in chunk:
                if keys[i] in self.given:
                    done[i] = self.given[keys[i]]
                    yield Tick(0)
            missing = [i for i in chunk if i not in done]
            dealt = self.deal(missing, samples)
            mine, slots = dealt[self.ranks.rank], self.sampler.slots
            seeds = [self.seed(*keys[i]) for i in mine]
            for j, completion in self._completions(
                [rest[i // samples] for i in mine], prefix=prefix,
                max_new_tokens=self.config.max_new_tokens or self.task.max_new_tokens, temperature=temperature,
                top_k=top_k, top_p=top_p, seeds=seeds, stop_ids=self.tokenizer.eos_ids, stop=self.task.stop,
            ):
                i = mine[j]
                done[i] = self.verify(keys[i], problems[i // samples], completion, seeds[j])
                yield Tick(len(completion.tokens))
            told = self.ranks.gather([self.sampler.slots < slots, self.sampler.slots, [vars(done[i]) for i in mine]])
            for rank, (fewer, slots, made) in enumerate(told):
                if fewer:
                    where = f" on rank {rank}" if self.ranks.size > 1 else ""
                    yield Note(f"iteration {n}, {phase}: memory ran out{where}; from here on {slots} rows are sampled "
                               "at a time")
                if rank != self.ranks.rank:
                    for i, g in zip(dealt[rank], made, strict=True):
                        done[i] = Generation(**g | {"tokens": tuple(g["tokens"])})
                        yield Tick(len(done[i].tokens))
            if missing:
                yield Chunk([done[i] for i in missing], [problems[i // samples] for i in missing])
        return {keys[i]: g for i, g in done.items()}

    def deal(self, rows: Sequence[int], samples: int) -> list[list[int]]:
        """Each rank's part of the rows. Those of a problem (i // samples) stay together, since their prompt is computed
        once, unless there are too few problems for that."""
        of: dict[int, list[int]] = {}
        for i in rows:
            of.setdefault(i // samples, []).append(i)
        hands = list(of.values()) if len(of) >= 4 * self.ranks.size else [[i] for i in rows]
        return [[i for hand in part for i in hand] for part in self.ranks.deal(hands)]

    def _completions(self, prompts: list[list[int]], seeds: list[int], **options) -> Iterator[tuple[int, Completion]]:
        """The sampler's stream. Where memory runs out, those that are left are sampled half as many at a time: a row
        draws the same, whatever runs beside it."""
        left = dict.fromkeys(range(len(prompts)))
        while left:
            part = list(left)
            try:
                for j, completion in self.sampler.stream([prompts[i] for i in part], seeds=[seeds[i] for i in part],
                                                         **options):
                    del left[part[j]]
                    yield part[j], completion
            except (RuntimeError, MemoryError) as e:
                if not out_of_memory(e) or self.sampler.slots == 1:
                    raise
            if left:  # not in the handler, where the error still holds what it was raised in
                self.sampler.halve()

    def seed(self, n: int, phase: str, problem: str, sample: int, source: str = STUDENT) -> int:
        """Of a row's draws: other models draw otherwise than the student."""
        return seed_of(self.config.seed, n, phase, problem, sample, *([] if source == STUDENT else [source]))

    def verify(self, key: tuple[int, str, str, int, str], problem: Problem, completion: Completion, seed: int
              ) -> Generation:
        """The verdict on a completion, with all that is written down of it. key: that of the generation."""
        return self.verify_text(key, problem, self.text(completion), completion.tokens, completion.finish,
                                round(sum(completion.logprobs), 4), seed)

    def text(self, completion: Completion) -> str:
        """What a completion says, without the token that ends it."""
        return self.tokenizer.decode([i for i in completion.tokens if i not in self.tokenizer.eos_ids])

    def verify_text(self, key: tuple[int, str, str, int, str], problem: Problem, text: str, tokens: Sequence[int],
                   finish: str, logprob: float | None, seed: int = 0) -> Generation:
        """The same for a text that somebody else wrote; tokens are its ids here."""
        n, phase, _, sample, source = key
        found, answer = verdict(self.task, problem, text, finish, hinted=phase == "rationalize")
        steps = ask(self.task, "check_steps", problem, text) if found == "right" else None
        return Generation(n, phase, problem.id, sample, seed, tuple(tokens), text, finish, logprob, answer, found,
                          steps, source)


def result(events: Generator[Event, None, list[Generation]]) -> list[Generation]:
    """What a generator of events returns at its end."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value
