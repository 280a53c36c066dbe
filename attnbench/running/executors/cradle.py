"""What starts the processes of cases on a machine, in a fraction of a second where it can."""

from __future__ import annotations

import os
from pathlib import Path

from attnbench.processes import ChildProcess, ChildStartError, Nursery

MODULE, NAME = "attnbench.stages.case", "the case's process"
# glibc returns large tensors to the kernel at every free and faults them in again at every
# allocation; keeping them mapped makes CPU training faster. Not used where memory is measured.
KEEP_MEMORY_MAPPED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}


class Cradle:
    """Starts the processes of cases: forks of one that has imported everything, or else fresh ones.

    What must be in the environment when a process starts (the allocator's settings) is, for all of them. To
    enter it again changes nothing: whoever starts it early is not alone in using it.
    """

    def __init__(self) -> None:
        self._environment = {**KEEP_MEMORY_MAPPED, **os.environ}
        self._nursery: Nursery | None = None

    def __enter__(self) -> Cradle:
        if self._nursery is None:
            # in the session of this process: the terminal's Ctrl-C and Ctrl-Z are for its children, too
            self._nursery = Nursery(MODULE, self._environment, new_session=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def child(self, log: Path | None = None) -> ChildProcess:
        """Return a process that waits for a case to be asked of it."""
        if self._nursery is not None:
            try:
                return ChildProcess(MODULE, NAME, nursery=self._nursery, log=log)
            except ChildStartError:  # it was killed, say for want of memory: a fresh Python takes longer
                self._nursery = None
        return ChildProcess(MODULE, NAME, environment=self._environment, log=log)
