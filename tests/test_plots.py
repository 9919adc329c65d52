"""The pictures of a run and of the paper's experiment: what their lines and bars stand for."""

import sys

import pytest
from test_history import made

import train
from star.config import StarConfig
from star.evaluate import counts
from star.run import plots
from star.run.folder import Run, append


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved; they are still written."""
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda drawing, path: figures.append(drawing) or save(drawing, path))
    return figures


def is_png(path):
    return path.read_bytes()[:4] == b"\x89PNG"


def bars(axes):
    """label -> (iterations, heights, bottoms) of the bars."""
    return {c.get_label(): ([round(b.get_x() + b.get_width() / 2) for b in c], [b.get_height() for b in c],
                            [b.get_y() for b in c]) for c in axes.containers}


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def base(share=0.1):
    shares = {"a": share, "b": 3 * share, "mean": 2 * share}
    return {"iteration": 0, "accuracy": shares, "interval": {group: [0.0, 1.0] for group in shares}}


def test_curves_count_problems_whatever_was_sampled_of_them(drawn, tmp_path):
    """Three samples a problem, two hinted ones: of 8 problems 4 are solved, 2 with the hint, 2 are dropped."""
    right, part, wrong = ["right"] * 3, ["wrong", "right", "length"], ["wrong", "unparsed", "length"]
    verdicts = [(p, right if p in "abc" else part if p == "d" else wrong) for p in "abcdefgh"]
    tried = [made(1, "generate", p, v, f"{p}{k}", sample=k) for p, vs in verdicts for k, v in enumerate(vs)]
    hinted = [made(1, "rationalize", p, "right" if p in "ef" else "leak", p, sample=k) for p in "efgh" for k in (0, 1)]
    first = counts(tried, hinted)
    assert (first["kept"], first["rationalized"]) == (10, 4)
    second = counts([made(2, "generate", p, "right") for p in "abc"], [])
    metrics = [base(), {"iteration": 1, "accuracy": {"a": 0.5, "b": 0.7, "mean": 0.6}, **first},
               {"iteration": 2, **second}]  # held-out problems were not asked
    plots.curves(tmp_path / "curves.png", metrics)
    assert is_png(tmp_path / "curves.png")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    left, right = drawn[0].axes
    assert bars(right) == {"solved unaided": ([1, 2], [4, 3], [0, 0]), "only with the hint": ([1, 2], [2, 0], [4, 3]),
                           "dropped": ([1, 2], [2, 0], [6, 3])}
    assert right.get_ylabel() == "problems"
    assert lines(left) == {"a": ([0, 1], [10, 50]), "b": ([0, 1], pytest.approx([30, 70])),
                           "mean": ([0, 1], pytest.approx([20, 60]))}


def test_curves_of_a_base_alone_and_of_a_baseline(drawn, tmp_path):
    """Where nothing was sampled to be trained on, there are no bars."""
    plots.curves(tmp_path / "curves.png", [base()])
    plots.curves(tmp_path / "curves.png", [base(), base() | {"iteration": 1, "problems": 9, "examples": 9}])
    assert all(heights == [] for figure in drawn for _, heights, _ in bars(figure.axes[1]).values())
    assert lines(drawn[1].axes[0])["a"] == ([0, 1], [10, 10])


def test_arms_show_the_mean_and_the_range_over_seeds(drawn, tmp_path):
    shares = {("with", 3): 0.1, ("without", 3): 0.2, ("with", 5): 0.3, ("without", 5): 0.0}
    metrics = {key: [base(s), base(s + 0.01) | {"iteration": 1}] for key, s in shares.items()}
    plots.arms(tmp_path / "curves.png", metrics, [3, 5])
    assert is_png(tmp_path / "curves.png")
    whole, first, second = drawn[0].axes
    assert lines(whole) == {"with rationalization": ([0, 1], pytest.approx([40, 42])),
                            "without rationalization": ([0, 1], pytest.approx([20, 22]))}
    assert lines(first) == {"a": ([0, 1], pytest.approx([20, 21])), "b": ([0, 1], pytest.approx([60, 63]))}
    assert lines(second) == {"a": ([0, 1], pytest.approx([10, 11])), "b": ([0, 1], pytest.approx([30, 33]))}
    assert first.get_title() == "with rationalization, by group"
    low, high = (f([y for _, y in whole.collections[0].get_paths()[0].vertices]) for f in (min, max))
    assert (low, high) == pytest.approx((20, 62))


def test_a_run_draws_its_curves_and_goes_on_without_matplotlib(tmp_path, monkeypatch, capsys):
    run = Run.create(tmp_path / "run", StarConfig(), {}, {})
    append(run.folder / "metrics.jsonl", [base()])
    train.draw(run)
    assert is_png(run.folder / "curves.png")
    (run.folder / "curves.png").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train.draw(run)
    assert capsys.readouterr().err == "note: pictures need matplotlib: pip install 'star-from-scratch[plot]'\n"
    assert not (run.folder / "curves.png").exists()


def test_groups_are_called_what_they_are_and_are_not_too_many(drawn, tmp_path, recwarn):
    """Neither a formula nor a hidden name, nor a page of them; what the font lacks is no warning."""
    names = ["$\\frac{", "_hidden", "漢字\U0010fffe", "\x1b[31m\u202e", "g" * 10_000, "mean"]
    for n, groups in enumerate((names, [*map(str, range(300)), "mean"])):
        metrics = [{"iteration": i, "accuracy": dict.fromkeys(groups, i / 2)} for i in (0, 1)]
        plots.curves(tmp_path / f"{n}.png", metrics)
        assert is_png(tmp_path / f"{n}.png")
    shown = [t.get_text() for t in drawn[0].axes[0].get_legend().get_texts()]
    assert shown[:4] == [r"\$\frac{", " _hidden", "漢字\\U0010fffe", "\\x1b[31m\\u202e"]
    assert max(map(len, shown)) == 24
    assert list(lines(drawn[1].axes[0])) == ["mean"]
    assert not recwarn


def test_a_link_in_the_place_of_the_picture_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for name in ("curves.png", "curves.png.tmp", "curves.tmp.png"):
        (tmp_path / name).symlink_to("mine")
    plots.curves(tmp_path / "curves.png", [base()])
    assert is_png(tmp_path / "curves.png")
    assert (tmp_path / "mine").read_text() == "mine"
