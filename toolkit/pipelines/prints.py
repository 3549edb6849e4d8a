"""A fingerprint of weights, by which a record says what model it is of."""

import hashlib
from collections.abc import Iterator

import torch

WHOLE = 256 * 2**20  # bytes of weights that are read whole; of more, sums of all bits and some of the numbers
SOME = 1024  # numbers of a tensor that are read then
# an integer as wide as a floating number, whose sums overflow alike everywhere
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(*modules: torch.nn.Module) -> str | None:
    """16 hexadecimal digits of SHA-256 over the names, dtypes and weights of some networks.

    Networks of more than 256 MiB are summed up where they lie, which takes as long as to read them once: the
    sum of each tensor's bits as integers, and `SOME` of its numbers. None where weights cannot be read (some
    offloading keeps them elsewhere).
    """
    weights = list(_weights(*modules))
    if any(weight.is_meta for _, weight in weights):
        return None
    digest = hashlib.sha256()
    whole = sum(weight.nbytes for _, weight in weights) <= WHOLE
    for name, weight in weights:
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(_bytes(weight) if whole else _gist(weight))
    return digest.hexdigest()[:16]


def _weights(*modules: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for module in modules:
        yield from sorted(module.state_dict().items())


def _bytes(weight: torch.Tensor) -> bytes:
    return weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _gist(weight: torch.Tensor) -> bytes:
    """The sum of all bits, modulo 2^64, and evenly spaced numbers."""
    flat = weight.detach().contiguous().reshape(-1)
    bits = flat.view(BITS[flat.element_size()])
    every = max(1, len(flat) // SOME)
    return int(bits.sum(dtype=torch.int64)).to_bytes(8, "little", signed=True) + _bytes(flat[::every])
