"""Class-wise scores: the broken class is the worst, unbiased at any size, and reasons instead of NaN."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from attnbench.errors import DataError, NonFiniteError, StorageError, UserInputError
from attnbench.evaluation.by_class import by_class, class_figure, full_kernel_distance, write_csv
from attnbench.evaluation.pictures import PALETTE
from attnbench.metrics.pairwise import kernel_distance

NAMES = ["ant", "bee", "cat", "dog"]


def normal(n, width=6, seed=0, shift=0.0):
    return shift + torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(per_class=40, seed=0, broken=None):
    """Return clusters around unit vectors; the images of class `broken` come from its neighbour."""
    labels = torch.arange(4).repeat(per_class)
    centres = 4 * torch.eye(6, dtype=torch.float64)[:4]
    shown = labels if broken is None else torch.where(labels == broken, (broken + 1) % 4, labels)
    return centres[shown] + 0.3 * normal(len(labels), seed=seed), labels


def test_the_broken_class_is_the_worst():
    """A model that draws dogs for cats: cat has by far the largest distance, no precision, no recall."""
    reference, labels = labelled()
    samples, _ = labelled(seed=1, broken=2)
    scores = {c.name: c.scores for c in by_class(reference, labels, samples, labels, NAMES)}
    cat = scores.pop("cat")
    assert (cat.precision, cat.recall) == (0.0, 0.0)
    for other in scores.values():
        assert abs(other.kernel_distance) < 3 * other.standard_error
        assert cat.kernel_distance > 10 * (abs(other.kernel_distance) + cat.standard_error / 10)
        assert min(other.precision, other.recall) > 0.5


def test_a_class_is_scored_by_its_own_images_only():
    """Scores of a class equal those of its images alone, whatever the others are and in which order."""
    reference, labels = labelled()
    samples, _ = labelled(seed=1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    bee = by_class(reference[order], labels[order], samples, labels, NAMES)[1]
    alone = full_kernel_distance(reference[labels == 1], samples[labels == 1])
    assert (bee.label, bee.name, bee.n, bee.reference_n) == (1, "bee", 40, 40)
    # sums of 40 terms in another order: 40 roundings of kernels that are at most (16 / 6 + 2)^3 = 100
    assert bee.scores.kernel_distance == pytest.approx(alone.value, abs=40 * 100 * 2.2e-16)
    assert bee.scores.standard_error == pytest.approx(alone.standard_error, rel=1e-9)


def test_the_full_kernel_distance_is_that_over_one_subset_of_all():
    """For sets of equal size the estimator of the benchmark with a single subset of everything."""
    x, y = normal(30), normal(30, seed=1, shift=0.4)
    expected = kernel_distance(x, y, subsets=1, subset_size=30).mean
    assert full_kernel_distance(x, y).value == pytest.approx(expected, rel=1e-10)


def plain_mmd2(x, y):
    """Return the unbiased MMD^2 by its definition, in loops."""

    def kernel(a, b):
        return float((a @ b / len(a) + 1) ** 3)

    def within(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_value_and_standard_error_are_the_definitions():
    """The closed forms against loops that leave out one image after the other, for sets of unequal size."""
    x, y = normal(7), normal(11, seed=1, shift=0.3)
    found = full_kernel_distance(x, y, chunk=4)
    assert found.value == pytest.approx(plain_mmd2(x, y), rel=1e-9)
    variance = 0.0
    for first in (True, False):
        moved = x if first else y
        without = [torch.cat([moved[:i], moved[i + 1 :]]) for i in range(len(moved))]
        values = [plain_mmd2(z, y) if first else plain_mmd2(x, z) for z in without]
        variance += (len(moved) - 1) * np.var(values)
    assert found.standard_error == pytest.approx(variance**0.5, rel=1e-9)


def test_no_bias_with_n_and_an_honest_standard_error():
    """Over 200 draws: equal means at n = 10 and n = 40, and the spread the standard error says."""
    means, errors = [], []
    for n in (10, 40):
        found = [full_kernel_distance(normal(n, 3, 2 * s), normal(n, 3, 2 * s + 1, 1.0)) for s in range(200)]
        values = np.array([f.value for f in found])
        means.append(values.mean())
        errors.append(values.std() / 200**0.5)
        typical = np.mean([f.standard_error**2 for f in found]) ** 0.5
        # the jackknife's variance errs to the large side (Efron and Stein 1981); heavy tails of a cubed
        # normal leave the spread itself uncertain by a good 10 %
        assert 0.8 * values.std() < typical < 2 * values.std()
    assert abs(means[0] - means[1]) < 4 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5


def test_small_classes_have_a_reason_and_no_number():
    """Too few samples, too few references, both, none at all: no NaN anywhere, and the others are scored."""
    reference, labels = labelled(per_class=12)
    drop = torch.ones(48, dtype=torch.bool)
    drop[(labels == 1).nonzero().flatten()[3:]] = False
    cut = drop & (labels != 3)
    found = by_class(reference[drop], labels[drop], reference[cut], labels[cut], NAMES)
    assert found[0].scores is not None
    assert (found[1].scores, found[3].scores) == (None, None)
    assert found[1].reason == "3 samples and 3 reference images, fewer than 10"
    assert found[3].reason == "0 samples, fewer than 10"


@pytest.mark.parametrize(
    ("reference_labels", "sample_labels", "message"),
    [
        (None, "good", "reference have no labels"),
        ("good", None, "samples have no labels"),
        ("good", torch.full((160,), 4), r"allowed are 0 \.\.\. 3"),
        ("good", torch.zeros(3).long(), "160 integers"),
    ],
)
def test_missing_and_wrong_labels_name_their_set(reference_labels, sample_labels, message):
    """Without the class of every image there is nothing to score, and the error says whose are missing."""
    x, good = labelled()
    given = [good if isinstance(z, str) else z for z in (reference_labels, sample_labels)]
    with pytest.raises(DataError, match=message):
        by_class(x, given[0], x, given[1], NAMES)


def test_settings_and_features_that_cannot_be_scored_are_refused():
    """A neighbour more than a class has images, features of another network, NaN, too few for an error."""
    x, labels = labelled()
    with pytest.raises(UserInputError, match="at least 8 images"):
        by_class(x, labels, x, labels, NAMES, neighbours=7, at_least=7)
    with pytest.raises(UserInputError, match="different widths"):
        by_class(x, labels, x[:, :4], labels, NAMES)
    with pytest.raises(NonFiniteError, match="features of the samples"):
        by_class(x, labels, x * torch.inf, labels, NAMES)
    with pytest.raises(UserInputError, match="N >= 3"):
        full_kernel_distance(x[:2], x)


def test_the_table_has_a_line_per_class(tmp_path):
    """Numbers as they are, empty fields and the reason where there are none."""
    x, labels = labelled(per_class=12)
    few = (labels != 2) | (torch.arange(48) < 12)
    found = by_class(x, labels, x[few], labels[few], [*NAMES[:3], 'dog, "wild"'])
    write_csv(found, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["ant", "bee", "cat", 'dog, "wild"']
    assert float(rows[0]["kernel_distance"]) == found[0].scores.kernel_distance
    assert rows[2]["kernel_distance"] == rows[2]["precision"] == ""
    assert rows[2]["reason"] == "3 samples, fewer than 10"


def drawn_distances(monkeypatch, found, path, **settings):
    """Return the labels and bar lengths of the first axes, as drawn."""
    from attnbench.evaluation import by_class as module

    kept = []
    save = module.save_png
    monkeypatch.setattr(module, "save_png", lambda figure, path: (kept.append(figure), save(figure, path)))
    class_figure(found, path, called=lambda metric: f"{metric}-net", heading="heading", **settings)
    axes = kept[0].axes[0]
    lengths = [bar.get_width() for bar in axes.patches]
    return [label.get_text() for label in axes.get_yticklabels()], lengths, kept[0]


def test_bars_stand_in_order_the_worst_on_top(tmp_path, monkeypatch):
    """Sorted by kernel distance, the axis upside down so that the first is on top; every score is drawn."""
    reference, labels = labelled()
    found = by_class(reference, labels, labelled(seed=1, broken=2)[0], labels, NAMES)
    names, lengths, figure = drawn_distances(monkeypatch, found, tmp_path / "c.png")
    assert names[0] == "2: cat  (40 / 40)"
    assert lengths == sorted((c.scores.kernel_distance for c in found), reverse=True)
    assert figure.axes[0].yaxis_inverted()
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    for colour in PALETTE[:3]:
        assert (pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum() > 1000


def test_of_many_classes_the_ends_are_drawn(tmp_path, monkeypatch):
    """The two worst and two best of six, a gap between, and the title says what is left out."""
    labels = torch.arange(7).repeat(12)[:-2]
    centres = torch.arange(7.0, dtype=torch.float64)[labels][:, None]
    x = normal(len(labels))
    found = by_class(x, labels, x + centres, labels, [f"c{i}" for i in range(7)], at_least=12)
    names, _, figure = drawn_distances(monkeypatch, found, tmp_path / "c.png", ends=2)
    assert [name[0] for name in names] == ["4", "3", "1", "0"]
    assert list(figure.axes[0].get_yticks()) == [0, 1, 3, 4]
    assert "2 worst and 2 best of 5 classes, 2 without scores" in figure.get_suptitle()


def test_without_any_scores_there_is_no_picture(tmp_path):
    """An empty picture is refused with the reason of the first class."""
    x, labels = labelled(per_class=5)
    with pytest.raises(DataError, match="'ant' has 5 samples and 5 reference images, fewer than 10"):
        class_figure(by_class(x, labels, x, labels, NAMES), tmp_path / "c.png", called=str, heading="h")
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_written_say_where(tmp_path):
    """A missing folder is a StorageError, for the table as for the picture."""
    x, labels = labelled()
    found = by_class(x, labels, x, labels, NAMES)
    with pytest.raises(StorageError, match="absent"):
        write_csv(found, tmp_path / "absent" / "c.csv")
    with pytest.raises(StorageError, match="absent"):
        class_figure(found, tmp_path / "absent" / "c.png", called=str, heading="h")
