"""Every setting of a run: one frozen record, one flag each. What the settings mean stands beside them.

The defaults are those of the shipped experiment (README says where they differ from the paper). Checks ranges only:
whether settings suit a model or a task is seen where those are known.
"""

import math
from dataclasses import dataclass, field, fields


def setting(default, help: str, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None):
    """A dataclass field with its help text and the values it may take."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class StarConfig:
    """Settings of Algorithm 1 and of what it runs on. Raises ValueError that names the setting, its value and limit."""

    task: str = setting("arithmetic", "what to learn: a file in star/tasks")
    data: str | None = setting(None, "file or folder that the task reads")
    digits: str | None = setting(None, "arithmetic: lengths of the numbers, as 5 or 1-5 (default 1-5)")
    model: str | None = setting(None, "folder of the base model M (default: the tiny adder that ships)")
    iterations: int = setting(8, "outer iterations N", low=1, high=10_000)
    problems: int = setting(2000, "problems drawn from the training set each iteration", low=1)
    start: str = setting("base", "train each iteration from the base (the paper) or go on", ("base", "previous"))
    hint: str = setting("failure", "rationalize failures with the answer as a hint, or never", ("failure", "off"))
    temperature: float = setting(0.0, "of generation and rationalization; 0 is greedy", low=0.0, high=100.0)
    max_new_tokens: int | None = setting(None, "length cap of a rationale (default: the task's)", low=1, high=10**6)
    max_len: int | None = setting(None, "most tokens of prompt and rationale (default: what they need)", low=2)
    first_steps: int = setting(32, "optimizer steps of the first iteration", low=1, high=10**7)
    growth: float = setting(1.35, "factor on the steps from one iteration to the next", low=1.0, high=10.0)
    batch_size: int = setting(32, "examples an optimizer step", low=1, high=10**6)
    lr: float = setting(5e-3, "peak learning rate of the adapters", low=1e-9, high=10.0)
    schedule: str = setting("linear", "after the warm-up: to zero, or constant (the paper)", ("linear", "constant"))
    warmup: int = setting(10, "steps over which the learning rate rises", low=0, high=10**7)
    beta2: float = setting(0.99, "AdamW's second-moment decay", low=0.0, high=0.99999)
    clip: float = setting(1.0, "largest norm of a step's gradient", low=1e-9)
    rank: int = setting(16, "rank of the adapters", low=1, high=65_536)
    alpha: float = setting(32.0, "adapter scale is alpha / rank", low=1e-9, high=10**6)
    seed: int = setting(0, "of the draws: problems, samples, adapters, batches", low=0, high=2**63 - 1)
    slots: int = setting(512, "rows sampled at a time", low=1, high=10**6)
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: CUDA if there is one")
    dtype: str = setting("auto", "of the frozen base", ("auto", "float32", "bfloat16", "float64"))

    def __post_init__(self):
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if value is None:
                continue
            flag = "--" + f.name.replace("_", "-")
            if meta["choices"] and value not in meta["choices"]:
                raise ValueError(f"{flag} is {value!r}; it must be one of {', '.join(meta['choices'])}")
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{flag} is {value}; it must be a number")
            if meta["low"] is not None and value < meta["low"]:
                raise ValueError(f"{flag} is {value}; it must be at least {meta['low']}")
            if meta["high"] is not None and value > meta["high"]:
                raise ValueError(f"{flag} is {value}; it must be at most {meta['high']}")
        if math.log(self.first_steps) + (self.iterations - 1) * math.log(self.growth) > math.log(1e9):
            raise ValueError(f"--growth {self.growth} over {self.iterations} iterations leads to more than 10^9 steps "
                             "in the last; lower one of them")

    def steps(self, iteration: int) -> int:
        """Optimizer steps of iteration 1, 2, ...; with the paper's 40 and 1.2: 40, 48, 57, 69, 82 (App. H)."""
        return int(self.first_steps * self.growth ** (iteration - 1) + 1e-9)
