"""Every setting of a run: one frozen record, one flag each. What the settings mean stands beside them.

The defaults are those of the shipped experiment (README says where they differ from the paper). Checks ranges only:
whether settings suit a model or a task is seen where those are known.
"""

import math
from collections.abc import Iterator
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
    few_shot: str | None = setting(None, "file of examples {question, rationale, answer} (default: the task's own)")
    zero_shot: bool = setting(False, "no examples, an instruction instead")
    shots: int | None = setting(None, "how many of the examples are shown (default: the task's number)", low=1)
    grade: str | None = setting(None, "jsonl: answers are compared as (default: as all of them can be read)",
                                ("number", "choice", "text"))
    question_field: str | None = setting(None, "jsonl: field of the question, or several: a,b (default question)")
    answer_field: str | None = setting(None, "jsonl: field of the answer (default answer)")
    choices_field: str | None = setting(None, "jsonl: field of the choices, if there are any")
    rationale_field: str | None = setting(None, "jsonl: field of a human rationale, if there is one")
    group_field: str | None = setting(None, "jsonl: field of the class that accuracy is reported by")
    heldout: str | None = setting(None, "jsonl: file of held-out problems (default: a share of --data)")
    heldout_share: float | None = setting(None, "jsonl: that share (default 0.1)", low=1e-6, high=0.9)
    heldout_problems: int | None = setting(None, "held-out problems to evaluate on, the same in any run (default: all)",
                                           low=1)
    heldout_when: str = setting("each", "evaluate on them after each iteration, or when validation is the best so far",
                                ("each", "best"))
    validation: int = setting(0, "training problems set aside to choose the best iteration by; 0: take the last", low=0)
    patience: int | None = setting(None, "stop after so many iterations without a better validation (default: never)",
                                   low=1)
    eval_samples: int = setting(0, "samples a held-out problem for pass@k and maj@k; 0: greedy accuracy only", low=0,
                                high=10_000)
    eval_temperature: float = setting(0.7, "of these samples", low=1e-6, high=100.0)
    model: str | None = setting(None, "folder of the base model M (default: the tiny adder that ships)")
    chat: bool = setting(False, "prompts are conversations, in the model's own chat template")
    learn: str = setting("rationales", "train on own rationales (STaR), on the data's human ones, or on answers alone",
                         ("rationales", "gold", "answers"))
    iterations: int = setting(8, "outer iterations N; 0: evaluate the base only", low=0, high=10_000)
    problems: int = setting(2000, "problems drawn from the training set each iteration (all, if it has fewer)", low=1)
    start: str = setting("base", "train each iteration from the base (the paper) or go on", ("base", "previous"))
    samples: int = setting(1, "rationales sampled a problem", low=1, high=10_000)
    temperature: float = setting(0.0, "of generation; 0 is greedy", low=0.0, high=100.0)
    top_k: int = setting(0, "generation draws from the k best tokens; 0: from all", low=0)
    top_p: float = setting(1.0, "generation draws from the best tokens that together have this probability", low=1e-6,
                           high=1.0)
    hint: str = setting("failure", "rationalize failures with the answer as a hint, or never", ("failure", "off"))
    hint_share: float = setting(1.0, "share of the failures that are rationalized", low=0.0, high=1.0)
    hint_samples: int | None = setting(None, "of rationalization (default: as generation)", low=1, high=10_000)
    hint_temperature: float | None = setting(None, "of rationalization (default: as generation)", low=0.0, high=100.0)
    hint_top_k: int | None = setting(None, "of rationalization (default: as generation)", low=0)
    hint_top_p: float | None = setting(None, "of rationalization (default: as generation)", low=1e-6, high=1.0)
    wanted: int | None = setting(None, "stop sampling once so many rationales are right (default: try all problems)",
                                 low=1)
    few_shot_sample: str = setting("always", "sample with few-shot text always, from the base, or later with hints",
                                   ("always", "base", "hint"))
    max_new_tokens: int | None = setting(None, "length cap of a rationale (default: the task's)", low=1, high=10**6)
    max_len: int | None = setting(None, "most tokens of prompt and rationale (default: what they need)", low=2)
    dedup: str = setting("on", "train once on equal rationales of a problem", ("on", "off"))
    cap: int | None = setting(None, "most rationales of a problem to train on, the newest first (default: all)", low=1)
    rounds: str = setting("last", "train on the rationales of the last iteration (the paper) or of all so far",
                          ("last", "all"))
    first_steps: int = setting(28, "optimizer steps of the first iteration", low=1, high=10**7)
    growth: float = setting(1.25, "factor on the steps from one iteration to the next", low=1.0, high=10.0)
    epochs: float | None = setting(None, "passes over the examples, instead of --first-steps and --growth", low=1e-3,
                                   high=10**6)
    few_shot_train: str = setting("off", "train behind the few-shot text too (no loss on it)", ("on", "off"))
    batch_size: int = setting(32, "examples an optimizer step", low=1, high=10**6)
    micro_tokens: int | None = setting(None, "tokens trained on at a time (default: 1024 on a CPU, else 8192)", low=1)
    recompute: str = setting("off", "less memory in training: compute blocks again in the backward pass", ("on", "off"))
    lr: float | None = setting(None, "peak learning rate of the adapters (default: 5e-3 for the tiny adder, else 2e-4)",
                               low=1e-9, high=10.0)
    schedule: str = setting("linear", "after the warm-up: to zero, or constant (the paper)", ("linear", "constant"))
    warmup: int = setting(10, "steps over which the learning rate rises", low=0, high=10**7)
    beta2: float = setting(0.99, "AdamW's second-moment decay", low=0.0, high=0.99999)
    clip: float = setting(1.0, "largest norm of a step's gradient", low=1e-9)
    rank: int = setting(16, "rank of the adapters", low=1, high=65_536)
    alpha: float = setting(32.0, "adapter scale is alpha / rank", low=1e-9, high=10**6)
    merge: str = setting("auto", "sample from merged weights (a second copy), from live adapters, or as memory allows",
                         ("auto", "on", "off"))
    seed: int = setting(0, "of the draws: problems, samples, adapters, batches", low=0, high=2**63 - 1)
    slots: int | None = setting(None, "rows sampled at a time (default: what half the free memory holds, at most 512)",
                                low=1, high=10**6)
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
        if self.lr is None:
            object.__setattr__(self, "lr", 5e-3 if self.model is None else 2e-4)
        for wrong, why in self._senseless():
            if wrong:
                raise ValueError(why)

    def _senseless(self) -> Iterator[tuple[bool, str]]:
        """(is it so, what to say) of settings that cannot be met together."""
        for prefix, name in (("", "generate"), ("hint-", "rationalize")):
            samples, temperature, top_k, top_p = self.sampling(name)
            own = [f"--{prefix}{key}" for key in ("samples", "temperature", "top-k", "top-p")
                   if prefix and getattr(self, f"{prefix}{key}".replace("-", "_")) is not None]
            if prefix and self.hint == "off":
                yield bool(own), f"{', '.join(own)} given, but --hint off never rationalizes: leave one of them out"
                yield self.hint_share != 1, f"--hint-share is {self.hint_share}, but --hint off never rationalizes"
                continue
            yield temperature == 0 and samples > 1, (
                f"--{prefix}samples is {samples}, but --{prefix}temperature 0 gives one rationale each time: raise "
                "the temperature")
            yield temperature == 0 and (top_k > 0 or top_p < 1), (
                f"--{prefix}top-k and --{prefix}top-p truncate what is drawn from, but --{prefix}temperature 0 draws "
                "nothing: raise the temperature")
        most = max(self.samples, self.sampling("rationalize")[0] if self.hint != "off" else 0)
        yield self.cap is not None and self.rounds == "last" and self.cap > most, (
            f"--cap is {self.cap}, but an iteration has at most {most} rationales of a problem: raise --samples, or "
            "--rounds all")
        yield self.wanted is not None and self.wanted > self.problems * most, (
            f"--wanted is {self.wanted}, but {self.problems} problems with {most} samples cannot bring as many")
        for name in ("patience", "heldout_when"):
            flag = "--" + name.replace("_", "-")
            yield self.validation == 0 and getattr(self, name) not in (None, "each"), (
                f"{flag} {getattr(self, name)} goes by validation, but --validation is 0: set some problems aside")
        if self.learn != "rationales":
            yield self.samples > 1 or self.wanted is not None or self.rounds == "all", (
                f"--learn {self.learn} samples no rationales: leave out --samples, --wanted and --rounds")
        defaults = {f.name: f.default for f in fields(self)}
        yield self.epochs is not None and any(getattr(self, k) != defaults[k] for k in ("first_steps", "growth")), (
            "--epochs and --first-steps or --growth both say how long to train: leave one of them out")

    def task_options(self) -> dict:
        """What the task is loaded with."""
        names = ("data", "digits", "few_shot", "zero_shot", "shots", "grade", "question_field", "answer_field",
                 "choices_field", "rationale_field", "group_field", "heldout", "heldout_share")
        return {name: getattr(self, name) for name in names}

    def sampling(self, phase: str) -> tuple[int, float, int, float]:
        """(samples, temperature, top k, top p) of a phase; evaluation is greedy, whatever the others are."""
        if phase in ("evaluate", "validate"):
            return 1, 0.0, 0, 1.0
        if phase == "pass at k":
            return self.eval_samples, self.eval_temperature, 0, 1.0
        names = ("samples", "temperature", "top_k", "top_p")
        own = [getattr(self, "hint_" + name) if phase == "rationalize" else None for name in names]
        return tuple(getattr(self, name) if o is None else o for name, o in zip(names, own, strict=True))

    def steps(self, iteration: int, examples: int) -> int:
        """Optimizer steps of iteration 1, 2, ...; with the paper's 40 and 1.2: 40, 48, 57, 69, 82 (App. H)."""
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * examples / self.batch_size))
        return int(self.first_steps * self.growth ** (iteration - 1) + 1e-9)


PRESETS = {  # --preset NAME: settings that flags may still change; README says where `paper` differs from the paper
    "paper": {  # App. H: greedy, a hint for failures, from the base, 40 steps growing by 1.2, Adam, warm-up, constant
        "iterations": 16, "problems": 10_000, "first_steps": 40, "growth": 1.2, "batch_size": 64, "lr": 2e-4,
        "warmup": 100, "schedule": "constant", "beta2": 0.999, "validation": 200, "heldout_when": "best",
    },
    "modern": {  # as the re-measurements run it: several samples, accumulate, no hint for maths, early stop
        "iterations": 10, "problems": 2000, "samples": 4, "temperature": 0.7, "hint": "off", "start": "previous",
        "cap": 4, "epochs": 1.0, "batch_size": 32, "lr": 2e-4, "validation": 200, "patience": 2,
        "heldout_when": "best", "eval_samples": 8,
    },
    "quick": {  # does it work at all, in minutes on a CPU
        "iterations": 1, "problems": 64, "heldout_problems": 64, "max_new_tokens": 160, "first_steps": 20,
        "batch_size": 8, "lr": 2e-4, "warmup": 5,
    },
}
