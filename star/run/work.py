"""How much a run has to do, and how long the rest will take: rationales to sample, optimizer steps, seconds.

Counted from the settings before anything is loaded; the seconds follow from the pace that the run has shown.
"""

from dataclasses import dataclass

from star.config import StarConfig, most_tries


@dataclass(frozen=True)
class Work:
    """Rationales to sample and optimizer steps, by iteration, at most; iteration 0 evaluates the base."""

    sampled: list[int]
    steps: list[int]

    @classmethod
    def of(cls, config: StarConfig, n_train: int, n_heldout: int, generates: bool = True,
           others: tuple[int, int] = (0, 0)) -> "Work":
        """generates: False where training text is not sampled but given (star/experiments/baseline). others: answers to
        a problem that other models sample, and that a file holds at most."""
        validation = min(config.validation, n_train)
        n_train, heldout = n_train - validation, min(config.heldout_problems or n_heldout, n_heldout)
        problems, tries, kept = min(config.problems, n_train), 0, 1
        if generates:
            hints = config.sampling("rationalize")[0] if config.rationalize else 0
            tries = problems * (config.samples + hints + others[0])
            kept = max(1, most_tries(config) + sum(others))  # of a problem: it is either solved, or rationalized
        measured = validation + heldout * (1 + config.eval_samples)
        steps = [0]
        for n in range(1, config.iterations + 1):
            tried = problems * (n if config.keep == "all" else 1)
            most = kept * tried
            if config.max_per_problem is not None:
                most = min(most, config.max_per_problem * min(tried, n_train))
            steps.append(config.steps(n, most))
        return cls([measured, *[tries + measured] * config.iterations], steps)

    def left(self, iteration: int) -> tuple[int, int]:
        """(rationales, steps) of the iterations after this one."""
        return sum(self.sampled[iteration + 1 :]), sum(self.steps[iteration + 1 :])


@dataclass
class Forecast:
    """Seconds that are left, from what the run has shown of itself so far."""

    work: Work
    sampling: float = 0.0  # seconds
    rationales: int = 0
    training: float = 0.0
    steps: int = 0

    def add(self, seconds: dict[str, float], rationales: int, steps: int) -> None:
        """What an iteration took."""
        self.training += seconds.get("train", 0.0)
        self.sampling += sum(s for phase, s in seconds.items() if phase not in ("train", "save"))
        self.rationales, self.steps = self.rationales + rationales, self.steps + steps

    def left(self, iteration: int) -> tuple[float, float | None]:
        """(seconds of sampling, of training or None as long as nothing was trained) after this iteration; at most."""
        rationales, steps = self.work.left(iteration)
        train = steps * self.training / self.steps if self.steps else None
        return rationales * self.sampling / max(self.rationales, 1), train


def duration(seconds: float) -> str:
    """Time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
