"""The decode bench: one set of weights on both sides, checked, timed, and never quietly slower."""

import dataclasses
import json

import pytest
import torch

from bench import decode, machine, measure
from bench.__main__ import main

CPU = torch.device("cpu")
OPTIONS = decode.DecodeOptions(config="tiny", dtype="fp32", audio=0.1, device="cpu", compile=False)


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch):
    monkeypatch.setattr(
        machine, "measure_ceilings", lambda device, dtypes: machine.Ceilings(30.0, dict.fromkeys(dtypes, 0.4))
    )


def test_every_side_decodes_the_same():
    decoding = decode.Decoding(OPTIONS, CPU)
    with torch.inference_mode():
        audio = [way(decoding.latents) for way in decoding.implementations.values()]
    assert len(audio) == 3 and audio[0].std() > 1e-3
    assert audio[0].shape[-1] >= 0.1 * 44100
    for other in audio[1:]:
        torch.testing.assert_close(other, audio[0], rtol=0, atol=1e-4)
    assert decode.check(decoding, OPTIONS) == {}


def test_a_wrong_decoder_is_refused():
    decoding = decode.Decoding(OPTIONS, CPU)
    with torch.no_grad():
        decoding.presto.decoder[0].bias += 0.01
    assert decode.check(decoding, OPTIONS).keys() == {"presto", "chunked"}


def test_the_arithmetic_of_stable_audio():
    """545 GFLOP in 108 latents, as counted by hand from its layers."""
    options = decode.DecodeOptions(audio=108 * 2048 / 44100)
    assert decode.latent_shape(options) == (1, 108, 64)
    assert decode.gflop(options) == pytest.approx(545, rel=0.01)


def test_the_command(tmp_path, capsys):
    file = tmp_path / "decode.json"
    command = (
        "decode --config tiny --dtype bf16 --audio 0.2 --chunk 40 --device cpu --rounds 3 --seconds 0 --no-compile"
    )
    status = main([*command.split(), "--json", str(file)])
    read = json.loads(file.read_text())
    assert status == (1 if read["summary"]["reference_over_presto_interval"][1] < 1 else 0)
    assert read["refused"] == []
    rows = {row["implementation"]: row for row in read["rows"]}
    assert rows.keys() == {"reference", "presto", "chunked"}
    assert all(row["rounds"] >= 2 and row["ms_p50"] > 0 and 0 < row["bound_share"] < 1 for row in rows.values())
    assert {"gflop", "bound_ms", "reference_over_chunked", "reference_over_bound"} <= read["summary"].keys()
    output = capsys.readouterr().out
    assert "GFLOP" in output and max(map(len, output.splitlines())) <= 100


def test_ours_slower_than_diffusers_is_a_failure(monkeypatch, capsys):
    times = {"reference": [[1.0, 1.0]], "presto": [[2.0, 2.1]], "chunked": [[2.0, 2.1]]}
    monkeypatch.setattr(measure, "interleave", lambda *args, **kwargs: measure.Samples(times))
    assert decode.run(OPTIONS) == 1
    assert "slower than diffusers" in capsys.readouterr().out


@pytest.mark.slow
def test_every_sides_memory_is_of_a_process_of_its_own():
    peaks = decode.memory(dataclasses.replace(OPTIONS, audio=2.0))
    assert peaks.keys() == {"reference", "presto", "chunked"}
    assert all(peak > 4 * 2 * 44100 for peak in peaks.values())  # the audio alone


@pytest.mark.slow
def test_ours_is_not_slower_than_diffusers_on_any_cpu():
    """At the widths of the last levels of Stable Audio, on one thread."""
    options = decode.DecodeOptions(config="stable-audio", audio=0.7, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        decoding = decode.Decoding(options, CPU)
        ways = decoding.implementations
        with torch.inference_mode():
            measures = {
                name: measure.cpu_timer(lambda name=name: ways[name](decoding.latents))
                for name in ("reference", "presto")
            }
            samples = measure.interleave(measures, rounds=3)
    finally:
        torch.set_num_threads(threads)
    assert measure.paired_ratio(samples, "reference", "presto").high > 1
