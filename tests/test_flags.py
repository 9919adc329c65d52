"""Command lines: settings, options of the task, presets and what of them gives way; what is refused is one line."""

import json
import re
import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import SHIPPED, refused

import sample
import star.tasks
import train
from star.config import CONFLICTS, DEFAULTS, StarConfig, kind_of
from star.experiments import arms, baseline
from star.run.flags import PATHS, PRESETS, as_flags, preset_names, read_flags, read_preset, under_flags, without
from star.run.folder import Run
from star.run.sample_flags import read_args
from star.tasks import task_names, task_options

NAMES = ("modern", "paper", "quick", "smollm2-addition")
BESIDE = ([], ["--epochs", "2"], ["--first-steps", "7"], ["--growth", "1.5"], ["--temperature", "0"],
          ["--temperature", "1"], ["--samples", "1"], ["--rationalize"], ["--no-rationalize"], ["--iterations", "0"],
          ["--validation", "0"], ["--keep", "last"], ["--few-shot-sample", "always"],
          ["--heldout-problems", "5", "--seed", "3", "--chat"])


def read(*argv):
    return read_flags(list(argv), "words on the command")[0]


def written(name):
    """What stands in a preset, settings and options."""
    return read_preset(name)[1]


def toml(text, name="my.toml"):
    Path(name).write_text(text)
    return name


# flags


def test_nothing_given_is_nothing_set():
    flags = read()
    assert (flags.settings, flags.options, flags.out, flags.resume, flags.check, flags.preset, flags.show,
            flags.price_per_hour) == ({}, {}, None, None, False, None, 3, None)
    flags = read("--show", "0", "--price-per-hour", "2.5", "--check", "--out", "a")
    assert (flags.show, flags.price_per_hour, flags.check, flags.out) == (0, 2.5, True, Path("a"))


@pytest.mark.parametrize("f", fields(StarConfig), ids=lambda f: f.name)
def test_each_setting_has_a_flag(f):
    """A switch has two: --x and --no-x."""
    flag, kind = "--" + f.name.replace("_", "-"), kind_of(f)
    if kind is bool:
        assert read(flag).settings == {f.name: True}
        assert read(f"--no-{flag[2:]}").settings == {f.name: False}
        refused(read, flag, "yes", words=("yes",))
        return
    choices = f.metadata["choices"]
    said = str(choices[-1]) if choices else {str: "columns", int: "3", float: "2.5"}[kind]
    value = read(flag, said).settings[f.name]
    assert value == (str(Path(said).absolute()) if f.name in PATHS else kind(said))
    assert type(value) is kind
    assert read(f"{flag}={said}").settings[f.name] == value
    refused(read, flag, words=(flag, "--help"))
    refused(read, flag[:-1], said, words=(flag[:-1],))  # nothing is abbreviated
    if kind is not str or f.metadata["choices"]:
        refused(read, flag, "x", words=(flag, "'x'"))


def test_what_else_is_refused():
    refused(read, "--show", "x", words=("--show", "'x'"))
    refused(read, "stray", words=("unrecognized arguments: stray", "--help lists the settings"))
    refused(read, "--task", "algebra", words=("unknown task 'algebra'", "known are arithmetic"))


@pytest.mark.parametrize(("typed", "meant"), [
    ("--iteratoins", "--iterations"), ("--max_new_tokens", "--max-new-tokens"), ("--learning-rate", "--lr"),
    ("--no-rationalise", "--no-rationalize"), ("--digit", "--digits"), ("--bacth-size=3", "--batch-size"),
])
def test_a_flag_nearly_typed_is_named(typed, meant):
    refused(read, typed, "3", words=(f"unrecognized arguments: {typed}", f"did you mean {meant}?; --help"))


def test_a_flag_far_from_all_is_not_guessed():
    for typed in ("--quantize", "-x", "x"):
        assert "did you mean" not in refused(read, typed, words=("unrecognized arguments",))
    refused(read_args, ["--temprature", "1", "x"], "", words=("did you mean --temperature?",))


@pytest.mark.parametrize("settings", [
    {}, {"rationalize": False, "merge": None, "lr": 2e-4, "chat": True, "keep": "all"},
    {"task": "columns", "digits": "1-2", "shots": 3}, {"merge": False, "model": "/m", "few_shot_sample": "hint"},
])
def test_settings_as_a_command_line_are_the_same_again(settings):
    flags = read(*as_flags(settings))
    assert flags.settings | flags.options == {k: v for k, v in settings.items() if v is not None}


def test_flags_that_a_command_sets_itself():
    without(["--problems", "3"], "seed", "rationalize")
    for argv in (["--seed", "3"], ["--seed=3"], ["--no-rationalize"], ["--rationalize"]):
        refused(without, argv, "seed", "rationalize", words=("sets it itself",))


# options of a task


@pytest.mark.parametrize("task", task_names())
def test_each_option_of_a_task_has_a_flag(task):
    for name, option in task_options(task).items():
        flag = "--" + name.replace("_", "-")
        if option.type is bool:
            assert read("--task", task, flag).options == {name: True}
            assert read("--task", task, f"--no-{flag[2:]}").options == {name: False}
        else:
            value = read("--task", task, flag, "3").options[name]
            assert value == (str(Path("3").absolute()) if option.type is Path else option.type("3"))


def test_an_option_of_another_task_says_whose_it_is():
    refused(read, "--shots", "3", words=(
        "task arithmetic has no setting --shots", "belongs to task coin_flip, columns, commonsenseqa, gsm8k, jsonl",
        "--help"))
    refused(read, "--task", "gsm8k", "--fields=question=q", words=("no setting --fields; it belongs to task jsonl",))
    refused(read, "--task", "gsm8k", "--digits", "3", words=("no setting --digits", "task arithmetic, columns"))


@pytest.mark.parametrize("name", ["seed", "no_chat", "out", "show", "learn", "help"])
def test_an_option_that_is_a_setting_already_is_refused(tmp_path, monkeypatch, name):
    """Of every run, or of the command that reads the flags (--learn)."""
    (tmp_path / f"clash_{name}.py").write_text(f"def load({name}: int = 0): pass\n")
    monkeypatch.setattr(star.tasks, "__path__", [*star.tasks.__path__, str(tmp_path)])
    argv = ["--task", f"clash_{name}"]
    refused(read_flags, argv, "", lambda parser: parser.add_argument("--learn"), words=(
        f"task clash_{name}: its option '{name}' is a setting of every run already",))


def test_settings_and_options_are_refused_on_resume(own_folder, capsys):
    Run.create(Path("run"), StarConfig(iterations=0), {"digits": "1"}, {}).close()
    for argv, words in (
        (["--digits", "2"], "leave out --digits"), (["--shots", "2"], "leave out --shots"),
        (["--lr", "1", "--no-rationalize"],
         "--lr is 1.0, and the run was begun with 0.005; --rationalize is False, and the run was begun with True; only "
         "--extend, --iterations, --device, --slots, --micro-tokens, --save-every, --shard may change"),
        (["--preset", "quick"], "leave out --preset"), (["--task", "columns"], "--task is columns, and the run was"),
        (["--out", "x"], "and its folder: leave out --out"),
    ):
        assert train.main(["--resume", "run", *argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: --resume keeps the run's settings")
        assert words in err
        assert err.count("\n") == 1


def test_paths_do_not_depend_on_where_a_command_is_given(own_folder, tmp_path, monkeypatch, capsys):
    """--model and --data are stored whole: the run can be opened from another folder."""
    shutil.copytree(SHIPPED, "model")
    Path("sums.jsonl").write_text("".join(json.dumps({"question": f"{i}+{i}", "answer": str(2 * i)}) + "\n"
                                          for i in range(20)))
    there = str(tmp_path / "sums.jsonl")
    assert read("--task", "jsonl", "--data", "sums.jsonl").options == {"data": there}
    assert read("--model", "model").settings == {"model": str(tmp_path / "model")}
    preset = toml('task = "jsonl"\ndata = "sums.jsonl"\nmodel = "model"\n')
    flags = read("--preset", preset)
    assert (flags.options, flags.settings["model"]) == ({"data": there}, str(tmp_path / "model"))
    argv = ["--digits", "1", "--iterations", "0", "--heldout-problems", "2", "--out", "run"]
    assert train.main(["--model", "model", *argv]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sample.main(["1+2", "--run", "../run"]) == 0
    assert "-> 3 is right" in capsys.readouterr().out


# help


@pytest.mark.parametrize(("main", "argv", "words"), [
    (train.main, [], ["--digits", "[1-5]", "options of --task arithmetic", "--rationalize, --no-rationalize", *NAMES]),
    (train.main, ["--task", "columns"], ["--shots", "examples in front of each sum", "options of --task columns"]),
    (train.main, ["--task=jsonl"], ["--fields", "+ joins several, dots look inside", "--zero-shot, --no-zero-shot"]),
    (train.main, ["--preset", "smollm2-addition"], ["options of --task columns"]),
    (baseline.main, ["--task", "gsm8k"], ["--learn {gold,answers}", "--data", "options of --task gsm8k"]),
    (arms.main, [], ["--arms", *arms.ARMS]),
    (sample.main, [], ["--trace", "--verdict", "truncated"]),
])
def test_help_names_the_tasks_options(capsys, main, argv, words):
    for ask in ("-h", "--help"):
        with pytest.raises(SystemExit) as e:
            main([*argv, ask])
        assert e.value.code == 0
        said = capsys.readouterr()
        assert said.err == ""
        flat = " ".join(said.out.split())
        assert all(word in flat for word in words), flat
    if main is train.main:
        assert all(re.search(rf"--{name.replace('_', '-')}[ ,]", flat) for name in DEFAULTS)


# presets


def test_presets_are_files():
    assert preset_names() == sorted(NAMES) == sorted(p.stem for p in PRESETS.iterdir() if p.suffix == ".toml")
    assert all(read_preset(name)[0] == PRESETS / f"{name}.toml" for name in NAMES)
    assert written("quick")["problems"] == 64


@pytest.mark.filterwarnings("ignore:.*since the flags contradict it")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beside", BESIDE, ids=" ".join)
def test_presets_are_valid_with_flags_beside_them(name, beside):
    flags = read("--preset", name, *beside)
    assert flags.preset == name
    config = StarConfig(**flags.settings)
    assert read(*beside).settings.items() <= flags.settings.items()
    assert config.model == (str(Path(written(name)["model"]).absolute()) if "model" in written(name) else None)
    if not beside:
        star.tasks.load_task(config.task, **flags.options)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_stands_in_its_file(name):
    flags = read("--preset", name, "--iterations", "3", "--batch-size", "5")
    said = {k: str(Path(v).absolute()) if k == "model" else v for k, v in written(name).items()}
    assert flags.settings | flags.options == said | {"iterations": 3, "batch_size": 5}
    assert set(flags.options) == {"smollm2-addition": {"digits", "shots"}}.get(name, set())


@pytest.mark.filterwarnings("ignore:.*since the flags contradict it")
def test_flags_go_before_a_preset_and_what_they_contradict_gives_way():
    """Nothing else does: the rest of the file stays. What is left out is said."""

    def left(name, *argv):
        """(keys of the preset that gave way, settings)"""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            settings = read("--preset", name, *argv).settings
        gone = set(written(name)) - set(settings)
        line = re.compile(rf"{name}\.toml: (\w+) is left out, since the flags contradict it")
        assert sorted(line.fullmatch(str(w.message))[1] for w in said) == sorted(gone)
        return gone, settings

    def changed(name, *argv):
        return {k for k, v in written(name).items() if read("--preset", name, *argv).settings.get(k, v) != v}

    for argv, gone in (
        (["--lr", "1e-3"], set()), (["--first-steps", "9"], {"epochs"}), (["--growth", "1.5"], {"epochs"}),
        (["--temperature", "0"], {"samples", "max_per_problem"}), (["--validation", "0"], {"patience", "heldout_when"}),
        (["--samples", "9", "--temperature", "0.3"], set()), (["--samples", "2"], {"max_per_problem"}),
        (["--samples", "2", "--keep", "all"], set()), (["--rationalize"], set()),
        (["--temperature", "0", "--samples", "1", "--validation", "0"],
         {"max_per_problem", "patience", "heldout_when"}),
    ):
        assert left("modern", *argv)[0] == gone, argv
        assert changed("modern", *argv) <= {a[2:].replace("-", "_") for a in argv}
    gone, settings = left("paper", "--epochs", "2")
    assert gone == {"first_steps", "growth"}
    assert settings == {k: v for k, v in written("paper").items() if k not in gone} | {"epochs": 2.0}
    assert left("modern", "--temperature", "0")[1]["temperature"] == 0
    assert StarConfig(**left("modern", "--temperature", "0")[1]).samples == 1
    assert read("--preset", "smollm2-addition", "--digits", "2").options == {"digits": "2", "shots": 10}
    assert (StarConfig().lr, StarConfig(model="x").lr) == (5e-3, 2e-4)


@pytest.mark.filterwarnings("default:.*since the flags contradict it")
def test_what_gives_way_is_one_line(own_folder, capsys):
    """Options of the preset's own task too, where --task names another."""
    assert train.main(["--preset", "modern", "--first-steps", "9", "--check"]) == 0
    assert capsys.readouterr().err == "warning: modern.toml: epochs is left out, since the flags contradict it\n"
    preset = toml('task = "columns"\nshots = 3\ndigits = "2"\n')
    assert train.main(["--preset", preset, "--task", "arithmetic", "--check"]) == 0
    said = capsys.readouterr()
    assert said.err == "warning: my.toml: shots is left out, since the flags contradict it\n"
    assert "task    arithmetic: 7,900 training problems" in said.out  # both tasks have digits


@pytest.mark.filterwarnings("ignore:.*since the flags contradict it")
def test_every_conflict_can_be_resolved_for_flags():
    """Whatever of a conflict a preset has and whatever a flag says, the flag wins; two flags are an error as ever."""
    one = {  # what stands in the preset, what is said beside it
        ("epochs", "first_steps", "growth"): ({"epochs": 2.0}, {"growth": 1.5}),
        ("growth", "iterations", "first_steps"): ({"growth": 9.0, "iterations": 2}, {"iterations": 9}),
        ("samples", "temperature"): ({"samples": 3, "temperature": 1.0}, {"temperature": 0.0}),
        ("hint_samples", "rationalize"): ({"hint_samples": 1}, {"rationalize": False}),
        ("hint_samples", "temperature"): ({"hint_samples": 3, "temperature": 1.0}, {"temperature": 0.0}),
        ("top_k", "top_p", "temperature"): ({"top_k": 3, "top_p": 0.5, "temperature": 1.0}, {"temperature": 0.0}),
        ("max_per_problem", "samples", "hint_samples", "keep"): (
            {"max_per_problem": 3, "samples": 3, "temperature": 1.0}, {"samples": 2}),
        ("wanted", "problems", "samples"): ({"wanted": 1000}, {"problems": 10}),
        ("patience", "validation"): ({"patience": 2, "validation": 9}, {"validation": 0}),
        ("heldout_when", "validation"): ({"heldout_when": "best", "validation": 9}, {"validation": 0}),
        ("wanted", "generators", "candidates"): ({"wanted": 9}, {"generators": "a"}),
        ("wanted", "select"): ({"wanted": 9, "reward": "a"}, {"select": "correct+reward"}),
        ("reward_threshold", "select"): (
            {"reward_threshold": 1.0, "select": "reward-blind", "reward": "a"}, {"select": "correct"}),
        ("shard", "merge"): ({"merge": True}, {"shard": True}),
        ("merge", "base_bits"): ({"merge": True}, {"base_bits": 8}),
    }
    lacking = {("samples",), ("select", "reward"), ("reward_by", "reward_format", "reward"), ("skip_bad", "candidates"),
               ("reward_weights", "reward")}  # no flag takes a folder or file away
    assert {*one, *lacking} == {c.settings for c in CONFLICTS}
    for preset, flags in one.values():
        with pytest.raises(ValueError, match="--"):
            StarConfig(**preset | flags)
        settings, options = under_flags(Path("p.toml"), preset, flags, {}, {})
        StarConfig(**settings)
        assert flags.items() <= settings.items()
        assert options == {}


def test_a_preset_from_a_file(own_folder, capsys):
    name = toml('# mine\ntask = "columns"\ndigits = "2"\nlr = 1\nrationalize = false\n')
    flags = read("--preset", name, "--shots", "4")
    assert flags.settings == {"task": "columns", "lr": 1, "rationalize": False}
    assert StarConfig(**flags.settings).lr == 1.0
    assert flags.options == {"digits": "2", "shots": 4}
    Path("folder").mkdir()
    assert read("--preset", toml("seed = 3\n", "folder/other.toml")).settings == {"seed": 3}
    assert train.main(["--preset", toml('digits = "2"\nproblems = 7\n'), "--check", "--seed", "1"]) == 0
    assert "task    arithmetic: 7,900 training problems" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "words"), [
    ("problem = 3", ["'problem' is no setting, 'problems' is", "known are task, model", "and of its task digits"]),
    ('task = "columns"\ngrade = "text"', ["'grade' is no setting", "and of its task digits, shots"]),
    ("[section]\nseed = 3", ["'section' is no setting"]),
    ("epochs = 2.0\nfirst_steps = 9", ["--epochs and --first-steps", "leave one of them out"]),
    ("samples = 3", ["--samples is 3", "--temperature 0"]),
    ("problems = 0", ["--problems is 0", "at least 1"]),
    ('problems = "many"', ["problems is 'many'", "of type int"]),
    ("problems = 1.5", ["problems is 1.5", "of type int"]),
    ("problems = true", ["problems is True", "of type int"]), ("rationalize = 1", ["rationalize is 1", "of type bool"]),
    ("lr = []", ["lr is []", "of type float"]), ('keep = "some"', ["--keep is 'some'", "last, all"]),
    ("model = 3", ["model is 3", "of type str"]), ("digits = 3", ["digits is 3", "of type str"]),
    ('task = "columns"\nshots = "3"', ["shots is '3'", "of type int"]),
    ('task = "jsonl"\ndata = 3', ["data is 3", "of type path"]),
    ("seed = ", ["is not TOML"]), ("seed = 3\nseed = 4", ["is not TOML"]), ("seed: 3", ["is not TOML"]),
    (b"seed = 3 # \xff", ["is not TOML"]), ('task = "algebra"', ["unknown task 'algebra'", "known are"]),
    ("task = 3", ["task is 3", "the name of a task"]),
])
@pytest.mark.parametrize("beside", [[], ["--first-steps", "9", "--temperature", "1", "--problems", "3"]], ids=len)
def test_a_preset_that_is_wrong_is_one_line(own_folder, capsys, text, words, beside):
    """It names file and key, also where a flag would have replaced the value."""
    Path("my.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert train.main(["--preset", "my.toml", "--check", *beside]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in ["my.toml", *words]), err


@pytest.mark.parametrize("name", ["best", "best.toml", "", ".", "quick.tml"])
def test_a_preset_that_is_not_there_is_one_line(own_folder, capsys, name):
    assert train.main(["--preset", name, "--check"]) == 2
    err = capsys.readouterr().err
    assert err == (f"error: --preset {name}: no such preset; known are modern, paper, quick, smollm2-addition, or give "
                   "a TOML file\n")
