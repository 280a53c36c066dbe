"""A wall clock that can be moved while programs run: a library that is loaded before libc, and its offset.

The kernel's own clock stays, and with it the times that it gives to files; those of a store are moved by
hand. The monotonic clock stays, too, as it does where a real clock is set.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

OFFSET, WORD = "JUMPING_CLOCK_OFFSET", "JUMPING_CLOCK_IN"
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_s;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    char command[65536];
    const char *path = getenv("JUMPING_CLOCK_OFFSET"), *word = getenv("JUMPING_CLOCK_IN");
    int file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? 0 : read(file, command, sizeof command);
    if (file >= 0)
        close(file);
    if (!path || size <= 0 || (word && *word && !memmem(command, size, word, strlen(word))))
        return;
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *place = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (place != MAP_FAILED)
        offset_s = place;
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && offset_s && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec exact;
    int failed = clock_gettime(CLOCK_REALTIME, &exact);
    if (!failed) {
        now->tv_sec = exact.tv_sec;
        now->tv_usec = exact.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *kept)
{
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (kept)
        *kept = exact.tv_sec;
    return exact.tv_sec;
}
"""
ASK = "import time; print(time.time(), time.strftime('%Y', time.gmtime()), time.monotonic())"


def missing() -> str:
    """Return why no clock can be moved here; empty where it can."""
    return "" if shutil.which("cc") else "needs a C compiler, cc"


def build(folder: Path, word: str) -> dict[str, str]:
    """Compile the library; return the environment of programs whose clock it moves.

    Of those with `word` in their command: Ray's own hang where the clock that they read is not the kernel's.
    """
    source, library, offset = folder / "clock.c", folder / "clock.so", folder / "offset"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    offset.write_bytes(struct.pack("q", 0))
    made = {"LD_PRELOAD": str(library), OFFSET: str(offset), WORD: word, "RAY_LD_PRELOAD_ON_WORKERS": "1"}
    with jumping(offset) as clock:
        before, after = (_asked(made | {WORD: ""}, clock, seconds) for seconds in (0, 400 * 86400))
    assert 399 * 86400 < after[0] - before[0] < 401 * 86400, (before, after)
    assert after[1] > before[1], "the date has not moved"
    assert after[2] - before[2] < 3600, "the monotonic clock has moved"
    return made


def _asked(environment: dict[str, str], clock: Clock, seconds: int) -> list[float]:
    clock.set(seconds)
    said = subprocess.run(
        [sys.executable, "-c", ASK], env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout
    clock.set(0)
    return [float(word) for word in said.split()]


class Clock:
    """How far the wall clock is off, in seconds."""

    def __init__(self, place: mmap.mmap) -> None:
        self._place, self.offset_s = place, 0

    def set(self, offset_s: int) -> None:
        self._place[:8] = struct.pack("q", offset_s)
        self.offset_s = offset_s


@contextlib.contextmanager
def jumping(offset: Path) -> Iterator[Clock]:
    """Yield the clock; it is right again after the block."""
    with offset.open("r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        clock = Clock(place)
        try:
            yield clock
        finally:
            clock.set(0)


def move_files(folder: Path, seconds: int) -> None:
    """Give all files of a folder times of another clock."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            state = path.stat()
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + seconds * 10**9))
