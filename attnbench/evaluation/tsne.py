"""t-SNE pictures of a few classes, with numbers that do not depend on the picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attnbench.errors import DataError, UserInputError
from attnbench.evaluation.class_choice import MAX_CLASSES
from attnbench.evaluation.labelled import checked_labels
from attnbench.evaluation.pictures import FAINT, MARKERS, PALETTE, drawing, new_figure, save_png, shortened
from attnbench.evaluation.separability import Separability, separability
from attnbench.metrics.checks import check_features
from attnbench.storage.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PCA_WIDTH = 50  # what t-SNE's authors and scikit-learn recommend before t-SNE
_MOST_COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One model's points: `rows` [n] of the features given, their `labels` [n] and places [n, 2]."""

    title: str
    rows: torch.Tensor
    labels: torch.Tensor
    points: torch.Tensor
    separability: Separability


def tsne_embedding(features: torch.Tensor, *, seed: int = 0, perplexity: float = 30.0) -> torch.Tensor:
    """Return places [N, 2] of features [N, F] by t-SNE, float32.

    PCA to 50 dimensions, then scikit-learn's Barnes-Hut t-SNE, started from the first two and 1 % seeded
    noise: what changes with the seed is no property of the data. Runs on one thread, because sums over
    several would differ from run to run: equal input and seed give equal bits on one machine; elsewhere
    rounding may lead to another, equally valid picture.
    Raises UserInputError when the perplexity is not in 1 ... N - 1 or all features are equal.
    Source: van der Maaten and Hinton 2008, JMLR 9; scikit-learn.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    check_features(features, at_least=3)
    x = features.detach().double().cpu().numpy()
    if not 1 <= perplexity <= len(x) - 1:
        raise UserInputError(
            f"t-SNE of {len(x)} images: perplexity {perplexity:g}, a number of neighbours, must lie in "
            f"1 ... {len(x) - 1}; lower it or give more images"
        )
    if (x == x[0]).all():
        raise UserInputError(f"t-SNE: all {len(x)} features are equal; look at the images")
    with threadpool_limits(limits=1):
        reduced = PCA(n_components=min(_PCA_WIDTH, *x.shape), svd_solver="full").fit_transform(x)
        start = _start(torch.from_numpy(reduced), seed)
        places = TSNE(init=start.numpy(), perplexity=perplexity).fit_transform(reduced)
    return torch.from_numpy(places)


def _start(components: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the first two columns of components [N, d] and 1 % seeded noise, float32 [N, 2].

    scikit-learn's own start has no noise, so that its seed changes nothing. Scaled as there: standard
    deviation 1e-4 along the first component.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(components), 2, generator=generator, dtype=torch.float64)
    start = 0.01 * noise
    start[:, : components.shape[1]] += components[:, :2] / components[:, 0].std()
    return (1e-4 * start).float()


def tsne_figure(
    panels: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
    class_names: Sequence[str],
    path: Path,
    *,
    classes: Sequence[int],
    extractor: str,
    per_class: int = 100,
    perplexity: float = 30.0,
    seed: int = 0,
    neighbours: int = 10,
) -> list[Panel]:
    """Draw t-SNE of the same classes for every model, one panel each, and return what it shows.

    `panels` maps a title to features [N, F] and labels [N]. Of each class the first `per_class` images are
    shown, in the order given, and as many in every panel: the fewest any of them has. Each panel is embedded
    on its own, so places and distances do not compare between panels; below each stands its `separability`.
    Writes the PNG `path`, and beside it the points as .csv and settings with separabilities as .json.
    Raises UserInputError for 1 or more than 20 classes, DataError for missing labels or a panel that
    lacks a class. Source: arXiv:2601.13683, appendix D and Fig. 11.
    """
    counts, drawn = tsne_panels(
        panels, class_names, classes=classes, per_class=per_class, perplexity=perplexity, seed=seed,
        neighbours=neighbours,
    )  # fmt: skip
    settings = {"extractor": extractor, "perplexity": perplexity, "seed": seed}
    images = {class_names[c]: n for c, n in counts.items()}
    atomic_write(path.with_suffix(".csv"), _csv(drawn, class_names))
    atomic_write(path.with_suffix(".json"), _json(drawn, {**settings, "images_per_class": images}))
    heading = (
        f"t-SNE of {extractor} features, {sum(counts.values())} images of {len(counts)} classes per panel, "
        f"perplexity {perplexity:g}, seed {seed}\n"
        "each panel is embedded on its own: compare the numbers below, not places or distances"
    )
    _draw(drawn, classes, class_names, heading, path)
    return drawn


def tsne_panels(
    panels: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
    class_names: Sequence[str],
    *,
    classes: Sequence[int],
    per_class: int = 100,
    perplexity: float = 30.0,
    seed: int = 0,
    neighbours: int = 10,
) -> tuple[dict[int, int], list[Panel]]:
    """Return how many images of each class every panel shows, and the panels, as `tsne_figure` draws them."""
    _check_classes(panels, classes, class_names)
    labels = {
        title: checked_labels(own, f"images of {title!r}", images=len(x), classes=len(class_names))
        for title, (x, own) in panels.items()
    }
    counts = _equal_counts(labels, classes, class_names, per_class)
    drawn = []
    for title, (features, _) in panels.items():
        rows = torch.cat([(labels[title] == c).nonzero().flatten()[: counts[c]] for c in classes])
        x, own = features[rows.to(features.device)], labels[title][rows]
        points = tsne_embedding(x, seed=seed, perplexity=perplexity)
        found = separability(x, own, neighbours=neighbours)
        drawn.append(Panel(title=title, rows=rows, labels=own, points=points, separability=found))
    return counts, drawn


def _check_classes(panels: Mapping[str, object], classes: Sequence[int], class_names: Sequence[str]) -> None:
    if not panels:
        raise UserInputError("t-SNE: no images to show; give at least one set")
    if not 2 <= len(set(classes)) <= MAX_CLASSES or len(set(classes)) < len(classes):
        raise UserInputError(
            f"t-SNE of the classes {list(classes)}: choose 2 ... {MAX_CLASSES} different classes; "
            "one class has no boundary to show, and more colours cannot be told apart"
        )
    if not 0 <= min(classes) <= max(classes) < len(class_names):
        raise UserInputError(
            f"t-SNE of the classes {list(classes)}: choose among 0 ... {len(class_names) - 1}"
        )


def _equal_counts(
    labels: Mapping[str, torch.Tensor], classes: Sequence[int], class_names: Sequence[str], per_class: int
) -> dict[int, int]:
    """Return how many images of each class every panel can show."""
    if per_class < 1:
        raise UserInputError(f"t-SNE of {per_class} images per class; choose 1 or more")
    counts = {}
    for c in classes:
        for title, own in labels.items():
            if not (own == c).any():
                raise DataError(
                    f"{title!r} has no image of class {class_names[c]!r}; choose classes that all sets have"
                )
        counts[c] = min(per_class, *(int((own == c).sum()) for own in labels.values()))
    return counts


def _csv(panels: Sequence[Panel], class_names: Sequence[str]) -> bytes:
    """Return one line per point; `image` counts the features given from 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "image", "label", "class", "x", "y"])
    for panel in panels:
        for row, label, (x, y) in zip(
            panel.rows.tolist(), panel.labels.tolist(), panel.points.tolist(), strict=True
        ):
            writer.writerow([panel.title, row, label, class_names[label], f"{x:.6g}", f"{y:.6g}"])
    return text.getvalue().encode()


def _json(panels: Sequence[Panel], settings: Mapping[str, object]) -> bytes:
    numbers = {**settings, "panels": {panel.title: asdict(panel.separability) for panel in panels}}
    return json.dumps(numbers, indent=2, ensure_ascii=False).encode() + b"\n"


def _draw(
    panels: Sequence[Panel], classes: Sequence[int], class_names: Sequence[str], heading: str, path: Path
) -> None:
    columns = min(_MOST_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    shown = [class_names[label] for label in classes]
    with drawing([*shown, *(panel.title for panel in panels), *heading]) as legible:
        figure = new_figure(max(6.4, 3.6 * columns), 0.8 + 3.9 * lines + 0.22 * -(-len(classes) // columns))
        grid = list(figure.subplots(lines, columns, squeeze=False).flat)
        for axes in grid:
            axes.set_axis_off()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, classes, legible)
        names = [shortened(legible(name)) for name in shown]
        legend = figure.legend(
            grid[0].collections,
            [str(number) for number, _ in enumerate(names)],
            loc="outside lower center",
            ncols=min(len(names), 2 * columns),
            frameon=False,
        )
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)  # here, since matplotlib leaves out names that begin with _
        figure.suptitle("\n".join(map(legible, heading.split("\n"))))
        save_png(figure, path)


def _draw_panel(axes: Axes, panel: Panel, classes: Sequence[int], legible: Callable[[str], str]) -> None:
    axes.set_axis_on()
    for i, label in enumerate(classes):
        x, y = panel.points[panel.labels == label].T
        axes.scatter(
            x, y, s=16, marker=MARKERS[i % len(MARKERS)], color=PALETTE[i % len(PALETTE)], alpha=0.8,
            linewidths=0,
        )  # fmt: skip
    found = panel.separability
    axes.set_title(shortened(legible(panel.title), 40))
    axes.set_xlabel(
        f"{found.neighbours}-nearest-neighbour accuracy {found.accuracy:.3f} (chance {found.chance:.3f})\n"
        f"silhouette {found.silhouette:.3f}, both in feature space"
    )
    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(FAINT)
