"""What goes bad while a table still looks like learning: rationales that loop or stand out, answers that are all one.

    loops       ids that say the same three times over, and for long: "It is 4. It is 4. It is 4. ..."
    outliers    rationales whose mean log-probability a token is out of the range of the others
    most_said   the answer given most often, beside how often it is the right one

It goes by ids, texts and log-probabilities that are there: no judge, no model, no words of a language. What is dropped
for it, star/select says.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from statistics import median

from star.evaluate import wilson
from star.problem import STUDENT, Generation, Problem
from star.tasks import Task, ask

REPEATED = 48  # tokens in a row that stood there a period before: this many are a loop, fewer a sum, a table, a rule
FEW = 12  # tokens: what is shorter cannot loop
GRAM = 8  # tokens of what comes back with changes in between: "Step 31: add one more. Step 32: add one more."
FAR = 6 * 1.4826  # in median distances from the median, which make 6 standard deviations where these are normal
NATS = 0.3  # a token: what is nearer to the median is no outlier, however alike the others are
ENOUGH = 8  # rationales that make a range, or problems whose answers can fall onto one value


def goes_round(g: Generation) -> bool:
    """Does a rationale loop? Not if the task has checked each of its steps: 111111+111111 has six equal columns."""
    return g.steps_right is not True and loops(g.tokens, g.finish == "length")


def loops(ids: Sequence[int], cut: bool = False) -> bool:
    """Do these ids say something three times in a row or more, with REPEATED ids or more that only repeat? Or do copies
    of one n-gram, however they are joined, make half of them: GRAM copies or more, twice as many if they ended well?

    cut: they did not end by themselves. Then it is enough that half of them only repeat, up to the end. "0 + 0 + 0",
    five equal columns of a sum and "\\n\\n" are no loops.
    """
    n, text = len(ids), "".join(map(chr, ids))  # to find parts of a str costs microseconds, of a list milliseconds
    if n < FEW:
        return False
    least = min(REPEATED, n // 2) if cut else REPEATED
    width = (least + 1) // 2  # a stretch of `least` ids that repeat holds one of these windows whole
    for start in range(0, n - width, width):
        window, at = text[start : start + width], start
        while 0 < (at := text.find(window, at + 1)) <= start + n // 3:
            period, low, high = at - start, start, start + width  # text[low:high] stands there again a period later
            while low > 0 and text[low - 1] == text[low - 1 + period]:
                low -= 1
            while high + period < n and text[high] == text[high + period]:
                high += 1
            if high - low >= max(least if high + period == n else REPEATED, 2 * period):
                return True
    times = max(GRAM if cut else 2 * GRAM, n // (2 * GRAM))
    return n >= times * GRAM and max(Counter(text[i : i + GRAM] for i in range(n - GRAM + 1)).values()) >= times


def outliers(generations: Iterable[Generation], looping: Container[tuple] = ()) -> set[tuple]:
    """Keys of the student's rationales whose mean log-probability a token is out of the range of the others.

    The others: of the same iteration and phase, ended by themselves, not looping; fewer than ENOUGH make no range. The
    range is their median, FAR median distances to both sides and at least NATS; wider for what is shorter than most,
    as a mean of few tokens varies more. What has no finite log-probability is out of any range.
    """
    kinds, out = defaultdict(list), set()
    for g in generations:
        if g.source == STUDENT and g.logprob is not None and g.tokens:
            kinds[g.iteration, g.phase].append((g.logprob / len(g.tokens), g))
    for kind in kinds.values():
        out |= {g.key for mean, g in kind if not math.isfinite(mean)}
        sound = [(mean, len(g.tokens)) for mean, g in kind
                 if math.isfinite(mean) and g.finish == "stop" and g.key not in looping]
        if len(sound) < ENOUGH:
            continue
        center, usual = median(mean for mean, _ in sound), median(n for _, n in sound)
        reach = max(NATS, FAR * median(abs(mean - center) for mean, _ in sound))
        out |= {g.key for mean, g in kind if abs(mean - center) > reach * max(1.0, usual / len(g.tokens)) ** 0.5}
    return out


def degenerate(generations: Iterable[Generation]) -> dict[tuple, str]:
    """Key -> "loop" or "outlier", of those that are either."""
    generations = list(generations)
    looping = {g.key: "loop" for g in generations if goes_round(g)}
    return dict.fromkeys(outliers(generations, looping), "outlier") | looping


def degeneration(tried: Sequence[Generation], retried: Sequence[Generation], let_through: Sequence[Generation],
                 left_out: int) -> dict:
    """What an iteration's metrics say of it: of the student's own tries without a hint, as "truncated" and "tries" are;
    of what --select lets through, whoever wrote it; and how many of these --drop-degenerate leaves out.

    nats: mean negative log-probability a token of these tries; at temperature 1 it estimates the entropy.
    """
    found = degenerate([*tried, *retried])
    own = [g for g in tried if g.source == STUDENT]
    seen, kept = (Counter(found.get(g.key) for g in part) for part in (own, let_through))
    known = [g for g in own if g.logprob is not None and math.isfinite(g.logprob)]
    tokens = sum(len(g.tokens) for g in known)
    return {"degenerate": {"loops": seen["loop"], "outliers": seen["outlier"], "kept_loops": kept["loop"],
                           "kept_outliers": kept["outlier"], "left_out": left_out},
            "nats": round(-sum(g.logprob for g in known) / tokens, 4) + 0.0 if tokens else None}


def most_said(task: Task, problems: Iterable[Problem], generations: Iterable[Generation]) -> dict:
    """{"answer": what the student answers most often, "share": of its answers, "right": the share of these whose
    problem it is right for, "answers": how many there are, "one": do they fall onto it?}; {} without answers.

    They do if the share is, by the lower end of its 95 % interval (the problems count, not their samples), far above
    what the right answers explain: by a quarter, or by half of what is left above these, where that is less. Of five
    choices that are right alike 46 % or more, of yes and no 76 %; of "no" that is right for 90 %, 95 %.
    """
    by_id = {p.id: p for p in problems if p.answer}
    given = [(g, g.answer.strip().casefold()) for g in generations
             if g.source == STUDENT and g.answer is not None and g.problem in by_id]
    if not given:
        return {}
    answer, count = Counter(said for _, said in given).most_common(1)[0]
    example = next(g for g, said in given if said == answer)
    fits = {p: ask(task, "right", by_id[p], example.text) for p in dict.fromkeys(g.problem for g, _ in given)}
    share, right = count / len(given), sum(fits[g.problem] for g, _ in given) / len(given)
    least = right + min(0.25, (1 - right) / 2)
    return {"answer": example.answer[:60], "share": round(share, 4), "right": round(right, 4), "answers": len(given),
            "one": len(fits) >= ENOUGH and wilson(share, len(fits))[0] > least}
