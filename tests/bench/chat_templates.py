"""Chat templates and special tokens against transformers: python tests/bench/chat_templates.py [--write] [N]

For the styles in tests/golden/chat: ids of rendered conversations against apply_chat_template, on N conversations of
random texts a style; ids of texts, and of texts in which no control token is parsed; and whether a control token that
stands in a turn ever becomes one. --write makes tests/golden/chat/cases.json anew, of a few of them.
"""

import datetime
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from peers import ROOT, need

need("transformers")

import transformers
import transformers.utils.chat_template_utils as of_reference

sys.path.insert(0, str(ROOT / "tests"))

from styles import STYLES, style_folder

import checkpoints
from checkpoints.chat import load_chat
from checkpoints.sandbox import TODAY
from star.text import Prompt

PIECES = [" ", "  ", "\n", "\n\n", "\t", "a", "the", " cat", "é", "日本", "12", "3.5", "<", "|", ">", "im_end", "|>",
          "<|", "[", "INST", "]", "{", '"', "\\", "'s", "IT'S", "😀", "e\u0301", "x²", "/think", "system", "<h1>"]
SYSTEM, ASK, ANSWER = ("system", "Be brief."), ("user", " 2+2? "), ("assistant", " It is 4.\n")
AGAIN, THOUGHT = ("user", 'And "<3+3>" é?\n  for x:\n\n\n y'), ("assistant", "<think>\nHm.\n</think>\n\nIt is 4.")
TALKS = [([ASK], False), ([SYSTEM, ASK], False), ([ASK, ANSWER, AGAIN], False), ([SYSTEM, ASK, ANSWER, AGAIN], False),
         ([ASK, ANSWER], True), ([ASK, THOUGHT, AGAIN], False), ([ASK, ANSWER, AGAIN, THOUGHT], True)]


class Fixed(datetime.datetime):
    """The day that our templates are told."""

    @classmethod
    def now(cls, tz=None):
        return cls(TODAY.year, TODAY.month, TODAY.day)


def rendered(reference, turns, answered):
    """The reference's ids; None: its template refuses."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return reference.apply_chat_template(messages, add_generation_prompt=not answered, return_dict=False)
    except Exception:
        return None


def said(rng, more=()):
    return "".join(rng.choice([*PIECES, *more]) for _ in range(rng.randrange(1, 14)))


def compare(name, n, reference, ours, chat):
    """How many are the same, by kind."""
    rng, count = random.Random(name), Counter()
    added = reference.added_tokens_decoder.values()
    special = {i: a.content for i, a in reference.added_tokens_decoder.items() if a.special}
    for _ in range(n):
        roles = ["user", "assistant"] * rng.randrange(3) + ["user"]
        turns = [(role, "x" + said(rng)) for role in roles]
        if not any(a.content in content for a in added for _, content in turns):
            count["conversations", rendered(reference, turns, False) == ours.encode(chat.render(turns))] += 1
        forged = [(role, "x" + said(rng, [*special.values()] * 2)) for role in roles]
        plain = [(role, "x") for role in roles]
        ids, own = ([i for i in ours.encode(chat.render(talk)) if i in special] for talk in (forged, plain))
        count["forged", ids == own] += 1
        text = "x" + said(rng, special.values())
        for parsed in (True, False):
            want = reference.encode(text, add_special_tokens=False, split_special_tokens=not parsed)
            count["texts", want == ours.encode(text if parsed else Prompt(text), special=False)] += 1
    return count


def main(argv):
    transformers.logging.set_verbosity_error()
    of_reference.datetime = Fixed
    n = int(next((a for a in argv if a.isdecimal()), 300))
    cases = {"talks": TALKS}
    for name in STYLES:
        with tempfile.TemporaryDirectory() as folder:
            style_folder(name, Path(folder))
            reference = transformers.AutoTokenizer.from_pretrained(folder)
            ours, chat = checkpoints.load_tokenizer(folder), load_chat(folder)
        count = compare(name, n, reference, ours, chat)
        print(name, ", ".join(f"{kind} {count[kind, True]} of {count[kind, True] + count[kind, False]}"
                              for kind in ("conversations", "forged", "texts")))
        special = next(a.content for i, a in sorted(reference.added_tokens_decoder.items(), reverse=True) if a.special)
        texts = [f"a{special}b", f"{special}12\n{special}", "It's  4.\n\n <h1>"]
        cases[name] = {
            "talks": [rendered(reference, turns, answered) for turns, answered in TALKS],
            "texts": [[text, *(reference.encode(text, add_special_tokens=False, split_special_tokens=split)
                               for split in (False, True))] for text in texts]}
    if "--write" in argv:
        lines = [f"{json.dumps(name)}: {json.dumps(case, ensure_ascii=False)}" for name, case in cases.items()]
        (ROOT / "tests" / "golden" / "chat" / "cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
