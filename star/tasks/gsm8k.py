"""Grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168; STaR, section 4.5), from their official files.

Reads train.jsonl and test.jsonl, {"question", "answer"}, where an answer is a solution by a human and "#### 72". The
solution is never shown to the model, not as a hint either: it serves the arm that is fine-tuned on human rationales.
examples/gsm8k.jsonl holds the few-shot examples, in our own words; the paper took its six from the training set.
"""

from pathlib import Path

from star.tasks import records
from star.tasks.fields import Fields, read
from star.tasks.jsonl import EXAMPLES, examples
from star.tasks.questions import Questions

SHOTS = 6  # as in the paper


def load(data: Path, few_shot: Path | None = None, zero_shot: bool = False, shots: int | None = None) -> Questions:
    """Raises FileNotFoundError or ValueError that names the file, the line and what to do.

    data: the folder with train.jsonl and test.jsonl of github.com/openai/grade-school-math
    few_shot: file of examples {question, rationale, answer} (default: our 8, of which 6 are shown)
    zero_shot: no examples, an instruction instead
    shots: how many of the examples are shown
    """
    what, fields = "train.jsonl and test.jsonl of github.com/openai/grade-school-math", Fields(rationale="answer")
    shown = examples(few_shot, zero_shot, shots, names=fields, built_in=EXAMPLES / "gsm8k.jsonl", usual=SHOTS)
    files = [records.find(data, [f"{part}.jsonl"], "gsm8k", what) for part in ("train", "test")]
    found = read([(records.read_records(file), file.stem) for file in files], fields, "number")
    return Questions(*found.parts, shown, "number", found.gold)
