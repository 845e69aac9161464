"""Targets are met or missed on a GPU, and do not apply on a CPU or to another model."""

from bench import targets


def verdicts(**changes):
    judged = targets.judge(**{"milliseconds": 25.0, "config": "presto-32s", "device_type": "cuda"} | changes)
    return {target["name"]: target["verdict"] for target in judged}


def test_on_a_gpu_they_are_met_or_missed():
    assert verdicts()["mono"] == "met by the latents alone"
    assert verdicts()["stable-audio-3-small-tensorrt"] == "missed"
    assert verdicts(milliseconds=231)["mono"] == "missed"
    assert verdicts(milliseconds=231)["stereo"] == "met by the latents alone"


def test_elsewhere_they_do_not_apply():
    assert set(verdicts(device_type="cpu").values()) == {"not applicable on a CPU"}
    assert set(verdicts(config="tiny").values()) == {"not applicable to tiny"}
    assert set(verdicts(milliseconds=None).values()) == {"not measured"}


def test_every_target_names_its_source_and_hardware():
    judged = targets.judge(None, config="presto-32s", device_type="cpu")
    assert [(target["name"], target["ms"]) for target in judged][:2] == [("mono", 230), ("stereo", 435)]
    assert all(target["source"] and target["hardware"] and target["what"] for target in judged)
