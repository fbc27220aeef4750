"""A Triton kernel that is careless on purpose, for test_poison.py."""

import triton
import triton.language as tl


@triton.jit
def copy_lanes(source, found, count, BLOCK: tl.constexpr):
    """Stores all lanes of a load, of those that its mask leaves out whatever they hold."""
    lanes = tl.arange(0, BLOCK)
    tl.store(found + lanes, tl.load(source + lanes, mask=lanes < count))
