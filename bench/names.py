"""What the implementations are called in tables and result files."""

REFERENCE, COMPILE, PRESTO, SCHEDULED = "reference", "compile", "presto", "scheduled"
GRAPH = "_graph"  # behind a name: in a CUDA graph
