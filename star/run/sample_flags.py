"""What the command line of sample.py says, and which of its flags go together. That of train.py is star/run/flags."""

from argparse import Namespace
from pathlib import Path

from star.evaluate import VERDICTS
from star.problem import SAMPLED
from star.reward import FORMATS
from star.run.flags import Parser, add_options
from star.run.history import OUTCOMES
from star.tasks import task_options

LEAST = {"limit": 1, "samples": 1, "max_new_tokens": 1, "iteration": 0, "temperature": 0, "seed": 0}


def own_flags(doc: str) -> Parser:
    parser = Parser(doc)
    parser.add_argument("question", nargs="?", help="a question, as 48571+9664; none: type them in")
    parser.add_argument("--model", type=Path, help="a model folder: go on with any text, or ask it a --task")
    parser.add_argument("--chat", action="store_true", help="with --model: ask in its chat template")
    parser.add_argument("--task", help="whose questions it is asked, with that task's options [the run's]")
    parser.add_argument("--max-new-tokens", type=int, help="where to stop [the run's; with --model 200]")
    parser.add_argument("--trace", action="store_true", help="show one problem's whole way: of a question, or of "
                        "--problem ID")
    parser.add_argument("--run", type=Path, help="run folder [the newest finished one]")
    parser.add_argument("--iteration", type=int, help="which model; 0: the base [the best or last; 0 with --trace]")
    parser.add_argument("--temperature", type=float, help="0 is greedy [0; with several samples 0.7]")
    parser.add_argument("--seed", type=int, default=0, help="of the draws, if the temperature is not 0 [0]")
    parser.add_argument("--ask", action="store_true", help="with --run: type questions, list nothing")
    group = parser.add_argument_group("several answers, and a judge that picks")
    group.add_argument("--best-of", type=int, metavar="N", help="N answers of each model to a question, and the "
                       "judge's pick")
    group.add_argument("--reward", help="the judge: a reward model's folder [the run's]")
    group.add_argument("--reward-by", choices=("head", "likelihood"), help="as in train.py")
    group.add_argument("--reward-weights", help="as in train.py")
    group.add_argument("--reward-format", choices=("auto", *FORMATS), help="as in train.py")
    group.add_argument("--generators", help="folders of other models that answer too, separated by commas")
    group = parser.add_argument_group("files for and from other models")
    group.add_argument("--questions", type=Path, metavar="FILE", help="write training questions, to be sent elsewhere")
    group.add_argument("--rollouts", type=Path, metavar="FILE", help="write what the model samples for them")
    group.add_argument("--samples", type=int, help="rollouts: of each [1]")
    group = parser.add_argument_group("what a run generated")
    group.add_argument("--problem", help="list: one problem's rationales; 17 finds train-17. With --trace: which one")
    group.add_argument("--verdict", help=f"list: {', '.join([*VERDICTS, *OUTCOMES])}")
    group.add_argument("--phase", help=f"list: {', '.join(SAMPLED)}")
    group.add_argument("--source", help="list: who wrote it; student is the model that was trained")
    group.add_argument("--limit", type=int, help="list: rationales or problems shown at most [20]; files: problems "
                       "[all]")
    return parser


def read_args(argv: list[str], doc: str) -> Namespace:
    """The command line of sample.py; `options` are those of --task. ValueError on flags that do not go together."""
    first = Parser("")  # which task it is decides which flags there are
    first.add_argument("--task")
    task = first.parse_known_args([a for a in argv if a not in ("-h", "--help")])[0].task
    parser, options = own_flags(doc), task_options(task) if task else {}
    add_options(parser, task or "NAME", options)
    args = parser.parse_args(argv)
    args.options = {name: vars(args)[name] for name in options}
    args.files = bool(args.questions or args.rollouts)
    traced = args.trace and args.problem is not None
    filters = [flag for flag in ("problem", "verdict", "phase", "source")
               if getattr(args, flag) is not None and not (flag == "problem" and traced)]
    asks = args.question is not None or args.trace or args.ask or args.model or args.task or args.best_of
    for wrong, why in (
        (filters and (asks or args.files), f"--{(filters or [''])[0]} lists what a run generated: leave out the "
         "question, --trace, --ask, --model, --task, --best-of, --questions and --rollouts"),
        (args.run and (args.model or args.task), "--run is asked as it was trained: leave out --model and --task"),
        (args.model and (args.iteration is not None or (args.trace and not args.task)),
         "--model asks a model without a run: leave out --iteration, and with --trace name a --task"),
        (args.chat and not args.model, "--chat asks a --model in its chat template; a run knows how it is asked"),
        (args.trace and args.question is None and not traced,
         '--trace needs a question or --problem ID, as in: python sample.py --trace "1064+4991"'),
        (traced and args.question is not None, "--trace shows one problem: a question or --problem ID, not both"),
        (args.trace and args.best_of, "--trace shows one answer, --best-of several: leave one of them out"),
        (args.files and (args.question is not None or args.trace or args.best_of), "--questions and --rollouts write a "
         "file and answer nothing: leave out the question, --trace and --best-of"),
        (args.questions and args.rollouts, "--questions and --rollouts write a file each: give one of them alone"),
        (args.samples is not None and not args.rollouts, "--samples belongs to --rollouts: leave it out"),
        (args.limit is not None and args.question is not None, "--limit lists, or writes files: leave it out"),
        ((args.reward or args.generators) and not args.best_of and not args.files, "--reward and --generators belong "
         "to --best-of N: say how many answers"),
        (args.files and (args.reward or args.generators), "--questions and --rollouts know one model and no judge: "
         "leave out --reward and --generators"),
        (args.rollouts and args.model and not args.task, "--rollouts answers a task's problems: name a --task"),
        *((not low <= (low if vars(args)[name] is None else vars(args)[name]) < 1 << 63,
           f"--{name.replace('_', '-')} is {vars(args)[name]}; it must be a number from {low} on")
          for name, low in LEAST.items()),
        (args.best_of is not None and not 1 <= args.best_of <= 1000, f"--best-of is {args.best_of}; it must be 1 to "
         "1000"),
    ):
        if wrong:
            raise ValueError(why)
    args.browse = bool(filters) or (args.run is not None and not asks and not args.files)
    return args
