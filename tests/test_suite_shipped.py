"""The shipped suites, checked against the real backends."""

from __future__ import annotations

import pytest

from attnbench.models.published import recipes_of
from attnbench.suite.loading import list_suites, load_suite


def test_subin_is_table_one_and_needs_no_data() -> None:
    """Eighteen models at two guidance scales resolve while the data and the autoencoder are absent."""
    cases = load_suite("subin_256").cases
    assert len(cases) == 36
    assert cases[1].label == "dit-s · guidance_scale=4.0"
    assert cases[1].axes == {"recipe": "dit-s", "guidance_scale": "4.0"}
    assert cases[0].key("train") == cases[1].key("train"), "guidance must not retrain"
    for case in cases:
        train, sample = case.train, case.sample
        assert (train.steps, train.batch_size, train.lr, train.ema_decay) == (100_600, 256, 1e-4, 0.9999)
        assert (train.weight_decay, train.horizontal_flip) == (0.0, True)
        assert (sample.sampler, sample.num_steps, sample.per_class) == ("ddpm", 200, 300)


def test_shipped_suites_are_listed_under_the_names_they_carry() -> None:
    """The file's stem is the suite's name; its first line repeats the question."""
    rows = {row.name: row for row in list_suites()}
    assert {"quick", "photos", "subin_256"} <= set(rows)
    for name, row in rows.items():
        assert load_suite(name).name == name
        assert row.path.read_text(encoding="utf-8").splitlines()[0] == f"# Question: {row.question}"


def test_dig_is_trained_in_full_precision() -> None:
    """Section 4.1 of arXiv:2601.13683: all in bf16 mixed precision but DiG."""
    for case in load_suite("subin_256").cases:
        assert case.train.precision == ("fp32" if case.model.name.startswith("dig") else "bf16")


@pytest.mark.parametrize(
    ("suite", "table"),
    [
        ("subin_256", "table1"),
        ("table4_components", "table4"),
        ("table5_paradigms", "table5"),
        ("table6_lambda_init", "table6"),
    ],
)
def test_suites_of_tables_have_exactly_their_rows(suite: str, table: str) -> None:
    """Every system of the table at guidance 4.0, and no other; what two suites share is trained once."""
    cases = [case for case in load_suite(suite).cases if case.sample.guidance_scale == 4.0]
    assert sorted(case.model.name for case in cases) == sorted(recipes_of(table))
    shared = {case.model.name: case.key("train") for case in load_suite("subin_256").cases}
    assert all(case.key("train") == shared.get(case.model.name, case.key("train")) for case in cases)
