"""Memory that the allocator keeps for later is given back where a phase of training has let go of much at once.

A phase that follows needs other sizes: what the one before has left behind would lie beside it, and count twice.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")
"""How libraries that raise errors of their own (torch, pyarrow) tell of it."""


def no_memory(error: BaseException) -> bool:
    """Whether an error is for want of memory."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def give_back() -> None:
    """Return free memory to the operating system: tcmalloc's where it is preloaded, else the C library's."""
    for call in _calls():
        call()


@cache
def _calls() -> tuple[Any, ...]:
    program = ctypes.CDLL(None)
    if hasattr(program, "MallocExtension_ReleaseFreeMemory"):
        release = program.MallocExtension_ReleaseFreeMemory
        release.restype = None
        return (release,)
    if hasattr(program, "malloc_trim"):  # glibc; others have nothing of the kind
        return (lambda: program.malloc_trim(ctypes.c_size_t(0)),)
    return ()
