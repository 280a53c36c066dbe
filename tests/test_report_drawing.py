"""Looks and labels of series: told apart by everybody, in any picture, whatever their names."""

import itertools
import re

import numpy as np
import pytest

from attnbench.report.drawing import (
    PALETTE,
    colour,
    dash,
    distinct,
    drawing,
    label_ends,
    legend,
    marker,
    shortened,
    svg,
)

# Machado, Oliveira, Fernandes 2009: what each kind of colour blindness makes of linear RGB, severity 1
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
OKABE_ITO = ("#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(text):
    rgb = np.array([int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(text, vision):
    """Return CIE L*a*b* of a colour as this vision sees it."""
    t = XYZ @ np.clip(np.array(vision) @ linear(text), 0, 1) / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a, b):
    """Return the colour difference (CIE 1976) that is the smallest over all kinds of vision."""
    return min(float(np.linalg.norm(lab(a, v) - lab(b, v))) for v in VISIONS.values())


def closest(colours):
    return min(distance(a, b) for a, b in itertools.combinations(colours, 2))


def test_colours_are_as_easy_to_tell_apart_as_okabe_and_itos():
    """No pair is closer, for any kind of colour blindness, than the closest of the published palette."""
    # a hair below, for the last bits of two ways of summing
    assert closest(PALETTE) >= closest(OKABE_ITO) * (1 - 1e-12)


@pytest.mark.parametrize("ground", ["#ffffff", "#14171b"])
def test_colours_stand_out_from_the_page(ground):
    """On white each is at least as strong as Okabe and Ito's orange, their palest one that is used."""

    def contrast(a, b):
        weak, strong = sorted(float(linear(x) @ XYZ[1]) for x in (a, b))
        return (strong + 0.05) / (weak + 0.05)

    if ground == "#ffffff":
        assert min(contrast(c, ground) for c in PALETTE) >= contrast("#e69f00", ground)
    else:  # the page has lighter ones for its dark side; a file opened there keeps its white ground
        assert min(contrast(c, ground) for c in PALETTE) > 2


def test_28_series_are_told_apart_even_without_colour():
    """Marker and line alone differ between any two of 28; so do colour and line, and colour and marker."""
    looks = [(colour(i), str(dash(i)), marker(i)) for i in range(28)]
    for pair in ((1, 2), (0, 1), (0, 2)):
        assert len({tuple(look[part] for part in pair) for look in looks}) == 28


def test_labels_cut_to_the_same_text_are_numbered():
    """The middle is cut out, since labels differ at their ends; then they are numbered."""
    start, end = "dydila(mode=token, num_projectors=", ", num_factors=9, gamma=3.0)"
    labels = [f"{start}{n}{end}" for n in (3, 5, 7)] + ["softmax", f"{start}3{end}"]
    shown = distinct(labels)
    assert len(set(shown[:4])) == 4
    assert shown[3] == "softmax"
    assert shown[4] == shown[0]  # the same label
    assert all(len(text) <= 34 for text in shown)
    assert [text[-4:] for text in shown[:3]] == [" (1)", " (2)", " (3)"]
    ends = distinct(["a" * 40 + "x", "a" * 40 + "y"])
    assert ends[0] != ends[1]
    assert not any(text.endswith(")") for text in ends)


def test_a_label_that_fits_stays_whole():
    """Only longer ones are cut; line breaks and control characters never reach a picture."""
    assert shortened("x" * 34) == "x" * 34
    assert len(shortened("x" * 35)) == 34
    assert shortened("a\nb\x1b") == "a b\ufffd"


def test_names_that_begin_with_an_underscore_are_drawn():
    """Both kinds of labels of our figures show them, which matplotlib's own legends leave out."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        lines = [*axes.plot([0, 1], [0, 1]), *axes.plot([0, 1], [1, 0])]
        legend(figure, lines, ["_hidden", "seen"], loc="outside right upper")
        label_ends(figure, axes, {0: (1, 1), 1: (1, 0)}, {0: "_end", 1: "<b>$x$</b>"})
        words = re.findall(r">([^<>]+)</text>", svg(figure, "f", "a figure"))
    assert {"_hidden", "seen", "_end", "&lt;b&gt;$x$&lt;/b&gt;"} <= set(words)
