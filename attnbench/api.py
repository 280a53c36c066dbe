"""The Python interface: build an attention or a model, run a suite, draw from what it trained, profile."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attnbench.contract import AttentionBackend, AttentionContext, AttentionSite
from attnbench.errors import UnsupportedError, UserInputError
from attnbench.models.options import resolve_attention
from attnbench.models.recipes import resolve
from attnbench.models.resolution import input_size
from attnbench.models.skeleton import DiffusionTransformer
from attnbench.models.skeleton import build_model as build_from_config
from attnbench.plugins import registry
from attnbench.specs import AttentionSpec, Measure, Mode, Precision, Scope

if TYPE_CHECKING:
    from attnbench.exchange.drawn import Samples
    from attnbench.profiling.profile import ProfileRows
    from attnbench.running.runner import SuiteRun


class Attention(nn.Module):
    """One attention module at one site; the context may be left out when calling it.

    forward(x [B, N, C], context=None) -> [B, N, C], tokens row-major on `site.grid`.
    """

    def __init__(self, site: AttentionSite, module: nn.Module) -> None:
        super().__init__()
        self.site, self.module = site, module

    def forward(self, x: torch.Tensor, context: AttentionContext | None = None) -> torch.Tensor:
        if context is None:
            context = AttentionContext(grid=self.site.grid)
        return self.module(x, context)


def build_attention(
    name: str, *, dim: int, num_heads: int, grid: tuple[int, int], **options: Any
) -> Attention:
    """Build one attention module by name.

    Raises UnknownNameError (nearest spelling), UserInputError (a wrong option or size) or
    UnsupportedError (the backend's reason).
    """
    backend, checked = resolve_attention(AttentionSpec(name=name, options=options))
    site = AttentionSite(dim=dim, num_heads=num_heads, grid=grid)
    reason = backend.supports(site, checked, torch.get_default_dtype(), torch.get_default_device())
    if reason:
        raise UnsupportedError(f"{name}: {reason}")
    return Attention(site, backend.build(site, checked))


def build_model(
    recipe: str, *, resolution: int, num_classes: int, seed: int = 0, **overrides: Any
) -> DiffusionTransformer:
    """Build a model from a recipe for images of `resolution` pixels.

    `overrides` are ModelConfig fields (`depth=8`, `attention="linear"`). A latent recipe sees
    resolution / 8, as Stable Diffusion's autoencoders make it.
    forward(x [B, C, H, W], t [B] in [0, 1000), y int64 [B]).
    """
    config = resolve(recipe, overrides)
    return build_from_config(config, input_size(config, resolution), num_classes, seed=seed)


def load_model(
    path: str | Path, case: str | None = None, *, device: str | torch.device = "cpu"
) -> DiffusionTransformer:
    """Open a trained model from an exported folder, or from a run's folder (`runs/quick`) and a case's label.

    In eval mode, with the averaged weights and re-parameterised parts fused: the very model that is sampled
    from. Its `attnbench_config` holds model, input, objective, codec and history
    (`attnbench.exchange.ExportedConfig`). Raises UserInputError, also for a missing plugin or a damaged
    file; warns when a backend's source has changed since.
    """
    from attnbench.exchange import instantiate, open_model

    return instantiate(open_model(Path(path), case), device)


def sample(
    path: str | Path,
    case: str | None = None,
    *,
    labels: Sequence[int | str] | None = None,
    count: int = 16,
    seed: int | None = None,
    autoencoder: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    **settings: Any,
) -> Samples:
    """Draw images of a trained model: of a run's folder (`runs/quick`) and a case's label, or of an export.

    `labels` are classes by number or name, an image each; without them `count` images are drawn, their
    classes in turns: of a run's case the first ones that its suite draws. `settings` are those of a suite's
    `sample` (`num_steps=10`, `guidance_scale=2.0`); an export, which has no suite, is drawn with 50 Euler or
    250 DDPM steps and no guidance. A model on latents needs its `autoencoder`'s folder where its run does
    not name it. Returns `images` uint8 [N, H, W, C], `labels` and `image(i)`, a picture of PIL.
    Raises UserInputError, also as `load_model` does.
    """
    from attnbench import console
    from attnbench.devices import chosen_device
    from attnbench.exchange.drawn import draw

    if not str(path).strip():
        raise UserInputError(
            f"path is the folder of a run or of an exported model, got {path!r}; name one, as in 'runs/quick'"
        )
    with console.progress_bar("sample", quiet=quiet) as progress:
        return draw(
            Path(path),
            case,
            labels=labels,
            count=count,
            seed=seed,
            autoencoder=None if autoencoder is None else Path(autoencoder),
            settings=settings,
            device=chosen_device(device),
            progress=progress,
        )


def list_backends() -> list[AttentionBackend]:
    """Return all attention backends, built-in and installed, in the order they registered."""
    return [provided.record for provided in registry().backends.values()]


def profile(
    models: Sequence[str] = (),
    resolutions: Sequence[int] = (256,),
    *,
    backends: Sequence[str] = (),
    recipe: str = "dit-s",
    mode: Mode = "forward",
    scope: Scope = "model",
    batch_sizes: Sequence[int] = (1,),
    precision: Precision | None = None,
    measure: Sequence[Measure] = ("macs", "params", "latency", "memory"),
    rounds: int = 6,
    interval: float = 0.05,
    threads: int | None = None,
    compile: bool = False,
    cuda_graphs: bool = False,
    within_s: float | None = None,
    timeout_s: float = 120.0,
    device: str = "auto",
    num_classes: int = 1000,
    quiet: bool = False,
) -> ProfileRows:
    """Return what models, and attention backends in the shell of `recipe`, cost: one row per size of each.

    Resolutions are in pixels of the decoded image. Latencies are ms, memory MiB, of `batch_sizes` images per
    pass; `mode`, `scope` and `precision` as in `attnbench profile`. The rows are a list with
    `to_dataframe()`. What goes on is told on stderr, unless `quiet`.
    Raises UserInputError on what cannot be asked; what cannot be measured is a row with status and reason.
    """
    from attnbench import console
    from attnbench.devices import chosen_device
    from attnbench.profiling.profile import default_precision, profile_batches, requests_for, spec_of

    chosen = chosen_device(device)
    settings = {
        "resolutions": list(resolutions),
        "measure": list(measure),
        "mode": mode,
        "scope": scope,
        "rounds": rounds,
        "interval": interval,
        "precision": precision or default_precision(chosen),
        "threads": threads,
        "compile": compile,
        "cuda_graphs": cuda_graphs,
        "timeout_s": timeout_s,
    }
    with console.progress_bar("profile", quiet=quiet) as progress:
        return profile_batches(
            requests_for(models, backends, recipe, num_classes),
            spec_of(settings),
            batch_sizes,
            device=chosen,
            within_s=within_s,
            progress=progress,
            say=(lambda text: None) if quiet else console.print_notice,
        )


def run_suite(
    path: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    cases: Sequence[str] = (),
    seeds: int | None = None,
    runs: str | Path = "runs",
    device: str = "auto",
    jobs: int = 1,
    threads: int = 0,
    quiet: bool = False,
) -> SuiteRun:
    """Run a suite and write its report; what is finished already is not computed again.

    `overrides` are a mapping (`{"train.steps": 20, "matrix.model.attention": ["linear"]}`) or `key=value`
    strings, `cases` labels (with `*` and `?`), `seeds`, `jobs` (cases at a time) and `threads` (CPU threads
    of each) numbers, `device` a name, all as on the command line. Progress is told on stderr, by bars in a
    terminal and by lines elsewhere, as in a notebook, unless `quiet`.
    Raises SuiteError with file and line, UserInputError for more jobs than the machine has cores or GPUs for.
    """
    from attnbench import console
    from attnbench.devices import chosen_device
    from attnbench.running.executors import make_executor
    from attnbench.running.executors.interface import Asked
    from attnbench.running.runner import run
    from attnbench.suite.choosing import choose_cases
    from attnbench.suite.loading import load_suite

    suite = choose_cases(load_suite(path, _override_texts(overrides), seeds=seeds), cases)
    if jobs < 0 or threads < 0:
        raise UserInputError(f"jobs and threads are 0 or more, got {jobs} and {threads}")
    asked = Asked(jobs=jobs, threads=threads, device=chosen_device(device), num_cases=len(suite.cases))
    executor = make_executor("process" if jobs == 1 else "jobs", asked)
    with console.run_listener(len(suite.cases), quiet=quiet) as listener:
        return run(suite, Path(runs), device=device, executor=executor, listener=listener)


def _override_texts(overrides: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return overrides as the command line takes them; JSON is YAML, so that every value is what it was."""
    if isinstance(overrides, str):
        raise UserInputError(f"overrides are a mapping or several strings, got one: {overrides!r}")
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={_in_json(key, value)}" for key, value in overrides.items()]


def _in_json(key: str, value: Any) -> str:
    plain = (
        value.item() if hasattr(value, "item") and not isinstance(value, str) else value
    )  # numpy's numbers
    try:
        return json.dumps(plain, default=lambda inner: os.fspath(inner), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserInputError(
            f"overrides: {key} is {value!r}, which no suite file can say ({error}); give text, numbers, "
            "booleans, None, a path, or lists and mappings of them"
        ) from error
