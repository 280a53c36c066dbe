"""t-SNE pictures: which classes and images they show, the numbers beside them, and the files."""

import csv
import json

import matplotlib.colors
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from attnbench.errors import DataError, NonFiniteError, StorageError, UserInputError
from attnbench.evaluation.class_choice import choose_classes, named_classes
from attnbench.evaluation.pictures import PALETTE
from attnbench.evaluation.separability import separability
from attnbench.evaluation.tsne import tsne_embedding, tsne_figure

NAMES = [f"class {i}" for i in range(6)]


def clusters(per_class=12, classes=6, width=8, spread=0.1, seed=0):
    """Return Gaussian clusters around unit vectors: their centres lie sqrt(2) apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    centres = torch.eye(width)[:classes]
    return centres[labels] + spread * torch.randn(len(labels), width, generator=generator), labels


def test_the_embedding_repeats_and_depends_on_the_seed():
    """Equal input and seed give equal bits, another seed other places."""
    x, _ = clusters()
    first = tsne_embedding(x, seed=3, perplexity=5)
    assert first.shape == (72, 2)
    assert first.isfinite().all()
    assert torch.equal(first, tsne_embedding(x, seed=3, perplexity=5))
    assert not torch.allclose(first, tsne_embedding(x, seed=4, perplexity=5), atol=0.1)


def test_the_embedding_keeps_separate_clusters_apart():
    """In the picture of far clusters every point has its own class next to it."""
    x, labels = clusters(width=100, spread=0.05)
    assert separability(tsne_embedding(x, perplexity=8), labels, neighbours=5).accuracy == 1.0


@pytest.mark.parametrize("perplexity", [0.0, 72.0, float("nan")])
def test_a_perplexity_no_neighbourhood_has_is_refused(perplexity):
    """The perplexity must lie in 1 ... N - 1."""
    x, _ = clusters()
    with pytest.raises(UserInputError, match=r"perplexity .* must lie in 1 \.\.\. 71"):
        tsne_embedding(x, perplexity=perplexity)


def test_one_feature_is_enough():
    """Features of width 1 have no second principal component to start from, and still a picture."""
    assert tsne_embedding(torch.arange(20.0)[:, None], perplexity=4).isfinite().all()


def test_features_that_say_nothing_are_refused():
    """Equal features have no principal component; NaN names the image."""
    with pytest.raises(UserInputError, match="all 10 features are equal"):
        tsne_embedding(torch.ones(10, 4), perplexity=3)
    broken = torch.ones(10, 4)
    broken[7, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="the first is image 7"):
        tsne_embedding(broken, perplexity=3)


def test_separability_of_known_geometry():
    """Far clusters: accuracy 1 and a silhouette near 1; labels without meaning: chance and about 0."""
    x, labels = clusters(per_class=40, classes=4, spread=0.01)
    found = separability(x, labels)
    assert (found.accuracy, found.chance, found.n) == (1.0, 0.25, 160)
    # mean distance within: 0.01 sqrt(2 * 8), to the next cluster sqrt(2): 1 - 0.04 / 1.41 = 0.97
    assert found.silhouette == pytest.approx(0.97, abs=0.01)
    shuffled = labels[torch.randperm(160, generator=torch.Generator().manual_seed(0))]
    guess = separability(x, shuffled)
    assert abs(guess.accuracy - 0.25) < 4 * (0.25 * 0.75 / 160) ** 0.5
    assert abs(guess.silhouette) < 0.1


def test_accuracy_is_scikit_learns_leave_one_out():
    """With k odd and two classes there are no ties: the accuracy of scikit-learn's classifier, one by one."""
    x, labels = clusters(per_class=15, classes=2, spread=0.8)
    hits = 0
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        classifier = KNeighborsClassifier(5).fit(x[others].numpy(), labels[others].numpy())
        hits += int(classifier.predict(x[i : i + 1].numpy())[0] == labels[i])
    assert 0 < hits < len(x)
    assert separability(x, labels, neighbours=5).accuracy == hits / len(x)


def test_the_silhouette_is_scikit_learns():
    """Classes of many sizes, one of a single image, and a copy; far from the origin."""
    x, _ = clusters(per_class=30, classes=4, spread=0.6)
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 39 + [3])
    x[3] = x[70]
    theirs = silhouette_score((x + 7).double().numpy(), labels.numpy())
    # scikit-learn takes distances as differences of squares of size 8 * 8^2: between copies an error of
    # (2^-52 * 512)^1/2, 3e-7, in a mean over 30 or more, twice among 120 images
    assert separability(x + 7, labels).silhouette == pytest.approx(theirs, abs=3e-7 / 30 * 2 / 120)


def test_a_tied_vote_goes_to_the_nearer_class():
    """With one neighbour of each class the nearer one decides, whatever the order of the labels."""
    x = torch.tensor([[0.0], [1.0], [3.0], [4.0], [20.0]])
    labels = torch.tensor([1, 1, 0, 0, 0])
    # nearest two: 0 -> {1, 3}: tie, 1 wins; 1 -> {0, 3}: tie, 0.0 is nearer, 1 wins; 3 -> {4, 1}: 0 wins
    # 4 -> {3, 1}: 0 wins; 20 -> {4, 3}: 0 wins
    assert separability(x, labels, neighbours=2).accuracy == 1.0
    assert separability(x, 1 - labels, neighbours=2).accuracy == 1.0


def test_copies_are_neighbours_of_each_other_not_of_themselves():
    """An image is left out of its own neighbours even when another has the same features."""
    x = torch.tensor([[0.0], [0.0], [5.0], [5.0]])
    assert separability(x, torch.tensor([0, 1, 0, 1]), neighbours=1).accuracy == 0.0


@pytest.mark.parametrize(("labels", "k"), [([0, 0, 0, 0], 1), ([0, 1, 2, 3], 1), ([0, 0, 1, 1], 4)])
def test_separability_refuses_what_has_no_answer(labels, k):
    """One class, a class per image, and as many neighbours as images."""
    with pytest.raises(UserInputError, match="separability"):
        separability(torch.randn(4, 3), torch.tensor(labels), neighbours=k)


def test_close_classes_are_the_tightest_group():
    """On a line at 6.8, 10, 11, 13, 16: 10 and 11, then 13, then 6.8: on average nearer than 16."""
    labels = torch.arange(5).repeat(2)
    x = (
        torch.tensor([6.8, 10.0, 11.0, 13.0, 16.0])[labels][:, None]
        + torch.tensor([-1.0, 1.0]).repeat_interleave(5)[:, None]
    )
    chosen = [choose_classes(labels, x, n, "close", num_classes=5) for n in (2, 3, 4)]
    assert chosen == [[1, 2], [1, 2, 3], [0, 1, 2, 3]]


def test_random_classes_come_from_those_present_and_from_the_seed():
    """Classes without images are never drawn; the seed decides, and all seeds together reach every class."""
    labels = torch.tensor([0, 2, 4, 5, 7] * 2)
    draws = [choose_classes(labels, torch.ones(10, 2), 2, "random", seed=s, num_classes=9) for s in range(30)]
    assert {c for draw in draws for c in draw} == {0, 2, 4, 5, 7}
    assert draws == [
        choose_classes(labels, torch.ones(10, 2), 2, "random", seed=s, num_classes=9) for s in range(30)
    ]


@pytest.mark.parametrize("count", [1, 7, 21])
def test_impossible_numbers_of_classes_are_refused(count):
    """Fewer than 2, more than there are, more than 20."""
    x, labels = clusters()
    with pytest.raises(UserInputError, match=r"choose 2 \.\.\. 6"):
        choose_classes(labels, x, count, "random", num_classes=6)


def test_classes_by_name():
    """Names become labels in the order given; an unknown one gets the nearest spelling."""
    assert named_classes(["class 4", "class 0"], NAMES) == [4, 0]
    with pytest.raises(DataError, match=r"unknown class 'clas 4' \(did you mean 'class 4'\?\)"):
        named_classes(["clas 4"], NAMES)


def draw(path, panels, **settings):
    known = {"classes": [1, 3, 4], "extractor": "net", "perplexity": 5.0, "per_class": 8, "neighbours": 3}
    return tsne_figure(panels, NAMES, path, **{**known, **settings})


def test_every_panel_shows_the_same_classes_and_counts(tmp_path):
    """The fewest images a panel has of a class are what all panels show, the first ones of each set."""
    x, labels = clusters()
    keep = torch.ones(72, dtype=torch.bool)
    keep[(labels == 3).nonzero().flatten()[5:]] = False
    panels = draw(tmp_path / "t.png", {"a": (x, labels), "b": (x[keep], labels[keep])})
    for panel in panels:
        assert torch.bincount(panel.labels).tolist() == [0, 8, 0, 5, 8]
        assert panel.separability.n == 21
    assert panels[0].rows[:8].tolist() == (labels == 1).nonzero().flatten()[:8].tolist()


def test_the_files_hold_what_is_drawn(tmp_path):
    """The picture has every class's colour, the table every point, the settings every panel's numbers."""
    x, labels = clusters()
    panels = draw(tmp_path / "t.png", {"model a": (x, labels), "model b": (x + 0.1, labels)})
    with Image.open(tmp_path / "t.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    pixels = pixels[: int(0.8 * len(pixels))]  # without the legend
    half = pixels.shape[1] // 2
    for colour in PALETTE[:3]:
        # drawn at alpha 0.8 on white; a marker of 16 square points has 69 pixels at 150 dpi: a quarter of one
        rgb = np.round(255 * (0.8 * np.array(matplotlib.colors.to_rgb(colour)) + 0.2))
        there = (abs(pixels - rgb) <= 2).all(axis=2)
        assert there[:, :half].sum() > 17
        assert there[:, half:].sum() > 17
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 24
    assert rows[0]["panel"] == "model a"
    assert rows[0]["class"] == "class 1"
    assert float(rows[0]["x"]) == pytest.approx(float(panels[0].points[0, 0]), rel=1e-5)
    numbers = json.loads((tmp_path / "t.json").read_text())
    assert (numbers["seed"], numbers["perplexity"], numbers["extractor"]) == (0, 5.0, "net")
    assert numbers["panels"]["model b"]["accuracy"] == panels[1].separability.accuracy


def test_the_picture_is_the_same_twice(tmp_path):
    """Equal input gives equal bytes, so that a picture under version control does not change by itself."""
    x, labels = clusters()
    for name in ("one.png", "two.png"):
        draw(tmp_path / name, {"a": (x, labels)})
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": [2]}, UserInputError, "one class has no boundary"),
        ({"classes": [2, 2]}, UserInputError, "different classes"),
        ({"classes": list(range(21))}, UserInputError, "more colours cannot be told apart"),
        ({"classes": [1, 6]}, UserInputError, r"choose among 0 \.\.\. 5"),
        ({"per_class": 0}, UserInputError, "0 images per class"),
        ({"perplexity": 24.0}, UserInputError, r"1 \.\.\. 23"),
        ({"neighbours": 24}, UserInputError, r"choose 1 \.\.\. 23"),
    ],
)
def test_bad_settings_leave_no_file(tmp_path, change, error, message):
    """Every refusal says what is allowed and comes before anything is written."""
    x, labels = clusters()
    with pytest.raises(error, match=message):
        draw(tmp_path / "t.png", {"a": (x, labels)}, **change)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "images of 'a' have no labels"),
        (torch.zeros(72), "72 integers"),
        (torch.full((72,), 6), r"allowed are 0 \.\.\. 5"),
        (torch.full((72,), 1), "'a' has no image of class 'class 3'"),
    ],
)
def test_unusable_labels_name_their_set(tmp_path, labels, message):
    """Missing labels, labels that are no integers, beyond the names, or without a chosen class."""
    with pytest.raises(DataError, match=message):
        draw(tmp_path / "t.png", {"a": (clusters()[0], labels)})


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path):
    """A picture that cannot be written says where."""
    x, labels = clusters()
    with pytest.raises(StorageError, match="absent"):
        draw(tmp_path / "absent" / "t.png", {"a": (x, labels)})


def test_twenty_classes_and_a_name_that_looks_like_markup(tmp_path):
    """The most classes allowed, with names matplotlib would otherwise take for mathematics."""
    x, labels = clusters(per_class=3, classes=20, width=30)
    names = [f"$\\frac{i}{{$ " + "long " * 10 for i in range(20)]
    tsne_figure(
        {"a $ b": (x, labels)}, names, tmp_path / "t.png", classes=range(20), extractor="net",
        perplexity=5.0, neighbours=2,
    )  # fmt: skip
    assert (tmp_path / "t.png").stat().st_size > 0
