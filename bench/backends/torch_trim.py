"""PyTorch with an allocator that keeps its memory."""

from __future__ import annotations

from collections.abc import Mapping

from .remote import RemoteBackend

# More than any case allocates. As a 32-bit number glibc takes no more.
_BYTES = 2**31 - 1


class TorchTrim(RemoteBackend):
    """PyTorch eager where glibc's malloc gives no memory back to the system.

    Else each large array is mapped anew and unmapped, and most of a call goes into page faults. The
    thresholds are read when a process starts, so this one is of its own.
    """

    worker = ("torch_eager", "TorchEager")

    def environment(self) -> Mapping[str, str]:
        return {
            "MALLOC_TRIM_THRESHOLD_": str(_BYTES),
            "MALLOC_MMAP_THRESHOLD_": str(_BYTES),
            # Some versions of glibc ignore a threshold that large.
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TOP_PAD_": str(2**26),
        }
