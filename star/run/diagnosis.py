"""What is wrong with a run, for people, and the setting that helps.

    nothing_solved   an iteration solved nothing: what most of its tries looked like, the likely cause, what to do
    notes            what an iteration's metrics are the first to show: worse than the base, no better, degenerate

It goes by the metrics, verdicts and texts that a run wrote down, and by how the model was asked. It judges nothing
again, and prints nothing.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from checkpoints.chat import has_chat
from star.degenerate import goes_round
from star.evaluate import VERDICTS, wilson
from star.problem import STUDENT, Generation
from star.run.folder import read_lines
from star.run.history import clip
from star.run.plan import Plan
from star.tasks import task_options
from star.text import visible

SHOWN = 3  # tries
MANY, SOME, FEW = 0.5, 0.2, 0.05  # shares that are worth a note
SAME = 0.01  # share: two keep rates this near are the same
STILL = 0.01  # share of its entropy: a model whose drift is less is where its base is
SOLVED = 0.95  # from this accuracy on there is little to improve


def nothing_solved(tries: Sequence[Generation], plan: Plan, run: Path, width: int = 120) -> list[str]:
    """Lines for an iteration none of whose tries was right: three of what there is most of, the cause, a command."""
    mine = [g for g in tries if g.source == STUDENT] or list(tries)
    plain = [g for g in mine if g.phase == "generate"] or mine
    said = Counter(g.verdict for g in plain)
    most, count = said.most_common(1)[0]
    alike = [g for g in plain if g.verdict == most]
    shown = alike[:: max(1, len(alike) // SHOWN)][:SHOWN]
    right = {p.id: p.answer for p in plan.task.train}
    lines = [f"\n{count} of {len(plain)} tries without a hint: {VERDICTS[most]}. Such as"]
    for g in shown:
        says = (f" (says {clip(g.answer, 24)}; right is {clip(right.get(g.problem, ''), 24)})" if g.answer is not None
                else "")
        text = " / ".join(filter(None, g.text.strip().split("\n"))) or "(nothing)"
        ends = text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
        lines.append(f"  {clip(g.problem, 40)}{says}: {clip(ends, width + 8)}")
    n = max(g.iteration for g in mine) - 1
    look = f"look    python sample.py --run {quote(str(run))} --trace --problem {visible(quote(shown[0].problem))}"
    likely = spoilt(read_lines(run / "metrics.jsonl"), plan) or cause(said, plan, looks(shown))
    return [*lines, f"likely  {likely}", look + f" --iteration {n}" * (n > 0)]


def spoilt(history: Sequence[dict], plan: Plan) -> str:
    """The cause where training has taken more than half of what the base could; "" where it has not."""
    name, scores = progress_of(history) if history else ("", [])
    if len(scores) < 2 or name == "reward" or scores[-1] > scores[0] / 2:
        return ""
    return (f"training has spoilt the model: {name} fell from the base's {shown(name, scores[0])} to "
            f"{shown(name, scores[-1])}: look at {'; '.join(suspects(history[-1], plan))}")


def looks(tries: Sequence[Generation]) -> str:
    """What most of these have in common besides their verdict; "" for nothing."""
    if sum(not g.text.strip() for g in tries) * 2 > len(tries):
        return "the model says nothing at all"
    if sum(map(goes_round, tries)) * 2 > len(tries):
        return "they repeat themselves"
    return ""


def cause(said: dict[str, int], plan: Plan, look: str = "") -> str:
    """What is likely wrong where most tries have these verdicts and look so, and the flag that helps."""
    config, most, flags = plan.config, max(said, key=said.__getitem__), task_options(plan.config.task)
    others = "others by --few-shot, or --zero-shot, which asks in words" if "zero_shot" in flags else "other examples"
    shown = "show worked examples" + (", by --few-shot FILE" if "few_shot" in flags else " (the task's `shots`)")
    chat = not config.chat and has_chat(plan.model.source.path)
    asks = "the model has a chat template, and was asked without it: --chat" if chat else ""
    if most == "length" and not look:
        return (f"{plan.max_new} tokens are too few for an answer: a longer --max-new-tokens"
                + (f"; or {asks}" if asks else ""))
    if most in ("length", "unparsed"):
        what = look or "no answer stands there in a form that is read" + (
            ', such as "The answer is ..."' if "zero_shot" in flags else "")
        if asks:
            return f"{what}; {asks}"
        if plan.task.prefix:
            return f"{what}: the examples do not show the form well, or the model is too small to follow them: {others}"
        return f"{what}: {shown}"
    if most == "leak":
        return "with a hint it says nothing but the hint: other few-shot examples, or a larger model"
    grade = " or take another --grade" if "grade" in flags else ""
    return ("answers are given and are wrong. If the right ones above are written otherwise than the model's, mend the "
            f"data{grade}; else the problems are too hard for this model: easier ones, a larger model, "
            "or more tries (--samples 8 --temperature 0.8)" + (f"; or {asks}" if asks else ""))


def notes(history: Sequence[dict], plan: Plan) -> list[str]:
    """A line for each thing that the last iteration's metrics are the first to show. history: all metrics so far.

    Metrics may lack what an older version did not write. What was said once is not said again, by a resumed run too.
    """
    found = [signs(history[: n + 1], plan) for n in range(len(history))]
    known = {kind for earlier in found[:-1] for kind in earlier}
    return [f"note    {text}" for kind, text in (found[-1] if found else {}).items() if kind not in known]


def signs(history: Sequence[dict], plan: Plan) -> dict[str, str]:
    """Kind -> what these metrics show at their end, and what helps."""
    last, lr = history[-1], f"--lr (now {plan.config.lr:g})"
    name, scores = progress_of(history)
    low = max(scores, default=0.0) < SOLVED or name == "reward"
    stalled = low and len(scores) > 2 and max(scores[-2:]) <= max(scores[:-2])
    found = {}
    if len(scores) > 2 and max(scores[-2:]) < scores[0]:
        two = ", ".join(shown(name, s) for s in scores[-2:])
        found["worse"] = (f"{name} is below the base's {shown(name, scores[0])} for two iterations ({two}): look at "
                          + "; ".join(suspects(last, plan)))
    found |= one_answer(history, plan) | going_bad(last, plan)
    if stalled and "worse" not in found:  # else what is stuck is what training has spoilt
        found |= stuck(history, plan)
    if low and still(history):
        found["still"] = (f"the adapters are without effect: the trained model is {last['drift']:.4f} nats a token "
                          f"away from its base. Raise {lr} or {length_of_training(plan)}")
    if stalled and not found:
        found["stalled"] = (f"{name} has not improved for two iterations (best {shown(name, max(scores))}): more tries "
                            f"or problems may help (--samples, --temperature, --problems), or another {lr}; --patience "
                            "ends a run that no longer improves")
    return found


def still(history: Sequence[dict]) -> bool:
    """Is the trained model where its base is? By drift, against what the model is unsure of, and by every group's mean,
    since a model that is sure of nearly every token can change its answers with little drift."""
    base, last = history[0], history[-1]
    if not last["iteration"] or last.get("drift") is None or last.get("entropy") is None:
        return False
    pairs = [(last[key][group], mean) for key in ("accuracy", "validation", "reward") if key in base and key in last
             for group, mean in base[key].items() if group in last[key]]
    same = all(abs(now - before) <= SAME for now, before in pairs)
    return same and abs(last["drift"]) <= max(STILL * last["entropy"], 1e-4)  # its last digit


def progress_of(history: Sequence[dict]) -> tuple[str, list[float]]:
    """What a run's progress is seen by, and its mean of each iteration that has it: validation where there is some."""
    names = {"validation": "validation", "accuracy": "held-out accuracy", "reward": "reward"}
    key = next((key for key in names if key in history[0]), "accuracy")
    scored = "reward" if "scored" in history[0].get(key, {}) else names[key]  # a judge's mean
    return scored, [m[key]["mean"] for m in history if key in m]


def shown(name: str, score: float) -> str:
    return f"{score:.3f}" if name == "reward" else f"{score:.1%}"


def length_of_training(plan: Plan) -> str:
    config = plan.config
    return f"--first-steps (now {config.first_steps})" if config.epochs is None else f"--epochs (now {config.epochs:g})"


def suspects(m: dict, plan: Plan) -> list[str]:
    """What makes a model worse, the setting with it: what always can, and what this iteration's metrics show."""
    config, trained = plan.config, m.get("kept", 0) + m.get("rationalized", 0)
    found = [f"--lr (now {config.lr:g}: try a third)", f"{length_of_training(plan)}: fewer"]
    if config.start == "previous":
        found.append("--start base, which forgets what went wrong before")
    if trained and m["rationalized"] > SOME * trained:
        found.append(f"{m['rationalized'] / trained:.0%} of what is right was made with a hint: --no-rationalize")
    wrong = m.get("kept_wrong_steps", 0) + m.get("rationalized_wrong_steps", 0)
    if trained and wrong > FEW * trained and config.select == "correct":
        found.append(f"{wrong / trained:.0%} of what is right has wrong steps: --select correct+steps")
    chosen = sum(s["chosen_wrong"] for s in m.get("sources", {}).values())
    if chosen > FEW * m.get("examples", 0) and not m["dropped"].get("open"):
        found.append(f"{chosen} of {m['examples']} examples are not right: another --select")
    return found


def one_answer(history: Sequence[dict], plan: Plan) -> dict[str, str]:
    """Do the answers fall onto one value? If the base's do not, training has brought it about."""
    for what, who in (("answers", "held-out answers"), ("tried_answers", "tries")):
        m = history[-1].get(what) or {}
        if not m.get("one"):
            continue
        helps = "Show examples with each answer as often (" + (
            "--few-shot" if "few_shot" in task_options(plan.config.task) else "the task's `shots`") + (
            "), sample at --temperature 0.7 with more --samples, or take a larger model")
        if what == "answers" and len(history) > 1 and surely_less((history[0].get("answers") or {}), m):
            helps = (f"The base's do not, so training did it: lower --lr (now {plan.config.lr:g}), or train less by "
                     f"{length_of_training(plan)}")
        return {"one": f"the answers fall onto one value: {m['share']:.1%} of {m['answers']} {who} say "
                       f"{clip(m['answer'], 24)!r}, which is right for {m['right']:.1%}: accuracy measures that, not "
                       f"reasoning. {helps}"}
    return {}


def surely_less(base: dict, m: dict) -> bool:
    """Did the base say this value surely less often? By its held-out answers; few of them tell nothing."""
    if not base.get("answers") or base.get("one"):
        return False
    share = base["share"] if base["answer"].strip().casefold() == m["answer"].strip().casefold() else 1 - base["share"]
    return wilson(share, base["answers"])[1] < m["share"] - SAME


def going_bad(m: dict, plan: Plan) -> dict[str, str]:
    """Texts that repeat themselves, that are cut off, that are trained on and should not be."""
    bad, tries, found = m.get("degenerate") or {}, m.get("tries", 0), {}
    if tries and bad.get("loops", 0) > SOME * tries:
        chat = "" if plan.config.chat or not has_chat(plan.model.source.path) else "--chat, "
        warm = "" if plan.config.temperature else "sample at --temperature 0.7 --samples 4, "
        found["loops"] = (f"{bad['loops'] / tries:.0%} of the tries repeat themselves: {chat}{warm}show other "
                          "examples, or take a larger model")
    elif tries and m.get("truncated", 0) > MANY * tries:
        found["cut"] = too_short(m, plan)
    kept = bad.get("kept_loops", 0) + bad.get("kept_outliers", 0)
    if kept > FEW * (m.get("examples", 0) or 1) and not plan.config.drop_degenerate:
        found["kept bad"] = (f"{kept} of the rationales let through go round in circles or stand out by their "
                             "log-probability: --drop-degenerate does not train on them")
    return found


def too_short(m: dict, plan: Plan) -> str:
    return (f"{m['truncated'] / m['tries']:.0%} of the tries are cut off at {plan.max_new} tokens, and what is cut off "
            "is not trained on: a longer --max-new-tokens")


def stuck(history: Sequence[dict], plan: Plan) -> dict[str, str]:
    """Why nothing improves, as far as metrics show it."""
    last, config, found = history[-1], plan.config, {}
    if last.get("tries") and last["truncated"] > SOME * last["tries"] and "loops" not in going_bad(last, plan):
        found["cut"] = too_short(last, plan)
    if (last.get("dropped") or {}).get("open"):  # nothing is right or wrong there
        return found
    if last.get("tries") and "never_right" in last:
        n, always, never = round(last["tries"] / max(config.samples, 1)), last["always_right"], last["never_right"]
        if (max(always, never) if config.samples == 1 else always + never) > (1 - FEW) * n:
            other = "Easier" if never > always else "Harder"
            found["no signal"] = (f"of {n} problems {always} are always solved and {never} never, without a hint: "
                                  f"there is little to learn from. {other} problems, or more --samples (now "
                                  f"{config.samples}) at a higher --temperature (now {config.temperature:g})")
    rates = [m["solved"] / m["problems"] for m in history if m.get("problems") and "solved" in m][-3:]
    if len(rates) == 3 and max(rates) - min(rates) < SAME and max(rates) < SOLVED:
        hints = "" if config.rationalize or config.select in ("reward", "reward-blind") else "--rationalize, "
        found["keep rate"] = (f"the share of problems solved stays at {rates[-1]:.1%}: {hints}more tries (--samples "
                              f"{max(4, 2 * config.samples)} --temperature {config.temperature or 0.7:g}), more "
                              f"--problems, or longer training by {length_of_training(plan)}")
    return found
