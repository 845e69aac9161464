"""What the compilers made of a family's kernels: a test module says which in ``FAMILY``."""

import pytest

from presto_kernels.testing import aot


@pytest.fixture(scope="module")
def triton_records(request):
    pytest.importorskip("triton", reason="triton is not installed")
    return _records(aot.compile_triton, request.module.FAMILY)


@pytest.fixture(scope="module")
def cuda_records(request):
    return _records(aot.compile_cuda, request.module.FAMILY)


def _records(compile, family):
    try:
        return compile(families=(family,))
    except aot.Unavailable as missing:
        pytest.skip(str(missing))
