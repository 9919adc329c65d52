"""Which characters of a rendered conversation came from a turn, and which are the chat template's own.

The template is run once more on turns written in other characters, one for one:

    turns "2+2?"      text      <|user|>2+2?<|end|>      where the second has twins, the first has what was typed
    its twins         its twin  <|user|>####<|end|>

A template may do what it likes with a turn (strip it, cut it, count it, write it twice): as long as it does not look at
its letters, the two texts go together. If it does look ("</think>" in it, to leave out thoughts), they may not: then
the texts that it looks for are left as they are in the turns, as few as possible, and what is left is the template's.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

TWINS = range(0xF0000, 0x10FFFE)  # characters for private use
Turns = Sequence[tuple[str, str]]


def typed(render: Callable[[Turns], str], turns: Turns, text: str, sought: Sequence[str]) -> list[tuple[int, int]]:
    """(start, end) of what the turns brought into this text, that `render` made of them.

    White space and what JSON escapes have no twins: they count with the letters around them.
    """
    contents = [content for _, content in turns]
    letters = {c for c in set("".join(contents)) if not c.isspace() and c not in '"\\' and c >= " "}
    free = (chr(c) for c in TWINS if chr(c) not in letters and chr(c) not in text)
    twins = dict(zip(sorted(letters), free, strict=False))
    table, back = str.maketrans(twins), str.maketrans({twin: c for c, twin in twins.items()})
    run = re.compile(r"[{0}]+(?:\s+[{0}]+)*".format("".join(twins.values()))) if twins else None
    for kept, roles in _kept(contents, sought):
        other = [(role, _translated(content, table, kept if role in roles else None)) for role, content in turns]
        with contextlib.suppress(Exception):  # a template can fail in any way that a program can
            said = render(other)
            if said.translate(back) == text:
                return [match.span() for match in run.finditer(said)] if run else []
    return list(_found(text, contents))


def _kept(contents: Sequence[str], sought: Sequence[str]) -> Iterator[tuple[re.Pattern | None, tuple[str, ...]]]:
    """(what is left as it is, in whose turns), as little as possible first."""
    yield None, ()
    there = [t for t in dict.fromkeys(sought) if any(t in content for content in contents)]
    for roles in (("assistant",), ("system", "user", "assistant")):
        for texts in [[t] for t in there] + [there] * (len(there) > 1):
            yield re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))), roles


def _translated(content: str, table: dict[int, str], kept: re.Pattern | None) -> str:
    if kept is None:
        return content.translate(table)
    return "".join(t if i % 2 else t.translate(table) for i, t in enumerate(re.split(f"({kept.pattern})", content)))


def _found(text: str, contents: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the turns stand in the text, one behind the other, but for mere words: for a template that changes them."""
    at = 0
    for content in contents:
        start, form = next(((start, form) for form in forms(content) if (start := text.find(form, at)) >= 0), (-1, ""))
        if not form.replace(" ", "").isalnum() and form:
            at = start + len(form)
            yield start, at


def forms(content: str) -> list[str]:
    """How a turn may stand in a text: many templates strip; one that writes JSON escapes."""
    content = content.strip()
    return [content, json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]]


def sought(nodes: ModuleType, tree: object) -> Iterator[str]:
    """The texts that a template may look for in a turn: those in comparisons, given to methods, filters and tests, or
    given a name. nodes: jinja2's. tree: the template as it read it."""
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Assign)):
        if isinstance(node, nodes.Compare):
            inside = [node.expr, *(operand.expr for operand in node.ops)]
        else:
            inside = [node.node] if isinstance(node, nodes.Assign) else node.args
        inside = itertools.chain.from_iterable(
            n.items if isinstance(n, (nodes.List, nodes.Tuple)) else [n] for n in inside)
        yield from (n.value for n in inside if isinstance(n, nodes.Const) and isinstance(n.value, str) and n.value)
