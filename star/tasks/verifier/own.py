"""What of a text is the model's own, and how it reads without decoration. What an answer is, this file does not know.

    own("72.\n\nQ: And 1 + 1?\nA: 2.")      "72."     without a next question that the model made up, and farewells
    plain("**\\$1\\frac{1}{2}**")            "1 1/2"   without markdown, LaTeX and currency signs
    phrases("or, at least")                   a pattern that finds these as whole words: the other files' vocabulary
"""

import re


def phrases(listed: str, before: str = "", after: str = "") -> re.Pattern:
    """Finds any of some phrases, as whole words: phrases("or, at least, guess*") is in "5 or 6", and not in "for".

    A blank stands for any blanks, * for the rest of a word, ' for both apostrophes; upper and lower case are the same.
    before, after: regular expressions for what must stand on either side.
    """
    tails: dict[str, list[str]] = {}  # [oO] -> what follows it
    for phrase in listed.split(","):
        first, *rest = " ".join(phrase.split())
        spelt = re.escape("".join(rest)).replace(r"\ ", r"\s+").replace(r"\*", r"\w*").replace("'", "['’]")
        tails.setdefault(f"[{first.lower()}{first.upper()}]", []).append(spelt)
    either = "|".join(f"{first}(?i:{'|'.join(rest)})" for first, rest in tails.items())
    # Most words of a text have a first letter that begins no phrase: testing that first takes half the time.
    return re.compile(rf"{before}\b(?={'|'.join(tails)})(?:{either})\b{after}")


# The model goes on with a question that it makes up, or speaks for somebody else: what it answers there was not asked.
NEXT_QUESTION = re.compile(
    r"\n[ \t#*>]*(?:(?:next|new)[ \t]+)?(?:Q|Question|Problem|Exercise|Instruction|Input|Human|User)"
    r"(?:[ \t]*#?[0-9]+)?[ \t*]*(?:[:.]|\n)", re.I)
NEXT_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|start_header_id|user|end)\|>|</s>|<(?:start|end)_of_turn>",
    re.I)
CUTS = (("\n", NEXT_QUESTION), (":", re.compile(r"\sQ:", re.I)), ("<", NEXT_TURN))  # each with a sign that it needs
# Chatter after the answer, which would be taken for the last sentence.
FAREWELL = phrases("""I hope, hope this, hope that, hope it, let me know, feel free, is there anything, please let,
    if you have any, you have any, good luck""", before=r"\s", after=r"[^.!?]*[.!?]?\s*$")
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
