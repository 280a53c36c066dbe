"""The suites of tables 2, 3, 7 and 8 of arXiv:2601.13683, of CIFAR-10, and a run on stand-ins."""

from __future__ import annotations

import json

import pytest
from command_line import attnbench_here
from hub_server import serving, use_here
from stand_ins import write_autoencoder, write_autoencoder_of_diffusers_0_4_2, write_photo_folder

from attnbench.models.published import recipes_of
from attnbench.models.recipes import recipe
from attnbench.models.resolution import input_size
from attnbench.results import latest, read_results
from attnbench.specs import PreparedData
from attnbench.suite.loading import load_suite

TABLES = {
    "subin_512": ("table2", 512, {1.0, 4.0}),
    "imagenet_256": ("table3", 256, {1.0, 1.5, 4.0}),
    "table7_guidance": ("table7", 256, {2.0, 3.0}),
    "table8_guidance": ("table8", 256, {1.25, 2.0, 3.0}),
}


@pytest.mark.parametrize("suite", TABLES)
def test_suites_have_the_rows_and_guidance_scales_of_their_table(suite: str) -> None:
    """Every system of the table at every scale, once, at the table's resolution."""
    table, side, scales = TABLES[suite]
    cases = load_suite(suite).cases
    rows = [(case.model.name, case.sample.guidance_scale) for case in cases]
    assert sorted(rows) == sorted((name, scale) for name in recipes_of(table) for scale in scales)
    assert {case.data.image_size for case in cases} == {side}


@pytest.mark.parametrize("suite", TABLES)
def test_training_and_sampling_are_section_four(suite: str) -> None:
    """100,600 steps and 300 images per class on Sub-IN, 400,000 and 50 on ImageNet-1K; DiT's for the rest."""
    subset = suite in ("subin_512", "table7_guidance")
    for case in load_suite(suite).cases:
        train, sample = case.train, case.sample
        assert (train.steps, sample.num_steps, sample.per_class) == (
            (100_600, 200, 300) if subset else (400_000, 250, 50)
        )
        assert (train.batch_size, train.lr, train.ema_decay, train.weight_decay) == (256, 1e-4, 0.9999, 0.0)
        assert (train.objective, sample.sampler) == ("ddpm", "ddpm")
        mixed = subset and not case.model.name.startswith("dig")
        assert train.precision == ("bf16" if mixed else "fp32")


@pytest.mark.parametrize(
    ("more", "trained"), [("table7_guidance", "subin_256"), ("table8_guidance", "imagenet_256")]
)
def test_more_guidance_scales_train_nothing_new(more: str, trained: str) -> None:
    """Tables 7 and 8 sample the models of Tables 1 and 3."""
    keys = {case.model.name: case.key("train") for case in load_suite(trained).cases}
    assert all(case.key("train") == keys[case.model.name] for case in load_suite(more).cases)


def test_cifar_compares_the_attentions_of_the_photos_suite_at_256_tokens() -> None:
    """The same six attentions, a prepared set of 32 px, the paper's number of tokens."""
    cifar, photos = load_suite("cifar10").cases, load_suite("photos").cases
    assert [case.model.attention for case in cifar] == [case.model.attention for case in photos]
    assert {type(case.data) for case in cifar} == {PreparedData}
    config = recipe("tiny-dit-32")
    assert (input_size(config, 32) // config.patch_size) ** 2 == 256


SMALL = {
    "train.steps": 2,
    "train.batch_size": 2,
    "sample.num_steps": 2,
    "sample.per_class": 4,
    "sample.batch_size": 12,
    "evaluate.extractor": "efficientnet-lite0",
    "evaluate.metrics": "[fd, kd, is, precision, recall]",
    "evaluate.kd_subset_size": 10,
    "evaluate.kd_subsets": 2,
    "profile.measure": "[macs, params]",
}
"""What makes a suite small enough to see its end on a CPU."""

OF_THE_PAPER = {"data.image_size": 32, "profile.resolutions": "[32]", "model.depth": 2}
ROWS = {
    "subin_256": ("dig-s", "dydi-lit-b"),  # DiG: the suite makes an exception of it
    "subin_512": ("dig-l", "dydi-lit-l"),
    "imagenet_256": ("dit-s", "dydi-lit-s"),
    "table4_components": ("focused-kernel-s", "dynamic-projection-s"),
    "table5_paradigms": ("map-differential-s", "token-differential-s"),
    "table6_lambda_init": ("increasing-lambda-s", "token-differential-s"),
    "table7_guidance": ("dig-s", "edit-s"),
    "table8_guidance": ("dit-s", "sana-s"),
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with photographs, a set prepared from them, and an autoencoder of random weights."""
    folder = tmp_path_factory.mktemp("stand-ins")
    write_photo_folder(folder / "photos")
    write_autoencoder(folder / "autoencoder")
    words = ("data", "prepare", "photos", "--to", "set", "--image-size", 32, "--held-out", 0)
    made = attnbench_here(*words, cwd=folder)
    assert made.returncode == 0, made.stderr
    return folder


def run_small(suite, folder, *words, **more):
    """Run a suite on the stand-ins by overrides alone, `--runs FOLDER` aside; return its results.

    In this process, which spares three starts of another.
    """
    overrides = [word for key, value in (SMALL | more).items() for word in ("-o", f"{key}={value}")]
    done = attnbench_here("run", suite, "--inline", "--quiet", *overrides, *words, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = words[1] if words else folder / "runs"
    return latest(read_results(runs / suite / "results.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("suite", ROWS)
def test_suites_of_the_paper_run_to_their_end_on_stand_ins(stand_ins, suite) -> None:
    """Two rows of each: trained, sampled, scored and counted; then the same command finds all finished."""
    settings = OF_THE_PAPER | {
        "data.path": "set",
        "data.codec.path": "autoencoder",
        "matrix.model.recipe": f"[{', '.join(ROWS[suite])}]",
        "matrix.sample.guidance_scale": "[1.5]",
    }
    results = run_small(suite, stand_ins, **settings)
    assert [result.status for result in results] == ["ok", "ok"]
    for result in results:
        assert {"FD-efflite0", "macs_paper@32"} <= {m.name for m in result.measurements}
    assert [result.created for result in run_small(suite, stand_ins, **settings)] == [
        r.created for r in results
    ]


@pytest.mark.slow
def test_a_suite_of_the_paper_runs_on_its_own_autoencoder_as_the_hub_has_it(
    stand_ins, tmp_path, monkeypatch
) -> None:
    """`stabilityai/sd-vae-ft-ema`, which diffusers 0.4.2 wrote: no scaling_factor, a pickle, old names.

    Sizes, steps and rows are overridden; the autoencoder is the one that the suite's file names.
    """
    write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    settings = OF_THE_PAPER | {"data.path": "set", "matrix.model.recipe": "[dit-s]"}
    with serving() as server:
        use_here(server, tmp_path / "home", monkeypatch)
        server.add("stabilityai/sd-vae-ft-ema", tmp_path / "vae")
        results = run_small("table7_guidance", stand_ins, "--runs", tmp_path / "runs", **settings)
        assert [result.status for result in results] == ["ok", "ok"]  # guidance 2 and 3
        assert [line.rpartition("/")[2] for line in server.asked] == [
            "config.json",
            "diffusion_pytorch_model.bin",
        ]
    (index,) = (tmp_path / "runs/store/prepare").glob("*/latents.json")
    assert json.loads(index.read_text())["scale"] == 0.18215


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["subin_256", "table5_paradigms"])
def test_suites_of_the_paper_run_on_a_folder_of_diffusers_0_4_2(stand_ins, tmp_path, suite) -> None:
    """The same files in a folder that the user names."""
    write_autoencoder_of_diffusers_0_4_2(tmp_path / "vae")
    settings = OF_THE_PAPER | {
        "data.path": "set",
        "data.codec.path": tmp_path / "vae",
        "matrix.model.recipe": f"[{ROWS[suite][1]}]",
        "matrix.sample.guidance_scale": "[1.5]",
    }
    results = run_small(suite, stand_ins, "--runs", tmp_path / "runs", **settings)
    assert [result.status for result in results] == ["ok"]


@pytest.mark.slow
def test_the_cifar_suite_runs_to_its_end_on_stand_ins(stand_ins) -> None:
    """Two of its six attentions on a prepared set of 32 px, as its file says but for the sizes."""
    attentions = "[softmax, {name: dydila, options: {mode: token}, label: dydila-token}]"
    results = run_small("cifar10", stand_ins, **{"data.path": "set", "matrix.model.attention": attentions})
    assert [result.status for result in results] == ["ok", "ok"]
