"""`attnbench figures`: what is drawn of runs, from the store or what is left of it, and what is refused."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from command_line import ROOT, attnbench_here
from PIL import Image
from report_cases import ENVIRONMENT, profile_row
from stage_cases import make_case

from attnbench.commands import figure_separation
from attnbench.commands.sample_sources import grid_cells
from attnbench.data import class_names
from attnbench.errors import UserInputError
from attnbench.evaluation.reference import Reference
from attnbench.profiling.rows import to_measurements
from attnbench.report.paper_figures.catalogue import FIGURES, chosen_figures
from attnbench.report.paper_figures.output import write_latex
from attnbench.results import Measurement, Result, append_result
from attnbench.specs import DigitsData
from attnbench.stages.sampling.grid import write_grid
from attnbench.stages.sampling.shards import Shard, ShardTimes, shard_path, write_shard
from attnbench.storage.store import StageOutput, write_output

PER_CLASS, K = 9, 10


def pictures(shade):
    """Return 90 images of two colours that say which model, and which sample, they are of."""
    images = np.zeros((PER_CLASS * K, 8, 8, 3), np.uint8)
    images[..., 0, :, :] = (shade, 200, 0)
    images[..., 1, :, 2] = 200
    images[..., 1, :, 0] = np.arange(PER_CLASS * K)[:, None]
    return images


def add_case(runs, number, *, recipe="dit-s", size="S", suite="suite", sides=(8,), grid=False, **changes):
    """Add one finished case to a run: its samples in the store, or as a grid picture alone."""
    scale = changes.pop("guidance_scale", 4.0)
    case = make_case(
        sample={"per_class": PER_CLASS, "guidance_scale": scale, **changes.pop("sample", {})},
        model={"size": size},
        seed=changes.pop("seed", 0),
    )
    model = case.model.model_copy(update={"name": recipe, "depth": number + 1})
    label = changes.pop("label", f"{recipe} · guidance_scale={scale}")
    case = case.model_copy(update={"label": label, "suite": suite, "model": model})
    run, artefacts = runs / suite, {}
    images = pictures(10 * (number + 1))
    if grid:
        artefacts["grid"] = f"pictures/{case.id}-grid.png"
        (run / "pictures").mkdir(parents=True, exist_ok=True)
        places = [column * K + row for row in range(K) for column in range(8)]
        write_grid(run / artefacts["grid"], images[places], num_columns=8)
    else:
        folder = runs / "store" / "sample" / case.key("sample")
        folder.mkdir(parents=True, exist_ok=True)
        times = ShardTimes(total_s=1.0, denoise_s=1.0, decode_s=0.0)
        shard = Shard(images=images, labels=np.arange(len(images)) % K, times=times)
        write_shard(shard_path(folder, 0), shard)
        write_output(folder, StageOutput())
    rows = [profile_row(number, side, session=f"at {side}") for side in sides]
    fd = 9.0 - number
    measured = [
        Measurement(name="FD-digits", values=[fd], interval=(fd - 0.2, fd + 0.2), n=90),
        *{m.name: m for row in rows for m in to_measurements(row)}.values(),
    ]
    result = Result(
        case_id=case.id, suite=suite, label=label, status="ok", measurements=measured, artefacts=artefacts,
        case=case.model_dump(mode="json"), environment=ENVIRONMENT,
    )  # fmt: skip
    append_result(run / "results.jsonl", result.model_copy(update=changes))
    return result


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def figures(runs, *words):
    return attnbench_here("figures", "suite", "--runs", str(runs), "--quiet", *words)


def shown_in(runs, *words):
    """Return the models' shades and the samples' numbers that figure 3 shows; its words are grey."""
    done = figures(runs, "--figure", "3", *words, "--to", str(runs / "out"))
    assert done.returncode == 0, done.stderr
    with Image.open(runs / "out" / "figure-3.png") as picture:
        colours = {(r, g, b) for _, (r, g, b) in picture.convert("RGB").getcolors(1 << 24)}
    return {r for r, g, b in colours if (g, b) == (200, 0)}, {r for r, g, b in colours if (g, b) == (0, 200)}


def test_the_same_samples_of_every_model(runs):
    """Rows are families in the paper's order, sizes are groups; every model shows the same samples."""
    add_case(runs, 0, recipe="dydi-lit-s")
    add_case(runs, 1, recipe="dit-s")
    add_case(runs, 2, recipe="dit-l", size="L")
    done = figures(runs, "--figure", "3", "--classes", "7,0", "--samples", "2", "--format", "svg")
    assert done.returncode == 0, done.stderr
    text = (runs / "suite" / "paper-figures" / "figure-3.svg").read_text()
    for word in (">size S<", ">size L<", ">DiT<", ">DyDi-LiT<"):  # without what they share
        assert word in text
    assert text.index(">DiT<") < text.index(">DyDi-LiT<")
    # samples are numbered across classes: sample 2 of class 7 is number 27, of class 0 number 20
    assert shown_in(runs, "--classes", "7,0", "--samples", "2") == ({10, 20, 30}, {27, 20})


def test_without_the_store_the_runs_grid_pictures_are_taken(runs):
    """The images are read back exactly; what they do not hold is said."""
    for number, recipe in enumerate(("dit-s", "sana-s")):
        add_case(runs, number, recipe=recipe, grid=True)
    assert shown_in(runs, "--classes", "7,0", "--samples", "2") == ({10, 20}, {27, 20})
    refused = figures(runs, "--figure", "3", "--classes", "3", "--samples", "8")
    assert refused.returncode == 2
    assert "has 8 samples of class '3' in the run's grid picture" in refused.stderr


def test_a_grid_is_cut_as_it_was_drawn(tmp_path):
    """Small images are enlarged in a grid, large ones are not: both come back pixel by pixel."""
    for side in (8, 50):
        images = np.random.default_rng(0).integers(0, 255, (12, side, side, 3), dtype=np.uint8)
        write_grid(tmp_path / "g.png", images, num_columns=4)
        cells = grid_cells(tmp_path / "g.png", side)
        assert [len(row) for row in cells] == [4, 4, 4]
        assert np.array_equal(np.stack([cell for row in cells for cell in row]), images)
    with pytest.raises(UserInputError, match="no grid of samples of 49 px"):
        grid_cells(tmp_path / "g.png", 49)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "differ in seed: 0 (dit-s · guidance_scale=4.0); 1 (sana-s"),
        ({"guidance_scale": 1.0}, "differ in sample.guidance_scale: 4.0 (dit-s · guidance_scale=4.0); 1.0 ("),
        ({"sample": {"num_steps": 7}}, "differ in sample.num_steps: 3 ("),
        ({"sample": {"noise": "ziggurat"}}, "differ in sample.noise: box-muller ("),
        ({"sample": {"sampler": "heun"}}, "differ in sample.sampler: euler ("),
    ],
)
def test_other_noise_is_refused(runs, changes, words):
    """Pictures from other noise or another sampler are never shown as if the model made the difference."""
    add_case(runs, 0)
    add_case(runs, 1, recipe="sana-s", **changes)
    refused = figures(runs, "--figure", "3")
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert words in said
    assert "choose cases that agree with --case" in said
    assert not list(runs.glob("**/figure-3.*"))


def test_cases_are_chosen_by_pattern(runs):
    """--case takes labels, ids and patterns; one that matches nothing gets the nearest spelling."""
    for number, scale in enumerate((1.0, 4.0, 4.0)):
        add_case(runs, number, recipe=("dit-s", "sana-s", "dydi-lit-s")[number], guidance_scale=scale)
    assert figures(runs, "--figure", "3", "--case", "*scale=4.0").returncode == 0
    refused = figures(runs, "--figure", "3", "--case", "sana-s · guidance_scale=4")
    assert refused.returncode == 2
    assert "did you mean 'sana-s · guidance_scale=4.0'?" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--figure", "2"), "unknown figure '2'"),
        (("--figure", "Fig. 3"), "did you mean '3'?"),
        (("--figure", "1"), "name 1a and 1b"),
        (("--figure", "5"), "figure 5 shows what happens inside a model"),
        (("--figure", ","), "--figure names none"),
        (("--format", "gif"), "unknown format 'gif'"),
        (("--quality", "FD-digit"), "did you mean 'FD-digits'?"),
        (("--cost", "latncy"), "did you mean 'latency'?"),
        (("--figure", "1b", "--quality", "FD-digit"), "did you mean 'FD-digits'?"),
        (("--figure", "3", "--classes", "eight"), "unknown class 'eight'"),
        (("--figure", "3", "--classes", "3", "--samples", "9"), "has 9 samples of class '3', number 9"),
        (("--figure", "3", "--samples", "a"), "--samples takes numbers"),
        (("--figure", "1a"), "profiled at 8 px alone"),
        (("--figure", "3", "--case", "dit*"), "1 of 1 cases can be shown"),
        (("--figure", "1b", "--case", "dit*"), "1 of 1 cases have both FD-digits and macs"),
    ],
)
def test_what_cannot_be_drawn_is_said(runs, words, said):
    """Unknown names get the nearest spelling, missing data what to do; the exit code is 2."""
    for number, recipe in enumerate(("dit-s", "sana-s")):
        add_case(runs, number, recipe=recipe)
    refused = figures(runs, *words)
    assert refused.returncode == 2
    assert said in " ".join(refused.stderr.split())


def test_a_papers_own_file_is_left_alone(tmp_path):
    """A figures.tex that somebody wrote stays; one of ours is written anew."""
    ours = write_latex([], tmp_path)
    write_latex([], tmp_path)
    ours.write_text("my own")
    with pytest.raises(UserInputError, match="it was left as it is; move it away, or give another folder"):
        write_latex([], tmp_path)
    assert ours.read_text() == "my own"


def test_all_that_can_be_drawn_and_why_not_the_rest(runs, monkeypatch):
    """Without --figure every figure is tried; where none can be drawn that is an error."""
    for number, recipe in enumerate(("dit-s", "sana-s", "dydi-lit-s")):
        add_case(runs, number, recipe=recipe, sides=(8, 16), grid=True)
    done = figures(runs, "--format", "pdf", "--to", str(runs / "out"))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (runs / "out").iterdir()}
    samples = {f"figure-{name}.pdf" for name in ("3", "4", "8", "9", "10")}
    assert names >= {"figure-1a.pdf", "figure-1b.pdf", "figure-pareto-macs.pdf", "figures.tex"} | samples
    assert "not drawn: figure 11 compares the features of samples" in " ".join(done.stderr.split())
    first = (runs / "out" / "figure-1b.pdf").read_bytes()
    figures(runs, "--format", "pdf", "--to", str(runs / "out"), "--figure", "1b")
    assert (runs / "out" / "figure-1b.pdf").read_bytes() == first
    if shutil.which("pdflatex"):
        check_latex(runs / "out")


def check_latex(folder):
    paper = (
        "\\documentclass{article}\\usepackage{graphicx}\\begin{document}\\input{figures.tex}\\end{document}"
    )
    (folder / "paper.tex").write_text(paper)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_run_without_anything_to_draw(runs):
    """One case alone, neither evaluated nor profiled: every reason is told."""
    add_case(runs, 0, sides=())
    refused = figures(runs)
    assert refused.returncode == 2
    for figure in ("1a", "1b", "3", "11", "pareto"):
        assert f"figure {figure} " in refused.stderr


def test_several_runs_are_told_apart(runs):
    """A label that two runs have gets the run's name; figures are of the cases of both."""
    add_case(runs, 0, suite="suite")
    add_case(runs, 1, suite="other")
    done = figures(runs, "other", "--figure", "3", "--format", "svg")
    assert done.returncode == 0, done.stderr
    text = (runs / "suite" / "paper-figures" / "figure-3.svg").read_text()
    assert ">suite<" in text  # all that differs
    assert ">other<" in text


def test_figures_are_those_of_the_catalogue():
    """Every figure of the paper but its diagram of the model, in its order."""
    assert list(FIGURES) == ["1a", "1b", *map(str, range(3, 12)), "pareto"]
    assert [figure.name for figure in chosen_figures(["10", "1a"])] == ["1a", "10"]


def labelled(spread, count=12, seed=0):
    """Return features of ten classes around unit vectors, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(K).repeat(count)
    return torch.eye(K)[labels] + spread * torch.randn(len(labels), K, generator=generator), labels


def test_separation_is_measured_for_the_same_classes_of_every_model(tmp_path, monkeypatch):
    """Classes are chosen by the real images; each model's number is its own, and lies in the JSON file."""
    real, labels = labelled(0.05)
    reference = Reference.__new__(Reference)
    features = type("Features", (), {"pooled": real})()
    for name, value in {
        "labels": labels,
        "class_names": class_names(DigitsData()),
        "features": features,
    }.items():
        object.__setattr__(reference, name, value)
    panels = {"sharp": labelled(0.05, seed=1), "blurred": labelled(1.5, seed=2)}
    choices = [
        figure_separation._choice(letter, how, panels, reference)
        for letter, how in zip("ab", figure_separation._choices(None, reference), strict=True)
    ]
    assert [choice.words.split()[0] for choice in choices] == ["random", "classes"]
    for choice in choices:
        assert len(choice.names) == 5
        sharp, blurred = choice.clouds
        assert sharp.accuracy == 1.0
        assert blurred.accuracy < 0.7
        assert np.array_equal(np.unique(sharp.labels), np.unique(blurred.labels))
    figure_separation._write_numbers(tmp_path / "n.json", figure_separation.numbers(choices, {"seed": 0}))
    written = json.loads((tmp_path / "n.json").read_text())
    assert written["measurement"] == "class_separability"
    model = written["choices"][0]["models"][0]
    assert (model["title"], model["accuracy"], model["n"], model["chance"]) == ("sharp", 1.0, 60, 0.2)
    few = {**panels, "few": (real[:25], labels[:25])}
    with pytest.raises(UserInputError, match="few has 2 images of class '7', at least 3 are needed"):
        figure_separation._choice("a", "7,8", few, reference)


def test_what_happens_inside_a_model_is_drawn_where_it_was_looked_into(tmp_path):
    """The shipped quick run was: a picture of projectors for each case that has them, a map, a lambda."""
    (run,) = (ROOT / "reports" / "quick").glob("*/results.jsonl")
    words = ("figures", run.parent, "--figure", "5,6,7", "--case", "*seed=0", "--to", tmp_path)
    done = attnbench_here(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"figure-{name}.svg" for name in ("5-1", "5-2", "6", "7")
    ]
    lambdas = (tmp_path / "figure-7.svg").read_text()
    assert "dydila-token" in lambdas
    assert "softmax" not in lambdas
    alone = attnbench_here("figures", run.parent, "--figure", "5", "--case", "linear*", "--to", tmp_path)
    assert alone.returncode == 2
    assert "no case that was looked into chooses between projectors" in " ".join(alone.stderr.split())
