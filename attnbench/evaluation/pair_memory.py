"""What the pairs within a set of real images give, kept for all samples that are compared with it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from attnbench.metrics.pairwise import Pairwise, pairwise
from attnbench.specs import content_hash
from attnbench.storage.arrays import DamagedFileError, read_arrays, write_arrays
from attnbench.storage.atomic import storage_errors

FORMAT = 1  # of the files; raised when their meaning changes


@dataclass(frozen=True, kw_only=True)
class PairMemory:
    """Runs `pairwise` and keeps the reference's part, by content, in a folder (None: nowhere).

    `warnings` names files that were damaged and computed again.
    """

    folder: Path | None = None
    warnings: list[str] = field(default_factory=list)

    def pairwise(
        self,
        reference: torch.Tensor,
        samples: torch.Tensor,
        *,
        neighbours: int | None,
        subsets: int | None,
        subset_size: int,
    ) -> Pairwise:
        """Return what `pairwise` does, the same bits; raises as it does, and StorageError."""
        path = known = None
        if self.folder is not None:
            # the draw of the reference's subsets depends on the number of samples, too
            settings = [neighbours, None if subsets is None else [subsets, subset_size, len(samples)]]
            path = self.folder / f"pairs-{content_hash([FORMAT, _content(reference), settings])}.safetensors"
            try:
                known = read_arrays(path)
            except DamagedFileError as error:
                self.warnings.append(f"{path} is damaged ({error}): its pairs are computed again")
        found = pairwise(
            reference,
            samples,
            neighbours=neighbours,
            subsets=subsets,
            subset_size=subset_size,
            known=known,
        )
        if path is not None and known is None:
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_arrays(path, found.reference_part)
        return found


def _content(features: torch.Tensor) -> list[str]:
    """Return what tells features from others: device, type, shape and the SHA-256 of their bytes."""
    content = hashlib.sha256(features.cpu().contiguous().numpy().data).hexdigest()
    return [features.device.type, str(features.dtype), str(list(features.shape)), content]
