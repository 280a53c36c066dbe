"""The Python interface: build one attention, build one model, list what there is, run a suite."""

from __future__ import annotations

from collections.abc import Sequence
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
    quiet: bool = True,
) -> ProfileRows:
    """Return what models, and attention backends in the shell of `recipe`, cost: one row per size of each.

    Resolutions are in pixels of the decoded image. Latencies are ms, memory MiB, of `batch_sizes` images per
    pass; `mode`, `scope` and `precision` as in `attnbench profile`. The rows are a list with
    `to_dataframe()`.
    Raises UserInputError on what cannot be asked; what cannot be measured is a row with status and reason.
    """
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
    return profile_batches(
        requests_for(models, backends, recipe, num_classes),
        spec_of(settings),
        batch_sizes,
        device=chosen,
        within_s=within_s,
        say=(lambda text: None) if quiet else print,
    )


def run_suite(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    cases: Sequence[str] = (),
    seeds: int | None = None,
    runs: str | Path = "runs",
    jobs: int = 1,
    threads: int = 0,
) -> SuiteRun:
    """Run a suite and write its report; what is finished already is not computed again.

    `overrides` are `key=value` strings, `cases` labels (with `*` and `?`), `seeds`, `jobs` (cases at a time)
    and `threads` (CPU threads of each) numbers, all as on the command line. Raises SuiteError with file and
    line, UserInputError for more jobs than the machine has cores or GPUs for.
    """
    from attnbench.devices import chosen_device
    from attnbench.running.executors import make_executor
    from attnbench.running.executors.interface import Asked
    from attnbench.running.runner import run
    from attnbench.suite.choosing import choose_cases
    from attnbench.suite.loading import load_suite

    suite = choose_cases(load_suite(path, overrides, seeds=seeds), cases)
    if jobs < 0 or threads < 0:
        raise UserInputError(f"jobs and threads are 0 or more, got {jobs} and {threads}")
    asked = Asked(jobs=jobs, threads=threads, device=chosen_device(None), num_cases=len(suite.cases))
    return run(suite, Path(runs), executor=make_executor("process" if jobs == 1 else "jobs", asked))
