"""interpreted/ needs TRITON_INTERPRET=1 from the start of the process; test_triton_launch.py runs it in one."""

from presto_kernels import backends

collect_ignore_glob = [] if backends.TRITON_INTERPRETS else ["interpreted/*"]
