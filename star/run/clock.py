"""Seconds and tokens of each phase of an iteration, as the run's events come."""

import time
from dataclasses import dataclass, field

from star.problem import SAMPLED, STUDENT


@dataclass
class Clock:
    """Seconds and tokens of each phase of an iteration."""

    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # rationales or steps that took tokens
    student: float = 0.0  # seconds in which the student sampled, and no other model did
    _phase: str = ""
    _since: float = 0.0
    _source: str = STUDENT

    def enter(self, phase: str, source: str = STUDENT) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
            if self._phase in SAMPLED and self._source == STUDENT:
                self.student += now - self._since
        self._phase, self._since, self._source = phase, now, source

    def count(self, tokens: int) -> None:
        self.tokens[self._phase] = self.tokens.get(self._phase, 0) + tokens
        self.rows[self._phase] = self.rows.get(self._phase, 0) + (tokens > 0)

    def sampled(self) -> tuple[int, int, float]:
        """(tokens, rationales, seconds) of the phases that sample, the one in hand included."""
        now = time.perf_counter() - self._since if self._phase in SAMPLED else 0.0
        seconds = sum(s for phase, s in self.seconds.items() if phase in SAMPLED) + now
        kinds = [phase for phase in self.tokens if phase in SAMPLED]
        return sum(self.tokens[k] for k in kinds), sum(self.rows.get(k, 0) for k in kinds), seconds

    def rate(self, *phases: str) -> float:
        """Tokens a second over these phases together."""
        return sum(self.tokens.get(p, 0) for p in phases) / max(sum(self.seconds.get(p, 0.0) for p in phases), 1e-9)
