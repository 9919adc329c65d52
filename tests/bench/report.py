"""How long report.html takes to write, to open and to filter, with as many generations as one likes.

    python tests/bench/report.py [--generations 10000] [--words 120]

Makes a run with four samples a problem and five iterations in a temporary folder, writes its page (no task, so without
loss masks), and opens it in headless chromium, which must be installed. Milliseconds of the browser: from the start of
loading until all is drawn, then for each filter until the page is laid out again; best of three.
"""

import argparse
import html
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from star.config import StarConfig
from star.problem import Generation
from star.run.folder import Run, append
from star.run.report import Report

ITERATIONS, SAMPLES = 5, 4
PROBE = """<script>{
const seen = {open: performance.now()};
for (const [name, value] of [["iteration", 2], ["verdict", "wrong"], ["phase", "rationalize"], ["text", "half 48"]]) {
  const once = value => { const start = performance.now(), field = document.getElementById("filters").elements[name];
    field.value = value; field.dispatchEvent(new Event(name === "text" ? "input" : "change"));
    return document.body.offsetHeight && performance.now() - start; };
  seen[name] = Math.min(...[0, 1, 2].map(() => { const t = once(value); once(""); return t; }));
}
document.body.replaceChildren(JSON.stringify(seen));
}</script>"""


def write(folder: Path, generations: int, words: int) -> tuple[Path, float]:
    """(page, seconds to write it)."""
    rng, story = random.Random(0), re.findall(r"\S+", "Natalia sold 48 clips to her friends and half of them in May")
    run = Run.create(folder / "run", StarConfig(samples=SAMPLES, temperature=1.0), {}, {})
    for n in range(1, ITERATIONS + 1):
        made = []
        for i in range(generations // ITERATIONS):
            phase = "generate" if i % SAMPLES else "rationalize"
            text = " ".join(rng.choices(story, k=words))
            verdict = rng.choice(("right", "wrong", "wrong", "unparsed", "length"))
            made.append(Generation(n, phase, f"train-{i // SAMPLES}", i % SAMPLES, 0, (1,) * words, text, "stop", -1.0,
                                   str(rng.randrange(99)), verdict, None))
        append(run.samples(n), [asdict(g) | {"chunk": 1} for g in made])
        shares = {"accuracy": {"mean": n / 10}, "interval": {"mean": [n / 10 - 0.05, n / 10 + 0.05]}}
        append(run.folder / "metrics.jsonl", [{"iteration": n, **shares}])
        run._write_state(n, None, n == ITERATIONS)
    start = time.perf_counter()
    return Report(run).write(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=120)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as name:
        page, seconds = write(Path(name), args.generations, args.words)
        page.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={name}/browser", "--dump-dom"]
        done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, check=False)
        seen = json.loads(html.unescape(re.search(r"<body>(\{.*\})", done.stdout, re.S)[1]))
        print(f"{args.generations:,} generations of {args.words} words: {page.stat().st_size:,} bytes, written in "
              f"{seconds:.2f} s")
        print("browser, ms: " + ", ".join(f"{what} {ms:.0f}" for what, ms in seen.items()))


if __name__ == "__main__":
    main()
