"""What grading costs: the verifier on 100,000 answers, as many as a large run samples in an iteration.

    python tests/bench/grading.py [--answers 100000] [--seed 0]

Made from a seed: rationales of two to five sentences like those of GSM8K. Most end in a marker ("The answer is 72.", a
box, hashes), a tenth state no answer, a tenth are cut off where they stand, and a fifth choose a letter. One process,
one core, time of that process. Columns: answers, microseconds for each, and from how many of them the verifier takes
the answer that was put in. Exit status 1 if all of them together take longer than LIMIT seconds for 100,000.
"""

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from star.tasks import verifier

LIMIT = 5
NAMES = ("Natalia", "Weng", "Betty", "Julie", "James", "Mark", "Ken", "Albert")
THINGS = ("clips", "pages", "dollars", "flowers", "pizzas", "miles", "cups of feed", "square feet of paint")
PLACES = ("a bank", "the library", "a post office", "under the bed", "New York", "a garden or park")
STEPS = (
    "{name} has {a} {thing} and gets {b} more, so that makes {a} + {b} = <<{a}+{b}={sum}>>{sum} {thing}.",
    "In {b} weeks that is {a} * {b} = {product} {thing}, which {name} shares with {n} friends.",
    "Since half of the {a} {thing} are sold, {name} keeps {a} / 2 of them.",
    "If {name} does not count the other {b} {thing}, there are only {a} left.",
    "{name} could also pay ${a}.50 for each of the {n} {thing}.",
)
MARKERS = ("The answer is {}.", "\n#### {}", "\nSo we get $\\boxed{{{}}}$.", "\n**Final answer:** {} " + THINGS[0])


def step(rng):
    """A sentence of a rationale."""
    a, b = rng.randrange(2, 1000), rng.randrange(2, 50)
    return rng.choice(STEPS).format(name=rng.choice(NAMES), thing=rng.choice(THINGS), n=rng.randrange(2, 9), a=a, b=b,
                                    sum=a + b, product=a * b)


def answers(count, seed):
    """(kind, text, the answer in it): as the verifier sees them."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.choices(("marker", "no marker", "cut off", "choice"), (6, 1, 1, 2))[0]
        text, value = " ".join(step(rng) for _ in range(rng.randrange(2, 6))), str(rng.randrange(10_000))
        if kind == "choice":
            value = rng.choice("abcde")
            text += f" So the answer is ({value}) {rng.choice(PLACES)}."
        elif kind == "no marker":
            text += f" So altogether there are {value} {rng.choice(THINGS)}."
        else:
            text += " " + rng.choice(MARKERS).format(value)
        if kind == "cut off":
            text = text[: rng.randrange(len(text) // 2, len(text))]
        yield kind, text, value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    made = list(answers(args.answers, args.seed))
    print("| kind | answers | us each | right |\n|---|---|---|---|")
    total = 0
    for kind in dict.fromkeys(kind for kind, _, _ in made):
        mine = [(text, value) for k, text, value in made if k == kind]
        began = time.process_time()
        if kind == "choice":
            found = [verifier.letter(text, "abcde") for text, _ in mine]
        else:
            found = [verifier.number(text) for text, _ in mine]
        seconds = time.process_time() - began
        total += seconds
        right = sum(f == value for f, (_, value) in zip(found, mine, strict=True)) / len(mine)
        print(f"| {kind} | {len(mine)} | {1e6 * seconds / len(mine):.0f} | {right:.3f} |", flush=True)
    print(f"\n{len(made)} answers in {total:.2f} s, {len(made) / total:.0f} a second")
    return int(total > LIMIT * len(made) / 100_000)


if __name__ == "__main__":
    sys.exit(main())
