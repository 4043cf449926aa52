"""Figures: readable whatever the tokens are, and the same bytes every time."""

import warnings

import pandas as pd
import pytest

pytest.importorskip("matplotlib")
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.container import BarContainer  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from laser_lab.data.hopworld import HopWorld, HopWorldConfig  # noqa: E402
from laser_lab.lab import figures  # noqa: E402
from laser_lab.lab.figures import style  # noqa: E402
from laser_lab.lab.figures.drawings import path_of  # noqa: E402
from laser_lab.methods import METHODS  # noqa: E402

ODD = [
    "\n",
    " the",
    "$x_1$",
    "$",
    "\\frac{",
    "😀🧑‍🚀",
    "日本語",
    "हिन्दी",
    "\t",
    "",
    "<start_of_image>",
    "\ufffd",
    "\x00",
    "a" * 60,
]


def token_frame(steps: int = 3, top: int = 5, queries: tuple[str, ...] = ("why is the sky blue",)) -> pd.DataFrame:
    rows = [
        (query, step, rank, ODD[(step * top + rank) % len(ODD)], 0.5 / rank)
        for query in queries
        for step in range(1, steps + 1)
        for rank in range(1, top + 1)
    ]
    return pd.DataFrame(rows, columns=["query", "step", "rank", "token", "probability"])


def steps_frame() -> pd.DataFrame:
    rows = [(m, k, 0.1 * k, 0.1 * k - 0.05, 0.1 * k + 0.05) for m in ("latent", "random") for k in (1, 2, 3)]
    return pd.DataFrame(rows, columns=["method", "thinking_steps", "ndcg@10", "low", "high"])


def assert_readable(fig):
    """At a README's width of 830 pixels letters are 9 pixels high at least, and axes say what they show."""
    fig.savefig("/dev/null", format="png")  # ticks and legends are there once it is drawn
    width = fig.get_size_inches()[0]
    shown = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]
    assert shown and width <= style.MAX_WIDTH + 0.01, width
    small = {text.get_text(): text.get_fontsize() for text in shown if text.get_fontsize() < style.SMALLEST}
    assert not small, small
    assert style.SMALLEST / 72 * 830 / style.MAX_WIDTH > 9
    drawn = [ax for ax in fig.axes if ax.get_visible() and ax.axison]
    for name in ("x", "y"):  # panels share the label of their row or column
        said = [getattr(ax, f"get_{name}label")() or getattr(ax, f"get_{name}ticklabels")() for ax in drawn]
        assert any(said) or not drawn, f"no label on the {name} axes"


def test_every_method_has_a_colour_of_its_own():
    missing = METHODS.keys() - style.METHOD_COLOURS.keys()
    assert not missing
    assert len({style.METHOD_COLOURS[name] for name in METHODS}) == len(METHODS)
    assert len({style.line_of(name, at)["marker"] for at, name in enumerate(style.MARKERS)}) == len(style.MARKERS)


def test_a_method_is_drawn_alike_in_every_figure():
    looks = {name: style.line_of(name, at) for at, name in enumerate(style.METHOD_COLOURS)}
    assert all(style.line_of(name, 0) == look for name, look in looks.items()), "whatever stands before it"
    main = ["laser", "latent", "gircse", "basic", "lexical"]
    assert len({str(looks[name]["linestyle"]) for name in main}) == 5 and len({style.hatch_of(n, 0) for n in main}) == 5
    assert style.line_of("gircse (K+1 calls)", 3) == looks["gircse"]
    assert style.colour_of("gircse (K+1 calls)", 3) == style.METHOD_COLOURS["gircse"]
    assert style.line_of("2 hops", 1) != style.line_of("3 hops", 2)


def test_lines_bars_and_points_have_the_colour_of_their_method():
    frame = steps_frame().replace({"random": "basic"})
    lines = figures.metric_by_steps(frame).axes[0].lines
    assert [to_hex(line.get_color()) for line in lines] == [style.METHOD_COLOURS[m] for m in ("latent", "basic")]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 2, "told apart in grey"
    bars = figures.grouped_bars(frame, "ndcg@10", x="thinking_steps", group="method").axes[0].containers
    bars = [container for container in bars if isinstance(container, BarContainer)]
    assert [to_hex(bar[0].get_facecolor()) for bar in bars] == [style.METHOD_COLOURS[m] for m in ("latent", "basic")]
    assert len({bar[0].get_hatch() for bar in bars}) == 2
    dots = figures.trainings(frame.assign(label=frame["method"])).axes[0].lines
    assert {to_hex(line.get_color()) for line in dots} == {style.METHOD_COLOURS[m] for m in ("latent", "basic")}


def test_what_is_drawn_can_be_read_in_a_readme():
    world = HopWorld(HopWorldConfig(entities=12, relations=3, dev=4, test=8, verbosity=5))
    frame = pd.concat([steps_frame().assign(hops=h, train_steps=k) for h in (2, 3, 4) for k in range(1, 9)])
    loss = pd.DataFrame([(m, s, "output", v) for m in "ab" for s, v in ((1, 0.0), (2, 1e-9), (3, 0.5), (4, 0.1))])
    loss.columns = ["method", "step", "term", "loss"]
    curves = figures.loss_curves(loss)
    assert pd.isna(curves.axes[0].lines[0].get_ydata()).tolist() == [True, True, False, False], "no zero is drawn"
    for fig in (
        figures.method(),
        figures.hop_path(path_of(world, world.test[0])),
        curves,
        figures.metric_by_steps(frame, group="train_steps", panel="hops"),
        figures.heatmap(frame, "ndcg@10", x="thinking_steps", y="train_steps", panel="hops"),
        figures.grouped_bars(frame, "ndcg@10", x="train_steps", group="method", panel="hops"),
        figures.trainings(frame.assign(label=frame["method"]), failed=0.25),
        figures.metric_bars(frame.drop_duplicates("train_steps").assign(label="long name")),
        figures.thought_heatmap(token_frame(), step="step"),
    ):
        assert_readable(fig)


def test_a_path_names_every_entity_and_no_other_relation():
    world = HopWorld(HopWorldConfig(entities=12, relations=3, dev=4, test=8))
    frame, one = path_of(world, world.test[0]), world.test[0]
    on = frame[frame["on_path"]]
    assert on["end"].tolist() == list(one.bridges) and on["relation"].tolist() == list(one.relations)
    assert len(frame) == 3 * 3 and (frame.groupby("hop")["on_path"].sum() == 1).all()
    shown = {text.get_text() for text in figures.hop_path(frame).axes[0].texts}
    assert {one.start, *one.bridges, *one.relations} <= shown and f"“{one.query}”" in shown


def test_heatmap_has_a_cell_per_step_and_rank(tmp_path):
    frame = token_frame(5, 6, ("why does $5 cost $10?", "two\nlines, 日本"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph the font lacks is a warning
        fig = figures.thought_heatmap(frame, title="costs $5 or $10")
        figures.save(fig, frame, "thoughts", tmp_path)
    assert isinstance(fig, Figure)
    panels = fig.axes[:2]
    assert [len(ax.texts) for ax in panels] == [5 * 6, 5 * 6]
    assert panels[0].texts[0].get_text() == figures.readable(frame["token"].iloc[0])
    assert panels[0].get_title(loc="left") == "why does $5 cost $10?"


def test_words_that_hardly_weigh_are_grey_and_letters_differ_from_their_cells():
    frame = token_frame(1, 3).assign(probability=[0.99, 0.02, 0.001])
    inks = [to_hex(text.get_color()) for text in figures.thought_heatmap(frame).axes[0].texts]
    assert inks == ["#ffffff", "#000000", "#8c8c8c"]


def test_rows_that_were_not_run_say_so():
    rows = [("a", 3, k, 0.1 * k) for k in (1, 2)] + [("b", t, k, 0.2) for t in (3, 5) for k in (1, 2)]
    frame = pd.DataFrame(rows, columns=["method", "train_steps", "thinking_steps", "ndcg@10"])
    look = dict(x="thinking_steps", y="train_steps", panel="method", missing="not run")
    first, second = figures.heatmap(frame, "ndcg@10", **look).axes[:2]
    assert [ax.texts[0].get_text() == "not run" for ax in (first, second)] == [True, False]
    assert len(first.patches) == 1 and first.patches[0].get_hatch() and len(first.texts) == 3


def test_every_column_of_panels_ends_with_numbers():
    frame = pd.concat([steps_frame().assign(hops=h, train_steps=3) for h in (2, 3, 4)])
    fig = figures.heatmap(frame, "ndcg@10", x="thinking_steps", y="train_steps", panel="hops", across=2)
    fig.savefig("/dev/null", format="png")
    shown = [any(label.get_visible() for label in ax.get_xticklabels()) for ax in fig.axes[:3]]
    assert shown == [False, True, True] and [bool(ax.get_xlabel()) for ax in fig.axes[:3]] == shown


def test_points_without_lines():
    frame = steps_frame().assign(size=[10, 100, 1000] * 2)
    lines = figures.metric_by_steps(frame, x="size", log="x", joined=()).axes[0].lines
    assert lines and all(line.get_linestyle() == "None" for line in lines)
    assert len({line.get_xdata()[0] for line in lines}) > 1, "beside each other"


def test_a_notebook_shows_the_figure():
    assert figures.thought_heatmap(token_frame())._repr_png_().startswith(b"\x89PNG")


def test_heatmap_of_cosines():
    fig = figures.thought_heatmap(token_frame().rename(columns={"probability": "cosine"}))
    assert "cosine similarity" in [ax.get_ylabel() for ax in fig.axes]


@pytest.mark.parametrize(
    ("token", "shown"),
    [("\n", "⏎"), (" the", "␣the"), ("a b", "a b"), ("  ", "␣␣"), ("x ", "x␣"), ("日", "U+65E5"), ("\x07", "U+0007")],
)
def test_readable(token, shown):
    assert figures.readable(token) == shown


def test_readable_cuts_long_tokens():
    assert figures.readable("a" * 60, 8) == "a" * 7 + "…"


def test_plots_of_measures():
    line = figures.metric_by_steps(steps_frame())
    assert line.axes[0].get_xlabel() == "thinking steps K" and line.axes[0].get_ylabel() == "nDCG@10"
    assert len(line.axes[0].lines) == 2
    bars = figures.metric_bars(steps_frame().assign(label="K"))
    assert len(bars.axes[0].patches) == 6


def test_grouped_bars_leave_gaps():
    rows = [("mean", 1, 2.0), ("mean", 2, -3.0), ("left out", 2, 1.0)]
    frame = pd.DataFrame(rows, columns=["intervention", "step", "change"])
    frame["low"], frame["high"] = frame.change - 0.5, frame.change + 0.5
    frame = pd.concat([frame.assign(method=m) for m in ("laser", "latent")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = figures.grouped_bars(frame, "change", x="intervention", group="step", panel="method")
        fig.savefig("/dev/null", format="png")
    assert len(fig.axes) == 2 and [ax.get_title(loc="left") for ax in fig.axes] == ["laser", "latent"]
    assert [label.get_text() for label in fig.axes[-1].get_xticklabels()] == ["mean", "left out"]
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    assert heights[0] == 2 and pd.isna(heights[1]) and heights[2:] == [-3, 1]


def test_intervals_stand_in_rows_by_group_and_panel():
    rows = [(d, m, g, 0.1 * i) for d in "ab" for i, m in enumerate(("basic", "lexical")) for g in ("own", "other")]
    frame = pd.DataFrame(rows[:-1], columns=["data", "label", "group", "change"])
    frame["method"], frame["low"], frame["high"] = frame["label"], frame["change"] - 0.2, frame["change"] + 0.3
    fig = figures.intervals(frame, "change", panel="data", group="group")
    fig.savefig("/dev/null", format="png")
    left, right = fig.axes
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["a", "b"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["basic", "lexical"]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first row is on top"
    assert len(left.containers) == 4 and len(right.containers) == 3, "a missing point leaves a gap"
    low, high = left.containers[2][2][0].get_segments()[0][:, 0]
    assert (low, high) == (pytest.approx(-0.1), pytest.approx(0.4))
    assert [text.get_text() for text in fig.legends[0].texts] == ["own", "other"]
    frame["few"] = frame["group"] == "own"
    fig = figures.intervals(frame, "change", panel="data", group="group", hollow="few")
    faces = [bar.lines[0].get_markerfacecolor() for bar in fig.axes[0].containers]
    assert [face == "white" for face in faces] == [True, False, True, False]


def test_heatmap_writes_into_its_cells():
    rows = [(t, k, layer, 0.1 * k * layer, ODD[k]) for t in "abcde" for k in (1, 2, 3) for layer in (0, 1)]
    frame = pd.DataFrame(rows, columns=["target", "step", "layer", "accuracy", "token"])
    fig = figures.heatmap(frame, "accuracy", x="step", y="layer", panel="target", title="costs $5 or $10")
    shown = [ax for ax in fig.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in shown] == list("abcde")
    assert [t.get_text() for t in shown[0].texts] == ["0.00", "0.00", "0.00", "0.10", "0.20", "0.30"]
    assert not shown[0].yaxis_inverted(), "layers go up"
    tokens = figures.heatmap(frame[frame.target == "a"], "accuracy", x="step", y="layer", text="token")
    assert [t.get_text() for t in tokens.axes[0].texts] == [figures.readable(ODD[k]) for k in (1, 2, 3)] * 2
    with pytest.raises(ValueError, match="lacks the column 'layer'"):
        figures.heatmap(frame.drop(columns="layer"), "accuracy", x="step", y="layer")


def test_rank_bumps(tmp_path):
    ranks = {"a": [1, 3, 2], "b": [2, 1, 1], "c": [3, 2, 3]}
    rows = [
        (change, k, rank, doc, f"document $1 {doc} {ODD[6]}", {"b": "relevant"}.get(doc, ""))
        for change in ("as thought", "soft token 1 → noise")
        for doc, places in ranks.items()
        for k, rank in enumerate(places, 1)
    ]
    frame = pd.DataFrame(rows, columns=["change", "thinking_steps", "rank", "doc_id", "document", "mark"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = figures.rank_bumps(frame, top=1)
        figures.save(fig, frame, "bumps", tmp_path)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["as thought", "soft token 1 → noise"]
    for ax in fig.axes:
        shown = [line.get_ydata().tolist() for line in ax.lines if len(line.get_xdata())]
        assert [[rank for rank in ranks if rank == rank] for ranks in shown] == [[1], [2, 1, 1]], "c is never on top"
        assert ax.get_yscale() == "log"
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == ["1", "2"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["relevant"]
    with pytest.raises(ValueError, match="lacks the column 'mark'"):
        figures.rank_bumps(frame.drop(columns="mark"))


def test_a_frame_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="lacks the column 'token'"):
        figures.thought_heatmap(token_frame().drop(columns="token"))
    with pytest.raises(ValueError, match="empty"):
        figures.metric_by_steps(steps_frame().iloc[:0])


def test_save_writes_three_files_with_the_same_bytes_each_time(tmp_path):
    def write(folder):
        frame = token_frame()
        assert figures.save(figures.thought_heatmap(frame), frame, "x", folder) == folder / "x.png"
        return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}

    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert set(first) == {"x.png", "x.svg", "data/x.csv"}
    assert first == second
    assert pd.read_csv(tmp_path / "a" / "data" / "x.csv").shape == token_frame().shape


def test_a_table_alone_is_written_as_beside_a_figure(tmp_path):
    frame = steps_frame()
    figures.save(figures.metric_by_steps(frame), frame, "x", tmp_path)
    file = figures.save_table(frame, "y", tmp_path)
    assert file == tmp_path / "data" / "y.csv" and file.read_bytes() == (tmp_path / "data" / "x.csv").read_bytes()


def test_save_that_fails_leaves_the_old_files(tmp_path):
    frame = token_frame()
    fig = figures.thought_heatmap(frame)
    figures.save(fig, frame, "x", tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(AttributeError):
        figures.save(figures.metric_by_steps(steps_frame()), "no table", "x", tmp_path)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x"])
def test_save_wants_a_plain_name(tmp_path, name):
    with pytest.raises(ValueError, match="plain file stem"):
        figures.save(figures.metric_by_steps(steps_frame()), steps_frame(), name, tmp_path)


def test_frontier_draws_the_front():
    frame = pd.DataFrame(
        {
            "label": ["basic", "laser K=3", "rewrite-then-retrieve"],
            "method": ["basic", "laser", "rewrite"],
            "milliseconds": [1.0, 2.0, 30.0],
            "ndcg@10": [0.2, 0.9, 0.5],
            "low": [0.1, 0.8, 0.4],
            "high": [0.3, 1.0, 0.6],
            "pareto": [True, True, False],
        }
    )
    fig = figures.frontier(frame)
    assert_readable(fig)
    ax = fig.axes[0]
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "milliseconds per query"
    front = next(line for line in ax.lines if line.get_label() == "Pareto front")
    assert list(front.get_xdata()) == [1.0, 2.0]
    with pytest.raises(ValueError, match="pareto"):
        figures.frontier(frame.drop(columns="pareto"))
    two = pd.concat([frame.assign(source="ours"), frame.assign(source="published", milliseconds=[9, 99, 999])])
    fig = figures.frontier(two, panel="source")
    assert_readable(fig)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["ours", "published"]
    assert fig.axes[0].get_xlim()[1] < fig.axes[1].get_xlim()[1], "axes of their own"


def test_the_front_is_told_by_intervals_and_not_by_noise():
    def front(*rows):
        return figures.on_front(pd.DataFrame(rows, columns=["ms", "ndcg@10", "low", "high"]), "ms")

    assert front((0.72, 0.217, 0.19, 0.24), (0.74, 0.230, 0.20, 0.26)) == [True, True], "0.02 ms decide nothing"
    assert front((1.0, 0.2, 0.1, 0.3), (2.0, 0.9, 0.8, 1.0)) == [True, True]
    assert front((1.0, 0.9, 0.8, 1.0), (2.0, 0.2, 0.1, 0.3)) == [True, False]
    assert front((1.0, 0.90, 0.85, 0.95), (2.0, 0.92, 0.87, 0.97)) == [True, False], "dearer, and not clearly better"
    assert front((1.0, 0.5, 0.4, 0.6), (1.02, 0.9, 0.8, 1.0)) == [False, True], "as dear, and clearly better"


def test_trajectories_have_a_line_per_text():
    rows = [("PCA", 0.1 * k, 0.2 * i, f"q{i}", k, f"step {k}", "d0") for i in range(3) for k in (1, 2)]
    rows += [("PCA", 0.5, 0.7, "d0", 0, "", ""), ("PCA", 0.6, 0.6, "d1", 0, "", "")]
    frame = pd.DataFrame(rows, columns=["projection", "x", "y", "text", "step", "hop", "document"])
    fig = figures.trajectories(frame, colour="hop", panel="projection")
    assert_readable(fig)
    lines = fig.axes[0].lines
    assert len(lines) == 2 * 3 and {(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines[1::2]} == {
        (0.5, 0.7)
    }
    names = ["other document", "own document", "step 1", "step 2"]
    assert [text.get_text() for text in fig.legends[0].texts] == names
    assert [len(points.get_offsets()) for points in fig.axes[0].collections] == [1, 1, 3, 3]


def test_trainings_of_their_own_have_no_line():
    fig = figures.metric_by_steps(steps_frame(), joined=["random"])
    styles = {line.get_linestyle() for line in fig.axes[0].containers[0].lines[:1]}
    assert styles == {"None"} and len(fig.axes[0].collections) == 2, "a band, and whiskers"
    assert sorted(text.get_text() for text in fig.legends[0].texts) == ["latent", "random"]


def test_a_narrow_logarithmic_axis_has_plain_numbers():
    frame = pd.DataFrame({"step": [1, 2], "tokens": [1.0, 3.0], "low": [1.0, 2.5], "high": [1.1, 3.5]})
    fig = figures.metric_by_steps(frame, "tokens", x="step", log="y")
    fig.canvas.draw()
    assert {"1", "1.5", "2", "3"} <= {label.get_text() for label in fig.axes[0].get_yticklabels()}


def test_an_interval_without_width_is_no_whisker():
    frame = steps_frame().head(3).assign(label="K")
    frame.loc[frame.index[0], ["low", "high"]] = frame.loc[frame.index[0], "ndcg@10"]
    whiskers = figures.metric_bars(frame).axes[0].collections[0].get_segments()
    assert [len(line) for line in whiskers] == [0, 2, 2]


def test_thinking_steps_go_down_and_layers_up():
    frame = pd.DataFrame({"step": [1, 2, 1, 2], "layer": [0, 0, 1, 1], "cka": 0.5})
    assert figures.heatmap(frame, "cka", x="layer", y="step").axes[0].yaxis_inverted()
    assert not figures.heatmap(frame, "cka", x="step", y="layer").axes[0].yaxis_inverted()


def test_lines_by_any_group_in_panels():
    frame = pd.concat([steps_frame().assign(hops=h, train_steps=k) for h in (2, 3) for k in (1, 2)])
    fig = figures.metric_by_steps(frame.drop(columns="method"), group="train_steps", panel="hops")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["hops: 2", "hops: 3"]
    assert len(fig.axes[0].lines) == 2
