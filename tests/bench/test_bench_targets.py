"""Targets are met or missed on a GPU, and do not apply on a CPU or to another model."""

from bench import targets


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


def test_every_target_names_its_source_and_hardware():
    judged = targets.judge({}, config="presto-32s", device_type="cpu")
    assert [(target["name"], target["ms"]) for target in judged][:2] == [("mono", 230), ("stereo", 435)]
    assert all(target["source"] and target["hardware"] and target["what"] for target in judged)
