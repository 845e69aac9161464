"""Targets are met or missed on a GPU, and do not apply on a CPU or to another model."""

from bench import show, targets


def verdicts(**changes):
    given = {"totals": {"mono": 25.0, "stereo": 400.0}, "config": "presto-32s", "device_type": "cuda"} | changes
    return {target["name"]: target["verdict"] for target in targets.judge(**given)}


def test_on_a_gpu_they_are_met_or_missed():
    assert verdicts()["mono"] == verdicts()["stereo"] == "met"
    assert verdicts()["stable-audio-3-small-tensorrt"] == "missed"  # that one is stereo
    assert verdicts(totals={"mono": 231.0})["mono"] == "missed"
    assert verdicts(totals={"mono": 231.0})["stereo"] == "not measured"


def test_elsewhere_they_do_not_apply():
    assert set(verdicts(device_type="cpu").values()) == {"not applicable on a CPU"}
    assert set(verdicts(config="tiny").values()) == {"not applicable to tiny"}
    assert set(verdicts(seconds=10.0).values()) == {"not applicable to 10 s"}


def test_another_gpu_than_theirs_is_said_where_theirs_is_known():
    other = verdicts(device="NVIDIA A100-SXM4-80GB", totals={"mono": 100.0, "stereo": 20.0})
    assert other["stereo"] == "met" and other["stable-audio-3-small-tensorrt"] == "met, on another GPU"
    assert verdicts(device="NVIDIA H200")["stable-audio-3-small-tensorrt"] == "missed"


def test_every_target_names_its_source_and_hardware():
    judged = targets.judge({}, config="presto-32s", device_type="cpu")
    assert [(target["name"], target["ms"]) for target in judged] == [
        ("mono", 230),
        ("stereo", 435),
        ("stable-audio-3-small-tensorrt", 22),
        ("stable-audio-3-small-pytorch", 460),
    ]
    assert all(target["source"] and target["hardware"] and target["what"] for target in judged)


def test_the_table_shows_theirs_beside_ours_and_fits_the_page():
    for changes in ({"device_type": "cpu"}, {"device": "NVIDIA A100"}, {"totals": {}}):
        given = {"totals": {"mono": 27812.4, "stereo": 30005.1}, "config": "presto-32s", "device_type": "cuda"}
        judged = targets.judge(**given | changes)
        with show.console.capture() as capture:
            show.console.print(targets.table(judged))
        printed = capture.get()
        assert max(map(len, printed.splitlines())) <= 100 and "…" not in printed
        assert "230" in printed and "22" in printed and "H200" in printed and "arXiv" in printed
        assert ("27812" in printed) == ("totals" not in changes)
