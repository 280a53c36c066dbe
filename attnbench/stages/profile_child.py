"""The child process of a profile, with the autoencoder that decodes (`python -m` this module)."""

from __future__ import annotations

from attnbench.profiling import worker
from attnbench.stages.latents.codec import load_codec


def main() -> None:
    """Serve one job, as `attnbench.profiling.worker` does."""
    worker.main(lambda spec, device: load_codec(spec, device).decode)


if __name__ == "__main__":
    main()
