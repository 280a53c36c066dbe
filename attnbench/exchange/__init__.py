"""Trained models out of and into attnbench: exported folders, diffusers' layout, weight transfer."""

from attnbench.exchange.config import ExportedConfig
from attnbench.exchange.diffusers_format import (
    DiffusersFolder,
    from_diffusers,
    use_dit_timesteps,
    write_diffusers,
)
from attnbench.exchange.exported import Exported, read_exported, write_exported
from attnbench.exchange.loading import instantiate, open_model
from attnbench.exchange.original_dit import from_original
from attnbench.exchange.trained import find_case, trained_model
from attnbench.exchange.transfer import TransferReport, transfer, transferred

__all__ = [
    "DiffusersFolder",
    "Exported",
    "ExportedConfig",
    "TransferReport",
    "find_case",
    "from_diffusers",
    "from_original",
    "instantiate",
    "open_model",
    "read_exported",
    "trained_model",
    "transfer",
    "transferred",
    "use_dit_timesteps",
    "write_diffusers",
    "write_exported",
]
