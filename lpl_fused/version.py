"""The one place of the version, free of imports so that a build can read it without torch."""

import functools

__version__ = "1.0.0rc1"


def text() -> int:
    """A number of this library's whole text, native modules included; another text, another number.

    It is among the arguments of every operator (`problem._packed`), for whoever keeps what he has
    compiled: inductor finds it again by the graph alone, in which operators are their names and
    arguments, and would take what it made with another text, whose operators return other shapes.
    Never asked for past the dispatcher: it reads some megabytes, once a process.
    """
    return _text()


# what torch.compiler.assume_constant_result(text) does, without its import of torch._dynamo
text._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _text() -> int:
    import hashlib
    from pathlib import Path

    found, room = hashlib.sha256(__version__.encode()), Path(__file__).parent
    for path in sorted(path for kind in ("*.py", "*.so") for path in room.rglob(kind)):
        inside = path.read_bytes()
        found.update(f"{path.relative_to(room).as_posix()}\0{len(inside)}\0".encode())
        found.update(inside)
    return int.from_bytes(found.digest()[:7], "big")  # an int of a schema has 64 bits
