"""Which characters of a rendered conversation came from a turn, and which are the chat template's own.

The template is run once more on turns written in other characters, one for one:

    turns "2+2?"      text      <|user|>2+2?<|end|>      where the second has twins, the first has what was typed
    its twins         its twin  <|user|>####<|end|>

A template may do what it likes with a turn (strip it, cut it, count it, write it twice): as long as it does not look at
its letters, the two texts go together. If it does look ("</think>" in it, to leave out thoughts), they may not: then
the texts that it looks for are left as they are in the turns, as few as possible. If that does not help either, letters
get their twins a few at a time, as many as there are with which the two texts go together.

What never had a twin may stand anywhere: where the text is made of nothing else it is doubted, and no control token is
read there (star/text), not even the template's own. So nobody forges one, whatever a template looks at.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from string import ascii_lowercase, ascii_uppercase, digits, punctuation
from types import ModuleType

TWINS = range(0xF0000, 0x10FFFC)  # characters for private use
AROUND = ("\U0010fffc", "\U0010fffd")  # stand left and right of what is left as it is
PLAIN = (ascii_lowercase, ascii_uppercase, digits, punctuation)  # twins for a template that escapes those above
SILENT = '"\\'  # JSON escapes them: they have no twins
MOST_RUNS, MOST_LETTERS = 400, 1_000_000  # of a template for one text: what has no twin by then is doubted
Turns = Sequence[tuple[str, str]]
Spans = list[tuple[int, int]]


def typed(render: Callable[[Turns], str], turns: Turns, text: str, sought: Sequence[str]) -> tuple[Spans, Spans]:
    """(start, end) of what the turns brought into this text, that `render` made of them; and of what is doubted.

    White space and what JSON escapes have no twins: they count with the letters around them.
    """
    rendering = _Rendering(render, turns, text)
    twins = rendering.twins(rendering.letters)
    if len(twins) < len(rendering.letters):
        return [], [(0, len(text))]
    free = AROUND if not {*AROUND} & {*text, *rendering.letters} else ("", "")
    for kept, roles in _kept([content for _, content in turns], sought):
        for around in dict.fromkeys([free, ("", "")] if kept else [("", "")]):
            said = rendering.said(twins, kept, roles, around)
            if said is not None:
                return _places(said, twins), _left(said) if around[0] else _spans(kept, text)
    return _by_parts(rendering)


class _Rendering:
    """A template's text of turns, and what it makes of the same turns in other letters."""

    def __init__(self, render: Callable[[Turns], str], turns: Turns, text: str):
        self._render, self._turns, self.text = render, turns, text
        self.left = min(MOST_RUNS, MOST_LETTERS // (len(text) + 1) + 8)  # runs for letters by parts
        letters = {c for _, content in turns for c in content if not c.isspace() and c not in SILENT and c >= " "}
        self.letters, self._taken = sorted(letters), {*letters, *text}
        self._free = list(itertools.islice((c for c in map(chr, TWINS) if c not in self._taken), len(letters)))

    def twins(self, letters: Sequence[str], others: str | None = None) -> dict[str, str]:
        """letter -> another character that stands nowhere yet, one of those if given, as long as there are any."""
        free = self._free if others is None else [c for c in others if c not in self._taken]
        return dict(zip(letters, free, strict=False))

    def said(self, twins: dict[str, str], kept: str = "", roles: Sequence[str] = (),
             around: tuple[str, str] = ("", "")) -> str | None:
        """The text of the turns' twins, or None: it does not go with the other.

        kept: an expression of what is left as it is in the turns of these roles, with `around` on both sides.
        """
        self.left -= 1
        table, (left, right) = str.maketrans(twins), around
        back = str.maketrans({twin: c for c, twin in twins.items()} | dict.fromkeys(filter(None, around), ""))
        other = [(role, "".join(f"{left}{part}{right}" if i % 2 else part.translate(table) for i, part in enumerate(
            re.split(f"({kept})", content) if kept and role in roles else [content])))
            for role, content in self._turns]
        with contextlib.suppress(Exception):  # a template can fail in any way that a program can
            said = self._render(other)
            return said if said.translate(back) == self.text else None
        return None


def _kept(contents: Sequence[str], sought: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(expression of what is left as it is, in whose turns), as little as possible first."""
    yield "", ()
    there = [t for t in dict.fromkeys(sought) if any(t in content for content in contents)]
    for roles in (("assistant",), ("system", "user", "assistant")):
        for texts in [[t] for t in there] + [there] * (len(there) > 1):
            yield f"(?:{'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})+", roles


def _spans(expression: str, text: str) -> Spans:
    return [match.span() for match in re.finditer(expression, text)] if expression else []


def _places(said: str, twins: dict[str, str]) -> Spans:
    """Where twins stand, as places in the text: there is nothing around what was left as it is."""
    one = f"[{re.escape(''.join(twins.values()))}]"
    return _spans(rf"{one}+(?:\s+{one}+)*", re.sub(f"[{''.join(AROUND)}]", "", said)) if twins else []


def _left(said: str) -> Spans:
    """What of the turns was left as it is, as places in the text."""
    left, right = AROUND
    parts, at, spans = re.split(f"({left}[^{left}{right}]*{right})", said), 0, []
    for i, part in enumerate(parts):
        end = at + len(part) - part.count(left) - part.count(right)
        if i % 2:
            spans.append((at, end))
        at = end
    return spans


def _by_parts(rendering: _Rendering) -> tuple[Spans, Spans]:
    """Letters get their twins by halves, by quarters, ... down to one: in its own kind, where no other goes."""
    groups, lost, spans, text = [rendering.letters], [], [], rendering.text
    while groups:
        group = groups.pop()
        twins = rendering.twins(group)
        said = rendering.said(twins) if rendering.left > 0 else None
        if said is None and len(group) == 1 and rendering.left > 0:
            twins = rendering.twins(group, next((kind for kind in PLAIN if group[0] in kind), ascii_lowercase))
            said = rendering.said(twins) if twins else None
        if said is not None:
            spans += _places(said, twins)
        elif len(group) > 1 and rendering.left > 0:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
        else:
            lost += group
    if not lost:
        return _joined(spans, text), []
    doubted = SILENT + "".join(c + c.lower() + c.upper() for c in lost)  # a template may have changed their case
    return _joined(spans, text), _spans(rf"[\s{re.escape(doubted)}]+", text)


def _joined(spans: Spans, text: str) -> Spans:
    """Spans between which nothing stands but white space are one."""
    out = []
    for start, end in sorted(spans):
        if out and not text[out[-1][1] : start].strip():
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def sought(nodes: ModuleType, tree: object) -> Iterator[str]:
    """The texts that a template may look for in a turn: those in comparisons, lists and the like, given to methods,
    filters, tests and macros, or given a name. nodes: jinja2's. tree: the template as it read it."""
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Assign, nodes.Macro,
                               nodes.CallBlock, nodes.CondExpr, nodes.List, nodes.Tuple, nodes.Pair, nodes.Keyword)):
        if isinstance(node, nodes.Compare):
            inside = [node.expr, *(operand.expr for operand in node.ops)]
        elif isinstance(node, (nodes.List, nodes.Tuple)):
            inside = node.items
        elif isinstance(node, (nodes.Macro, nodes.CallBlock)):
            inside = node.defaults
        elif isinstance(node, nodes.CondExpr):
            inside = [node.expr1, node.expr2]
        elif isinstance(node, nodes.Pair):
            inside = [node.key, node.value]
        else:
            inside = [node.node] if isinstance(node, nodes.Assign) else [node.value] if isinstance(
                node, nodes.Keyword) else node.args
        yield from (n.value for n in inside if isinstance(n, nodes.Const) and isinstance(n.value, str) and n.value)
