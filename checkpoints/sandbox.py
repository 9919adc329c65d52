"""jinja2's sandbox for chat templates, with an end to what they may do.

Steps are counted, not seconds, so that equal turns are equal texts on every machine. A value costs one step, and more
by its size, where something is made (by operators, filters, calls, slices, lists, output) or looked through (by
comparisons, tests, filters, methods); so does each turn of a loop. What could make more than it is given (a product, a
width, a text put in many places) is paid before it is made.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import GeneratorType, ModuleType

# The day that templates are told: by the clock, equal runs would differ from one day to the next. Llama 3.1's templates
# take this one themselves where they are told none.
TODAY = datetime(2024, 7, 26)
STEPS, RUNS = 100_000, 5  # of one run of a template, and what all runs for one prompt may cost together, in runs
LETTERS = 64  # of a text, that cost a step
AGAIN = 20  # so many steps more for each that the turns themselves cost: long ones may be looked through so often
MOST_SOURCE = 1 << 18  # characters of a template: some published ones have 20,000
PLAIN = (bool, int, float, type(None))
MOST_BITS = 20_000  # of a whole number
# A width, in what is written by % or str.format
WIDE = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\*|\d{4,}|\d*\.(?:\*|\d{4,}))|\{[^{}]*:[^{}]*(?:\d{4,}|\{)")
SLOW = ("urlize", "wordwrap", "pprint", "xmlattr")  # filters that take a microsecond and more a letter
REFUSED = frozenset(("encode", "decode", "to_bytes", "from_bytes", "translate", "maketrans"))  # methods that blow up


class TooMuch(Exception):
    """A template does more than STEPS."""


class Budget:
    """What a template may still spend: in this run, and in all for one prompt."""

    def __init__(self):
        self.left = self.begun = self.total = 0
        self.nodes = 0  # of the template

    def refill(self) -> None:
        self.total = -1

    def begin(self, turns: object) -> None:
        """A run of these turns."""
        most = STEPS + AGAIN * size(turns, STEPS * AGAIN)
        self.total = RUNS * most if self.total < 0 else max(self.total - (self.begun - self.left), 0)
        self.left = self.begun = min(most, self.total)

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooMuch(f"it takes more than {STEPS:,} steps, or makes more than {STEPS * LETTERS:,} characters")

    def pay(self, value: object) -> object:
        """The value, paid for by its size."""
        kind = type(value)
        self.spend(1 + len(value) // LETTERS if kind is str else 1 if kind in PLAIN else size(value, self.left))
        return value

    def cut(self, value: object) -> object:
        """A slice: what it holds was paid for, only the places are new."""
        self.pay(range(len(value)) if isinstance(value, list | tuple) else value)
        return value

    def each(self, values: Iterable, cost: int) -> Iterator:
        for value in values:
            self.spend(cost)
            yield value

    def foresee(self, name: str, values: tuple, named: dict) -> None:
        """What a filter or method of this name makes of these values, where it may be more than all of them."""
        first, rest = values[0], [*values[1:], *named.values()]
        width = max((abs(v) if isinstance(v, int) else len(v) for v in rest if isinstance(v, int | str)), default=1)
        if width > 10**6 and any(isinstance(v, int) and abs(v) > 10**6 for v in rest):
            raise TooMuch("it asks for more than a million of something")
        letters = len(first) if hasattr(first, "__len__") else 1
        if name == "replace":
            old, new = (str(v) for v in (*rest, "", "")[:2])
            self.spend(str(first).count(old) * len(new) // LETTERS)
        elif name == "join":  # a filter's list, or a method's
            n = max((len(v) for v in values if hasattr(v, "__len__") and not isinstance(v, str)), default=1)
            self.spend(n * max((len(v) for v in (*values, *rest) if isinstance(v, str)), default=0) // LETTERS)
        elif name in ("center", "ljust", "rjust", "zfill", "expandtabs", "indent"):
            self.spend((letters + 1) * width // LETTERS)
        elif name in ("batch", "slice", "round"):
            self.spend(width)
        elif name == "format":
            self.written(str(first), rest)
        elif name in SLOW:
            self.spend(letters + letters * max((len(v) for v in rest if isinstance(v, str)), default=0) // LETTERS)
        elif name == "tojson":
            self.spend(size(first, self.left) * width)

    def operation(self, operator: str, left: object, right: object) -> None:
        """What an operator makes of two values, where it may be more than both."""
        whole = isinstance(left, int) and isinstance(right, int)
        bits = max(left.bit_length(), 1) * max(right, 0) if whole and operator == "**" else (
            left.bit_length() + right.bit_length() if whole else 0)
        if bits > MOST_BITS:
            raise TooMuch(f"it makes numbers of more than {MOST_BITS:,} bits")
        if operator == "*" and not whole:
            for many, n in ((left, right), (right, left)):
                if isinstance(n, int) and isinstance(many, str):
                    self.spend(max(n, 0) * len(many) // LETTERS)
                elif isinstance(n, int):
                    self.spend(max(n, 0) * size(many, self.left))
        if operator == "%" and isinstance(left, str):
            self.written(left, right)

    def written(self, form: str, values: object) -> None:
        """What a form, of % or of str.format, makes of these values."""
        if WIDE.search(form):
            raise TooMuch("it writes something at a width of thousands, or of its own making")
        self.spend((form.count("%") + form.count("{")) * size(values, self.left))


def size(value: object, most: int) -> int:
    """Steps that it takes to look through a value, what it holds included; at most a little above `most`."""
    n, waiting = 0, [value]
    while waiting and n <= most:
        v = waiting.pop()
        n += 1
        if isinstance(v, str | bytes):
            n += len(v) // LETTERS
        elif isinstance(v, range):
            n += len(v)
        elif isinstance(v, dict):
            waiting += [*v, *v.values()]
        elif isinstance(v, list | tuple | set):
            waiting += v
    return n


def jinja2_for(file: Path) -> ModuleType:
    """The package. Older ones' sandbox has known ways out."""
    with contextlib.suppress(ImportError):
        import jinja2.ext
        import jinja2.meta
        import jinja2.sandbox
        import jinja2.visitor
        if [int(n) for n in re.findall(r"\d+", version("jinja2"))[:3]] >= [3, 1, 6]:
            return jinja2
    raise ValueError(f"{file}: chat templates need the package jinja2, 3.1.6 or newer: pip install -e '.[models]'")


def priced(jinja2: ModuleType, budget: Budget, tree: object) -> object:
    """The template, with what only its compiler sees paid for too: loops, comparisons, slices, lists, plain text."""
    nodes = jinja2.nodes

    def by(name: str, node: object, *args: int) -> object:
        if isinstance(node, nodes.Const):
            return node
        args = [nodes.Const(arg, lineno=node.lineno) for arg in args]
        return nodes.Filter(node, name, args, [], None, None, lineno=node.lineno)

    class Priced(jinja2.visitor.NodeTransformer):
        def visit_For(self, node):
            inside = sum(1 for _ in node.find_all(nodes.Node))
            self.generic_visit(node)
            node.iter = by("+each", node.iter, 1 + inside // LETTERS)
            return node

        def visit_Output(self, node):
            self.generic_visit(node)
            node.nodes = [nodes.Const(n.data, lineno=n.lineno) if isinstance(n, nodes.TemplateData) else n
                          for n in node.nodes]
            return node

        def visit_Compare(self, node):
            self.generic_visit(node)
            node.expr = by("+pay", node.expr)
            for operand in node.ops:
                operand.expr = by("+pay", operand.expr)
            return node

        def visit_Concat(self, node):
            self.generic_visit(node)
            node.nodes = [by("+pay", n) for n in node.nodes]
            return by("+pay", node)

        def visit_List(self, node):
            self.generic_visit(node)
            return node if getattr(node, "ctx", "load") == "store" else by("+pay", node)

        visit_Tuple = visit_Dict = visit_List

        def visit_Getitem(self, node):
            self.generic_visit(node)
            return by("+cut", node) if isinstance(node.arg, nodes.Slice) else node

    budget.nodes = sum(1 for _ in tree.find_all(nodes.Node))
    return Priced().visit(tree).set_environment(tree.environment)


def _counting(jinja2: ModuleType, budget: Budget) -> type:
    """jinja2's sandbox in which operators, calls and what str.format makes are paid for."""
    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

        def call_binop(self, context, operator, left, right):
            budget.operation(operator, left, right)
            return budget.pay(super().call_binop(context, operator, left, right))

        def call(self, context, obj, *args, **named):
            args = tuple(budget.pay(list(v)) if isinstance(v, GeneratorType) else v for v in args)
            owner = getattr(obj, "__self__", None)
            budget.pay((owner if isinstance(owner, str | list | tuple | dict) else None, args, named))
            if isinstance(owner, str):
                budget.foresee(obj.__name__, (owner, *args), named)
            if isinstance(obj, jinja2.runtime.Macro):
                budget.spend(budget.nodes // LETTERS)
            return budget.pay(super().call(context, obj, *args, **named))

        def is_safe_attribute(self, obj, attr, value):
            return attr not in REFUSED and super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value):
            wrapped = super().wrap_str_format(value)
            if wrapped is None:
                return None
            return lambda *args, **named: budget.written(value.__self__, (args, named)) or wrapped(*args, **named)
    return Sandbox


def sandbox(jinja2: ModuleType, budget: Budget) -> object:
    """The environment, with what the reference gives to templates, less what is random, reads HTML or never ends."""

    class SaidByAssistant(jinja2.ext.Extension):
        """{% generation %} marks the assistant's words for the reference's losses; here its body is rendered."""

        tags = frozenset({"generation"})

        def parse(self, parser):
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Namespace(jinja2.utils.Namespace):
        """Without the attributes that Python itself looks at, such as __call__, which jinja2's own would take."""

        def __init__(self, /, *args, **attributes):
            super().__init__()
            for name, value in dict(*args, **attributes).items():
                self[name] = value

        def __setitem__(self, name, value):
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"it sets the attribute {name}")
            super().__setitem__(name, value)

        def __repr__(self):  # what namespaces in namespaces hold doubles with each
            return "<Namespace>"

    @jinja2.pass_context  # so that no constant is left out
    def output(context, value):
        return budget.pay(str(value))

    environment = _counting(jinja2, budget)(
        trim_blocks=True, lstrip_blocks=True, extensions=[SaidByAssistant, jinja2.ext.loopcontrols], optimized=False,
        finalize=output)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(str(message))

    environment.filters["tojson"] = _to_json
    del environment.filters["random"], environment.globals["lipsum"]
    del environment.filters["striptags"]  # would make control tokens of what is typed as "&lt;"
    for table in (environment.filters, environment.tests):
        table |= {name: _priced(name, function, budget) for name, function in table.items()}
    # by names that no template can write
    environment.filters |= {"+pay": budget.pay, "+each": budget.each, "+cut": budget.cut}
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": TODAY.strftime, "namespace": Namespace,
                            "dict": lambda *args, **items: dict(*args, **items)}  # the type's methods change others
    return environment


def _priced(name: str, function: Callable, budget: Budget) -> Callable:
    """A filter or test that is paid for: what it looks through, and what it makes."""
    skipped = int(hasattr(function, "jinja_pass_arg"))  # jinja2's own first argument

    @functools.wraps(function)
    def run(*args, **named):
        values = [budget.pay(list(v)) if isinstance(v, GeneratorType) else v for v in args[skipped:]]
        budget.pay((values, named))
        budget.foresee(name, tuple(values), named)
        return budget.pay(function(*args[:skipped], *values, **named))
    return run


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """jinja2's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
