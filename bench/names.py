"""What the implementations are called in tables and result files."""

REFERENCE, COMPILE, PRESTO, SCHEDULED = "reference", "compile", "presto", "scheduled"
CHUNKED = "chunked"  # our decoder, piece by piece
GRAPH = "_graph"  # behind a name: in a CUDA graph


def is_ours(implementation: str) -> bool:
    """Whether a row times our code; the others are what it is compared with, and no commit of ours changes them."""
    name = implementation.removesuffix(GRAPH)
    return name.startswith(PRESTO) or name in (SCHEDULED, CHUNKED)
