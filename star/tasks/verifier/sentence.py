"""Where does a sentence begin and end? Not at the stops of "2.5", "Mr. Brown", "9 a.m. on Monday" and "5! = 120"."""

import re

from star.tasks.verifier.own import phrases

MOST_STATED = 300  # characters of one statement
CUT_OFF = re.compile(r"(?:[-+/×÷−]|[0-9],|\s[*x]|\b(?:and|or|but|with|plus|minus|because|of|than|by))\s*\Z")  # "12 +"
SENTENCE_END = re.compile(  # neither in "2.5", "0.\bar{3}", "Node.js" and "12... or 14", nor in "5! = 120"
    r"""\.(?<!\.\.)(?=\s|$|["'”’)*\]$<](?![0-9\\])|\\(?![A-Za-z])|\\end|(?<=[0-9a-z)]\.)[A-Z](?!\.))
      | !(?!\sInc\b)(?=["'”’*_]{0,5}(?:\s{1,5}[A-Z]|[A-Z\n]|\s*\Z))
      | \?(?=[\s"'”’)*\]$A-Z]|$) | \n | </answer>""", re.X)
# A full stop that ends no sentence: after a title or an initial; after "a.m.", if the next word begins none.
LAST_WORD = re.compile(r"[A-Za-z][A-Za-z.]*\Z")
TITLES = phrases("""mr, mrs, ms, dr, prof, st, mt, gen, sen, gov, rep, col, capt, lt, sgt, rev, vs, e.g, i.e, approx,
    rs, kr, fr""")
MAY_END = phrases("""inc, ltd, co, corp, bros, jr, sr, ave, ft, sq, etc, al, jan, feb, mar, apr, jun, jul, aug, sep,
    sept, oct, nov, dec""", after=r"|[a-z]{1,2}(?:\.[a-z])+\.?")  # or has one inside: a.m., Ph.D.
BEGINS = re.compile(
    r"""\s+(?:I|It|He|She|They|We|You|This|That|These|There|Here|The|An?|In|On|At|As|If|So|Then|Thus|Hence|Therefore
      |However|But|And|Or|Also|No|Not|Note|Because|Since|For|From|To|When|While|After|Before|Let|Now|Wait|Actually
      |Answer|Option|Choice|Explanation|Step|Final|My|Our|His|Her|Their|Its|All|Each|Both|Q|What|Which|How)\b""", re.X)
BREAK = re.compile(  # between sentences, where no marker tells what to look for
    r"(?<!\.)\.(?=[\s*\"')])|[!?](?=[\s*\"')]{1,5}[A-Z0-9])|\n")


def sentence_end(text: str, begin: int, kind: str) -> int:
    """Where the sentence ends that goes on at `begin`, or MOST_STATED characters on; a "?" belongs to it."""
    for end in SENTENCE_END.finditer(text, begin, begin + MOST_STATED):
        if end[0] != "." or not _abbreviated(text, end.start(), kind):
            return end.start() + (end[0] == "?")
    return min(len(text), begin + MOST_STATED)


def _abbreviated(text: str, stop: int, kind: str = "number") -> bool:
    """Does the full stop at `stop` end a word and no sentence? In "Mr. Brown", "9 a.m. on Monday", "J. K. Rowling"."""
    match = LAST_WORD.search(text, max(0, stop - 9), stop)
    word = match[0].lower() if match else ""
    initial = kind == "text" and len(word) == 1 and text[stop - 1].isupper()
    if not (initial or word == "no" or TITLES.fullmatch(word) or MAY_END.fullmatch(word)):
        return False
    after = text[stop + 1 : stop + 12].partition("\n")[0].strip()
    if not after or TITLES.fullmatch(word):
        return bool(after)
    if word == "no":
        return not after[0].isalpha() if kind == "number" else after[0].isdigit()
    return (initial and after[1:2] == ".") or not BEGINS.match(text, stop + 1)  # A. A. Milne


def sentence_start(text: str, at: int) -> int:
    """Where the sentence begins that goes on at `at`, or MOST_STATED characters before: 3 in "No. So the answer"."""
    stop, line = at, max(at - MOST_STATED, 0, text.rfind("\n", max(0, at - MOST_STATED), at) + 1)
    while (end := max(text.rfind(". ", line, stop), text.rfind("! ", line, stop), text.rfind("? ", line, stop))) >= 0:
        if not (_abbreviated(text, end) if text[end] == "." else text[end + 2 : end + 3].islower()):
            return end + 1
        stop = end
    return line


def last_sentence(text: str) -> str:
    """Of "She has 12. So it is 9." the " So it is 9."; 400 characters at most, and without markup at its end."""
    text = text[-500:].rstrip()
    text = text if CUT_OFF.search(text[-9:]) else text.rstrip("*_`$ \t\r\n")
    near = max(0, len(text) - 400)
    for end in reversed([*BREAK.finditer(text, near, len(text) - 1)]):
        if end[0] != "." or not _abbreviated(text, end.start()):
            return text[end.end() :]
    return text[near:]
