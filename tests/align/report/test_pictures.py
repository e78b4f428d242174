"""The pictures: what is drawn where, what is refused, and what a missing package says."""

import builtins
import json
import math

import pytest
from matplotlib.figure import Figure

from align.errors import DataError, MachineError, RecipeError
from align.report.comparison import plot_comparison
from align.report.curves import plot_curves, plot_run_curves, series_of

PNG = b"\x89PNG\r\n\x1a\n"


def log_history():
    steps = [
        {
            "step": step,
            "loss": 0.7 - 0.01 * step,
            "rewards/margins": 0.1 * step,
            "logps/chosen": -40.0 + 7 * (-1) ** step,
            "logratios/chosen": -0.2 * step,
            "logratios/rejected": -0.5 * step,
            "rewards/accuracies": 0.5,
            "grad_norm": 3.0,
        }
        for step in (1, 2, 3)
    ]
    return [*steps, {"step": 3, "eval_loss": 0.66}, {"step": 3, "train_runtime": 1.0}]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    savefig = Figure.savefig

    def keep(self, *args, **keywords):
        figures.append(self)
        return savefig(self, *args, **keywords)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def lines(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_every_curve_is_drawn_from_its_own_key(tmp_path, drawn):
    path = plot_curves(log_history(), tmp_path / "new" / "curves.png", title="rpo")
    assert path.read_bytes().startswith(PNG)
    assert list(path.parent.iterdir()) == [path]
    figure = drawn[0]
    assert lines(panel(figure, "loss")) == {
        "loss": ([1, 2, 3], pytest.approx([0.69, 0.68, 0.67])),
        "loss, held out": ([3], [0.66]),
    }
    assert lines(panel(figure, "log-ratio to the frozen policy")) == {
        "chosen": ([1, 2, 3], pytest.approx([-0.2, -0.4, -0.6])),
        "rejected": ([1, 2, 3], pytest.approx([-0.5, -1.0, -1.5])),
    }
    assert lines(panel(figure, "reward margin"))["margin"][1] == pytest.approx([0.1, 0.2, 0.3])
    assert lines(panel(figure, "gradient norm"))["gradient norm"][1] == [3.0, 3.0, 3.0]
    assert lines(panel(figure, "preference accuracy"))["accuracy"][1] == [0.5, 0.5, 0.5]


def test_what_was_not_logged_says_so(tmp_path, drawn):
    plot_curves(log_history(), tmp_path / "x.png", title="x")
    assert texts(panel(drawn[0], "learning rate")) == ["not logged"]
    assert texts(panel(drawn[0], "loss")) == []


def test_a_value_that_is_not_finite_is_a_mark_and_no_point(tmp_path, drawn):
    history = [*log_history(), {"step": 4, "loss": math.nan}, {"step": 5, "loss": math.inf}]
    assert series_of(history, "loss")[0] == [1, 2, 3]
    assert series_of(history, "loss")[2] == [4, 5]
    plot_curves(history, tmp_path / "x.png", title="x")
    assert "loss not finite" in lines(panel(drawn[0], "loss"))
    assert "loss not finite" not in lines(panel(drawn[0], "gradient norm"))


def test_a_log_without_curves_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.logging_steps"):
        plot_curves([{"step": 1, "train_runtime": 3.0}], tmp_path / "x.png", title="x")
    assert list(tmp_path.iterdir()) == []


def test_a_runs_curves_lie_in_its_folder(tmp_path):
    (tmp_path / "log_history.json").write_text(json.dumps(log_history()))
    assert plot_run_curves(tmp_path) == tmp_path / "curves.png"
    (tmp_path / "log_history.json").write_text("{}")
    with pytest.raises(DataError, match="list of log entries"):
        plot_run_curves(tmp_path)
    (tmp_path / "log_history.json").unlink()
    with pytest.raises(DataError, match="does not exist"):
        plot_run_curves(tmp_path)


def test_the_same_log_gives_the_same_bytes(tmp_path):
    first = plot_curves(log_history(), tmp_path / "a.png", title="x").read_bytes()
    assert plot_curves(log_history(), tmp_path / "b.png", title="x").read_bytes() == first


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MachineError, match="extra `report`"):
        plot_curves(log_history(), tmp_path / "x.png", title="x")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot be written"):
        plot_curves(log_history(), tmp_path / "file" / "x.png", title="x")


def make_run(folder, before, after, n=100):
    folder.mkdir()

    def estimates(values):
        return {
            key: {"value": value, "low": value - 0.05, "high": value + 0.02, "n": n}
            for key, value in values.items()
        }

    node = {"before": estimates(before), "after": estimates(after), "n": n, "seed": 0}
    (folder / "metrics.json").write_text(json.dumps(node))
    return folder


@pytest.fixture
def runs(tmp_path):
    base = {"sums/sampled_accuracy": 0.385}
    return [
        make_run(tmp_path / "dpo", base, {"sums/sampled_accuracy": 0.389}),
        make_run(tmp_path / "rpo", base, {"sums/sampled_accuracy": 0.522}),
        make_run(tmp_path / "none", {}, {}),
    ]


def test_each_run_has_its_points_its_bars_and_its_value(runs, tmp_path, drawn):
    path = plot_comparison(
        runs, tmp_path / "c.png", labels=["DPO", "RPO", "?"], measures=["sums/sampled_accuracy"]
    )
    assert path.read_bytes().startswith(PNG)
    axes = panel(drawn[0], "sampled accuracy")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["DPO", "RPO", "?"]
    points = [line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() in ("o", "s")]
    assert points == pytest.approx([38.5, 38.9, 38.5, 52.2])
    # The bar of RPO after training: 52.2 - 5 to 52.2 + 2.
    ends = axes.collections[-1].get_segments()[0][:, 1]
    assert ends == pytest.approx([47.2, 54.2])
    # .522 - .05 = .472 > .385 + .02; .389 - .05 < .405
    shown = [text for text in texts(axes) if text]
    assert shown == ["38.9", "52.2▲", "not\nmeasured"]
    assert axes.get_title(loc="right") == "%, n = 100"


def test_by_default_the_measures_that_some_run_has_are_drawn(runs, tmp_path, drawn):
    plot_comparison(runs, tmp_path / "c.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["sampled accuracy"]


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    out = tmp_path / "c.png"
    one = ["sums/sampled_accuracy"]
    with pytest.raises(DataError, match="None of the runs measured sums/greedy_accuracy"):
        plot_comparison(runs, out, measures=[*one, "sums/greedy_accuracy"])
    with pytest.raises(DataError, match="None of the runs measured anything"):
        plot_comparison(runs[2:], out)
    with pytest.raises(RecipeError, match="no measure sums/nonsense"):
        plot_comparison(runs, out, measures=["sums/nonsense"])
    with pytest.raises(RecipeError, match="3 labels, not 1"):
        plot_comparison(runs, out, measures=one, labels=["a"])
    with pytest.raises(RecipeError, match="1 to 6 runs, not 7"):
        plot_comparison([*runs, *runs, runs[0]], out, measures=one)
    with pytest.raises(RecipeError, match="1 to 6 runs, not 0"):
        plot_comparison([], out, measures=one)
    assert not out.exists()


def test_one_logged_step_is_a_point_and_a_sentence_says_why(tmp_path, drawn):
    plot_curves(log_history()[:1], tmp_path / "x.png", title="x")
    (line,) = panel(drawn[0], "loss").get_lines()
    assert (line.get_marker(), list(line.get_xdata())) == ("o", [1])
    assert list(panel(drawn[0], "loss").get_xticks()) == [1]
    assert "train.logging_steps" in drawn[0].get_supxlabel()


def test_many_steps_are_a_line_and_need_no_sentence(tmp_path, drawn):
    history = [{"step": step, "loss": 1.0} for step in range(1, 30)]
    plot_curves(history, tmp_path / "x.png", title="x")
    (line,) = panel(drawn[0], "loss").get_lines()
    assert line.get_marker() in ("", "None", None)
    assert drawn[0].get_supxlabel() == ""


def test_a_log_without_ratios_shows_what_its_objective_compares(tmp_path, drawn):
    history = [{"step": 1, "loss": 0.7, "rewards/chosen": 0.1, "rewards/rejected": -0.1}]
    plot_curves(history, tmp_path / "x.png", title="x")
    axes = panel(drawn[0], "reward as the objective compares it")
    assert lines(axes)["rejected"] == ([1], [-0.1])


def test_below_ten_rows_there_is_a_point_and_no_interval(tmp_path, drawn):
    base, after = {"sums/sampled_accuracy": 0.1}, {"sums/sampled_accuracy": 0.9}
    plot_comparison([make_run(tmp_path / "few", base, after, n=9)], tmp_path / "few.png")
    plot_comparison([make_run(tmp_path / "more", base, after, n=10)], tmp_path / "more.png")
    few, more = (figure.axes[0] for figure in drawn)
    assert not few.collections
    assert len(more.collections) == 2
    assert [text for text in texts(few) if text] == ["90.0"]  # no mark either
    assert [text for text in texts(more) if text] == ["90.0▲"]
    assert "Below n = 10 points only" in drawn[0].get_supxlabel()
    assert "Below n" not in drawn[1].get_supxlabel()


def test_measures_of_anybodys_own_are_drawn_too(tmp_path, drawn):
    run = make_run(tmp_path / "own", {"mine/length": 3.0}, {"mine/length": 4.0})
    plot_comparison([run], tmp_path / "own.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["mine/length"]
