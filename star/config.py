"""Every setting of Algorithm 1 and of what it runs on: one frozen record, one flag each. What they mean stands there.

The defaults are those of the shipped experiment (README says where they differ from the paper). It checks ranges, and
what contradicts each other (one table, at the end); whether settings suit a model or a task is seen where those are
known. What only one task takes is no setting here: see the task's `load`.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from types import NoneType, SimpleNamespace
from typing import get_args

BY_REWARD = ("correct+reward", "reward", "reward-blind")
SELECTIONS = ("correct", "correct+steps", *BY_REWARD)
OF_OTHERS = ("generators", "candidates", "skip_bad", "reward", "reward_by", "reward_weights", "reward_format", "select",
             "reward_threshold")  # settings of other models and of a judge, which plain STaR does without


def setting(default, help: str, choices: tuple = (), low: float | None = None, high: float | None = None):
    """A dataclass field with its help text and the values it may take."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class StarConfig:
    """Settings of Algorithm 1 and of what it runs on. Raises ValueError that names the setting, its value and limit."""

    task: str = setting("arithmetic", "what to learn: a file in star/tasks by its name, or any .py file")
    model: str | None = setting(None, "folder of the base model M (default: the tiny adder that ships)")
    chat: bool = setting(False, "prompts are conversations, in the model's own chat template")
    # the outer loop
    iterations: int = setting(8, "outer iterations N; 0: evaluate the base only", low=0, high=10_000)
    problems: int = setting(2000, "problems drawn from the training set each iteration (all, if it has fewer)", low=1)
    start: str = setting("base", "train each iteration from the base (the paper) or go on", ("base", "previous"))
    # rationales: lines 3 and 4
    samples: int = setting(1, "rationales sampled a problem; 0: none, for --generators and --candidates alone", low=0,
                           high=10_000)
    temperature: float = setting(0.0, "of the samples; 0 is greedy", low=0.0, high=100.0)
    top_k: int = setting(0, "draw from the k best tokens; 0: from all", low=0)
    top_p: float = setting(1.0, "draw from the best tokens that together have this probability", low=1e-6, high=1.0)
    rationalize: bool = setting(True, "retry failures with the answer as a hint")
    hint_samples: int | None = setting(None, "rationales sampled a failure, with its hint (default: as --samples)",
                                       low=1, high=10_000)
    wanted: int | None = setting(None, "stop sampling once so many rationales are right (default: try all problems)",
                                 low=1)
    few_shot_sample: str = setting("always", "sample with few-shot text always, from the base, or later with hints",
                                   ("always", "base", "hint"))
    max_new_tokens: int | None = setting(None, "most tokens of a rationale (default: the task's)", low=1, high=10**6)
    # answers of others, and a judge of all
    generators: str | None = setting(None, "folders of other models that answer too, separated by commas")
    candidates: str | None = setting(None, "files of answers written elsewhere {problem, text, source}, separated by "
                                     "commas")
    skip_bad: bool = setting(False, "leave out lines of --candidates that cannot be used, instead of refusing the file")
    reward: str | None = setting(None, "folder of a reward model that scores all answers")
    reward_by: str = setting("head", "score by the model's reward head, or by the mean log-probability that a language "
                             "model gives to the answer", ("head", "likelihood"))
    reward_weights: str | None = setting(None, "of its attributes in the total, as 0.3,0.7, or a published set by name "
                                         "(default: the model's own, else nemotron-4-340b)")
    reward_format: str = setting("auto", "how the judge is asked: in its chat template, with SteerLM's markers, or in "
                                 "the task's own words; auto: as its folder says", ("auto", "chat", "steerlm", "plain"))
    # which rationales are trained on: lines 5 and 6
    select: str = setting("correct", "train on those with the right answer (the paper), with right steps too, the best "
                          "of the right ones by reward, or the best by reward alone: without answers, or blind to them",
                          SELECTIONS)
    reward_threshold: float | None = setting(None, "least reward to train on, where --select goes by reward", low=-1e30,
                                            high=1e30)
    dedup: bool = setting(True, "train once on equal rationales of a problem")
    max_per_problem: int | None = setting(None, "most rationales of a problem to train on, the newest first, or by "
                                          "reward the best (default: all; by reward 1)", low=1)
    drop_degenerate: bool = setting(False, "do not train on rationales that go round in circles, or whose "
                                    "log-probability is far from the others'")
    keep: str = setting("last", "train on the rationales of the last iteration (the paper) or of all so far",
                        ("last", "all"))
    # training: line 7
    first_steps: int = setting(28, "optimizer steps of the first iteration", low=1, high=10**7)
    growth: float = setting(1.25, "factor on the steps from one iteration to the next", low=1.0, high=10.0)
    epochs: float | None = setting(None, "passes over the examples, instead of --first-steps and --growth", low=1e-3,
                                   high=10**6)
    few_shot_train: bool = setting(False, "train behind the few-shot text too (no loss on it)")
    batch_size: int = setting(32, "examples an optimizer step", low=1, high=10**6)
    micro_tokens: int | None = setting(None, "tokens trained on at a time (default: 1024 on a CPU, else what fits of "
                                      "8192)", low=1)
    recompute: bool = setting(False, "less memory in training: compute blocks again in the backward pass")
    lr: float | None = setting(None, "peak learning rate of the adapters (default: 5e-3 for the tiny adder, else 2e-4)",
                               low=1e-9, high=10.0)
    schedule: str = setting("linear", "after the warm-up: to zero, or constant (the paper)", ("linear", "constant"))
    warmup: int = setting(10, "steps over which the learning rate rises", low=0, high=10**7)
    beta2: float = setting(0.99, "AdamW's second-moment decay", low=0.0, high=0.99999)
    rank: int = setting(16, "rank of the adapters", low=1, high=65_536)
    alpha: float = setting(32.0, "adapter scale is alpha / rank", low=1e-9, high=10**6)
    save_every: int | None = setting(None, "optimizer steps from one save of a training to the next (default: so many "
                                     "that saving takes a fiftieth of the time)", low=1)
    # what is measured
    heldout_problems: int | None = setting(None, "held-out problems to evaluate on, the same in any run (default: all)",
                                           low=1)
    heldout_when: str = setting("each", "evaluate on them after each iteration, or when validation is the best so far",
                                ("each", "best"))
    validation: int = setting(0, "training problems set aside to choose the best iteration by; 0: take the last", low=0)
    patience: int | None = setting(None, "stop after so many iterations without a better validation (default: never)",
                                   low=1)
    eval_samples: int = setting(0, "samples a held-out problem for pass@k and maj@k, drawn at --temperature, or 0.7 if "
                                "that is 0; 0: greedy accuracy only", low=0, high=10_000)
    # what it runs on
    seed: int = setting(0, "of the draws: problems, samples, adapters, batches", low=0, high=2**63 - 1)
    device: str = setting("auto", "cpu, cuda (AMD too), cuda:1, ..., mps; auto: CUDA or else MPS if there is one")
    dtype: str = setting("auto", "of the frozen base", ("auto", "float32", "bfloat16", "float64"))
    base_bits: int | None = setting(None, "bits of the frozen linears, with a scale a row: half the memory of bfloat16 "
                                    "(default: those of --dtype)", (8,))
    slots: int | None = setting(None, "rows sampled at a time (default: what half the free memory holds, at most 512)",
                                low=1, high=10**6)
    merge: bool | None = setting(None, "sample from merged weights, a second copy, or from live adapters (default: "
                                 "merged where memory allows)")
    shard: bool | None = setting(None, "each of several ranks keeps a share of the frozen blocks, and all put them "
                                 "together as they compute (default: where a rank has no room for all)")

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, checked(f, getattr(self, f.name)))
        if 0 < self.temperature < 1e-6:
            raise ValueError(f"--temperature {self.temperature} leaves the best token alone: give 0 (greedy), or at "
                             "least 1e-6")
        stated = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        for conflict in CONFLICTS:
            if conflict.holds(self, stated):
                raise ValueError(conflict.why.format(**vars(self)))
        if self.select in ("reward", "reward-blind"):  # the hint is the answer, of which these know nothing
            object.__setattr__(self, "rationalize", False)
        if self.lr is None:
            object.__setattr__(self, "lr", 5e-3 if self.model is None else 2e-4)

    @property
    def ranks(self) -> bool:
        """Are the rationales of a problem chosen by their reward?"""
        return self.select in BY_REWARD

    def sampling(self, phase: str) -> tuple[int, float, int, float]:
        """(samples, temperature, top k, top p) of a phase; evaluation is greedy, whatever the others are."""
        if phase in ("evaluate", "validate"):
            return 1, 0.0, 0, 1.0
        if phase == "pass at k":
            return self.eval_samples, self.temperature or 0.7, 0, 1.0
        hinted = phase == "rationalize" and self.hint_samples is not None
        return self.hint_samples if hinted else self.samples, self.temperature, self.top_k, self.top_p

    def shows_examples(self, iteration: int, hinted: bool) -> bool:
        """Is model M_iteration (0: the base) asked behind the few-shot text?

        A model that was trained on bare questions is asked bare ones too under "base" and "hint"; under "hint" hinted
        prompts keep their examples, since hints are never trained on.
        """
        return self.few_shot_sample == "always" or iteration == 0 or (self.few_shot_sample == "hint" and hinted)

    def steps(self, iteration: int, examples: int) -> int:
        """Optimizer steps of iteration 1, 2, ...; with the paper's 40 and 1.2: 40, 48, 57, 69, 82 (App. H)."""
        if self.epochs is not None:
            return max(1, math.ceil(self.epochs * examples / self.batch_size))
        return int(self.first_steps * self.growth ** (iteration - 1) + 1e-9)


def several(paths: str | None) -> list[str]:
    """The paths in a setting that may name several: of "a, b" a and b."""
    return [part.strip() for part in (paths or "").split(",") if part.strip()]


def kind_of(f: Field) -> type:
    """The type of a setting's values, None aside: int for `int | None`."""
    return next(t for t in get_args(f.type) or (f.type,) if t is not NoneType)


def checked(f: Field, value):
    """The value, if this setting may have it (a whole number as float where one is meant). ValueError says the limit.
    """
    kind, meta, flag = kind_of(f), f.metadata, "--" + f.name.replace("_", "-")
    if value is None and f.default is None:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{flag} is {value!r}; it must be of type {kind.__name__}")
    if value == "":
        raise ValueError(f"{flag} is empty: leave it out, or give a value")
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{flag} is {value!r}; it must be {'one of ' * (len(meta['choices']) > 1)}"
                         f"{', '.join(map(str, meta['choices']))}")
    if kind is float and math.isnan(value):
        raise ValueError(f"{flag} is {value}; it must be a number")
    if meta["low"] is not None and value < meta["low"]:
        raise ValueError(f"{flag} is {value}; it must be at least {meta['low']}")
    if meta["high"] is not None and value > meta["high"]:
        raise ValueError(f"{flag} is {value}; it must be at most {meta['high']}")
    return value


@dataclass(frozen=True)
class Conflict:
    """Settings that can contradict each other, when they do, and what to say. star/run/flags resolves presets by it."""

    settings: tuple[str, ...]  # in the order in which those of a preset give way to flags
    holds: Callable[[StarConfig | SimpleNamespace, set[str]], bool]  # of settings, and of which were stated
    why: str  # a format of the settings


def most_tries(s) -> int:
    """Rationales of a problem that one iteration can make."""
    return max(s.samples, (s.hint_samples or s.samples) if s.rationalize else 0)


CONFLICTS = (
    Conflict(("epochs", "first_steps", "growth"),
             lambda s, stated: s.epochs is not None and bool(stated & {"first_steps", "growth"}),
             "--epochs and --first-steps or --growth both say how long to train: leave one of them out"),
    Conflict(("growth", "iterations", "first_steps"),
             lambda s, _: math.log(s.first_steps) + (s.iterations - 1) * math.log(s.growth) > math.log(1e9),
             "--growth {growth} over {iterations} iterations leads to more than 10^9 steps in the last; lower one of "
             "them"),
    Conflict(("samples", "temperature"), lambda s, _: s.temperature == 0 and s.samples > 1,
             "--samples is {samples}, but --temperature 0 gives one rationale each time: raise the temperature"),
    Conflict(("hint_samples", "rationalize"), lambda s, _: s.hint_samples is not None and not s.rationalize,
             "--hint-samples is {hint_samples}, but --no-rationalize never shows a hint: leave one of them out"),
    Conflict(("hint_samples", "temperature"), lambda s, _: s.temperature == 0 and (s.hint_samples or 1) > 1,
             "--hint-samples is {hint_samples}, but --temperature 0 gives one rationale each time: raise the "
             "temperature"),
    Conflict(("top_k", "top_p", "temperature"), lambda s, _: s.temperature == 0 and (s.top_k > 0 or s.top_p < 1),
             "--top-k and --top-p truncate what is drawn from, but --temperature 0 draws nothing: raise the "
             "temperature"),
    Conflict(("max_per_problem", "samples", "hint_samples", "keep"),
             lambda s, _: (s.max_per_problem is not None and s.keep == "last" and not s.generators and not s.candidates
                           and s.max_per_problem > most_tries(s)),
             "--max-per-problem is {max_per_problem}, more than an iteration makes of a problem: raise --samples, or "
             "--keep all"),
    Conflict(("wanted", "problems", "samples"),
             lambda s, _: s.wanted is not None and s.wanted > s.problems * most_tries(s),
             "--wanted is {wanted}, more than {problems} problems can bring: raise --problems or --samples"),
    Conflict(("patience", "validation"), lambda s, _: s.patience is not None and s.validation == 0,
             "--patience {patience} goes by validation, but --validation is 0: set some problems aside"),
    Conflict(("heldout_when", "validation"), lambda s, _: s.heldout_when == "best" and s.validation == 0,
             "--heldout-when best goes by validation, but --validation is 0: set some problems aside"),
    Conflict(("samples",), lambda s, _: s.samples == 0 and not s.generators and not s.candidates,
             "--samples 0 samples nothing: name other models by --generators, or their answers by --candidates"),
    Conflict(("wanted", "generators", "candidates"),
             lambda s, _: s.wanted is not None and bool(s.generators or s.candidates),
             "--wanted stops the student's own sampling, but --generators and --candidates answer all problems: leave "
             "one of them out"),
    Conflict(("wanted", "select"), lambda s, _: s.wanted is not None and s.select in BY_REWARD,
             "--wanted counts what can be trained on, but --select {select} knows it only when all are sampled: leave "
             "one of them out"),
    Conflict(("select", "reward"), lambda s, _: s.select in BY_REWARD and not s.reward and not s.candidates,
             "--select {select} chooses by reward: name a reward model by --reward, or --candidates that have scores"),
    Conflict(("reward_threshold", "select"),
             lambda s, _: s.reward_threshold is not None and s.select not in BY_REWARD,
             "--reward-threshold {reward_threshold} speaks of a --select that goes by reward, but it is {select}"),
    Conflict(("reward_by", "reward_format", "reward"),
             lambda s, stated: bool(stated & {"reward_by", "reward_format"}) and not s.reward,
             "--reward-by and --reward-format say how a reward model is asked: name one by --reward"),
    Conflict(("reward_weights", "reward"), lambda s, _: bool(s.reward_weights) and not s.reward and not s.candidates,
             "--reward-weights {reward_weights} weighs the scores of a reward model: name one by --reward"),
    Conflict(("shard", "merge"), lambda s, _: bool(s.shard and s.merge),
             "--merge samples from a whole second copy of the weights, and --shard keeps not even one: leave one of "
             "them out"),
    Conflict(("merge", "base_bits"), lambda s, _: s.merge is True and s.base_bits is not None,
             "--merge adds adapters into the weights, but those of --base-bits {base_bits} are too coarse to be added "
             "to: leave one of them out"),
    Conflict(("skip_bad", "candidates"), lambda s, _: s.skip_bad and not s.candidates,
             "--skip-bad speaks of --candidates: name a file, or leave it out"),
)

DEFAULTS = {f.name: f.default for f in fields(StarConfig) if f.default is not MISSING}
