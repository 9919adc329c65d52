"""Many problems in, judged rationales out: what every phase but training does (lines 3 to 6 of Algorithm 1).

It takes its sampler and tokenizer, so that several models can each have one. It chooses no problems, trains nothing and
writes nothing: star/loop does, and whoever listens to its events.
"""

from collections.abc import Generator, Iterable, Sequence

from star import prompts
from star.config import StarConfig
from star.draws import seed_of
from star.evaluate import verdict
from star.problem import Chunk, Completion, Event, Generation, Phase, Problem, Tick
from star.sampler import Sampler
from star.tasks import Task, ask

CHUNK = 8  # generations of a chunk for each slot: what a stop may lose, against slots that run empty at its end


class Rollout:
    """Samples rationales for problems in the phases of an iteration, and judges them.

    given: generations that a stopped run had already made; they are not made again.
    """

    def __init__(self, sampler: Sampler, tokenizer, task: Task, config: StarConfig, given: Iterable[Generation] = ()):
        self.sampler, self.tokenizer, self.task, self.config = sampler, tokenizer, task, config
        self.given = {g.key: g for g in given}

    def run(self, n: int, phase: str, problems: Sequence[Problem]) -> Generator[Event, None, list[Generation]]:
        """Judged generations, problem by problem, in their order; as many of each as the phase has samples."""
        samples, *_ = self.config.sampling(phase)
        yield Phase(n, phase, len(problems) * samples)
        hinted = phase == "rationalize"
        sampled_by = n - 1 if phase in ("generate", "rationalize") else n  # M_0 is the base
        few_shot = self.config.shows_examples(sampled_by, hinted)
        by_examples: dict[str, list[Problem]] = {}  # few-shot text -> problems: those that share it share its cache
        for p in problems:
            by_examples.setdefault(self.task.few_shot(p, hinted) if few_shot else "", []).append(p)
        done: dict[tuple, Generation] = {}
        for part in by_examples.values():
            done |= yield from self._sample(n, phase, part, hinted, few_shot)
        return [done[n, phase, p.id, k] for p in problems for k in range(samples)]

    def complete(self, n: int, phase: str, problems: Sequence[Problem]) -> list[Generation]:
        """`run` to its end, for callers to whom its events mean nothing."""
        events = self.run(n, phase, problems)
        while True:
            try:
                next(events)
            except StopIteration as end:
                return end.value

    def _sample(
        self, n: int, phase: str, problems: Sequence[Problem], hinted: bool, few_shot: bool
    ) -> Generator[Event, None, dict[tuple, Generation]]:
        """The generations of a phase for problems behind one few-shot text, by key, chunk by chunk."""
        samples, temperature, top_k, top_p = self.config.sampling(phase)
        encoded = [prompts.encode(self.task, p, self.tokenizer, hinted, few_shot) for p in problems]
        prefix, rest = prompts.split_prefix(encoded)
        keys = [(n, phase, p.id, k) for p in problems for k in range(samples)]  # keys[i]: of problem i // samples
        order = sorted(range(len(keys)), key=lambda i: len(rest[i // samples]))
        done: dict[int, Generation] = {}
        size = CHUNK * self.sampler.slots
        for start in range(0, len(order), size):  # chunks do not depend on what is given
            chunk = order[start : start + size]
            for i in chunk:
                if keys[i] in self.given:
                    done[i] = self.given[keys[i]]
                    yield Tick(0)
            missing = [i for i in chunk if i not in done]
            seeds = [seed_of(self.config.seed, *keys[i]) for i in missing]
            for j, completion in self.sampler.stream(
                [rest[i // samples] for i in missing], prefix=prefix,
                max_new_tokens=self.config.max_new_tokens or self.task.max_new_tokens, temperature=temperature,
                top_k=top_k, top_p=top_p, seeds=seeds, stop_ids=self.tokenizer.eos_ids, stop=self.task.stop,
            ):
                i = missing[j]
                done[i] = self.judge(keys[i], problems[i // samples], completion, seeds[j])
                yield Tick(len(completion.tokens))
            if missing:
                yield Chunk([done[i] for i in missing])
        return {keys[i]: g for i, g in done.items()}

    def judge(self, key: tuple[int, str, str, int], problem: Problem, completion: Completion, seed: int) -> Generation:
        """The verdict on a completion, with all that is written down of it. key: iteration, phase, problem, sample."""
        ids = [i for i in completion.tokens if i not in self.tokenizer.eos_ids]
        text = self.tokenizer.decode(ids)
        found, answer = verdict(self.task, problem, text, completion.finish, hinted=key[1] == "rationalize")
        steps = ask(self.task, "check_steps", problem, text) if found == "right" else None
        return Generation(*key, seed, completion.tokens, text, completion.finish, round(sum(completion.logprobs), 4),
                          answer, found, steps)
