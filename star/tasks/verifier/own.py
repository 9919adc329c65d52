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
    r"\n[ \t#*>]*(?:(?:next|new)[ \t]+)?\[?(?:Q|Question|Problem|Exercise|Instruction|Input|Human|User"
    r"|Example(?=[ \t]*#?[0-9]))(?:[ \t]*#?[0-9]+)?[ \t*]*(?:[:.\]]|\n)", re.I)
NEXT_TURN = re.compile(
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id|start_header_id|user|end)\|>|</s>|<(?:start|end)_of_turn>",
    re.I)
CUTS = (("\n", NEXT_QUESTION), (":", re.compile(r"\sQ:", re.I)), ("<", NEXT_TURN),
        ("[", re.compile(r"(?<=\S)\s*\[INST\]")))  # each with a sign that it needs
# Chatter after the answer, which would be taken for the last sentence.
FAREWELL = phrases("""I hope, hope this, hope that, hope it, let me know, feel free, is there anything, please let,
    if you have any, you have any, good luck""", before=r"\s", after=r"[^.!?]*[.!?]?\s*$")
# <<48/2=24>> of GSM8K, what has no width, and pictures
SIGNS_OFF = ("ope ", "et me know", "eel free", "here any", "lease let", "ave any", "ood luck")  # one of them is in it
NOTES = re.compile("<<[^<>\\n]{0,200}>>|[\u00ad\u200b-\u200f\u2060\ufe0f\ufeff✅✓✔🌀-🫿]")


def own(text: str) -> str:
    """The part of a text that answers the question asked: of "72.\\n\\nQ: And 1 + 1?\\nA: 2." the "72."."""
    text = text.strip()
    for sign, pattern in CUTS:
        cut = pattern.search(text) if sign in text else None
        text = text[: cut.start()].rstrip() if cut else text
    for _ in range(3):  # "I hope this helps! Let me know if ..."
        tail = text[-200:]
        farewell = any(sign in tail for sign in SIGNS_OFF) and FAREWELL.search(text, max(0, len(text) - 200))
        if not farewell or not text[: farewell.start()].strip():
            break
        text = text[: farewell.start()].rstrip()
    return NOTES.sub("", text) if "<<" in text or not text.isascii() else text


SPACES = "[\u00a0\u2007\u2009\u200a\u202f]"
SIGNS = str.maketrans({  # what else they are written like
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⁄": "/", "∕": "/",
    "×": "*", "·": "*", "⋅": "*", "∗": "*", "¢": " cents", "º": "°", "˚": "°", "′": "'", "″": '"', "…": "...",
    "℃": "°C", "℉": "°F", "«": '"', "»": '"',
    **dict.fromkeys("−﹣‐‑➖", "-"), **dict.fromkeys("€£¥₹₩₽₪₱₫฿₦₴₺", "$"), "¤": "?",
    **{chr(c): chr(c - 0xFEE0) for c in range(0xFF01, 0xFF5F)}})  # of full width
HALVES = "[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]"
UNLIKE_ASCII = [(re.compile(pattern), new) for pattern, new in (
    (rf"(?<=[0-9]){SPACES}(?=[0-9]{{3}}(?![0-9/]))", ","),  # 70 000
    (r"(?<=[NJWVAgsm])[·⋅](?=(?:m|s|A|h|V|K)(?![A-Za-z]))", ""),  # N·m
    (rf"(?<=[0-9])(?={HALVES})|(?<={HALVES})(?=[0-9])", " "),  # 1½ is 1 1/2
    (r"[‒–](?=\s?(?:[^\w\s]{0,4}|[A-Z]{2,3}\$?\s?|Rs\.?\s?)[0-9.\\])", "-"))]
RAISED = re.compile("[⁺⁻]?[⁰¹²³⁴-⁹]+")
LOWER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
WRAPPED = (r"\\(?:text(?:bf|rm|it|normal)?|math(?:bf|rm|it|sf)|(?:bold|f)?mbox|boldsymbol|operatorname)"
           r"\s*\{([^{}]*)\}")
LATEX_SIGNS = re.compile(r"[\\~{]")  # without one of them none of these matches
FRACTION = re.compile(r"\\(?:[dtcs]|nice)?frac\s*(?:\{([^{}]*)\}|([0-9]))\s*(?:\{([^{}]*)\}|([0-9]))")
DIGITS = re.compile(r"[*_`$]*[.,]?[0-9]")
LATEX = [(re.compile(pattern), new) for pattern, new in (
    (r"\{,\}|,\\!|(?<=[0-9])(?:\\[,;: ]|~)(?=[0-9]{3}(?![0-9]))", ","),
    (r"\\!|(?<=\{)~", ""), (r"(?<!\\)\\[,;: ()\[\]]|~(?=\\[A-Za-z])|(?<=[0-9}])~(?=[\sA-Za-z\\])", " "),
    *[(WRAPPED, r" \1 ")] * 2,  # nested ones
    (r"\s?\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree", "°"),
    (r"\\(?:left|right|displaystyle|q?quad|therefore|implies|Rightarrow|(?:begin|end)\s?\{[a-z*]+\})(?![A-Za-z])", " "),
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", " * "), (r"\\over(?![A-Za-z])", "/"), (r"\\([%$#&])", r"\1"), (r"&=", "="))]
TAGS = re.compile(r"<(b|i|em|strong|u)>([^<>]*)</\1>", re.I)
MARKDOWN = re.compile(  # not in 3*4, 3 * 4, x_1; from where a run of signs begins, lest a long one be tried from each
    r"(?<=\S)(?<![*_`]{2})[*_`]++(?![0-9A-Za-z])|(?<![0-9A-Za-z*_`)])[*_`]++(?=\S)")


def plain(text: str, money: str = "") -> str:
    """A statement without markdown, LaTeX and currency signs: "**\\$1\\frac{1}{2}**" is "1 1/2".

    money: what stands in the place of a currency sign (a $ may as well be a sign of LaTeX).
    """
    if not text.isascii():
        for pattern, new in UNLIKE_ASCII:
            text = pattern.sub(new, text)
        text = RAISED.sub(lambda run: "^" + run[0].translate(LOWER), text).translate(SIGNS)
    text = " ".join(text.split())
    if LATEX_SIGNS.search(text):
        text = FRACTION.sub(_fraction, text)
        for pattern, new in LATEX:
            text = pattern.sub(new, text)
    if "</" in text:
        text = TAGS.sub(r"\2", text)
    if "*" in text or "_" in text or "`" in text:
        text = MARKDOWN.sub("", text)
    return " ".join(text.replace("$", money).split())


def _fraction(match: re.Match) -> str:
    r"""Of \frac{-1}{2} the "-1/2", apart from numbers beside it; of \frac{x}{2} what it is."""
    above, below = (match[1] or match[2] or "").strip(), (match[3] or match[4] or "").strip()
    if not re.fullmatch(r"-?[0-9.,]+ -?[0-9.,]+", f"{above} {below}"):
        return match[0]
    sign = "-" * ((above + below).count("-") % 2)
    before = match.string[max(0, match.start() - 1) : match.start()]
    value = f"{sign}{above.strip('-')}/{below.strip('-')}" + " " * bool(DIGITS.match(match.string, match.end()))
    return f"(-{value[1:]})" if sign and before == "-" else " " * (before.isdigit() or before == "$") + value
