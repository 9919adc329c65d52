"""A model folder's own chat template: turns to the text that its instruct model was trained to answer.

The template is a program of whoever published the folder. It runs in jinja2's sandbox without a loader: it sees the
turns and the special tokens' texts, no file and no Python internals, and it can neither draw nor learn the day: equal
turns are equal texts. What it may do has an end (checkpoints/sandbox).

What is rendered knows which of it came from a turn (checkpoints/typed): there "<|im_end|>" is text, whoever typed it.
Templates get nothing but the turns: `enable_thinking` and its like are not set, so that their own defaults hold, and
what they take for thoughts ("<think>...</think>" in earlier answers of Qwen 3) they leave out, as in the reference.
checkpoints/tokenizer encodes the text.
"""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.files import read_json_if_there
from checkpoints.sandbox import MOST_SOURCE, Budget, TooMuch, jinja2_for, priced, sandbox
from checkpoints.sentences import SentencePiece
from checkpoints.special import SETTINGS, read_special
from checkpoints.typed import sought, typed
from star.text import Prompt

MOST_SAID = 300  # characters of a template's own complaint that are quoted
SWITCHES = ("enable_thinking", "thinking", "reasoning_effort")
# What no published model writes letter by letter, as some do "<|user|>" and "[INST]"
MARKERS = re.compile(r"<\|(?:im_(?:start|end|sep)|(?:start|end)_header_id|eo[tm]_id|end|endoftext|(?:begin|end)_of_text"
                     r"|(?:start|end)_of_role|end_of_turn|(?:START|END)_OF_TURN_TOKEN)\|>|<(?:start|end)_of_turn>|</?s>"
                     r"|<[be]os>")
OTHER = "~#%_XYZ" + "".join(map(chr, range(0x4E00, 0x9FFF)))  # characters in place of those of a turn
LIKE = re.compile(r"<\|\w+\|>")  # what might be one


@dataclass(frozen=True)
class ChatTemplate:
    """A template ready to render: the file it stands in, what jinja2 made of it, and bos_token and its like.

    budget: what it may spend. sought: texts that it may look for in a turn. asked: names that it uses and that nobody
    may have given it.
    """

    file: Path
    template: object
    tokens: dict[str, str]
    budget: Budget
    sought: tuple[str, ...] = ()
    asked: frozenset[str] = frozenset()
    knows_system: bool = True

    def render(self, turns: Sequence[tuple[str, str]], answered: bool = False) -> Prompt:
        """The text of these turns, (role, content) each and the last the user's, up to where the assistant's begins.

        answered: the last is the assistant's, and the text ends behind it; of it a template may leave out what it takes
        for thoughts. A system turn that the template refuses is put in front of the first turn of the user.
        ValueError, one line that names the file: the template refuses the turns, fails, or leaves out the last.
        """
        if not turns or turns[-1][0] != ("assistant" if answered else "user"):
            raise ValueError(f"{self.file}: the last turn to render must be the "
                             f"{'assistant' if answered else 'user'}'s")
        self.budget.refill()
        try:
            text = self._run(turns, answered)
        except Exception as e:  # a template can fail in any way that a program can
            if turns[0][0] != "system" or len(turns) < 2 or not self._refuses_system(e):
                raise _refusal(self.file, e) from None
            return self.render(folded(turns), answered)
        if not text.strip():
            raise ValueError(f"{self.file}: the chat template renders these turns to an empty text")
        if not answered and turns[-1][1].strip() not in text and self._ignores(turns, text):
            raise ValueError(f"{self.file}: the chat template leaves out the last turn: nothing could be learned of it")
        return Prompt(text, *typed(lambda turns: self._run(turns, answered), turns, text, self.sought), answered)

    def _ignores(self, turns: Sequence[tuple[str, str]], text: str) -> bool:
        """Is the text the same whatever the last turn is, or however it begins, or ends?"""
        *before, (role, content) = turns
        content, odd = content.strip(), next(c for c in OTHER if c not in turns[-1][1] + text)
        others = (re.sub(r"\S", odd, content), odd + content[1:], content[:-1] + odd)
        return any(self.said([*before, (role, other)]) == text for other in others)

    def said(self, turns: Sequence[tuple[str, str]], answered: bool = False) -> str:
        """What the template itself makes of turns, "" if it fails."""
        with contextlib.suppress(Exception):
            return self._run(turns, answered)
        return ""

    def _run(self, turns: Sequence[tuple[str, str]], answered: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        self.budget.begin(messages)
        return self.template.render(
            **self.tokens, messages=messages, tools=None, documents=None, add_generation_prompt=not answered)

    def _refuses_system(self, e: Exception) -> bool:
        """Gemma's template says so; Mistral's has never heard of it, and complains of roles that don't alternate."""
        return type(e) is jinja2_for(self.file).exceptions.TemplateError and (
            "system" in str(e).lower() or not self.knows_system)


def folded(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a system turn says is put in front of the turn behind it."""
    (_, system), (role, content), *rest = turns
    return [(role, f"{system}\n\n{content}"), *rest]


def notes_on(chat: object, tokenizer) -> list[str]:
    """What is not seen from outside: switches that nobody sets, thoughts that are left out, a system turn that is
    refused, and what is written like a token where the tokenizer has none, such as Zephyr's "<|user|>".

    ValueError for a control token that the tokenizer lacks: one that the folder's files name, or that no published
    model writes letter by letter.
    """
    if not isinstance(chat, ChatTemplate):  # another way to render says nothing of itself
        return []
    its = f"{chat.file.parent.name}: the chat template"
    chat.budget.refill()
    notes = [f"{its}'s {name} is not set: its own default holds" for name in SWITCHES if name in chat.asked]
    ask, answer, thoughts = ("user", "?"), ("assistant", "!"), ("assistant", "<think>\nhm, hm\n</think>\n\n!")
    thought, system = chat.said([ask, thoughts, ask]), chat.said([("system", "!"), ask])
    if thought and "hm, hm" not in thought:
        notes.append(f"{its} leaves out what earlier answers hold up to </think>")
    if not system and chat.said([ask]):
        notes.append(f"{its} refuses a system turn: it would go in front of the first turn of the user")
    said = chat.said([ask]) + chat.said([ask, answer], answered=True)
    like = [*(t for t in chat.tokens.values() if t in said), *MARKERS.findall(said), *LIKE.findall(said)]
    lacking = [t for t in dict.fromkeys(like) if not tokenizer.has(t)]
    for text in lacking:
        if text in chat.tokens.values() or MARKERS.fullmatch(text):
            raise ValueError(f"{chat.file}: the chat template writes {text!r}, and the tokenizer has no such token: "
                             "take this model's own template, or fetch its tokenizer's files again, all of them")
    ids = tokenizer.encode(Prompt(chat.said([ask]), (), ended=True))
    if ids and ids[-1] in tokenizer.eos_ids:
        notes.append(f"{its} ends its prompts in an end of sequence: it is left out")
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
        notes.append(f"{its} begins with two BOS")
    if lacking:
        notes.append(f"{its} writes {', '.join(lacking)} as text: the tokenizer has no such token")
    return notes


def load_chat(path: str | Path) -> ChatTemplate:
    """The chat template of a model folder. FileNotFoundError or ValueError names the file and what to do."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: fetch the model first")
    file, source = _source(folder)
    budget = Budget()
    template, looked_for, asked = _compiled(file, source, budget)
    names = _names(folder)
    return ChatTemplate(file, template, names, budget, (*looked_for, *names.values()), asked, "system" in source)


def _names(folder: Path) -> dict[str, str]:
    """bos_token and its like, as texts: of the folder's settings, else what its SentencePiece model calls them, or what
    Tekken's are called."""
    special, file, own = read_special(folder), folder / "tokenizer.model", {}
    if (folder / "tekken.json").is_file():
        own = {"bos_token": "<s>", "eos_token": "</s>"}
    elif file.is_file() and not {"bos_token", "eos_token"} <= special.named.keys():
        with contextlib.suppress(ValueError):  # Llama 3's file of that name is of another kind, and stands for nothing
            model = SentencePiece(file, space_each=False)
            own = {"bos_token": model.control.get(model.bos_id), "eos_token": model.control.get(model.eos_id)}
    return {k: v for k, v in own.items() if v is not None and k not in special.nulls} | special.named


def has_chat(path: str | Path) -> bool:
    """Does the folder bring a chat template along, sound or not?"""
    folder = Path(path)
    return bool(_files(folder)) or any(
        read_json_if_there(folder / name).get("chat_template") is not None for name in ("chat_template.json", SETTINGS))


def _files(folder: Path) -> dict[str, Path]:
    """name -> template in a file of its own: the default, and others, for tools and the like."""
    files = {"default": folder / "chat_template.jinja"} if (folder / "chat_template.jinja").is_file() else {}
    return {file.stem: file for file in sorted(folder.glob("additional_chat_templates/*.jinja"))} | files


def _source(folder: Path) -> tuple[Path, str]:
    """(file, template): one in a file of its own comes before one among settings."""
    files = _files(folder)
    if files:
        file = Path(_default(folder / "additional_chat_templates", {name: str(f) for name, f in files.items()}))
        try:
            with open(file, encoding="utf-8") as f:
                return file, f.read(MOST_SOURCE + 1)
        except UnicodeDecodeError as e:
            raise ValueError(f"{file} is not UTF-8 ({e.reason} at byte {e.start}): fetch it again") from None
    for file in (folder / "chat_template.json", folder / SETTINGS):
        given = read_json_if_there(file).get("chat_template")
        if given is not None:
            return file, _default(file, given)
    raise ValueError(f"{folder} has no chat template (neither chat_template.jinja nor chat_template in {SETTINGS}): it "
                     "is a base model, or its template was not fetched; leave out --chat")


def _default(file: Path, given: object) -> str:
    """The template itself, or of several with names the default: {name: template} or [{"name": , "template": }]."""
    if isinstance(given, list):
        given = {str(e.get("name")): e.get("template") for e in given if isinstance(e, dict)}
    if isinstance(given, dict):
        if "default" not in given:
            raise ValueError(f"{file} has several chat templates ({', '.join(given)}) and none is the default: put the "
                             f"one to use into {file.with_name('chat_template.jinja')}")
        given = given["default"]
    if not isinstance(given, str):
        raise ValueError(f"{file}: its chat_template is of type {type(given).__name__}, not a text: fetch it again")
    return given


def _compiled(file: Path, source: str, budget: Budget) -> tuple[object, tuple[str, ...], frozenset[str]]:
    """(template, texts that it may look for in a turn, names that it uses)."""
    jinja2 = jinja2_for(file)
    if len(source) > MOST_SOURCE:
        raise ValueError(f"{file}: the chat template has {len(source):,} characters; more than {MOST_SOURCE:,} are not "
                         "read: fetch it again")
    environment = sandbox(jinja2, budget)
    try:
        tree = environment.parse(source)
        for name in jinja2.meta.find_referenced_templates(tree):  # by include, import, extends; None: a computed name
            raise jinja2.exceptions.SecurityError(f"it asks for the file {name or 'of a computed name'}")
        looked_for, asked = tuple(sought(jinja2.nodes, tree)), jinja2.meta.find_undeclared_variables(tree)
        return environment.from_string(priced(jinja2, budget, tree)), looked_for, frozenset(asked)
    except Exception as e:  # behind jinja2's compiler stands Python's, with limits of its own
        raise _refusal(file, e) from None


def _refusal(file: Path, e: Exception) -> ValueError:
    """What went wrong in a template, in one line."""
    errors, said = jinja2_for(file).exceptions, " ".join(str(getattr(e, "message", None) or e).split())[:MOST_SAID]
    if type(e) is errors.TemplateError:  # that of raise_exception; jinja2 itself raises only its subclasses
        return ValueError(f"{file}: the chat template refuses these turns: {said}")
    if isinstance(e, TooMuch):
        return ValueError(f"{file}: the chat template has no end in sight ({said}): not rendered")
    if isinstance(e, errors.SecurityError):
        return ValueError(f"{file}: the chat template reaches outside its sandbox ({said}): not rendered")
    if isinstance(e, errors.TemplateSyntaxError):
        return ValueError(f"{file}: the chat template has an error in line {e.lineno} ({said}): fetch it again")
    return ValueError(f"{file}: the chat template cannot be rendered ({type(e).__name__}: {said})")
