"""What answer does a text arrive at? The filter of Algorithm 1 stands on this file: what it lets through is trained on.

    text -> what is its own      no next question that the model made up, no farewell, no calculator notes
         -> what it states       "The answer is ...", "#### ...", "\\boxed{...}", "... is the answer": the last of them
                                 or, without any, its last sentence, if that concludes something
         -> one number, one letter, or a phrase, in one spelling; None if there is none, or not exactly one

A hedged, negated, retracted or contradicted answer is none: a right rationale lost costs a sample, a wrong one kept
costs the model. Every function takes any text, raises nothing, and needs time in proportion to the text. None knows the
question, and none checks steps. Each part begins with its vocabulary, and says above a list what the list protects
from. tests/verifier_cases.jsonl holds what all of this was tried on.
"""

import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import NamedTuple

MOST_SAID = 300  # characters of one statement
MOST_MARKS = 8  # statements that are looked at, the last ones
MOST_DIGITS = 60  # characters of a number that is read at all


def phrases(listed: str, before: str = "", behind: str = "") -> re.Pattern:
    """Finds any of some phrases, as whole words: phrases("or, at least, guess*") is in "5 or 6", and not in "for".

    A blank stands for any blanks, * for the rest of a word, ' for both apostrophes; upper and lower case are the same.
    before, behind: regular expressions for what must stand on either side.
    """
    tails: dict[str, list[str]] = {}  # [oO] -> what follows it
    for phrase in listed.split(","):
        first, *rest = " ".join(phrase.split())
        spelt = re.escape("".join(rest)).replace(r"\ ", r"\s+").replace(r"\*", r"\w*").replace("'", "['’]")
        tails.setdefault(f"[{first.lower()}{first.upper()}]", []).append(spelt)
    either = "|".join(f"{first}(?i:{'|'.join(rest)})" for first, rest in tails.items())
    # Most words of a text have a first letter that begins no phrase: to test it apart takes half the time.
    return re.compile(rf"{before}\b(?={'|'.join(tails)})(?:{either})\b{behind}")


NOT = """not, never, no longer, isn't, aren't, wasn't, weren't, won't, wouldn't, don't, doesn't, didn't, can't,
    couldn't, shouldn't, hasn't, haven't"""

# ------------------------------------------------------------------------------------------------------------ its own

# The model goes on with a question that it makes up, or speaks for somebody else: what it answers there was not asked.
NEXT_QUESTION = re.compile(
    r"\n[ \t#*>]*(?:(?:next|new)[ \t]+)?(?:Q|Question|Problem|Exercise|Instruction|Input|Human|User)"
    r"(?:[ \t]*#?[0-9]+)?[ \t*]*(?:[:.]|\n)", re.I)
NEXT_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|start_header_id|user|end)\|>|</s>|<(?:start|end)_of_turn>",
    re.I)
CUTS = (("\n", NEXT_QUESTION), (":", re.compile(r"\sQ:", re.I)), ("<", NEXT_TURN))  # each with a sign that it needs
# Chatter behind the answer, which would be taken for the last sentence.
FAREWELL = phrases("""I hope, hope this, hope that, hope it, let me know, feel free, is there anything, please let,
    if you have any, you have any, good luck""", before=r"\s", behind=r"[^.!?]*[.!?]?\s*$")
NOTES = re.compile(r"<<[^<>\n]{0,200}>>|[\u200b-\u200d\u2060\ufeff]")  # <<48/2=24>> of GSM8K, and what has no width


def own(text: str) -> str:
    """The part of a text that answers the question asked: of "72.\\n\\nQ: And 1 + 1?\\nA: 2." the "72."."""
    text = text.strip()
    for sign, pattern in CUTS:
        cut = pattern.search(text) if sign in text else None
        text = text[: cut.start()].rstrip() if cut else text
    for _ in range(3):  # "I hope this helps! Let me know if ..."
        farewell = FAREWELL.search(text, max(0, len(text) - 200))
        if farewell is None or not text[: farewell.start()].strip():
            break
        text = text[: farewell.start()].rstrip()
    return NOTES.sub("", text) if "<<" in text or not text.isascii() else text


def number(text: str) -> str | None:
    """The one number that a text arrives at: "1,234.50 dollars" and "\\boxed{1234.5}" are both "1234.5"."""
    return _arrive(text, one_number, _last_number)


def letter(text: str, letters: str) -> str | None:
    """The one letter of `letters` (lower case) that a text arrives at: "b" for "The answer is (B) park."."""
    return _arrive(text, lambda said: one_letter(said, letters), lambda *last: _last_letter(*last, letters))


def phrase(text: str) -> str | None:
    """The words that a text arrives at, normalised (`normal`); a bare text of one line counts as such."""
    return _arrive(text, one_phrase, lambda *_: None) or _bare_phrase(own(text))


# ----------------------------------------------------------------------------------------------------- what it states

# A marker is what an answer stands behind, or in front of.
ANSWER_IS = re.compile(
    r"""(?:answers?|ans|choice|option)(?![A-Za-z])
        (?P<to>\s+(?:to|for|of)\s[^.\n:=]{1,80}?)?                              # the answer to the question
        (?:\*\*|__)?
        (?: (?P<verb>\s+(?:is|was|are|becomes|equals|comes\s+to|(?:would|should|must|will)\s+be)\b\s*[:=]?)
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
CALLED_FINAL = {"final", "correct", "right", "best"}  # "My final answer is 5" overrules "The answer is 4"
# The word before "answer": it is not the answer to the question. Nor is "Tom's answer".
NOT_OWN = phrases("""wrong, incorrect, false, worst, intermediate, partial, previous, initial, first, second, third,
    next, possible, one, another, other, alternative, his, her, their""")
PARTS = phrases("part, parts, step, steps, first, second, third")  # "The answer to the first part is ...": not all yet
# Before a marker, in its sentence: the answer is assumed, or somebody's. "If the answer is 5, then ..."
DOUBTS = phrases("""if, whether, suppos*, assum*, say, says, said, thinks, thought, believes, believed, claim, claims,
    claimed, maybe, perhaps, possibly, might, could, unless, until, doubt, pretend*, imagine, hopefully""")
# Before a marker, in its clause: "I don't think that the answer is 5". "As it was not flipped, the answer is" is fine.
DENIED = phrases(NOT)
# Right before a marker: whatever the sentence supposed, here it concludes. "She could buy 6, so the answer is 6."
CONCLUDING = phrases("so, therefore, thus, hence, consequently", before=r"(?<!\b[Ii]f )(?<!\beven )",
                     behind=r"[\s,:*]*(?:(?:the|our|my|final|correct|right|best)\s+)*$")
# The writer does not know: not even "so" helps.
UNSURE = phrases("unsure, not sure, not certain, don't know, do not know, no idea, guess*")
# "..., which is correct", "What is the answer?": nothing is named.
POINTING = re.compile(r"(?:^|\s)(?:what|which|that|this|it|here|there)$", re.I)
# Behind a statement: it is taken back, or something is put against it.
RETRACTED = phrases("""wait, actually, hmm*, oops, sorry, correction, mistake, mistaken, unsure, kidding, joking,
    not sure, not certain, not the answer, don't know, do not know, can't be, cannot be, let me re*, let me check,
    let me double, hold on, on second thought, disregard, just guess*, a guess, never mind, scratch that""")
CALLED_WRONG = phrases("that, this, it, which, answer, result, I, we", behind=r"""(?x:
    (?: ['’](?:s|m|re) | \s+(?:is|was|am|are|were|seems) )\s+ (?:\w+\s+)?
        (?: wrong | incorrect | not\s+(?:right|correct|true) )
  | \s+(?:is|was|are|were)n['’]t\s+(?:right|correct|true) )\b""")
NO_BUT = re.compile(  # a sentence that begins with it, or "12 is wrong"
    r"(?:^|[.!?\n])[\s*]{0,9}(?:(?:no|nope|wrong|incorrect)\b[,.!]"
    r"|(?:but|however|or|maybe|perhaps|probably|possibly|alternatively)\b)"
    r"|[0-9]\s+is\s+(?:wrong|incorrect|not)\b", re.I)
# A text without any statement gives up.
REFUSED = phrases("""can't, cannot, can not, unable, not enough, insufficient, sorry, don't know, do not know, not sure,
    no idea, doesn't say, does not say, impossible, unclear""")
# What may stand between a marker and the answer: dots, a new line, the bullet of a list ("- 12" there is not -12).
OPENING = re.compile(
    r"(?:[\s*_]*\n[ \t]*[-•][ \t]+|[\s*_]*)(?:(?:\.\.+|…)[\s*_]*)?"
    r"(?:(?:therefore|thus|hence|indeed|clearly|definitely|simply)\b,?\s+)?", re.I)
SECOND_ITEM = re.compile(r"\n\s*2[.)]\s")
SENTENCE_END = re.compile(
    r"""[.!?](?=[\s"')*\]]|$|[A-Za-z])(?!(?<=\bno\.)\s[0-9])  # neither in "2.5" nor in "No. 5"
      | ;(?=[\s"')*\]]|$|[A-Za-z])(?!\s*[-$(]*[0-9])          # "12; 14" goes on
      | \n | </answer>""", re.I | re.X)
BREAK = re.compile(r"[.!?;](?=[\s*\"')])|\n")  # between sentences, where no marker tells what to look for
CLAUSES = re.compile(r"^[^0-9]*,\s")
OPENING_WORD = re.compile(r"^\W*(?:so|thus|hence|therefore|then|and)\b,?", re.I)


class Statement(NamedTuple):
    """Marker and answer fill text[start:end]. said: None if the answer is somebody else's, or an assumption."""

    start: int
    end: int
    final: bool  # called so, or of a form that only a last word has
    said: str | None


def _arrive(text: str, read: Callable[[str], str | None], read_last: Callable[[str, str], str | None]) -> str | None:
    """The answer in the last statement, if nothing takes it back or contradicts it; else that in the last sentence."""
    text = own(text)
    found = _statements(text)
    *earlier, last = [s for s in found if s.said is not None] or [None]
    if last is None:
        sentence = _last_sentence(text)
        disowned = any(s.start >= len(text) - len(sentence) for s in found)
        return None if disowned or REFUSED.search(text, max(0, len(text) - 400)) else read_last(sentence, text)
    value = read(last.said)
    if value is None or _retracted(text, last.end):
        return None
    for s in earlier:
        other = read(s.said) if s.final >= last.final else None
        if other not in (None, value) and not _retracted(text, s.start, last.start):
            return None  # two answers, and no word on which of them holds
    return value


def _retracted(text: str, start: int, end: int | None = None) -> bool:
    """Does text[start:end] take back what was said before it? It does in "5. Wait, that is wrong."."""
    end = len(text) if end is None else end
    return end - start > 1 and any(p.search(text, start, end) for p in (RETRACTED, CALLED_WRONG, NO_BUT))


def _statements(text: str) -> list[Statement]:
    """The last statements of a text, in order; of "The answer is \\boxed{7}" only the box, as it stands inside."""
    lower, found = text.replace("İ", "i").lower(), []  # İ would become two characters
    for word, read in READERS:
        at = len(lower)
        for _ in range(MOST_MARKS):
            at = lower.rfind(word, 0, at)
            if at < 0:
                break
            if statement := read(text, at):
                found.append(statement)
    found = sorted(found, key=lambda s: s[:2])[-MOST_MARKS:]
    following = [*(s.start for s in found[1:]), len(text)]
    return [s for s, start in zip(found, following, strict=False) if start >= s.end]


def _answer(text: str, at: int) -> Statement | None:
    """At "answer", "choice" or "option": "The answer is 72.", "## Answer\\n72", "<answer>72", "72 is the answer"."""
    if text[at - 1 : at].isalnum():
        return None  # "cans: 12"
    near = max(0, at - 60)
    is_the = IS_THE.search(text, near, at)
    if is_the and (statement := _said_before(text, is_the.start(), at + 3, bool(is_the["no"]))):
        return statement
    match = ANSWER_IS.match(text, at) or _heading(text, at)
    words = [w.strip("*_#:") for w in text[near:at].lower().split()]  # "**Tom's final" -> tom's, final
    final = not CALLED_FINAL.isdisjoint(words[-1:])
    while words and words[-1] in CALLED_FINAL:
        words.pop()
    if match is None or (match[0][0] in "cCoO" and not final):
        return None  # "the option is" says nothing yet, "the best option is" does
    groups = match.groupdict()
    theirs = words and (NOT_OWN.fullmatch(words[-1]) or words[-1].endswith(("'s", "’s")))
    if theirs or PARTS.search(groups.get("to") or ""):
        return Statement(at, match.end(), final, None)
    statement = _said_behind(text, at, match.end(), final)
    return None if not groups.get("verb") and _is_solution(text, statement) else statement


def _heading(text: str, at: int) -> re.Match | None:
    """At "answer" alone on its line, which goes on below: "## Final Answer\\n72"."""
    near = max(0, at - 60)
    line = text[max(near, text.rfind("\n", near, at) + 1) : at]
    return HEADING.match(text, at) if line.lower().strip("#*_ \t") in ("", "final") else None


def _is_solution(text: str, statement: Statement) -> bool:
    """Does a label stand in front of a whole solution? "Answer: She sold 48 / 2 = 24 clips in May. So she sold 72."."""
    said, more = statement.said or "", text[statement.end : statement.end + MOST_SAID]
    words = said.split()
    told = len(words) > 6 and words[0].isalpha() and len(words[0]) > 1
    return bool(("=" in said and "=" in more) or (told and DIGIT.search(said) and DIGIT.search(more)))


def _picked(text: str, at: int) -> Statement | None:
    """At "choose", "it is" and the like, in front of a letter: "I would choose (b)."."""
    match = None if text[at - 1 : at].isalnum() else PICKED.match(text, at)
    return _said_behind(text, at, match.end(), False) if match else None


def _called_right(text: str, at: int) -> Statement | None:
    """At "is correct": "Option D is correct."."""
    match = IS_RIGHT.match(text, at) if text[at - 1 : at].isspace() else None
    return _said_before(text, at - 1, match.end(), False) if match else None


def _hashes(text: str, at: int) -> Statement | None:
    """At "####": "#### 72", up to the end of the line; "#### Add the two" with more text below it is a heading."""
    end = text.find("\n", at, at + MOST_SAID)
    end = min(len(text), at + MOST_SAID) if end < 0 else end
    said = text[at:end].strip("# \t")
    titled = len(said.split()) > 2 and said[0].isalpha() and end < len(text)
    return Statement(at, end, True, said) if said and not titled else None


def _boxed(text: str, at: int) -> Statement | None:
    """At "boxed" in "\\boxed{\\frac{1}{2}}": what is between its brace and the one that closes it."""
    opened = BOXED.match(text, at)
    if opened is None:
        return None
    depth, end = 1, opened.end()
    while end < min(len(text), opened.end() + MOST_SAID) and depth:
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return None if depth else Statement(at, end, True, text[opened.end() : end - 1])


READERS: list[tuple[str, Callable[[str, int], Statement | None]]] = [  # a word of a marker, and who reads there
    *((word, _answer) for word in ("answer", "ans:", "ans is", "ans =", "choice", "option")),
    *((word, _picked) for word in ("choose", "pick", "select", "go with", "it is", "it must be", "it should be")),
    *((word, _called_right) for word in ("is correct", "is right")),
    *((word, _boxed) for word in ("boxed", "fbox")),
    ("####", _hashes),
]


def _said_behind(text: str, start: int, at: int, final: bool) -> Statement:
    """The statement behind a marker that fills text[start:at]: of "The answer is:\\n- 72 clips. So" the "72 clips"."""
    if _doubted(text, start):
        return Statement(start, at, final, None)
    begin = OPENING.match(text, at).end()
    items = "\n" in text[at:begin] or SECOND_ITEM.search(text, begin, begin + MOST_SAID)
    if items and text[begin : begin + 2] in ("1.", "1)"):
        return Statement(start, at, True, "")  # "The answer is:\n1. 12 apples" begins a list of answers
    end = SENTENCE_END.search(text, begin, begin + MOST_SAID)
    stop = end.start() + (end[0] == "?") if end else min(len(text), begin + MOST_SAID)
    return Statement(start, stop, final, text[begin:stop])


def _said_before(text: str, at: int, end: int, negated: bool) -> Statement | None:
    """The statement in front of a marker that fills text[at:end]: of "So, 72 clips is the answer" the "72 clips"."""
    said = text[_sentence_start(text, at) : at].rstrip()
    if POINTING.search(said):
        return None
    if negated or any(p.search(said) for p in (UNSURE, DOUBTS, DENIED)):
        return Statement(at, end, False, "")
    clauses = CLAUSES.match(said)  # "(a) and (b) are wrong, and (c)"; but "(a), (b), and (c)" are three
    if clauses:
        said = said[clauses.end() :]
    if clauses is None or TALKED_ABOUT.search(clauses[0]):
        said = OPENING_WORD.sub("", said)
    return Statement(at, end, False, said)


def _doubted(text: str, at: int) -> bool:
    """Is an answer at `at` assumed, denied or somebody's? It is in "If the answer is 5, ..." and "Tom said it is b"."""
    begin = _sentence_start(text, at)
    if UNSURE.search(text, begin, at):
        return True
    if CONCLUDING.search(text, begin, at):
        return False
    clause = max(begin, text.rfind(",", begin, at))
    clause = begin if " that " in text[clause:at] else clause  # "It is not true, I think, that the answer is 5"
    return bool(DOUBTS.search(text, begin, at) or DENIED.search(text, clause, at))


def _sentence_start(text: str, at: int) -> int:
    """Where the sentence begins that goes on at `at`, or MOST_SAID characters before: 3 in "No. So the answer"."""
    near = max(0, at - MOST_SAID)
    return max(near - 1, *(text.rfind(end, near, at) for end in ("\n", ". ", "! ", "? "))) + 1


def _last_sentence(text: str) -> str:
    """Of "She has 12. So it is 9." the " So it is 9."; 400 characters at most, and without markup at its end."""
    text = text[-500:].rstrip()
    text = text if CUT_OFF.search(text[-9:]) else text.rstrip("*_`$ \t\r\n")
    near = max(0, len(text) - 400)
    ends = [m.end() for m in BREAK.finditer(text, near, len(text) - 1)]
    return text[ends[-1] if ends else near :]


# -------------------------------------------------------------------------------------------------------- which number

DIGIT = re.compile(r"[0-9]")
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"  # 1,234.5 or 1234.5 or .5
NUMBER = re.compile(
    rf"""(?P<sign> \b(?:minus|negative)\s+ | (?<![0-9A-Za-z)\]%])-(?:(?<![0-9A-Za-z)\]%:]\s-)\s|) )?  # no "total - 12"
         (?: (?P<whole>[0-9]+)\s+(?:and\s+)?(?P<above>[0-9]+)/(?P<below>[0-9]+)                       # 1 1/2
           | (?P<a>{DIGITS})(?:\s?/\s?(?P<b>{DIGITS}))? )                                             # 3/4
         (?: \s*[x*]\s*10\s*(?:\^|\*\*)\s*\{{?(?P<power>-?[0-9]{{1,3}})(?![0-9])\}}?                  # x 10^3
           | e(?P<e>[+-]?[0-9]{{1,3}})(?![0-9]) )?
         (?: \s+(?P<scale>hundred|thousand|million|billion|trillion)s?\b )?""", re.I | re.X)
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SIMPLE = re.compile(r"\s*\$?([0-9]{1,15}|[0-9]{1,3}(?:,[0-9]{3}){1,4})\s*\Z")  # most answers are
UNITS = re.compile(  # what may touch a number: 72cm, 5ft
    r"(?:[kcm]?m|mi|ft|in|yd|[km]?g|lbs?|oz|m?l|h|hrs?|mins?|s|secs?|mph|kmh|kph|kwh|cents?|c|f)(?:\b|[23])", re.I)
LARGE = re.compile(r"\s?[KMB](?![A-Za-z&])")  # $1.2M would be metres else
# The answer is open: "maybe 5", "5, if it rains".
OPEN = "maybe, perhaps, probably, possibly, might, unsure, not sure, guess*, depends, if, unless, either"
# It is open, or another one than what is named: "5 or 6", "not 5", "anything but 5".
HEDGES = phrases(f"""{OPEN}, {NOT}, or, neither, nor, between, likely, unknown, undetermined, undefined, unclear,
    uncertain, cannot, impossible, wrong, incorrect, except, anything but, everything but, nothing but, all but""")
HEDGE_SIGNS = re.compile(r"[~≈?≤≥<>±≠√π∞]|!=|\\(?:neq?|approx|sim|geq?|leq?|pm|pi|sqrt)\b")
# The number is a bound or an estimate.
INEXACT = phrases("""approximately, approx, roughly, nearly, almost, at least, at most, at the least, at the most,
    at the very least, at the very most, more than, less than, greater than, fewer than, higher than, lower than,
    bigger than, smaller than, other than, rather than, up to, below, dozen, dozens, range, ranges, close to,
    as many as, as few as, upwards of, estimate*, give or take, ish, and over, and above, and up, and more, or more""")
ABOUT = phrases("about, around, over, under, above", before="(?<!left )", behind="[^0-9]*[0-9]")  # not "12 books about"
# Something is made of the number: "half of 12", "12 squared". But "half of 24 = 12" is a computation.
MADE_OF = phrases("""half, third, quarter, twice, thrice, double, triple, squared, cubed, square of, cube of,
    square root, root, pi, factorial, times the, times as, times that, times more, times my, times his, times her,
    times its""",
    behind=r"(?!\s+(?:of\s+)?[0-9.,]+\s*=)")
ELSEWHERE = phrases("given, found, see")  # "The answer is found by adding the 12": it says where or how, not what
# There is an unknown left to find: "x + 5", "2x = 10", "5 n". But "8 x 9" is a product, and "x = 5" is found.
UNKNOWN = r"(?<![A-Za-z'’\\])[jknpqruvwxyz](?![\w'’])"
ALGEBRA = re.compile(rf"""[0-9)jknpqruvwxyz](?:
        (?<=[0-9)])\s*(?:(?:[-+*/^]|minus|plus)\s*)?{UNKNOWN}(?!\s*[-(]?[0-9])  # 5 x, 2x = 10, 5 - n; not 5 x 3
      | (?<=[a-z])(?<![\w'’\\].)\s*[-+*/^]\s*\(?[0-9]                        # x + 5
      | (?<=[0-9])(?:[a-z]\s*=|[A-Z]\s*[-+*/^=]) )""", re.X)                  # 5a = 10, 2H + 2
TWO_UNKNOWNS = re.compile(r"\b[a-z]\s*=[^=]*,\s*[a-z]\s*=|\b[a-z]\s*=.*\band\b.*=", re.I)  # x = 1, y = 2
# Something is still done to the number.
UNFINISHED = phrases("but, plus, minus the, minus a, minus his, minus her, minus their")
FUNCTIONS = phrases("log, ln, sin, cos, tan, sqrt", behind=r"\s*\(?[0-9]")
UNKNOWN_LATEX = re.compile(r"\\[A-Za-z]")  # `plain` takes out what it knows
CUT_OFF = re.compile(r"(?:[-+/×÷−]|[0-9],|\s[*x]|\b(?:and|or|but|with|plus|minus|because))\s*\Z")  # "So it is 12 +"
# The number only names something: "on page 12". A computation may follow.
NAMED = phrases("page, step, question, problem, part, chapter, section, line, figure, equation, exercise, example")
NAMED_NUMBER = phrases("option, choice, number, no", behind=r"\s*\.?\s*[0-9]")
# What stands behind an answer and is none: reasons, other answers, what it is made of, what it holds for.
REASON = re.compile(r"[\s,;(—–-]{1,4}(?:because|since|as|which|where|given\s+that|due\s+to)\b.*", re.I | re.S)
RATHER = re.compile(
    r"[ ,]+(?:(?:and |but )?not (?:[(\[$-]*[0-9]|[(\[]?[a-z]\b)[^,.;=]*$|(?:rather than|instead of) .*)", re.I)
BREAKDOWN = re.compile(  # "72 (48 + 24)", but not "4(3)" and "72 (or 70)"
    r"\((?:(?<=[A-Za-z%]\()|(?<=[0-9A-Za-z%] \())(?!\s*(?:or|maybe|perhaps|possibly|probably|if)\b)[^()]*[0-9][^()]*\)")
HOLDS_FOR = re.compile(  # "72 clips over the 2 months", "72 when n = 3"
    r" (?:(?:over|in|for|during|after|within|across) (?:the |all )?[0-9]+ [a-z]+\s*$|(?:for|when|with|at) [a-z] ?=.*)",
    re.I)
# A last sentence that is no conclusion, whatever number it holds: a plan, a premise, what was there at first.
NO_CONCLUSION = phrases("""let's, let, think, suppose, assume, if, first, firstly, next, need, needs, must, find, how,
    what, start, starts, started, begin, began, given, originally, initially, would, should, try, consider, know,
    remember, note, recall, guess, don't, question, problem, original, divide, multiply, subtract, add, calculate,
    compute, each, per, every one, wait, hmm*, rule, ruled, eliminate, exclude""")
# "So 20 people did not go": the negation tells which people.
WHICH = re.compile(r"(?<=[0-9]) [a-z][a-z ]*? (?:do|does|did|are|were|was|is|will)(?: not|n['’]t) "
                   r"(?!right|correct|true|enough|the answer)[^,.;=]*$")
CONCLUDES = phrases("so, therefore, thus, hence, in total, altogether, finally, in all, overall, total")
# The word in front of a number that only names something, where no marker says that it is an answer.
LABEL = phrases("""step, page, question, problem, part, chapter, exercise, line, figure, equation, section, option,
    choice, example, no, number, day, year, grade, age, room, level, round, in, on, at""", behind=r"\.?$")


def one_number(statement: str) -> str | None:
    """The number of a short statement that holds exactly one, however often: "48 + 24 = $72 (72 clips)" is "72"."""
    if simple := SIMPLE.match(statement):
        return str(int(simple[1].replace(",", "")))
    text = _inside_quotes(plain(statement)) if len(statement) <= 2 * MOST_SAID else ""
    if not DIGIT.search(text) or CUT_OFF.search(text[-9:]):
        return None
    text = RATHER.sub("", _instead(REASON.sub("", text)))
    bare = HOLDS_FOR.sub("", BREAKDOWN.sub("", text))
    text = bare if DIGIT.search(bare) else text
    if any(p.search(text) for p in (HEDGES, HEDGE_SIGNS, INEXACT, ABOUT, MADE_OF, ELSEWHERE, ALGEBRA)):
        return None
    if text.count("=") > 1 and TWO_UNKNOWNS.search(text):
        return None
    text = text.rpartition("=")[2].strip()
    if any(p.search(text) for p in (NAMED, NAMED_NUMBER, UNFINISHED, FUNCTIONS, UNKNOWN_LATEX)):
        return None
    return _spelt(_only_value(text))


def _only_value(text: str) -> Fraction | None:
    """The value of all numbers in a text, if they are the same: 72 in "72 clips", none in "72, 70" and "72nd"."""
    values = set()
    for match in NUMBER.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
        if before and (before.isalpha() or before in "^_"):
            continue  # m2, CO2, Q7: no number
        if (before and (before.isdigit() or before in ".,:/#")) or LARGE.match(text, match.end()):
            return None
        if after[:1] and (after[0].isalnum() or after[0] in "^:/_'*!"):
            if not UNITS.match(text, match.end()) and not re.match(r"/[A-Za-z]", after):
                return None  # 72nd, 72x, 7:30; but 72cm and $5/hour are fine
        elif after[:1] in (",", ".") and after[1:].isdigit():
            return None  # 1,23
        values.add(_value(match))
    if len(values) != 1 or any(c.isdigit() and not "0" <= c <= "9" for c in text):
        return None
    return values.pop()


def _value(match: re.Match) -> Fraction | None:
    """What a match of NUMBER is worth; None if it divides by zero or is longer than anybody means."""
    if len(match[0]) > MOST_DIGITS:
        return None
    if match[0].isdigit():
        return Fraction(int(match[0]))  # as below, in less time
    a, b, whole, above, below = ((match[key] or "").replace(",", "") for key in ("a", "b", "whole", "above", "below"))
    over, under = (above, below) if whole else (a, b or "1")
    if not Fraction(under):
        return None
    value = Fraction(whole or 0) + Fraction(over) / Fraction(under)
    value *= Fraction(10) ** int(match["power"] or match["e"] or 0) * SCALES.get((match["scale"] or "").lower(), 1)
    return -value if match["sign"] else value


def _spelt(value: Fraction | None) -> str | None:
    """One spelling for each number: 72, -0.5, 1/3."""
    if value is None or value.denominator == 1:
        return None if value is None else str(value.numerator)
    exact = Context(prec=3 * MOST_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return format(exact.normalize(), "f") if Fraction(exact) == value else str(value)


def _last_number(sentence: str, _: str) -> str | None:
    """The number of a last sentence that concludes: "So she makes $18 a day.", "9 * 2 = 18"; not "Then add the 18"."""
    text = re.sub(r"^\W*step\s+[0-9]+\s*[:.)]\s*|^\s*[-*•]\s+", "", plain(sentence).rstrip(".! "), flags=re.I)
    digit = DIGIT.search(text)
    if digit is None:
        return None
    if not CONCLUDES.match(text):
        before = text[: digit.start()].rstrip("$- ")
        named = before.endswith("#") or LABEL.search(before)
        if NO_CONCLUSION.search(text) or ((named or ":" in before) and "=" not in text):
            return None
    value, reason = one_number(WHICH.sub("", text)), REASON.search(text)
    if reason and DIGIT.search(reason[0]) and one_number(re.split(r"=|\bequals\b|\bis\b", reason[0])[-1]) != value:
        return None  # "She has only 4 left, which means that she ate 10 - 4 = 6."
    return value


# -------------------------------------------------------------------------------------------------------- which letter

IN_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
FIRST_LETTER = re.compile(  # "b", "B.", "option b) a dog"; not "C++"
    r"(?:(?:option|choice|answer|letter)\s+)?[(\[]?([A-Za-z])(?:\s*([.):\],])(?=\s|$|[A-Za-z])|(?=\s|$))", re.I)
OTHER_LETTER = re.compile(r"(?<![\w'’])([B-HJ-Z])(?![\w'’])")  # not A and I, which are words
NOT_ONE = re.compile(r"\b(?:and|both|all|none)\b\s*$")
# A letter with a verb behind it is talked about: "(b) is too dry." SINGLED_OUT makes it one: "So only (b) is dry."
TALKED_ABOUT = phrases("""is, are, was, were, has, had, does, did, can, could, would, will, should, must, seems, makes,
    means, refers, asks""")
SINGLED_OUT = phrases("so, therefore, thus, hence, only, leaves, leaving, left with, must be, best, fits, matches")
CHOSEN = phrases("chose, chosen, chooses, picked, picks, selected, answered")  # by somebody
# Behind "(b)" stands the text of a choice, where "not" and "or" do no harm: "(b) not working".
BEGINS = re.compile(rf"[(\[]?[A-Za-z][)\].:](?!\s*{TALKED_ABOUT.pattern})")
TENTATIVE = phrases(OPEN)
LISTED = re.compile(r"^[ \t*#(\[-]*[A-Za-z][)\].:]", re.M)  # a line of choices


def one_letter(statement: str, letters: str) -> str | None:
    """The letter of a short statement that names exactly one: "(b)", "B.", "option b) a dog"; not the a of "a dog"."""
    if len(statement) > 2 * MOST_SAID:
        return None
    text = re.sub(r"[\"'“”‘’]([A-Za-z])[\"'“”‘’]", r"(\1)", plain(statement))
    text = RATHER.sub("", _instead(REASON.sub("", text))).strip(" \"'“”")
    named = {c.lower() for c in IN_BRACKETS.findall(text)}
    if named:
        rest = IN_BRACKETS.sub(" ", text)
    else:
        first = FIRST_LETTER.match(text)
        if not first or (first[1].lower() in "ai" and not first[2] and text[first.end() :].strip()):
            return None
        named, rest = {first[1].lower()}, text[first.end() :]
    named |= {c.lower() for c in OTHER_LETTER.findall(rest)}
    hedges = TENTATIVE if BEGINS.match(text) else HEDGES
    if len(named) != 1 or any(p.search(rest) for p in (hedges, HEDGE_SIGNS, NOT_ONE)):
        return None
    only = named.pop()
    return only if only in letters else None


def _last_letter(sentence: str, whole: str, letters: str) -> str | None:
    """Of a last sentence: a bare choice ("B. park"), or the only one in brackets ("That leaves (b)")."""
    text = plain(whole if len(whole) < 100 and "\n" not in whole else sentence).rstrip(". ")
    named = IN_BRACKETS.search(text) or FIRST_LETTER.match(text)
    if named is None or any(p.search(text, 0, named.start()) for p in (NO_CONCLUSION, DOUBTS, CHOSEN, PARTS)):
        return None
    begins = LISTED.match(text)
    listed = begins and len(LISTED.findall(whole, max(0, len(whole) - 1000))) > 1
    if listed or len(set(IN_BRACKETS.findall(text))) > 3:
        return None  # the choices, repeated
    if not begins and len(named[0]) == 1 != len(text):
        return None  # "E equals mc^2"; but "option b" is fine
    if TALKED_ABOUT.search(REASON.sub("", text), named.end()) and not SINGLED_OUT.search(text, 0, named.start()):
        return None
    return one_letter(text, letters)


# --------------------------------------------------------------------------------------------------------- which words

OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
CLEAR = re.compile(r"(yes|no|true|false)\s*[,;:—-]\s*(.*)")
BARE_CLEAR = re.compile(r"(?:yes|no|true|false)[,.;:]\s(?!.*[.!?]\s)", re.I)
RATHER_WORDS = re.compile(r",\s*(?:and\s+)?not\s.*|,?\s+(?:rather\s+than|instead\s+of)\s.*", re.I)  # "Rome, not Paris"


def normal(text: str) -> str:
    """A phrase as it is compared: lower case, no outer quotes, punctuation and article, one space between words."""
    text = plain(text).casefold().replace("’", "'").strip(" .,:;!\"'“”‘’()[]")
    return re.sub(r"^(?:the|an?)\s+(?=\S)", "", text)


def one_phrase(statement: str) -> str | None:
    """The normalised words of a statement; of "yes, the coin is ..." only the yes, unless the rest disagrees."""
    text = plain(statement)
    if "?" in text or len(statement) > 2 * MOST_SAID:
        return None
    text = normal(RATHER_WORDS.sub("", _instead(REASON.sub("", text))))
    clear = CLEAR.match(text)
    if clear:
        disagrees = re.search(rf"\b(?:{OPPOSITE[clear[1]]}|but|however|or|maybe)\b", clear[2])
        return None if disagrees else clear[1]
    return text or None


def _bare_phrase(text: str) -> str | None:
    """A text that is nothing but its answer: one line of a few words without a marker, or "Yes, as it is heads up."."""
    text = plain(text) if len(text) < MOST_SAID and "\n" not in text.strip() else ""
    if BARE_CLEAR.match(text):
        return None if _retracted(text, 4) or REFUSED.search(text) else one_phrase(text)
    return one_phrase(text) if 0 < len(text.split()) <= 4 and not _statements(text) else None


# ------------------------------------------------------------------------------------- a statement without decoration

SIGNS = str.maketrans({  # what else they are written like
    "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "⅕": " 1/5", "⅛": " 1/8", "⅜": " 3/8",
    "²": "^2", "³": "^3", "×": " x ", "°": " degrees ", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    **dict.fromkeys("€£¥₹", "")})
MINUS = re.compile(r"[−‒–—](?=\s?[0-9.])")
LATEX_SIGNS = re.compile(r"[\\~{]|\)/\(")  # without one of them none of these matches
LATEX = [(re.compile(pattern), new) for pattern, new in (
    (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" (\1)/(\2)"), (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"),
    (r"\s?\^\s*\{?\s*\\circ\s*\}?", " degrees"), (r"\\[,!;:]", ""),
    *[(r"\\(?:text(?:bf|rm|it)?|math(?:bf|rm|it)|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 ")] * 2,  # nested ones
    (r"\\(?:left|right|displaystyle|q?quad|therefore|implies|Rightarrow)(?![A-Za-z])|\\[()\[\] \\]", " "),
    (r"\\(?:times|cdot)(?![A-Za-z])", " x "), (r"~(?=\\)|(?<=[0-9}])~(?=[\sA-Za-z\\])", " "),
    (r"\\([%$])", r"\1"), (r"\{,\}", ","), (r"\(([0-9]+)\)/\(([0-9]+)\)", r"\1/\2"))]
MARKDOWN = re.compile(r"(?<=\S)[*_`]++(?![0-9A-Za-z])|(?<![0-9A-Za-z*_`])[*_`]++(?=\S)")  # not in 3*4, 3 * 4 and x_1


def plain(text: str) -> str:
    """A statement without markdown, LaTeX and currency signs: "**\\$1\\frac{1}{2}**" is "1 1/2"."""
    if not text.isascii():
        text = MINUS.sub("-", text.translate(SIGNS))
    text = " ".join(text.split())
    if LATEX_SIGNS.search(text):
        for pattern, new in LATEX:
            text = pattern.sub(new, text)
    if "*" in text or "_" in text or "`" in text:
        text = MARKDOWN.sub("", text)
    return " ".join(text.replace("$", "").split())


def _instead(text: str) -> str:
    """Of "not 72 but 70" the 70."""
    return re.sub(r"^not\s.*?\bbut\s+(?:rather\s+)?", "", text, flags=re.I)


def _inside_quotes(text: str) -> str:
    """Of "'12'" the 12; but 5' and 5'10" are lengths."""
    quoted = len(text) > 2 and text[0] in "\"'“‘" and text[-1] in "\"'”’"
    return text[1:-1] if quoted else text
