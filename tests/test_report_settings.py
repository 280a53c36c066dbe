"""Settings that differ: as columns, by case or as lists, whichever is narrow enough to be read."""

from __future__ import annotations

from report_cases import make_result

from attnbench.report.settings import settings_tables


def cases(count: int, options: int):
    """Return cases whose attention has so many options that differ, and a label of its own."""
    return [
        make_result(
            f"case {i}", i,
            case={"seed": 0, "model": {"attention": {
                "label": f"case {i}", "options": {f"option{k}": i + k for k in range(options)},
            }}},
        )
        for i in range(count)
    ]  # fmt: skip


def test_few_settings_have_a_column_each() -> None:
    """Five options and the label are six columns, one row per case."""
    table, common = settings_tables(cases(9, 5))
    assert table is not None
    assert len(table.columns) == 7
    assert [row.cells[0].text for row in table.rows] == [f"case {i}" for i in range(9)]
    assert common is not None
    assert [cell.text for cell in common.rows[0].cells] == ["seed", "0"]


def test_few_cases_have_a_column_each() -> None:
    """Where the settings are many, they are the rows."""
    table, _ = settings_tables(cases(3, 20))
    assert table is not None
    assert [column.title for column in table.columns] == ["Setting", "case 0", "case 1", "case 2"]
    assert len(table.rows) == 21


def test_many_of_both_are_lists() -> None:
    """Each case tells its settings in one cell, without what all names begin with and its own label."""
    table, _ = settings_tables(cases(9, 20))
    assert table is not None
    assert [column.title for column in table.columns] == ["Case", "Settings below model.attention"]
    assert table.rows[2].cells[1].text.startswith("options.option0 = 2, options.option1 = 3")
    assert "label" not in table.rows[2].cells[1].text


def test_seeds_of_one_configuration_share_a_row() -> None:
    """What differs by seed alone is one row, and its seeds stand together."""
    seeds = [
        make_result(
            f"a · seed={seed}", seed, axes={"seed": str(seed)}, case={"seed": seed, "model": {"depth": 4}}
        )
        for seed in (0, 1, 2)
    ]
    table, common = settings_tables(seeds)
    assert table is None
    assert common is not None
    assert ("seed", "0, 1, 2") in [tuple(cell.text for cell in row.cells) for row in common.rows]
