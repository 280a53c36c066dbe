"""A trained model looked at, one timestep after another; what a stranger's module refuses is noted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from attnbench.models.skeleton import DiffusionTransformer
from attnbench.report.diagnosis_record import Diagnosis, MapPath, QueryMaps
from attnbench.specs import Case, DiagnoseSpec
from attnbench.stages.diagnosing import measures
from attnbench.stages.diagnosing.examples import Examples
from attnbench.stages.diagnosing.heard import Heard
from attnbench.stages.diagnosing.maps import ImpliedMap, NoMapError, Site, implied_map, spread_queries
from attnbench.stages.diagnosing.watching import Seen, watching

BATCH_SIZE = 64  # images of one pass
DIGITS = 6  # of a weight that is kept
OF_A_MAP = {
    "entropy": measures.entropy,
    "effective_rank": measures.effective_rank,
    "row_variance": measures.row_variance,
}
SIMILARITIES = ("token_similarity", "attention_similarity")


@dataclass(kw_only=True)
class Inspection:
    """What was found so far: of each measure a row over layers for every timestep that was looked at."""

    case: Case
    asked: DiagnoseSpec
    model: DiffusionTransformer
    examples: Examples
    timesteps: list[int] = field(default_factory=list, init=False)
    rows: dict[str, list[list[float | None]]] = field(default_factory=lambda: defaultdict(list), init=False)
    problems: dict[str, dict[int, None]] = field(default_factory=lambda: defaultdict(dict), init=False)
    """Of each thing that is missing, the layers where it is."""
    heard: Heard = field(init=False)
    queries: torch.Tensor = field(init=False)
    paths: list[MapPath] = field(init=False)
    query_maps: QueryMaps | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Prepare what depends on the model's sizes."""
        depth = len(self.model.blocks)
        self.heard = Heard(depth, self.examples.labels.unique())
        self.queries = spread_queries(math.prod(self.model.grid), self.asked.queries)
        self.paths = [""] * depth

    @torch.no_grad()
    def look(self, timestep: int, device: torch.device) -> None:
        """Pass all examples through the model at a timestep, and find the maps of the first ones."""
        x, times, labels = self.examples.at(timestep, device)
        seen: list[list[Seen]] = []
        for part in torch.arange(len(x)).split(BATCH_SIZE):
            self.heard.expect(labels[part], math.prod(self.model.grid))
            with watching(self.model, self.asked.map_images if not seen else 0) as notes:
                self.model(x[part], times[part], labels[part], recorder=self.heard)
            seen.append(notes)
        single = math.prod(self.model.grid) == 1
        reason = "a single token, which is like no other" if single else "tokens are not finite"
        for name in SIMILARITIES:
            layers = zip(*([getattr(note, name) for note in notes] for notes in seen), strict=True)
            means = [torch.cat(parts).mean().item() for parts in layers]
            self.rows[name].append([self._kept(v, n, reason) for n, v in enumerate(means)])
        maps = [self._map(layer, note.site, self.queries) for layer, note in enumerate(seen[0])]
        for name, of in OF_A_MAP.items():
            values = [None if m is None else of(m.weights).nanmean().item() for m in maps]
            self.rows[name].append(
                [v if v is None else self._kept(v, n, "a map without weights") for n, v in enumerate(values)]
            )
        self.timesteps.append(timestep)
        if timestep == self.asked.timesteps[len(self.asked.timesteps) // 2]:
            self._keep_query(timestep, seen[0])

    def _kept(self, value: float, layer: int, otherwise: str) -> float | None:
        if math.isfinite(value):
            return value
        self.problems[otherwise][layer] = None
        return None

    def _map(self, layer: int, site: Site | None, queries: torch.Tensor) -> ImpliedMap | None:
        """Return the map of a layer, or None with the reason noted."""
        assert site is not None  # the model has run
        try:
            found = implied_map(site, queries)
        except NoMapError as error:
            self.problems[f"no attention map: {error}"][layer] = None
            return None
        except Exception as error:  # noqa: BLE001 - a plugin's module may raise anything under autograd
            text = " ".join(str(error).split())
            self.problems[f"no attention map: {type(error).__name__}: {text}"][layer] = None
            return None
        self.paths[layer] = found.path
        return found

    def _keep_query(self, timestep: int, seen: Sequence[Seen]) -> None:
        """Keep the weights of the token in the middle of the first image, mean over heads, for pictures."""
        height, width = self.model.grid
        query = (height // 2) * width + width // 2
        maps = [self._map(layer, note.site, torch.tensor([query])) for layer, note in enumerate(seen)]
        rows = [None if m is None else m.weights[0, :, 0].nanmean(0) for m in maps]
        weights = [
            [round(v, DIGITS) for v in row.tolist()] if row is not None and row.isfinite().all() else []
            for row in rows
        ]
        self.query_maps = QueryMaps(query=query, timestep=timestep, weights=weights)

    def result(self, class_names: Sequence[str]) -> Diagnosis:
        """Return everything that was found."""
        problems = {**self.problems, **self.heard.problems}
        classes: list[int] = self.heard.classes.tolist()
        attentions = [self.case.model.attention_at(layer) for layer in range(len(self.paths))]
        return Diagnosis(
            images=len(self.examples.x0),
            map_images=min(self.asked.map_images, BATCH_SIZE, len(self.examples.x0)),
            num_queries=len(self.queries),
            timesteps=self.timesteps,
            grid=self.model.grid,
            heads=self.case.model.num_heads,
            classes=classes,
            class_names=[class_names[label] for label in classes],
            paths=self.paths,
            measures=dict(self.rows),
            choices=self.heard.choices([attention.options for attention in attentions]),
            factors=self.heard.factors(),
            query_maps=self.query_maps,
            problems=[f"{_blocks(sorted(layers))}: {what}" for what, layers in problems.items()],
        )


def _blocks(layers: list[int]) -> str:
    """Name blocks: `block 3`, `blocks 0 to 11`, `blocks 0, 2, 5`."""
    if len(layers) == 1:
        return f"block {layers[0]}"
    if layers == list(range(layers[0], layers[-1] + 1)):
        return f"blocks {layers[0]} to {layers[-1]}"
    return f"blocks {', '.join(map(str, layers))}"
