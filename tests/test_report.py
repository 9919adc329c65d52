"""report.html: its facts are those of the run, and in a real browser it shows them, filters them, and obeys no text."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import GOLDEN, SHIPPED, refused
from test_commands import parrot
from test_loop import Riddles, answer, trained_on
from test_loop import setup as setup  # the fixture
from test_pool import Numbers, other, right

import checkpoints
import train
from star.config import StarConfig
from star.experiments import report as command
from star.experiments.report import opened
from star.loop import star
from star.pool import Pool
from star.problem import PHASES, Candidate, Finished, Generation, Problem, Shot
from star.run import report
from star.run.folder import Run, append, inputs
from star.run.history import load
from star.run.report import FATES, NAMES, PAGE, TABLES, Report, fitting, place

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = {  # text -> how it is shown
    **{text: text for text in ("<img src=x onerror='hit()'>", "</script><script>hit()</script>", "<!--<script>",
                               "${hit()} `", "]]>&lt;b&gt;", "''\"\\", "\U0001f468\u200d\U0001f469 \u0645\u200c")},
    "\u2028\u2029": "U+2028U+2029", "\ud800": "U+D800", "\\uD800": "\\uD800",
    "\udfffx\ud800": "U+DFFFxU+D800", "a\x00b": "aU+0000b", "a\U000e0041b": "aU+E0041b",
    "\u202egnp.exe\u2066": "U+202Egnp.exeU+2066", "\x1b[31mred\x07": "U+001B[31mredU+0007"}


def data(path: Path) -> dict:
    """The facts in a page, with its columns and tables joined as its script joins them."""
    text = path.read_text(encoding="utf-8")
    facts = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])
    for name in TABLES:
        facts[name] = [value for block in facts["blocks"] for value in block[name]]
    names = [name for block in facts["blocks"][:1] for name, values in block.items() if isinstance(values, list)]
    facts["columns"] = {name: [v for block in facts["blocks"] for v in block[name]] for name in names}
    return facts


DROPPED = {"wrong": 0, "unparsed": 0, "length": 0, "leak": 0}


def spoken(text):
    """What a scripted model says: it learns nothing, and says the same wrong thing about some."""
    n = int(answer(text)) // 2
    if "hint" in text:
        return {2: "hint =", 3: "1+1=", 4: "="}.get(n, "C=") + answer(text), "length" if n == 5 else "stop"
    return (f"{n % 3}={answer(text)}", "stop") if n % 2 else ("=1" if n % 4 else "1", "stop")


def played(folder, parts, pool=None):
    """(run, its report) of Algorithm 1 with a scripted model; the page is written as train.py writes it."""
    sampler, tokenizer, task, config = parts
    run = Run.create(folder, config, {}, {})
    page = Report(run, task, tokenizer)
    for event in star(sampler, tokenizer, task, config, pool=pool):
        run.record(event, sampler.model)
        if isinstance(event, Finished):
            page.write()
    return run, page


class Varied:
    """Of three answers two are alike."""

    def __init__(self, script):
        self.script, self.count = script, 0

    def __call__(self, text):
        self.count += 1
        said, finish = self.script(text)
        return (said if self.count % 3 else "+" + said), finish


def crowd(tokenizer):
    """Another model, whose name stands before the student's, a file, and a judge who likes what is long."""
    file = [Candidate("2", "zoe", "2+2\n=4"), Candidate("2", "zoe", "=4"), Candidate("1", "zoe", "0=2")]
    judge = Numbers(lambda question, text: (float(len(text)), 0.0))
    return Pool([other("claude", Varied(right), tokenizer, [])], file, lambda: judge)


FOUR = {"samples": 4, "temperature": 1.0}
METHODS = {"plain": {}, "four": FOUR, "one each": FOUR | {"max_per_problem": 1},
           "two of all": FOUR | {"keep": "all", "max_per_problem": 2}, "all, again": {"keep": "all", "dedup": False},
           "wanted": FOUR | {"wanted": 3}, "few-shot": {"few_shot_train": True},
           "pool": FOUR | {"reward": "a", "keep": "all", "max_per_problem": 1},
           "best of pool": FOUR | {"reward": "a", "select": "correct+reward", "keep": "all"}}


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_on_is_what_the_loop_trained_on(setup, tmp_path, monkeypatch, tokenizer, method):
    """Its ids and its loss mask, in each iteration; and the page of another process is the same to the byte."""
    task, settings = Riddles(), {"iterations": 3} | METHODS[method]
    task.between = "\n"
    task.shots = [Shot(task.train[1], "=2"), Shot(task.train[2], "=4")] if method == "few-shot" else ()
    examples = trained_on(monkeypatch)
    _, page = played(tmp_path / "run", setup(Varied(spoken), task, **settings), crowd(tokenizer) if "pool" in method
                     else None)
    facts = data(page.path)
    shared, sequences = facts["shared_ids"], {g: (head, tail) for g, head, *tail in facts["columns"]["sequences"]}
    assert len(shared) == (len(tokenizer.encode("1+1\n=2\n2+2\n=4\n")) if method == "few-shot" else 0)
    for n, block in enumerate(facts["blocks"]):
        made = []
        for head, tail in (sequences[g] for g in block["trained"]):
            alike, *ids = facts["heads"][head]
            made.append(((*(shared if alike else []), *ids, *tail), len(shared) * alike + len(ids)))
        assert sorted(made) == sorted((e.tokens, e.n_prompt) for e in (examples[n - 1] if n else []))
    assert not facts["notes"]
    assert page.path.read_bytes() == Report(page.run, task, tokenizer).write().read_bytes()


def test_counts_are_those_of_the_metrics_and_of_the_samples(setup, tmp_path):
    run, page = played(tmp_path / "run", setup(spoken, iterations=2))
    facts, everything = data(page.path), load(run.folder)
    assert facts["metrics"] == run.metrics()
    for m in run.metrics()[1:]:
        fates = facts["fates"][str(m["iteration"])]
        count = {name: sum(numbers[i] for _, numbers in fates) for i, name in enumerate(FATES)}
        assert count["unaided"] == m["solved"] - m["rationalized_problems"] == 4
        assert count["hinted"] == m["rationalized_problems"] == 3
        assert {v: count[v] for v in m["dropped"]} == m["dropped"] == DROPPED | {"leak": 1}
        assert sorted(group for group, _ in fates) == ["even", "odd"]
    for n, rows in facts["answers"].items():
        assert [PHASES.index(row[0]) for row in rows] == sorted(PHASES.index(row[0]) for row in rows)
        for phase, source, group, counts, trained in rows:
            part = [g for g in everything if (g.iteration, g.phase, g.source) == (int(n), phase, source)
                    and group == ("odd" if int(g.problem) % 2 else "even")]
            assert counts == [sum(g.verdict == v for g in part) for v in NAMES]
            assert trained == sum(g.kept for g in part)
    assert sum(sum(row[3]) for rows in facts["answers"].values() for row in rows) == len(everything)
    assert facts["headline"][1] == ("Iteration 2: of 8 problems 7 were solved (87.5%), 3 of them only with the hint; "
                                    "lost, by the last try: 1 leak.")


def told(facts):
    """(iteration, phase, problem, prompt, text, answer, right answer, question) of each generation on a page."""
    c, texts = facts["columns"], facts["texts"]
    iterations = [b["iteration"] for b in facts["blocks"] for _ in b["text"]]
    for g, n in enumerate(iterations):
        front, asked = facts["prompts"][c["prompt"][g]] if c["prompt"][g] >= 0 else (None, None)
        _, question, correct = c["about"][c["problem"][g]]
        yield (n, PHASES[c["phase"][g]], facts["problems"][c["problem"][g]],
               None if front is None else facts["fronts"][front] + texts[asked],
               texts[c["text"][g]], None if c["says"][g] < 0 else texts[c["says"][g]],
               None if correct < 0 else texts[correct], texts[question])


@pytest.mark.parametrize("few_shot", ["always", "base", "hint"])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts_are_those_the_model_was_asked_with(setup, tmp_path, monkeypatch, few_shot, chat):
    class Template:
        def render(self, turns):
            return "".join(f"{'int'[:1 + (who == 'user')]}\n{text}\n" for who, text in turns) + "n\n"

    parts = setup(lambda text: spoken(text.removesuffix("n\n")), Riddles(), iterations=2,
                  few_shot_sample=few_shot, chat=chat)
    sampler, tokenizer, task, _ = parts
    task.between, task.shots = "\n", [Shot(task.train[1], "=2"), Shot(task.train[2], "=4")]
    monkeypatch.setattr(tokenizer, "chat", Template() if chat else None)
    _, page = played(tmp_path / "run", parts)
    facts = data(page.path)
    seen = list(told(facts))
    assert sorted(prompt for *_, prompt, _, _, _, _ in seen) == sorted(sampler.asked)
    by_id = {p.id: p for p in [*task.train, *task.heldout]}
    for _, phase, problem, prompt, *_, correct, question in seen:
        assert (correct, question) == (by_id[problem].answer, by_id[problem].question)
        assert ("hint" in prompt) == (phase == "rationalize")
    shown = page.path.read_text()
    few_shot_text = "in\\n1+1\\ni\\n=2\\n" if chat else "1+1\\n=2\\n2+2\\n=4\\n"
    assert shown.count(few_shot_text) == 1


def handmade(folder, generations, metrics, config=None, more=None, learns="rationales"):
    """A run folder with these samples and metrics. more: what its lines say of a problem beside."""
    run = Run.create(folder, config or StarConfig(), {}, {}, learns)
    for g in generations:
        append(run.samples(g.iteration), [asdict(g) | {"chunk": 1} | (more or {}).get(g.problem, {})])
    append(folder / "metrics.jsonl", metrics)
    run.learns = learns
    run._write_state(max((m["iteration"] for m in metrics), default=-1), None, True)
    return run


def made(n, phase, problem, verdict, text="x", says=None, **more):
    tokens = more.pop("tokens", (5, 6, 1))
    fields = {"sample": 0, "finish": "stop", "logprob": -0.5, "steps_right": None} | more
    return Generation(iteration=n, phase=phase, problem=problem, seed=0, tokens=tokens, text=text, answer=says,
                      verdict=verdict, **fields)


def share(n, value=0.5, **more):
    return {"iteration": n, "accuracy": {"mean": value}, "interval": {"mean": [value - 0.1, value + 0.1]}, **more}


def of_iteration(n, generations, **more):
    kept = sum(g.kept for g in generations)
    return share(n, kept=kept, rationalized=0, kept_wrong_steps=0, rationalized_wrong_steps=0, steps=1, dropped=DROPPED,
                 problems=len(generations), solved=kept, rationalized_problems=0, distinct=kept, truncated=0,
                 tries=len(generations), mean_tokens=1.0, **{"loss": 0.5, "examples": kept} | more)


def test_question_and_right_answer_come_from_the_samples_else_the_task_else_the_id(tmp_path, tokenizer):
    tries = [made(1, "generate", p, "wrong", "x", "5") for p in ("0", "1", "2", "gone")]
    lines = {"0": {"question": "how many?", "right_answer": "7"}, "1": {"question": "why?", "right_answer": ""}}
    run = handmade(tmp_path / "run", tries, [of_iteration(1, tries)], more=lines)
    seen = {problem: (question, right) for _, _, problem, *_, right, question in
            told(data(Report(run, Riddles(), tokenizer).write()))}
    assert seen == {"0": ("how many?", "7"), "1": ("why?", None), "2": ("2+2", "4"), "gone": ("gone", None)}
    seen = {problem: (question, right, prompt) for _, _, problem, prompt, _, _, right, question in
            told(data(Report(run).write()))}
    assert seen == {"0": ("how many?", "7", None), "1": ("why?", None, None), "2": ("2", None, None),
                    "gone": ("gone", None, None)}


def test_of_another_models_prompt_only_the_question_is_known(tmp_path, tokenizer):
    tries = [made(1, "generate", "0", "right", source=who) for who in ("student", "claude")]
    task = Riddles()
    task.shots = [Shot(task.train[1], "=2")]
    run = handmade(tmp_path / "run", tries, [of_iteration(1, tries)])
    facts = data(Report(run, task, tokenizer).write())
    assert [prompt for _, _, _, prompt, *_ in told(facts)] == ["1+1\n=20+0\n", "0+0\n"]


def test_an_older_answer_can_be_chosen_late(tmp_path, tokenizer):
    """Among older iterations the order is that of keys: claude, who came second, stands before the student then."""
    first = [made(1, "generate", "0", "right", who, source=who) for who in ("student", "claude")]
    second = [made(2, "generate", "0", "wrong"), made(2, "generate", "1", "right")]
    config = StarConfig(keep="all", samples=2, temperature=1.0, max_per_problem=1)
    metrics = [of_iteration(1, first, examples=1), of_iteration(2, second, examples=2)]
    facts = data(Report(handmade(tmp_path / "run", first + second, metrics, config), Riddles(), tokenizer).write())
    assert [b["trained"] for b in facts["blocks"]] == [[0], [1, 3]]
    assert [[g for g, *_ in b["sequences"]] for b in facts["blocks"]] == [[0], [1, 3]]


def test_a_piece_keeps_the_space_in_front(tmp_path):
    words = checkpoints.load_tokenizer(GOLDEN / "tok_sp_llama")
    ids = words.encode("the end", special=False)
    tries = [made(1, "generate", "0", "right", "the end", tokens=(*ids, words.eos_ids[0]))]
    facts = data(Report(handmade(tmp_path / "run", tries, [of_iteration(1, tries)]), Riddles(), words).write())
    assert "".join(facts["pieces"][str(i)] for i in ids) == " the end"


def test_what_cannot_be_recomputed_is_said(tmp_path):
    tries = [made(1, "generate", p, "right") for p in "ab"]
    run = handmade(tmp_path / "run", tries, [of_iteration(1, tries) | {"examples": 1}])
    facts = data(Report(run).write())
    assert "What iteration 1 trained on cannot be computed again" in facts["notes"][0]
    assert facts["columns"]["trained"] == [0, 1]


def test_a_huge_run_is_cut_by_problems_and_says_so(tmp_path, monkeypatch, tokenizer):
    """The newest iteration is whole, of the older ones the same problems are left; as it goes and at its end alike."""
    ids = [f"p{i}" for i in range(40)]
    monkeypatch.setattr(report, "MOST", 2 * 40 * (200 + 1 + 18))  # of each half: one iteration
    run = handmade(tmp_path / "run", [], [])
    page, pages = Report(run, notes=["said before"]), []
    for n in range(1, 5):
        tries = [made(n, "generate", p, "right" if i % 2 else "wrong") for i, p in enumerate(ids)]
        for g in tries:
            append(run.samples(n), [asdict(g) | {"chunk": 1}])
        append(run.folder / "metrics.jsonl", [of_iteration(n, tries)])
        run._write_state(n, None, n == 4)
        pages.append(page.write().read_bytes())
        facts = data(page.path)
        assert sum(sum(row[3]) for row in facts["answers"][str(n)]) == 40
        assert sum(facts["fates"][str(n)][0][1]) == 40
    per = [{facts["problems"][p] for p in block["problem"]} for block in facts["blocks"]]
    assert len(per[3]) == 40
    assert per[0] == per[1] == per[2] == set(sorted(ids, key=place)[:13])
    assert "81 of 160 answers are left out below" in facts["notes"][1]
    assert "all of iteration 4" in facts["notes"][1]
    assert facts["columns"]["trained"] == [g for g, v in enumerate(facts["columns"]["verdict"]) if v == 0]
    assert Report(run, notes=["said before"]).write().read_bytes() == pages[-1]
    monkeypatch.setattr(report, "MOST", 2 * 5 * (200 + 1 + 18))
    facts = data(Report(run).write())
    assert [len(b["text"]) for b in facts["blocks"]] == [1, 1, 1, 5]
    assert "all of iteration" not in facts["notes"][0]
    assert fitting([], 0) == report.ALL
    assert fitting([made(1, "generate", "p", "right", "a" * 100)], 500) == report.ALL
    assert fitting([made(1, "generate", "p", "right", "\u4e09" * 100)], 500) == place("p")  # six letters each in JSON


def test_an_iteration_under_way_is_shown_and_then_taken_whole(tmp_path, tokenizer):
    first = [made(0, "evaluate", "9", "right")]
    run = handmade(tmp_path / "run", first, [share(0)])
    append(run.samples(1), [asdict(made(1, "generate", "1", "right")) | {"chunk": 1}])
    page = Report(run, Riddles(), tokenizer)
    facts = data(page.write())
    assert [b["iteration"] for b in facts["blocks"]] == [0, 1]
    assert facts["columns"]["trained"] == []
    second = [made(1, "generate", p, "right") for p in "12"]
    append(run.samples(1), [asdict(second[1]) | {"chunk": 1}])
    append(run.folder / "metrics.jsonl", [of_iteration(1, second)])
    run._write_state(1, None, True)
    assert data(page.write())["columns"]["trained"] == [1, 2]
    assert page.path.read_bytes() == Report(run, Riddles(), tokenizer).write().read_bytes()


def test_the_page_stands_alone():
    """It asks for nothing, and says that nothing may be asked for."""
    text = PAGE.read_text(encoding="utf-8")
    asks = re.findall(r"\bhttps?:[^\"]*|\bimport\b.*|@import.*|url\(.*|\bsrc=.*|fetch\(.*|XMLHttp.*", text)
    assert asks == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert "default-src 'none'" in text
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\b|new Function|DOMParser", text)
    assert text.count('"DATA"') == 1


def test_no_text_leaves_its_place_in_the_file(tmp_path):
    tries = [made(1, "generate", f"{i}", "wrong", text, text) for i, text in enumerate(HOSTILE)]
    path = Report(handmade(tmp_path / "run", tries, [of_iteration(1, tries, loss=None)])).write()
    text = path.read_text(encoding="utf-8")
    assert text.count("</script") == PAGE.read_text(encoding="utf-8").count("</script") == 2
    embedded = re.search(r'id="data">(.*?)</script>', text, re.S)[1]
    assert embedded.isascii()
    assert "<" not in embedded
    assert [t for _, _, _, _, t, *_ in told(data(path))] == list(HOSTILE)


# ------------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_what_train_wrote(own_folder, capsys):
    small = ["--model", str(SHIPPED), "--digits", "1-2", "--problems", "10", "--first-steps", "1", "--iterations", "1",
             "--heldout-problems", "10", "--out", "made"]
    assert train.main(small) == 0
    assert "\nreport  made/report.html\n" in capsys.readouterr().out
    page = Path("made/report.html").read_bytes()
    Path("made/report.html").unlink()
    assert command.main(["made"]) == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"wrote   made/report.html: [\d,]+ bytes; open it in a browser\n", said.out)
    assert said.err == ""
    assert Path("made/report.html").read_bytes() == page
    assert command.main([]) == 2
    assert command.main(["nowhere"]) == 2
    said = "error: nothing to report on: runs/ has no finished run; train one: python train.py\n"
    said += "error: nowhere is no run: it has no config.json; a run lies in runs/NAME\n"
    assert capsys.readouterr().err == said


def test_a_run_that_solves_nothing_leaves_its_page(own_folder, capsys):
    """The answers of the iteration that failed are what one wants to see."""
    parrot("sp")
    Path("q.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(9)))
    argv = ["--task", "jsonl", "--data", "q.jsonl", "--zero-shot", "--model", "sp", "--max-new-tokens", "5",
            "--out", "x"]
    assert train.main(argv) == 2
    assert "there is nothing to learn from" in capsys.readouterr().err
    facts = data(Path("x/report.html"))
    assert [b["iteration"] for b in facts["blocks"]] == [0, 1]
    assert {text for n, *_, text, _, _, _ in told(facts) if n == 1} == {"the the the the the"}
    assert "of them only with the hint; lost, by the last try:" in facts["headline"][1]


def test_the_command_does_without_data_and_tokenizer(tmp_path, capsys):
    lines = (json.dumps({"question": f"q{i}", "answer": f"{i}"}) + "\n" for i in range(9))
    (tmp_path / "q.jsonl").write_text("".join(lines))
    model = shutil.copytree(SHIPPED, tmp_path / "model")
    options = {"data": str(tmp_path / "q.jsonl"), "zero_shot": True}
    config = StarConfig(task="jsonl", model=str(model))
    run = Run.create(tmp_path / "run", config, options, {"inputs": inputs(config, options)})
    tries = [made(1, "generate", "1", "right", "=1", "1")]
    append(run.samples(1), [asdict(tries[0]) | {"chunk": 1}])
    append(run.folder / "metrics.jsonl", [of_iteration(1, tries)])
    run._write_state(1, None, True)
    assert opened(run.folder).notes == ()
    (model / "tokenizer.model").rename(model / "away")
    assert command.main([str(run.folder)]) == 0
    assert re.match("note    Prompts.* left out: .*model is not what the run began with", capsys.readouterr().err)
    (model / "away").rename(model / "tokenizer.model")
    (tmp_path / "q.jsonl").unlink()
    assert command.main([str(run.folder)]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"note    Prompts, groups and loss masks are left out: {tmp_path}/q.jsonl is gone")
    facts = data(run.folder / "report.html")
    assert len(facts["notes"]) == 1
    assert facts["columns"]["trained"] == [0]
    assert facts["columns"]["sequences"] == facts["prompts"] == []
    for strange in ({"iteration": 1}, [], "question", 5, None):
        run.samples(1).write_text(f"{json.dumps(strange)}\n")
        refused(Report(run).write, words=("iter-001.jsonl", "line 1"))


# ---------------------------------------------------------------------------------------------------- in a real browser


BEFORE = """<script>
const odd = [];  // what must not happen
const hit = () => odd.push("a text was run");
addEventListener("error", e => odd.push(e.message || "something was asked for"), true);
addEventListener("securitypolicyviolation", e => odd.push(e.violatedDirective));
console.error = console.warn = (...words) => odd.push(words.join(" "));
</script>"""
AFTER = """<script>{
const moved = act => new Promise(go => {  // the page hears of a new address after it was set
  addEventListener("hashchange", () => setTimeout(go), {once: true}); setTimeout(go, 1000); act(); });
const text = id => document.getElementById(id).textContent;
const follow = link => moved(() => link.click());
const goto = hash => moved(() => location.replace(hash));  // frames share one history: only `follow` adds to it
const press = key => dispatchEvent(new KeyboardEvent("keydown", {key}));
const choose = (name, value, kind = "change") => { const field = document.getElementById("filters").elements[name];
  field.value = value; field.dispatchEvent(new Event(kind)); };
const found = () => text("found").match(/\\d[\\d,]*/g).slice(0, 2).map(n => Number(n.replace(",", "")));
const flat = () => { const body = document.documentElement; return body.scrollWidth <= body.clientWidth; };
addEventListener("load", async () => {
  let result;
  try { result = await (async () => { SCRIPT })(); } catch (e) { odd.push(String(e)); }
  parent.postMessage({name: "NAME", result, odd, asked: performance.getEntriesByType("resource").length}, "*");
});
}</script>"""
FRAMES = """<body><script>
const said = {};
addEventListener("message", e => { said[e.data.name] = e.data; if (Object.keys(said).length === WANTED)
  document.body.replaceChildren(JSON.stringify(said)); });
</script>"""


def look(folder, pages, width=1200):
    """What scripts find in pages, all in one browser: name -> result. pages: name -> (path, script), a function's body.

    Nothing may go wrong in a page, and nothing be asked for.
    """
    frames = [FRAMES.replace("WANTED", str(len(pages)))]
    for name, (path, script) in pages.items():
        page = path.read_text(encoding="utf-8").replace('<meta charset="utf-8">', '<meta charset="utf-8">' + BEFORE)
        probe = AFTER.replace("SCRIPT", script).replace("NAME", name)
        (folder / f"{name}.html").write_text(page.replace("</body>", probe + "</body>"), encoding="utf-8")
        frames.append(f'<iframe src="{name}.html" style="width: {width}px; height: 900px"></iframe>')
    (folder / "frames.html").write_text("\n".join(frames))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--allow-file-access-from-files",
             f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, (folder / "frames.html").as_uri()], capture_output=True, text=True,
                          timeout=120, check=False)
    body = re.search(r"<body>(\{.*\})\s*</body>", done.stdout, re.S)
    assert body, done.stdout[-2000:] + done.stderr[-2000:]
    said = json.loads(html.unescape(body[1]))
    for name, one in said.items():
        assert one["odd"] == [], name
        assert one["asked"] == 0, name
    return {name: one["result"] for name, one in said.items()}


browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


def many_groups(folder):
    tries = [made(1, "generate", f"p{i}", "right" if i % 3 else "wrong") for i in range(300)]
    task = Riddles()
    task.train = [Problem(g.problem, "q", "a", f"group {i}") for i, g in enumerate(tries)]
    run = handmade(folder, tries, [share(0), of_iteration(1, tries)])
    return Report(run, task).write()


def baseline(folder):
    tries = [made(n, "evaluate", p, "right") for n in (0, 1) for p in "ab"]
    metrics = [share(0), share(1, problems=5, examples=5, steps=3, loss=0.1)]
    return Report(handmade(folder, tries, metrics, learns="gold")).write()


def without_answers(folder):
    tries = [made(n, phase, p, "open", f"{p}{k}", sample=k, scores={"<b>": 1.5, "odd\u202e": -2.0}, reward=k - 1.5)
             for n, phase in ((0, "evaluate"), (1, "generate"), (1, "evaluate")) for p in "abc" for k in (0, 1)]
    config = StarConfig(select="reward", reward="judge", samples=2, temperature=1.0)
    metrics = [{"iteration": n, "reward": {"mean": n - 0.5, "scored": 6}, "said": {"open": 6}} for n in (0, 1)]
    metrics[1] |= {k: v for k, v in of_iteration(1, tries[6:12]).items() if k not in ("accuracy", "interval")}
    metrics[1] |= {"examples": 3, "dropped": DROPPED | {"open": 3}}
    return Report(handmade(folder, tries, metrics, config)).write()


def long_names(folder):
    """Names that no line holds, with and without a place to break them."""
    tries = [made(1, "generate", "p" * 300, "wrong", source=who, reward=0.5, scores={"s" * 300: 1.0})
             for who in ("W" * 300, "a model " * 40, "student")]
    task = Riddles()
    task.train = [Problem("p" * 300, "q", "a", "G" * 300), Problem("2", "q", "a", "H" * 300)]
    return Report(handmade(folder, tries, [share(0), of_iteration(1, tries)]), task).write()


KINDS = """
const rows = [...document.querySelectorAll("#lost tbody tr")].length, marks = text("marks");
return {headline: text("headline"), found: text("found"), rows, marks, flat: flat(), detail: text("detail"),
        curves: document.querySelectorAll("#curves circle").length,
        fates: document.querySelectorAll("#fates rect").length,
        more: document.querySelector("#lost > button")?.textContent, table: text("table"), title: text("title"),
        lost: text("lost")};"""


@browser
def test_all_kinds_of_runs_are_shown(tmp_path, setup, tokenizer):
    _, pool = played(tmp_path / "pool", setup(Varied(spoken), iterations=2, reward="a", **FOUR), crowd(tokenizer))
    kinds = {"empty": Report(handmade(tmp_path / "empty", [], [])).write(), "groups": many_groups(tmp_path / "groups"),
             "base": Report(handmade(tmp_path / "base", [made(0, "evaluate", "a", "wrong")], [share(0)])).write(),
             "baseline": baseline(tmp_path / "baseline"), "open": without_answers(tmp_path / "open"), "pool": pool.path,
             "long": long_names(tmp_path / "long")}
    seen = look(tmp_path, {name: (path, KINDS) for name, path in kinds.items()}, width=390)
    assert all(one["flat"] for one in seen.values())  # nothing sticks out on a phone
    assert seen["empty"]["found"] == "0 problems, 0 answers"
    assert seen["empty"]["headline"] == "No iteration is finished yet.Nothing was sampled to be trained on yet."
    assert seen["empty"]["detail"] == "Nothing has been generated yet."
    assert seen["base"]["curves"] == 1
    assert "did not surely change" in seen["baseline"]["headline"]
    assert "5 written examples were given" in seen["baseline"]["headline"]
    assert "learns gold" in seen["baseline"]["title"]
    assert seen["groups"]["rows"] == 1 + 12
    assert seen["groups"]["more"].startswith("show 288 more groups")
    assert "-0.500 for the base and 0.500 after iteration 1" in seen["open"]["headline"]
    assert "of 3 problems, none with an answer to compare with, 3 gave one to train on" in seen["open"]["headline"]
    assert seen["open"]["fates"] == 1
    assert "<b> 1.50 · oddU+202E -2.00" in seen["open"]["detail"]
    assert "T trained on" in seen["open"]["marks"]
    assert "claude" in seen["pool"]["table"]
    assert "judge and verifier agree" in seen["pool"]["table"]
    assert all(who in seen["pool"]["lost"] for who in ("generate (claude)", "generate (zoe)"))


WAYS = """
const seen = {all: found(), top: [scrollY, document.getElementById("journeys").getBoundingClientRect().top > 0]};
for (const [name, value] of [["iteration", 1], ["phase", "rationalize"], ["verdict", "leak"], ["verdict", "not right"],
                             ["verdict", "trained on"], ["group", "odd"]]) {
  choose(name, value); seen[name + " " + value] = found(); choose(name, "");
}
choose("text", "HINT", "input"); seen.hint = found(); choose("text", "", "input");
choose("iteration", 2); choose("verdict", "right"); choose("phase", "generate");
seen.three = [...found(), location.hash];
await follow(document.querySelector("#list a:nth-child(2)"));
seen.link = location.hash; seen.shown = document.querySelector("#detail h3").textContent.split(" ")[0];
await moved(() => history.back()); seen.back = location.hash;
await follow(document.getElementById("reset")); seen.reset = found();
await goto("#problem=4"); seen.there = document.querySelector("#detail h3").getBoundingClientRect().top < innerHeight;
seen.detail = text("detail"); seen.hints = [...document.querySelectorAll("#detail mark")].map(m => m.textContent);
seen.loss = [...document.querySelectorAll("#detail pre .loss, #detail .end")].map(m => m.textContent);
seen.prompt = [...document.querySelectorAll("#detail pre.ids > span:not(.loss, .end)")].map(m => m.textContent);
const pick = document.querySelector("#lost select"); pick.value = 1; pick.dispatchEvent(new Event("change"));
await follow([...document.querySelectorAll("#lost a")].find(a => /rationalize.*leak/.test(a.href)));
seen.lost = [...found(), location.hash];
const light = getComputedStyle(document.body).backgroundColor; document.getElementById("theme").click();
seen.theme = [light, getComputedStyle(document.body).backgroundColor];
press("/"); seen.focus = document.activeElement.name;
document.activeElement.blur(); await goto("#problem=0");
seen.next = document.querySelector("#list [aria-current]").nextSibling.getAttribute("href");
await moved(() => press("j")); seen.key = location.hash;
return seen;"""

SPITE = """
const seen = [];
for (const id of D.blocks.flatMap(b => b.problems)) {
  await goto(hash({problem: id}));
  seen.push([document.querySelector("#detail h3").textContent, document.querySelector(".try pre").textContent,
             document.querySelectorAll("#detail img, #detail b:not(.facts b), #detail script").length]);
}
choose("text", "ONERROR", "input");
const one = found(); choose("text", "ONLY here", "input");
return {seen, found: [one, found()], images: document.images.length, scripts: document.scripts.length, flat: flat()};"""


@browser
def test_filters_links_and_masks_and_no_text_is_markup(setup, tmp_path, tokenizer):
    run, page = played(tmp_path / "run", setup(spoken, iterations=2))
    tries = [made(1, "generate", t, "wrong", t, t, source=t) for t in HOSTILE]
    lines = {g.problem: {"question": g.text, "right_answer": g.text} for g in tries}
    lines["\ud800"]["right_answer"] = "only here"
    spite = Report(handmade(tmp_path / "spite", tries, [of_iteration(1, tries)], more=lines)).write()
    seen = look(tmp_path, {"ways": (page.path, WAYS), "spite": (spite, SPITE)})
    ways, everything = seen["ways"], load(run.folder)

    def counted(passes):
        part = [g for g in everything if passes(g)]
        return [len({g.problem for g in part}), len(part)]

    for name, passes in {
            "all": lambda g: True, "iteration 1": lambda g: g.iteration == 1,
            "phase rationalize": lambda g: g.phase == "rationalize", "verdict leak": lambda g: g.verdict == "leak",
            "verdict not right": lambda g: g.verdict != "right", "verdict trained on": lambda g: g.kept,
            "group odd": lambda g: int(g.problem) % 2 == 1, "hint": lambda g: "hint" in g.text}.items():
        assert ways[name] == counted(passes), name
    assert ways["top"] == [0, True]  # it opens at its top
    assert ways["there"]
    three = "#iteration=2&phase=generate&verdict=right"
    assert ways["three"] == [*counted(lambda g: (g.iteration, g.verdict, g.phase) == (2, "right", "generate")), three]
    assert ways["link"] == f"#problem={ways['shown']}&{three[1:]}"
    assert (ways["back"], ways["reset"]) == (three, ways["all"])
    assert ways["lost"] == [1, 1, "#iteration=1&phase=rationalize&verdict=leak"]
    assert ways["hints"] == ["hint 8\n"] * 2  # of both iterations
    assert ways["loss"] == ["=", "8", "end"] * 2
    assert ways["prompt"] == ["4", "+", "4", "↵\n"] * 2  # the plain one
    assert "generate: unparsed" in ways["detail"]
    assert "rationalize: right · says 8" in ways["detail"]
    assert ways["theme"] == ["rgb(253, 253, 251)", "rgb(22, 24, 27)"]
    assert (ways["focus"], ways["key"]) == ("text", ways["next"])
    assert [text for _, text, _ in seen["spite"]["seen"]] == [HOSTILE[g.text] for g in tries]
    assert [head for head, *_ in seen["spite"]["seen"]] == [f"{shown} #" for shown in HOSTILE.values()]
    assert [elements for *_, elements in seen["spite"]["seen"]] == [0] * len(tries)
    assert seen["spite"]["found"] == [[1, 1], [1, 1]]
    assert (seen["spite"]["images"], seen["spite"]["scripts"], seen["spite"]["flat"]) == (0, 4, True)
