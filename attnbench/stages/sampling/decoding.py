"""Denoised batches become images: in turn on a CPU, beside the denoising of the next one on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType

import numpy as np
import torch

Decode = Callable[[torch.Tensor], torch.Tensor]  # float [B, C, h, w] -> uint8 [B, H, W, C]


class DecodePipeline:
    """Decodes batches in the order they come in, and times that apart. Use as a context.

    On CUDA a thread decodes batch i on a stream of its own while the caller denoises batch i + 1. On
    a CPU both would fight for the same cores: there it decodes at once, in the caller's thread.
    """

    def __init__(self, decode: Decode, device: torch.device, *, background: bool | None = None) -> None:
        self.seconds = 0.0
        self._decode = decode
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        beside = device.type == "cuda" if background is None else background
        self._thread = ThreadPoolExecutor(max_workers=1) if beside else None
        self._pending: Future[np.ndarray] | None = None
        self._done: list[np.ndarray] = []

    def __enter__(self) -> DecodePipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def add(self, x: torch.Tensor) -> None:
        """Take a batch, float [B, C, h, w]; waits for the one before it, so that at most two are kept."""
        if self._thread is None:
            self._done.append(self._run(x, None))
            return
        self._collect()
        ready = torch.cuda.current_stream(x.device).record_event() if self._stream is not None else None
        self._pending = self._thread.submit(self._run, x, ready)

    def images(self) -> np.ndarray:
        """Return all images so far, uint8 [N, H, W, C]; raises here or in `add` what the decoder raised."""
        self._collect()
        return np.concatenate(self._done)

    def _collect(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._done.append(pending.result())

    @torch.inference_mode()
    def _run(self, x: torch.Tensor, ready: torch.cuda.Event | None) -> np.ndarray:
        started = time.perf_counter()
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            if self._stream is not None and ready is not None:
                self._stream.wait_event(ready)
                x.record_stream(self._stream)  # or its memory could be reused while it is being decoded
            images: np.ndarray = self._decode(x).cpu().numpy()
        self.seconds += time.perf_counter() - started
        return images
