"""What renoise adds: the words of Philox4x32-10, Box-Muller of them, and what a generator of normals must be."""

import itertools
import math
import random

import pytest
import torch

import presto_kernels
from presto_kernels import _library
from presto_kernels.ops.sampler import reference

BACKENDS = [b for b in presto_kernels.available_backends()["renoise"] if b in ("cpu", "reference")]


def draw(*shape, seed, offset, dtype=torch.float32):
    return presto_kernels.renoise(torch.zeros(shape, dtype=dtype), 1.0, seed=seed, offset=offset)


def philox(counter, key):
    """Philox4x32-10 in plain integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & 0xFFFFFFFF, (p >> 32) ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def exact(elements, seed, offset, sample):
    """(normals, radii) of a sample, one element at a time, from the words as the documentation lays them out."""
    normals, radii = [], []
    key = seed % 2**64 & 0xFFFFFFFF, seed % 2**64 >> 32
    for element in range(elements):
        words = philox((element // 4, offset, sample, 0), key)
        u, turn = (((w >> 8) + 0.5) * 2.0**-24 for w in words[element % 4 // 2 * 2 :][:2])
        radius, angle = math.sqrt(-2 * math.log(u)), 2 * math.pi * turn
        radii.append(radius)
        normals.append(radius * (math.sin(angle) if element % 2 else math.cos(angle)))
    return torch.tensor(normals, dtype=torch.float64), torch.tensor(radii, dtype=torch.float64)


def ulps(radius):
    """The distance of fp32 numbers near the radius."""
    return 2.0 ** (torch.floor(torch.log2(radius)) - 23)


# Random123's known answers: kat_vectors, philox4x32 10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, answer", KNOWN)
def test_the_known_answers(counter, key, answer):
    assert tuple(philox(counter, key)) == answer
    words = reference.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(w) for w in words) == answer


def test_the_reference_words_are_those_of_plain_integers():
    numbers = random.Random(0)
    counters = [[numbers.randrange(2**32) for _ in range(4)] for _ in range(200)]
    keys = [[numbers.randrange(2**32) for _ in range(2)] for _ in range(200)]
    words = reference.philox(tuple(torch.tensor(counters).unbind(1)), tuple(torch.tensor(keys).unbind(1)))
    assert torch.stack(words, 1).tolist() == [philox(c, k) for c, k in zip(counters, keys, strict=True)]


SEEDS = [0, 1, 12345, -1, 2**63, -(2**63), 2**64 - 2, 2**32 + 7]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_noise_is_as_documented(backend, seed):
    """Key, counter, order of the four normals, sample: element by element, within 4 ulp of the radius."""
    for offset in (0, 3, 2**32 - 1):
        with presto_kernels.use_backend(backend):
            noise = draw(3, 5, 7, seed=seed, offset=offset).flatten(1).double()
            by_sample = draw(1, 35, seed=torch.tensor([seed - 2**64 if seed >= 2**63 else seed]), offset=offset)
        for sample in range(3):
            normals, radii = exact(35, seed, offset, sample)
            assert ((noise[sample] - normals).abs() <= 4 * ulps(radii)).all()
        assert torch.equal(by_sample.double()[0], noise[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_four_million_normals_are_within_4_ulp_of_the_radius(backend):
    """Enough to meet u within 2^-20 of 0 and of 1, where a logarithm of a rounded u would be wrong."""
    shape, place = (1, 2**22 if backend == "cpu" else 2**20), torch.device("cpu")
    with presto_kernels.use_backend(backend):
        noise = draw(*shape, seed=9, offset=4).double().view(-1, 2)
    right = reference.normal(torch.Size(shape), 9, 4, place).view(-1, 2)
    error = (noise - right).abs() / ulps(right.norm(dim=1, keepdim=True))
    assert error.max() <= 4
    assert right.norm(dim=1).max() > 5.1 and right.norm(dim=1).min() < 3e-3


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled CPU kernels are not here")
def test_the_cpu_draws_the_same_bits_on_every_instruction_set_and_thread_count():
    before, seen = torch.get_num_threads(), []
    try:
        with presto_kernels.use_backend("cpu"):
            for name in _library.INSTRUCTION_SETS[1:]:
                _library.limit_instruction_set(name)
                for threads in (1, 3):
                    torch.set_num_threads(threads)
                    seen.append(draw(3, 9001, seed=77, offset=2))
    finally:
        _library.limit_instruction_set(_library.INSTRUCTION_SETS[-1])
        torch.set_num_threads(before)
    assert all(torch.equal(other, seen[0]) for other in seen[1:])


def test_dtype_shape_layout_and_length_do_not_matter():
    noise = draw(2, 1000, seed=5, offset=1)
    assert torch.equal(draw(2, 10, 5, 20, seed=5, offset=1).flatten(1), noise)
    assert torch.equal(draw(2, 777, seed=5, offset=1), noise[:, :777])
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(draw(2, 1000, seed=5, offset=1, dtype=dtype), noise.to(dtype))
    rows = torch.zeros(2, 200, 10)[:, ::2]
    assert torch.equal(presto_kernels.renoise(rows, 1.0, seed=5, offset=1).flatten(1), noise)
    wide = draw(2, 1000, seed=5, offset=1, dtype=torch.float64)
    assert torch.equal(wide, wide.float().double())  # the fp32 noise, widened
    torch.testing.assert_close(wide, noise.double(), rtol=0, atol=4 * 2.0**-21)


def test_seeds_and_offsets_by_sample():
    x = torch.zeros(3, 50)
    seeds, offsets = torch.tensor([7, -2, 2**40]), torch.tensor([0, 5, 2**32 + 6])
    both = presto_kernels.renoise(x, 1.0, seed=seeds, offset=offsets)
    for i, (seed, offset) in enumerate([(7, 0), (-2, 5), (2**40, 6)]):  # the low 32 bits of an offset
        assert torch.equal(both[i : i + 1], draw(1, 50, seed=seed, offset=offset))
        mixed = presto_kernels.renoise(x, 1.0, seed=seed, offset=torch.full((3,), offset))
        assert torch.equal(mixed, draw(3, 50, seed=seed, offset=offset))
    strided = torch.stack([seeds, seeds], 1)[:, 0]
    assert torch.equal(presto_kernels.renoise(x, 1.0, seed=strided, offset=offsets), both)


# Statistics of 2^20 draws, each bound five standard errors, so that a right generator fails one in two million times;
# which draws these are is fixed.
N = 2**20
STREAMS = {
    "elements": lambda: draw(1, N, seed=1, offset=0).flatten(),
    "samples": lambda: draw(N // 4, 4, seed=2, offset=1).flatten(),
    "seeds": lambda: presto_kernels.renoise(torch.zeros(N // 4, 4), 1.0, seed=torch.arange(N // 4), offset=0).flatten(),
    "offsets": lambda: presto_kernels.renoise(
        torch.zeros(N // 4, 4), 1.0, seed=torch.zeros(N // 4, dtype=torch.int64), offset=torch.arange(N // 4)
    ).flatten(),
    "bfloat16": lambda: draw(1, N, seed=3, offset=7, dtype=torch.bfloat16).flatten(),
}


@pytest.fixture(scope="module")
def streams():
    return {name: make().double() for name, make in STREAMS.items()}


@pytest.mark.parametrize("name", STREAMS)
def test_moments(streams, name):
    z = streams[name]
    moments = {  # power: (expected, variance of z^power)
        1: (0, 1),
        2: (1, 2),
        3: (0, 15),
        4: (3, 96),
    }
    for power, (expected, variance) in moments.items():
        slack = 1e-5 if name == "bfloat16" else 0  # rounding adds 2^-18 / 3 to the variance
        assert abs((z**power).mean().item() - expected) < 5 * math.sqrt(variance / N) + slack, power


@pytest.mark.parametrize("name", [name for name in STREAMS if name != "bfloat16"])
def test_the_distribution_is_normal(streams, name):
    """Kolmogorov-Smirnov: sqrt(n) D exceeds 2.74 with probability 6e-7."""
    z = streams[name].sort().values
    cumulative = 0.5 * torch.erfc(-z / math.sqrt(2))
    steps = torch.arange(N + 1, dtype=torch.float64) / N
    distance = torch.maximum((steps[1:] - cumulative).max(), (cumulative - steps[:-1]).max())
    assert distance.item() * math.sqrt(N) < 2.74


@pytest.mark.parametrize("name", STREAMS)
def test_neighbours_are_independent(streams, name):
    """Correlations of values and of squares at small lags: the lag 1 joins a pair of Box-Muller, 2 a counter, 4 its
    neighbour (the next sample, seed or offset in those streams)."""
    z = streams[name]
    square = (z * z - 1) / math.sqrt(2)
    for lag in (1, 2, 3, 4, 5, 8, 16, 64):
        for values in (z, square):
            correlation = (values[lag:] * values[:-lag]).mean().item()
            assert abs(correlation) < 5 / math.sqrt(N - lag), (lag, correlation)


def test_streams_are_independent_of_each_other(streams):
    """Seeds, offsets and samples that differ by one."""
    base = streams["elements"]
    others = [
        draw(1, N, seed=1, offset=1),
        draw(1, N, seed=2, offset=0),
        draw(1, N, seed=1 + 2**32, offset=0),
        draw(2, N, seed=1, offset=0)[1:],
    ]
    flat = [base, *(other.double().flatten() for other in others)]
    for a, b in itertools.combinations(flat, 2):
        assert not (a == b).all() and abs((a * b).mean().item()) < 5 / math.sqrt(N)
        assert abs(((a * a - 1) * (b * b - 1)).mean().item() / 2) < 5 / math.sqrt(N)
