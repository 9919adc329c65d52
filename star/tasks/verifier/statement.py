"""Where does a text state an answer, and does that hold? What answers look like, its callers tell it by `read`.

A statement is what stands next to a marker: "The answer is ...", "#### ...", "\\boxed{...}", "... is the answer". The
last one counts, if nothing takes it back or contradicts it. Without any, the last sentence does, if it concludes
something. It parses no numbers, letters or phrases, and does not know the question.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from star.tasks.verifier.own import own, phrases
from star.tasks.verifier.retraction import overruled, retracted
from star.tasks.verifier.sentence import MOST_STATED, last_sentence, sentence_end, sentence_start

MOST_MARKS = 8  # statements that are looked at, the last ones

NOT = """not, never, no longer, isn't, aren't, wasn't, weren't, won't, wouldn't, don't, doesn't, didn't, can't,
    couldn't, shouldn't, hasn't, haven't"""
# A marker is what an answer stands after, or in front of.
ANSWER_IS = re.compile(
    r"""(?:answers?|ans|choice|option)(?![A-Za-z])
        (?P<to>\s+(?:to|for|of|in)\s[^.\n:=]{1,80}?)?                              # the answer to the question
        (?:\*\*|__)?
        (?: (?P<verb>\s+(?:is|was|are|becomes|equals|comes\s+to|(?:would|should|must|will)\s+be)\b
               (?!\s+(?:going|supposed|meant|expected)\s+to\b)\s*[:=]?)
          | \s*[:=]+ )
      | (?<=<)answer>""", re.I | re.X)
HEADING = re.compile(r"(?:answers?|ans)[*_: \t]*\n(?!\s*(?:is|was)\b)", re.I)
IS_THE = re.compile(  # in front of "answer"
    r"\s+(?:is|was|(?:must|should)\s+be)\s+(?P<no>not\s+)?(?:the|our|my)\s+(?:(?:final|correct|right|best)\s+)*$",
    re.I)
IS_RIGHT = re.compile(  # "(b) is correct", but not "(b) is right next to the bank"
    r"is\s+(?:correct|right)\b"
    r"(?!\s+(?:that|to|about|in|on|for|or|next|there|after|before|now|if|only|when|unless)\b)", re.I)
PICKED = re.compile(  # "I would choose (b)", but not "choose a pen" or "pick b = 5"
    r"(?:choose|pick|select|go\s+with|it\s+(?:is|must\s+be|should\s+be))\s+"
    r"(?=(?:(?:option|choice|answer)\s+)?(?:[(\[][a-h][)\]]|(?:[b-h]|(?-i:A))\b)(?!\s*=))", re.I)
BOXED = re.compile(r"(?<=\\)(?:boxed|fbox)\s*\{")
INNER = re.compile(r"\\(?:boxed|fbox)\s*\{\s*$")
NEXT_BOX = re.compile(r"[\s,;$]*(?:\band\b)?[\s,;$]*\\(?:boxed|fbox)\b")
# What touches a box on its left: up to three words and signs, which may deny it, bound it or turn its sign.
BESIDE = re.compile(r"(?:\\?[^\W\d_]{2,}[^=:,A-Za-z0-9]*){0,3}[^=:,A-Za-z0-9]*\Z")
LEADS = re.compile(r"(?:^|[=:]|\b(?:is|are|get|gives|therefore|so|thus|hence))[\s$*]*\Z", re.I)  # nothing touches it
MAY_BE = phrases("maybe, perhaps, probably, possibly, might, could, may, guess*, if, unless, either, suppose, assume")
JOINED = re.compile(r"[\s$.]*\b(?:and|or)\b", re.I)
OPERATES = re.compile(  # "5 + \boxed{3}", "2\boxed{3}": it holds a part of something
    r"""(?: [+/^_×÷·<>≤≥≠≈~|] | [0-9)}](?:\s*[-−–*]*|:) | [\w)}](?:[-−–]|\s+[-−–]\s) | [(\[{][^()\[\]{}]{1,40},
          | [0-9)}%]\W*\b(?:times|to|or|and|of|by|over|plus|minus)\b
          | \\(?:times|cdot|div|neq?|approx|[lg]eq?|pm|sqrt|frac|log|ln|sin|cos|tan) )[\s$*({\[\\]*\Z
      | \w[$*(\\]*\Z""", re.X | re.I)
NUMBER_BEFORE = re.compile(r"(-?[0-9][0-9.,]*)[,;][\s$*(\\]*\Z")  # "x = 5, \boxed{5}": they must be the same
CALLED_FINAL = {"final": 2, "correct": 1, "right": 1, "best": 1}  # "My final answer is 5" overrules "The answer is 4"
CALLED = {*CALLED_FINAL, "short", "quick", "numerical", "numeric", "exact", "simplified", "overall", "required"}
OWN = {"the", "our", "my", "this", "so", "thus", "hence", "therefore", "then", "and"}  # not the story's: "each answer"
# The word before "answer": it is not the answer to the question. Nor is "Tom's answer".
NOT_THE_ANSWER = phrases("""wrong, incorrect, false, worst, intermediate, partial, previous, initial, first, second,
    third, next, possible, one, another, other, alternative, his, her, their""")
PARTS = phrases("part, parts, step, steps, first, second, third")  # "The answer to the first part is ...": not all yet
EACH = phrases("each, every, any, all")
# Before a marker, in its sentence: the answer is assumed, or somebody's. "If the answer is 5, then ..."
DOUBTS = phrases("""if, whether, suppos*, assum*, say, says, said, thinks, thought, believes, believed, claim, claims,
    claimed, maybe, perhaps, possibly, might, could, unless, until, doubt, pretend*, imagine, hopefully""")
# Before a marker, in its clause: "I don't think that the answer is 5". "As it was not flipped, the answer is" is fine.
DENIED = phrases(NOT)
# Right before a marker: whatever the sentence supposed, here it concludes. "She could buy 6, so the answer is 6."
CONCLUDING = phrases("so, therefore, thus, hence, consequently", before=r"(?<!\b[Ii]f )(?<!\beven )",
                     after=r"[\s,:*]*(?:(?:the|our|my|final|correct|right|best)\s+)*$")
# Right before a "The answer" that no stop stands before: somebody says or doubts it.
ASIDE = re.compile(rf"{DOUBTS.pattern}|{DENIED.pattern}|\b(?:that|think|believe|told)\b|[:,(\"“‘]\s*\w*\W*\Z")
# The writer does not know: not even "so" helps.
UNSURE = phrases("unsure, not sure, not certain, don't know, do not know, no idea, guess*")
# "..., which is correct", "What is the answer?": nothing is named.
POINTING = re.compile(r"(?:^|\s)(?:what|which|that|this|it|here|there)$", re.I)
# A text without any statement gives up.
REFUSED = phrases("""can't, cannot, can not, unable, not enough, insufficient, sorry, don't know, do not know, not sure,
    no idea, doesn't say, does not say, impossible, unclear""")
# What may stand between a marker and the answer: dots, a new line, the bullet of a list ("- 12" there is not -12).
OPENING = re.compile(
    r"(?:[\s*_]*\n[ \t]*[-•][ \t]+|[\s*_]*)(?:(?:\.\.+|…)[\s*_]*)?"
    r"(?:(?:therefore|thus|hence|indeed|clearly|definitely|simply)\b,?\s+)?", re.I)
DISPLAY = re.compile(
    r"\s*(?:(?P<math>\\\[)|(?P<money>\$\$)|(?P<code>```\w*\s)|(?P<tildes>~~~\w*\s)"
    r"|(?P<inline>\\\()\n)\s*")  # on lines of its own
CLOSES = {"math": "\\]", "money": "$$", "code": "```", "tildes": "~~~", "inline": "\\)"}
GOES_ON = re.compile(r"(?:\s+(?=[a-z]))?")  # "dozen" below a formula
SECOND_ITEM = re.compile(r"\n\s*2[.)]\s")
NEXT_LINE = re.compile(r"\n[ \t]*(?:[-•*][ \t]+\S|[-$]?[0-9][0-9.,]*(?:[ \t]+\w+)?[ \t]*(?:\n|$))")  # 5 apples\n6 pears
CLAUSES = re.compile(r"^[^0-9]*,\s")
OPENING_WORD = re.compile(r"^\W*(?:so|thus|hence|therefore|then|and)\b,?", re.I)

# Vocabulary that more than one kind of answer needs.
DIGIT = re.compile(r"[0-9]")
# The answer is open: "maybe 5", "5, if it rains".
OPEN = "maybe, perhaps, probably, possibly, might, unsure, not sure, guess*, depends, if, unless, either"
TENTATIVE = phrases(OPEN)
# It is open, or another one than what is named: "5 or 6", "not 5", "anything but 5".
HEDGES = phrases(f"""{OPEN}, {NOT}, or, neither, nor, between, likely, unknown, undetermined, undefined, unclear,
    uncertain, cannot, impossible, wrong, incorrect, except, anything but, everything but, nothing but, all but""")
HEDGE_SIGNS = re.compile(r"[~≈?≤≥<>±≠]|!=|\\(?:neq?|approx|sim|geq?|leq?|pm)\b")
# What stands after an answer and is none: reasons, other answers.
REASON = re.compile(r"[\s,;(—–-]{1,4}(?:because|since|as|which|where|given\s+that|due\s+to)\b.*", re.I | re.S)
NOT_THIS_BUT = re.compile(
    r"^not\s(?!enough|sure|certain|clear|known)(?:[^\s,]+\s){0,2}?[^\s,]+,?\s+but\s+(?:rather\s+)?", re.I)
RATHER = re.compile(
    r"[ ,(]+(?:(?:and |but )?not (?:[(\[$¤-]*[0-9]|[(\[]?[a-z]\b)[^,.;=]*$|(?:rather than|instead of) .*)", re.I)
# A last sentence that is no conclusion, whatever number it holds: a plan, a premise, what was there at first.
NO_CONCLUSION = phrases("""let's, let, think, suppose, assume, if, first, firstly, next, need, needs, must, find, how,
    what, start, starts, started, begin, began, given, originally, initially, would, should, try, consider, know,
    remember, note, recall, guess, don't, question, problem, original, divide, multiply, subtract, add, calculate,
    compute, each, per, every one, wait, hmm*, rule, ruled, eliminate, exclude""")
# A letter with a verb after it is talked about: "(b) is too dry." SINGLED_OUT makes it one: "So only (b) is dry."
TALKED_ABOUT = phrases("""is, are, was, were, has, had, does, did, can, could, would, will, should, must, seems, makes,
    means, refers, asks""")


class Statement(NamedTuple):
    """Marker and answer fill text[start:end]. stated: None if the answer is somebody else's, or an assumption."""

    start: int
    end: int
    final: int  # 2 if called so, or of a form that only a last word has; 1 for a box, which may stand on the way
    stated: str | None


def arrive(text: str, read: Callable[[str], str | None], read_last: Callable[[str, str], str | None],
           kind: str = "number") -> str | None:
    """The answer in the last statement, if nothing takes it back or contradicts it; else that in the last sentence.

    kind: "number" | "choice" | "text". Of "the best option is ..." a number is none; initials stand in texts only.
    """
    text = concluded(text)
    found = statements(text, kind)
    *earlier, last = [s for s in found if s.stated is not None] or [None]
    if last is None:
        sentence = last_sentence(text)
        disowned = any(s.start >= len(text) - len(sentence) for s in found)
        return None if disowned or REFUSED.search(text, max(0, len(text) - 400)) else read_last(sentence, text)
    value = read(last.stated)
    if value is None or retracted(text, last.end):
        return None
    if len(text) - last.end > 2 and overruled(text[last.end :], value, read_last):
        return None
    for s in earlier:
        other = read(s.stated) if s.final >= last.final else None
        if other not in (None, value) and not retracted(text, s.start, last.start):
            return None  # two answers, and no word on which of them holds
    return value


def concluded(text: str) -> str:
    """What of a text may state its answer: its own part, without the thinking before "</think>"."""
    text = own(text)
    return text.rpartition("</think>")[2].strip() or text


def statements(text: str, kind: str = "number") -> list[Statement]:
    """The last statements of a text, in order; of "The answer is \\boxed{7}" only the box, as it stands inside."""
    lower, found = text.replace("İ", "i").lower(), []  # İ would become two characters
    for word, read in READERS if kind == "number" else CHOOSERS:
        at, marks = lower.rfind(word), 0
        while at >= 0 and marks < MOST_MARKS:
            if statement := read(text, at, kind):
                found.append(statement)
            at, marks = lower.rfind(word, 0, at), marks + 1
    if len(found) < 2:
        return found
    found = sorted(found, key=lambda s: s[:2])[-MOST_MARKS:]
    following = [*(s.start for s in found[1:]), len(text)]
    kept = [s for s, start in zip(found, following, strict=False) if start >= s.end]
    for i, (s, after) in enumerate(pairwise(kept), 1):
        if s.stated is None and after.start - s.end < 5:
            kept[i] = after._replace(stated=None)  # "Tom's answer is \boxed{7}"
    return kept


def _answer(text: str, at: int, kind: str) -> Statement | None:
    """At "answer", "choice" or "option": "The answer is 72.", "## Answer\\n72", "<answer>72", "72 is the answer"."""
    if text[at - 1 : at].isalnum():
        return None  # "cans: 12"
    near = max(0, at - 60)
    is_the = IS_THE.search(text, near, at)
    if is_the and (statement := _before_marker(text, is_the.start(), at + 3, bool(is_the["no"]), kind)):
        return statement
    match = ANSWER_IS.match(text, at) or _heading(text, at)
    begin = sentence_start(text, at)
    if at - 4 > begin + 1 and text.startswith("The ", at - 4) and not ASIDE.search(text, max(begin, at - 24), at):
        begin = at - 4  # "... he has 54 hats The answer is 54"
    words = [w.strip("*_#:<>,.()") for w in text[max(near, begin) : at].lower().split()[-4:]]
    words = [w for w in words if w]  # "**Tom's final" -> tom's, final
    final = 2 if text[at - 1 : at] == "<" else CALLED_FINAL.get(words[-1], 0) if words else 0
    while words and words[-1] in CALLED:
        words.pop()
    if match is None or (match[0][0] in "cCoO" and not final):
        return None  # "the option is" says nothing yet, "the best option is" does
    groups = match.groupdict()
    theirs = words and (NOT_THE_ANSWER.fullmatch(words[-1]) or words[-1].endswith(("'s", "’s")))
    if theirs or PARTS.search(groups.get("to") or ""):
        return Statement(at, match.end(), final, None)
    if EACH.search(groups.get("to") or "") or (not words and match[0][:7].lower() == "answers"):
        return None  # "the answer to each question is worth 5 points", "Correct answers: 24"
    if words and words[-1] not in OWN and text[at - 2 : at] not in (": ", ", "):
        return None  # "each answer is 2 points", "the number of answers is 24"
    if match.end() == len(text):
        return None  # the marker once more, cut off
    statement = _after_marker(text, begin, at, match.end(), final, kind)
    return None if not groups.get("verb") and _is_solution(text, statement) else statement


def _heading(text: str, at: int) -> re.Match | None:
    """At "answer" alone on its line, which goes on below: "## Final Answer\\n72"."""
    near = max(0, at - 60)
    line = text[max(near, text.rfind("\n", near, at) + 1) : at]
    return HEADING.match(text, at) if line.lower().strip("#*_ \t") in ("", "final") else None


def _is_solution(text: str, statement: Statement) -> bool:
    """Does a label stand in front of a whole solution? "Answer: She sold 48 / 2 = 24 clips in May. So she sold 72."."""
    stated, more = statement.stated or "", text[statement.end : statement.end + MOST_STATED]
    words = stated.split()
    told = len(words) > 2 and words[0].isalpha() and len(words[0]) > 1
    return bool(("=" in stated and "=" in more) or (told and DIGIT.search(stated) and DIGIT.search(more)))


def _picked(text: str, at: int, kind: str) -> Statement | None:
    """At "choose", "it is" and the like, in front of a letter: "I would choose (b)."."""
    match = None if text[at - 1 : at].isalnum() else PICKED.match(text, at)
    return _after_marker(text, sentence_start(text, at), at, match.end(), 0, kind) if match else None


def _called_right(text: str, at: int, kind: str) -> Statement | None:
    """At "is correct": "Option D is correct."."""
    match = IS_RIGHT.match(text, at) if text[at - 1 : at].isspace() else None
    return _before_marker(text, at - 1, match.end(), False, kind) if match else None


def _hashes(text: str, at: int, _: str) -> Statement | None:
    """At "####": "#### 72", up to the end of the line; "#### Add the two" with more text below it is a heading."""
    end = text.find("\n", at, at + MOST_STATED)
    end = min(len(text), at + MOST_STATED) if end < 0 else end
    stated = text[at:end].lstrip("#").strip()
    titled = len(stated.split()) > 2 and stated[0].isalpha() and end < len(text)
    return Statement(at, end, 2, stated) if stated and not titled else None


def _boxed(text: str, at: int, kind: str) -> Statement | None:
    """At "boxed" in "is not -\\boxed{12} dollars.": what it holds, between what touches it and its sentence's rest."""
    opened = BOXED.match(text, at)
    if opened is None:
        return None
    depth, end = 1, opened.end()
    while end < min(len(text), opened.end() + MOST_STATED) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    if depth:
        return None
    start = max(sentence_start(text, at), at - 100)
    before, inner = text[start : at - 1].lstrip("> "), INNER.search(text, start, at - 1)
    if inner:
        before, end = before[: -len(inner[0])], end + text.startswith("}", end)  # \\boxed{\\boxed{5}}
    final = 1 + ("answer" in before.lower())
    clause = before[before.rfind(",") + 1 :]
    if OPERATES.search(before) or DENIED.search(clause) or MAY_BE.search(clause):
        return Statement(at, end, final, "")
    rest = text[end : sentence_end(text, end, kind)]
    another = NEXT_BOX.search(rest)
    rest = rest[: another.start()] if another else rest
    held, again = text[opened.end() : end - 1 - bool(inner)], NUMBER_BEFORE.search(before)
    if kind == "text":
        return Statement(at, end, final, "" if JOINED.match(rest) else held)
    if kind == "choice" or (LEADS.search(before) and not rest.strip(" $*\\])")):
        return Statement(at, end, final, held + rest * (kind == "choice"))
    if again:
        return Statement(at, end, final, f"{again[1]}, so {held}")
    marked = ANSWER_IS.search(before)
    return Statement(at, end, final, (before[marked.end() :] if marked else BESIDE.search(before)[0]) + held + rest)


Reader = Callable[[str, int, str], Statement | None]
READERS: list[tuple[str, Reader]] = [  # a word of a marker, and who reads there
    *((word, _answer) for word in ("answer", "ans:", "ans is", "ans =")),
    *((word, _called_right) for word in ("is correct", "is right")),
    *((word, _boxed) for word in ("boxed", "fbox")),
    ("####", _hashes),
]
CHOOSERS: list[tuple[str, Reader]] = [  # where something is chosen, which a number never is
    *READERS,
    *((word, _answer) for word in ("choice", "option")),
    *((word, _picked) for word in ("choose", "pick", "select", "go with", "it is", "it must be", "it should be")),
]


def _after_marker(text: str, begin: int, start: int, at: int, final: int, kind: str) -> Statement:
    """The statement after a marker that fills text[start:at]: of "The answer is:\\n- 72 clips. So" the "72 clips".

    begin: where its sentence begins.
    """
    if _doubted(text, begin, start):
        return Statement(start, at, final, None)
    begin = OPENING.match(text, at).end()
    items = "\n" in text[at:begin] or SECOND_ITEM.search(text, begin, begin + MOST_STATED)
    if items and text[begin : begin + 2] in ("1.", "1)"):
        return Statement(start, at, 2, "")  # "The answer is:\n1. 12 apples" begins a list of answers
    inside, display = "", DISPLAY.match(text, begin)
    if display:
        sign = CLOSES[display.lastgroup]
        close = text.find(sign, display.end(), display.end() + MOST_STATED)
        if close >= 0:
            inside, begin = text[display.end() : close] + " ", close + len(sign)
            begin = GOES_ON.match(text, begin).end()
    stop = sentence_end(text, begin, kind)
    several = kind == "number" and NEXT_LINE.match(text, stop)
    return Statement(start, stop, final, "" if several else inside + text[begin:stop])


def _before_marker(text: str, at: int, end: int, negated: bool, kind: str) -> Statement | None:
    """The statement in front of a marker that fills text[at:end]: of "So, 72 clips is the answer" the "72 clips"."""
    stated = text[sentence_start(text, at) : at].rstrip()
    if POINTING.search(stated):
        return None
    if negated or any(p.search(stated) for p in (UNSURE, DOUBTS, DENIED)):
        return Statement(at, end, 0, "")
    # "(a) and (b) are wrong, and (c)"; but "(a), (b), and (c)" are three.
    clauses = CLAUSES.match(stated) if kind != "number" else None
    if clauses:
        stated = stated[clauses.end() :]
    if clauses is None or TALKED_ABOUT.search(clauses[0]):
        stated = OPENING_WORD.sub("", stated)
    return Statement(at, end, 0, stated)


def _doubted(text: str, begin: int, at: int) -> bool:
    """Is an answer at `at` assumed, denied or somebody's? It is in "If the answer is 5, ..." and "Tom said it is b"."""
    if UNSURE.search(text, begin, at):
        return True
    if CONCLUDING.search(text, begin, at):
        return False
    clause = max(begin, text.rfind(",", begin, at))
    clause = begin if " that " in text[clause:at] else clause  # "It is not true, I think, that the answer is 5"
    return bool(DOUBTS.search(text, begin, at) or DENIED.search(text, clause, at))


def without_reason(text: str) -> str:
    """Of "72, because 48 + 24 = 72" the 72; of "not 72 but 70" the 70."""
    return NOT_THIS_BUT.sub("", REASON.sub("", text))
