"""What attention modules say through `context.record`: choices of routers, factors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from attnbench.report.diagnosis_record import Choices, Factors
from attnbench.stages.training.router_balance import KNOWN_OPTIONS, MOST_OPTIONS

_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
_MOST_LETTERS = 200  # of an error's text: some of torch's fill pages


class Heard:
    """Collects what is recorded over several passes.

    Whole numbers and truth values are choices of tokens; whose is known of [B, N] and, for truth values,
    [B, N, options]. The rest and one number an image, [B], are factors, [banks, tokens, 1] or of any shape.
    """

    def __init__(self, depth: int, classes: torch.Tensor) -> None:
        self.depth, self.classes = depth, classes
        self.problems: dict[str, dict[int, None]] = defaultdict(dict)
        """Of each record that could not be read, the layers where it is."""
        self._labels = classes[:0]
        self._num_tokens = 0
        self._counts: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)  # [classes or 1, options]
        self._factors: dict[str, dict[int, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))

    def expect(self, labels: torch.Tensor, num_tokens: int) -> None:
        """Say whose records come next: the classes [B] of the images of a pass, and tokens an image."""
        self._labels, self._num_tokens = labels.cpu(), num_tokens

    def __call__(self, name: str, tensor: torch.Tensor) -> None:
        """Take a record; one that is neither of a block nor of numbers is left alone."""
        found = _NAME.fullmatch(name)
        if found is None or int(found[1]) >= self.depth or not tensor.numel() or tensor.is_complex():
            return
        layer, what = int(found[1]), found[2]
        try:
            self._take(what, layer, tensor.detach().cpu())
        except Exception as error:  # noqa: BLE001 - a plugin may record anything, and its case goes on
            text = " ".join(str(error).split())[:_MOST_LETTERS]
            self.problems[f"record {what!r} left out: {type(error).__name__}: {text}"][layer] = None

    def _take(self, what: str, layer: int, values: torch.Tensor) -> None:
        if values.is_floating_point() or values.shape == self._labels.shape:  # a number of each image
            banks = (
                values.flatten(1) if values.dim() == 3 and values.shape[-1] == 1 else values.reshape(1, -1)
            )
            self._factors[what][layer].append(banks.double().mean(1))
        else:
            counts = self._counted(values)
            if counts is not None:
                self._add(self._counts[what], layer, counts)

    def _counted(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return how often each option was chosen, [classes, options], or [1, options] of unknown images."""
        images = len(self._labels)
        if values.dtype == torch.bool:
            if not values.dim():
                return None
            chosen = values.long()
            own = values.shape[:2] == (images, self._num_tokens) and values.dim() == 3
            each = chosen.sum(1) if own else chosen.reshape(-1, chosen.shape[-1])
        else:
            if int(values.min()) < 0 or int(values.max()) >= MOST_OPTIONS:
                return None
            own = tuple(values.shape) == (images, self._num_tokens)
            flat = values.long().reshape(images if own else 1, -1)
            each = torch.stack([row.bincount(minlength=int(values.max()) + 1) for row in flat])
        if not own:
            return each.sum(0, keepdim=True)
        places = torch.searchsorted(self.classes, self._labels)
        return each.new_zeros(len(self.classes), each.shape[1]).index_add_(0, places, each)

    @staticmethod
    def _add(table: dict[int, torch.Tensor], layer: int, counts: torch.Tensor) -> None:
        before = table.get(layer)
        if before is None:
            table[layer] = counts
        elif len(before) == len(counts):
            wide = max(before.shape[1], counts.shape[1])
            padded = [torch.nn.functional.pad(z, (0, wide - z.shape[1])) for z in (before, counts)]
            table[layer] = padded[0] + padded[1]

    def choices(self, settings: Sequence[Mapping[str, object]]) -> dict[str, Choices]:
        """Return the shares of every choice; `settings` are each layer's options of its attention."""
        found = {}
        for what, layers in self._counts.items():
            told = [settings[layer].get(KNOWN_OPTIONS.get(what, "")) for layer in layers]
            known = [number for number in told if isinstance(number, int)]
            options = max([*known, *(counts.shape[1] for counts in layers.values())])
            wide = {
                layer: torch.nn.functional.pad(counts, (0, options - counts.shape[1])).double()
                for layer, counts in layers.items()
            }
            by_class = all(len(counts) == len(self.classes) for counts in wide.values())
            found[what] = Choices(
                options=options,
                shares=[_shares(wide[n].sum(0)) if n in wide else [] for n in range(self.depth)],
                by_class=[
                    [_shares(wide[n][place]) if n in wide else [] for n in range(self.depth)]
                    for place in (range(len(self.classes)) if by_class else ())
                ],
            )
        return found

    def factors(self) -> dict[str, Factors]:
        """Return the mean of every factor, by layer and bank."""
        return {
            what: Factors(
                means=[
                    torch.stack(layers[n]).mean(0).tolist()
                    if n in layers and len({len(z) for z in layers[n]}) == 1
                    else []
                    for n in range(self.depth)
                ]
            )
            for what, layers in self._factors.items()
        }


def _shares(counts: torch.Tensor) -> list[float]:
    total = counts.sum()
    return (counts / total).tolist() if total else []
