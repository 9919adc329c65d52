"""False accepts and losses of the verifier beside math-verify and lm-evaluation-harness' patterns for GSM8K.

    python tests/bench/verifiers.py [--cases FILE] [--data DIR ...] [--show 0]

    table    tests/verifier_cases.jsonl: what must be accepted, and what must not
    --cases  another file of {"id", "grade", "text", "right"}, one a line; right null: nothing may be read
    --data   folders of GSM8K, SVAMP or CommonsenseQA: how many of their own solutions each reads right

Peers read numbers; letters and words are asked of the verifier alone. A text is accepted by math-verify if it verifies
against the right answer, by a pattern if what it takes equals that answer once both lose what the task ignores.
math-verify is asked in this process, without its time limit. Its extra: pip install -e '.[bench]'; without it the
others are still printed. --show N prints the first N wrong ones of each. Exit status 1 if the verifier is wrong once.
"""

import argparse
import json
import logging
import re
import sys
from fractions import Fraction
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from star.tasks import verifier

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# lm_eval/tasks/gsm8k/gsm8k.yaml: the filters, and what exact_match ignores in both strings.
STRICT, FLEXIBLE = re.compile(r"#### (\-?[0-9\.\,]+)"), re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
IGNORED = [re.compile(pattern) for pattern in (r",", r"\$", r"(?s).*#### ", r"\.$")]


def ours(grade):
    """accepted(text, gold) of the verifier, and read(text)."""
    read = {"number": verifier.number, "choice": lambda text: verifier.letter(text, LETTERS), "text": verifier.phrase}
    spelt = {"number": verifier.one_number, "choice": lambda gold: gold.strip(" ().").lower(), "text": verifier.normal}

    def accepted(text, gold):
        found = read[grade](text)
        return found is not None and found == spelt[grade](gold)

    return accepted, read[grade]


def harness(pattern, last):
    """One of the harness' filters: the first or the last match, compared as exact_match does."""
    def bare(text):
        for ignored in IGNORED:
            text = ignored.sub("", text)
        return text.lower()

    def read(text):
        found = pattern.findall(text)
        if not found:
            return None
        match = found[-1 if last else 0]
        return (match if isinstance(match, str) else next(filter(None, match), "")).strip()

    def accepted(text, gold):
        found = read(text)
        return found is not None and bare(found) == bare(gold)

    return accepted, read


def math_verify():
    """The library with its own settings: LaTeX and expressions, the last box first."""
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is missing: pip install -e '.[bench]'", file=sys.stderr)
        return None
    logging.disable(logging.ERROR)  # it logs every text that it cannot parse

    def read(text):
        return parse(text, parsing_timeout=None) or None

    def accepted(text, gold):
        gold = parse(f"${gold}$", parsing_timeout=None)
        return bool(verify(gold, parse(text, parsing_timeout=None), timeout_seconds=None))

    return accepted, read


def readers(grade):
    """name -> (accepted, read)."""
    peers = {"star": ours(grade)}
    if grade == "number":
        peers |= {"math-verify": MATH_VERIFY} if MATH_VERIFY else {}
        peers |= {"harness strict": harness(STRICT, False), "harness flexible": harness(FLEXIBLE, True)}
    return peers


def table(cases, show):
    """Our own table. Returns how many wrong ones the verifier accepts."""
    print("| table | cases | reader | false accepts | of | lost | of |\n|---|---|---|---|---|---|---|")
    worst = 0
    for grade in dict.fromkeys(c["grade"] for c in cases):
        mine = [c for c in cases if c["grade"] == grade]
        for name, (accepted, _) in readers(grade).items():
            verdicts = [(c, accepted(c["text"], c["gold"])) for c in mine]
            false = [c["text"] for c, yes in verdicts if yes and not c["accept"]]
            lost = [c["text"] for c, yes in verdicts if not yes and c["accept"]]
            right = sum(c["accept"] for c in mine)
            print(f"| {grade} | {len(mine)} | {name} | {len(false)} | {len(mine) - right} | {len(lost)} | {right} |")
            for text in false[:show]:
                print(f"    false accept: {text!r}")
            worst += len(false) * (name == "star")
    return worst


def stranger(path, show):
    """Cases that say what is right, or that nothing is: wrong values, and right ones that are not read."""
    cases = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    print(f"\n| {path.name} | cases | reader | wrong values | lost |\n|---|---|---|---|---|")
    worst = 0
    for grade in dict.fromkeys(c["grade"] for c in cases):
        mine = [c for c in cases if c["grade"] == grade and not (c["right"] and readable(grade, c["right"]) is None)]
        for name, (accepted, read) in readers(grade).items():
            wrong = lost = 0
            for c in mine:
                if c["right"] is not None and accepted(c["text"], c["right"]):
                    continue
                if read(c["text"]) is None:
                    lost += c["right"] is not None
                    continue
                wrong += 1
                if wrong <= show:
                    print(f"    {name}: {c['id']} {c['text']!r} is {c['right']}")
            print(f"| {grade} | {len(mine)} | {name} | {wrong} | {lost} |", flush=True)
            worst += wrong * (name == "star")
    return worst


def readable(grade, right):
    """Is `right` one answer? A line may stand for several texts ("1.25, 2.5, -2.5"), which this does not take apart."""
    return verifier.one_number(right) if grade == "number" else right


def solutions(folder):
    """(grade, text, gold) of a folder: GSM8K's solutions, SVAMP's equations, CommonsenseQA's choices as sentences."""
    for path in sorted(folder.glob("*.json*")):
        lines = path.read_text("utf-8")
        for row in json.loads(lines) if path.suffix == ".json" else map(json.loads, lines.splitlines()):
            if "answerKey" in row:
                text = next(c["text"] for c in row["question"]["choices"] if c["label"] == row["answerKey"])
                yield "choice", f"So the answer is ({row['answerKey'].lower()}) {text}.", row["answerKey"]
            elif "Equation" in row:
                answer = str(Fraction(str(row["Answer"])))
                yield "number", f"{row['Equation'].strip('() ')} = {answer}\nThe answer is {answer}.", answer
            elif "####" in row.get("answer", ""):
                yield "number", row["answer"], row["answer"].rpartition("####")[2].strip()


def gold(folder):
    """Of a folder's own solutions, how many each reads right."""
    found = list(solutions(folder))
    for grade in dict.fromkeys(grade for grade, _, _ in found):
        mine = [(text, answer) for g, text, answer in found if g == grade]
        for name, (accepted, _) in readers(grade).items():
            right = sum(accepted(text, answer) for text, answer in mine)
            print(f"| {folder.name} | {len(mine)} | {name} | {right} | {100 * right / len(mine):.2f} % |", flush=True)
    if not found:
        print(f"| {folder.name} | 0 | none of GSM8K, SVAMP and CommonsenseQA | | |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="a file of other cases")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders of GSM8K, SVAMP, CommonsenseQA")
    parser.add_argument("--show", type=int, default=0, help="wrong ones that are printed of each reader")
    args = parser.parse_args()
    lines = (ROOT / "tests" / "verifier_cases.jsonl").read_text("utf-8").splitlines()
    wrong = table([json.loads(line) for line in lines], args.show)
    if args.cases:
        wrong += stranger(args.cases, args.show)
    if args.data:
        print("\n| solutions | texts | reader | right | |\n|---|---|---|---|---|")
        for folder in args.data:
            gold(folder)
    return int(wrong > 0)


MATH_VERIFY = math_verify()

if __name__ == "__main__":
    sys.exit(main())
