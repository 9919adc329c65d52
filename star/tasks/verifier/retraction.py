"""Is what was stated taken back behind it? By "Wait, that is wrong.", by "I forgot the tip.", by "So she has 6.".

What the statement was, it does not know; what a last sentence arrives at, its callers tell it by `read_last`.
"""

import re
from collections.abc import Callable

from star.tasks.verifier.own import phrases
from star.tasks.verifier.sentence import last_sentence

# The writer takes it back, saw a mistake, or has not done all yet.
RETRACTED = phrases("""wait, actually, hm*, oops, sorry, apolog*, correction, correcting, a mistake, my mistake,
    mistaken, mistook, an error, my error, error in, unsure, kidding, joking, not sure, not certain, not the answer,
    don't know, do not know, can't be, cannot be, let me re*, let me check, let me double, let me correct, let me fix,
    let's re*, let's double*, hold on, hang on, on second thought*, on reflection, upon re*, looking back, disregard,
    just guess*, a guess, never mind, make that, my bad, scratch that, strike that, ignore that, take that back, take
    it back, stand corrected, change that, change it, change my, miscount*, misread, miscalc*, misinterpret*,
    misunder*, forgot*, overlook*, neglected, omitted, I missed, we missed, left out, off by, incorrectly, wrongly, I
    mean, I meant, we meant, or rather, recompute, recalculate, redo, recount, we still have to, we still need to, I
    still have to, I still need to, still must, must still, we need to add, we need to subtract, not include, doesn't
    include, that ignores, this ignores, looks too, seems too, overcount*, undercount*, I didn't, I did not, left one
    out, mixed up, I confused, I swapped, the wrong, that's too, that is too, this is too, I think it's,
    I think it is""")
CALLED_WRONG = phrases("that, this, it, which, above, answer, result, I, we", after=r"""(?x:
    (?: ['’](?:s|m|re) | \s+(?:is|was|am|are|were|seems?|looks?|sounds?) )\s+ (?:\w+\s+)?
        (?: wrong | incorrect | false | off\b(?!\s\w)
          | not\s+(?:(?:quite|entirely|exactly)\s+)?(?:right|correct|true|it) )
  | \s+(?:is|was|are|were|does|do|did)(?:n['’]t|\s+not)\s+(?:(?:quite|entirely|look|seem|sound|feel)\s+)*
        (?:right|correct|true|it\b(?!\s)) )\b""")
NO_BUT = re.compile(  # a sentence that begins with it, or "12 is wrong", "it should be 6"
    r"""(?:^|[.!?\n])[\s*_(]{0,9}(?:
            (?:no|nope|mistake|wrong|incorrect|rather|error|edit|updated?|corrected|revised|revision|fix(?:ed)?
              |better)\b[,.!:*]
          | (?:but|however|yet|although|except|or|maybe|perhaps|probably|possibly|alternatively|not)\b
          | (?:then|next|now)[\s,]+(?:add|subtract|multiply|divide)\b[^=\n.!?]*[.!?]?\s*\Z
          | (?:please\s+)?(?:strike|ignore|scratch|forget|change|replace)\s+(?:that|this|it|my|the)\b )
      | [0-9]\s+is\s+(?:wrong|incorrect|not)\b | \bmake\s+it\s+\W*[0-9]
      | (?:\b(?:I|we|it|that|this|which|answer|result|value|total)\s|[(:]\s?)should\s+(?:be|have)\b(?!\s+noted)""",
    re.I | re.X)
# A last sentence that concludes. "The rest is 6." and "Check: 6 - 1 = 5." behind an answer are no other answer.
OVERRULES = re.compile(
    r"""[\W_]*(?:[0-9(][^A-Za-z]*$ | [0-9][^=]*=
      | (?:so|thus|hence|therefore|consequently|then|finally|overall|altogether|total|final|it|that|this
      |we|I|you|(?!check|verify|test)\w+ing(?=\s)|in\s(?:total|all|fact)
      |(?:the|our|my)\s(?:correct|right|actual|real|true|total|final|result|value|sum))\b )""", re.I | re.X)

EXCLAIMED = re.compile(r"^\W*(?!check|verif|test|proof|note)(?:[\w'’-]+ ){0,2}[\w'’-]+[,:] "
                       r"(?=(?:it is |it['’]s |I get )?[$*\\(]*[0-9][0-9.,]*\W*$)", re.I)  # "Well, 6."


def retracted(text: str, start: int, end: int | None = None) -> bool:
    """Does text[start:end] take back what was stated before it? It does in "5. Wait, that is wrong."."""
    end = len(text) if end is None else end
    return end - start > 1 and any(p.search(text, start, end) for p in (RETRACTED, CALLED_WRONG, NO_BUT))


def overruled(rest: str, value: str, read_last: Callable[[str, str], str | None]) -> bool:
    """Does the last sentence of what stands behind a statement conclude another value? "So she has 6." does."""
    sentence = EXCLAIMED.sub("", last_sentence(rest))
    return bool(OVERRULES.match(sentence)) and read_last(sentence, sentence) not in (None, value)
