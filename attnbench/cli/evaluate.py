"""`attnbench evaluate` and `attnbench reference build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.cli.app import RUNS, Device, Quiet, Runs, app
from attnbench.errors import UserInputError

reference_app = typer.Typer(help="Make files of real images for `attnbench evaluate`.")
app.add_typer(reference_app, name="reference")

Extractor = Annotated[str | None, typer.Option(help="Feature network (efficientnet-lite0).")]
Protocol = Annotated[str | None, typer.Option(help="adm: the network's resize; clean: clean-fid's (adm).")]
Weights = Annotated[
    Path | None, typer.Option("--weights", "--inception-weights", help="The network's weights file.")
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="SIDE", help="Cut real images of any size to this side, as `data prepare` does (px)."
    ),
]


@app.command()
def evaluate(
    samples: Annotated[
        Path | None,
        typer.Argument(
            metavar="SAMPLES", help="A folder of PNGs, an npz with arr_0, or a suite's run (see --case)."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Real images, a prepared set (FOLDER/held-out: that part), a file of `reference build`, one "
            "of ADM's npz, or mu and sigma alone (FID only); a run's default: its own data and settings."
        ),
    ] = None,
    image_size: ImageSize = None,
    case: Annotated[str | None, typer.Option(help="A run's case, by label.")] = None,
    extractor: Extractor = None,
    protocol: Protocol = None,
    weights: Weights = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Of fd,sfd,kd,skd,is,precision,recall; all.")
    ] = None,
    kd_subset_size: Annotated[int | None, typer.Option(help="Images per subset (default 1000).")] = None,
    kd_subsets: Annotated[int | None, typer.Option(help="Subsets of the kernel distance (100).")] = None,
    neighbours: Annotated[int | None, typer.Option(help="k of precision and recall (3).")] = None,
    is_order: Annotated[str | None, typer.Option(help="permuted, or given: as ADM's code.")] = None,
    reference_images: Annotated[
        int | None, typer.Option(help="Real images for kernel distance, precision, recall (10000).")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="SET", help="Another set for the same table, a case as RUN:CASE; repeat."),
    ] = None,
    per_class: Annotated[Path | None, typer.Option(help="Scores by class: a .png, and a .csv.")] = None,
    nearest: Annotated[
        Path | None, typer.Option(help="Samples beside nearest training images, .png.")
    ] = None,
    training: Annotated[Path | None, typer.Option(help="Training images, if not the reference.")] = None,
    tsne: Annotated[Path | None, typer.Option(help="t-SNE of some classes of every set, .png.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="For --tsne: close:N, random:N or names (close:5, or fewer).")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here, too.")] = None,
    self_test: Annotated[bool, typer.Option("--self-test", help="Prove the metrics' maths.")] = False,
    golden: Annotated[Path | None, typer.Option(help="With --self-test: folder of ADM's npz files.")] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Score images against real ones: FID, KID, precision, recall.

    SAMPLES are a folder, an npz file or a finished case of a run (RUN with --case). Features are kept by
    content below the runs folder: a second metric costs no second pass.
    """
    from attnbench.commands import evaluate as evaluate_command
    from attnbench.commands.evaluate_inputs import EvaluationRequest

    settings = evaluate_command.settings_from(
        extractor=extractor,
        protocol=protocol,
        weights=weights,
        metrics=metrics,
        kd_subset_size=kd_subset_size,
        kd_subsets=kd_subsets,
        neighbours=neighbours,
        is_order=is_order,
        reference_images=reference_images,
    )
    if golden is not None and not self_test:
        raise UserInputError("--golden goes with --self-test: it is what the self-test compares with")
    if classes is not None and tsne is None:
        raise UserInputError("--classes chooses what --tsne shows; give --tsne, or neither")
    if image_size is not None and reference is None and training is None:
        raise UserInputError("--image-size cuts the images of --reference and --training; name one of them")
    if self_test:
        raise typer.Exit(evaluate_command.self_test(settings, golden, runs=runs, device=device))
    if samples is None:
        raise UserInputError(
            "attnbench evaluate needs SAMPLES and --reference: attnbench evaluate samples/ --reference real/ "
            "(or --self-test alone)"
        )
    request = EvaluationRequest(
        samples=samples,
        reference=reference,
        settings=settings,
        image_size=image_size,
        case=case,
        also=tuple(also or ()),
        training=training,
        json_file=json_file,
        per_class=per_class,
        nearest=nearest,
        tsne=tsne,
        classes=classes,
    )
    raise typer.Exit(evaluate_command.evaluate(request, runs=runs, device=device, quiet=quiet))


@reference_app.command("build")
def reference_build(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Real images: a folder (one per class), an npz or a prepared set."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="The reference file, .npz.")],
    image_size: ImageSize = None,
    extractor: Extractor = None,
    protocol: Protocol = None,
    weights: Weights = None,
    reference_images: Annotated[
        int | None, typer.Option(help="Images whose features are kept (10000); the Gaussian is of all.")
    ] = None,
    runs: Runs = RUNS,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Make a reference file of a folder of real images.

    It holds statistics and features, and is checked whenever it is read.
    """
    from attnbench.commands import evaluate as evaluate_command

    settings = evaluate_command.settings_from(
        extractor=extractor, protocol=protocol, weights=weights, reference_images=reference_images
    )
    reference = evaluate_command.build_reference(
        folder, to, settings, image_size=image_size, runs=runs, device=device, quiet=quiet
    )
    typer.echo(
        f"{to}: {len(reference):,} images of {reference.name}, {settings.extractor}, "
        f"protocol {settings.protocol}"
    )
