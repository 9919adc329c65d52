"""Everyday questions with five choices (Talmor et al. 2019, arXiv 1811.00937; STaR, section 4.4), from their files.

Reads train_rand_split.jsonl and dev_rand_split.jsonl; the test file has no answers, so dev is what is held out, as in
the paper. The hint marks the right choice. There are no human rationales. examples/commonsenseqa.jsonl holds the
few-shot examples, in our own words.
"""

from pathlib import Path

from star.tasks import records
from star.tasks.fields import Fields, read
from star.tasks.jsonl import EXAMPLES, examples
from star.tasks.questions import Questions


def load(data: Path, few_shot: Path | None = None, zero_shot: bool = False, shots: int | None = None) -> Questions:
    """Raises FileNotFoundError or ValueError that names the file, the line and what to do.

    data: the folder with train_rand_split.jsonl and dev_rand_split.jsonl of tau-nlp.org/commonsenseqa
    few_shot: file of examples {question, choices, rationale, answer} (default: our 7)
    zero_shot: no examples, an instruction instead
    shots: how many of the examples are shown (default: all)
    """
    what = "train_rand_split.jsonl and dev_rand_split.jsonl of tau-nlp.org/commonsenseqa"
    fields = Fields("question.stem", "answerKey", "question.choices")
    shown = examples(few_shot, zero_shot, shots, "choice", fields, EXAMPLES / "commonsenseqa.jsonl")
    files = [records.find(data, [f"{part}_rand_split.jsonl", f"{part}.jsonl"], "commonsenseqa", what)
             for part in ("train", "dev")]
    parts = [(records.read_records(file), part) for file, part in zip(files, ("train", "dev"), strict=True)]
    return Questions(*read(parts, fields, "choice").parts, shown, "choice")
