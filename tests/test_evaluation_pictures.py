"""Names in pictures: letters that no font has, fonts that have them, and names that begin with _."""

import subprocess
import sys

import pytest
import torch
from report_cases import make_result

from attnbench.evaluation import by_class as by_class_module
from attnbench.evaluation import tsne as tsne_module
from attnbench.evaluation.by_class import ClassScore, Scores, class_figure
from attnbench.evaluation.pictures import OUR_FONT, drawing
from attnbench.evaluation.tsne import tsne_figure

NAMES = ("_hidden", "中国", "größe", "日\n本")


@pytest.fixture
def font_with_zhong(tmp_path):
    """A font of one letter, 中, installed for the length of a test."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    for place, *others in (((0, 0), (0, 700), (700, 700), (700, 0)),):
        pen.moveTo(place)
        for other in others:
            pen.lineTo(other)
        pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "zhong"])
    builder.setupCharacterMap({ord("中"): "zhong"})
    builder.setupGlyf({".notdef": square, "zhong": square})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "zhong": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "OneLetter", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(tmp_path / "one.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "one.ttf")
    yield "OneLetter"
    font_manager.fontManager.ttflist[:] = before


def test_a_font_that_has_the_letters_is_used(font_with_zhong):
    """It stands behind ours; what it lacks, too, is written as an escape."""
    import matplotlib

    with drawing(["中国"]) as legible:
        assert matplotlib.rcParams["font.family"] == [OUR_FONT, font_with_zhong]
        assert legible("a 中国") == "a 中\\u56fd"
    with drawing(["cat"]) as legible:
        assert matplotlib.rcParams["font.family"] == [OUR_FONT]
        assert legible("größe − ±") == "größe − ±"


def kept_figures(monkeypatch, module):
    """Return the list of figures that a module saves from now on."""
    figures, save = [], module.save_png
    monkeypatch.setattr(module, "save_png", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


@pytest.mark.filterwarnings("error")
def test_every_class_stands_in_the_legend_of_t_sne(tmp_path, monkeypatch):
    """Also one whose name begins with _, which matplotlib leaves out; no box, no warning."""
    figures = kept_figures(monkeypatch, tsne_module)
    labels = torch.arange(4).repeat(6)
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)) + labels[:, None]
    settings = {"classes": [0, 1, 2, 3], "extractor": "net", "perplexity": 5.0, "neighbours": 3}
    tsne_figure({"_模型": (x, labels), "b": (x, labels)}, NAMES, tmp_path / "t.png", **settings)
    (legend,) = figures[0].legends
    expected = ["_hidden", "\\u4e2d\\u56fd", "größe", "\\u65e5\\n\\u672c"]
    assert [text.get_text() for text in legend.get_texts()] == expected
    colours = [tuple(handle.get_facecolor()[0]) for handle in legend.legend_handles]
    assert len(set(colours)) == 4
    assert figures[0].axes[0].get_title() == "_\\u6a21\\u578b"


@pytest.mark.filterwarnings("error")
def test_every_class_stands_beside_its_bar(tmp_path, monkeypatch):
    """As above, in the picture of scores by class."""
    figures = kept_figures(monkeypatch, by_class_module)
    scores = Scores(kernel_distance=0.1, standard_error=0.01, precision=0.5, recall=0.5)
    found = [
        ClassScore(label=i, name=name, n=9, reference_n=9, scores=scores) for i, name in enumerate(NAMES)
    ]
    class_figure(found, tmp_path / "c.png", called=str, heading="模")
    names = [text.get_text() for text in figures[0].axes[0].get_yticklabels()]
    assert names[:2] == ["0: _hidden  (9 / 9)", "1: \\u4e2d\\u56fd  (9 / 9)"]
    assert figures[0].get_suptitle().startswith("\\u6a21\n")


def test_a_reports_figures_keep_their_letters_and_warn_of_nothing():
    """They are text for the reader's browser, which has fonts of its own."""
    result = make_result("_模型 中国", curves={"loss": [(1.0, 0.5), (2.0, 0.4)]})
    code = (
        "import sys\nfrom attnbench.results import Result\n"
        "from attnbench.report.figures import case_drawings\n"
        "loss = case_drawings([Result.model_validate_json(sys.stdin.read())])[0]\n"
        "sys.stdout.buffer.write(loss.svg.encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=result.model_dump_json().encode(), capture_output=True, check=True
    )
    assert "_模型 中国" in done.stdout.decode()
    assert done.stderr == b""
