"""What every step and op of Presto costs beside PyTorch. Not installed: run `python -m bench` from a checkout."""

import os

# The profiler's library writes a line for every start and stop to stderr; it looks at this when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
