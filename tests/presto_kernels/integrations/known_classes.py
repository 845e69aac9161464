"""The table of the classes that accelerate knows, for docs/accelerate.md."""

from collections import defaultdict

from presto_kernels.integrations.registry import SWAPS

LIBRARIES = {"diffusers": "diffusers", "stable_audio_tools": "stable-audio-tools", "stable_audio_3": "Stable Audio 3"}


def classes() -> str:
    """By what runs fused in them; what both of Stability's codebases have, once."""
    known: dict[tuple[str, str], list[str]] = defaultdict(list)
    for target, swap in SWAPS.items():
        package, name = target.split(".")[0], target.rpartition(".")[2]
        known[LIBRARIES[package], swap.runs].append(name)
    both = {what: names for (library, what), names in known.items() if library == "stable-audio-tools"}
    rows = []
    for (library, what), names in known.items():
        if library == "Stable Audio 3" and both.get(what) == names:
            continue  # said with stable-audio-tools
        same = library == "stable-audio-tools" and known.get(("Stable Audio 3", what)) == names
        rows.append(f"| {library + (', Stable Audio 3' if same else '')} | {', '.join(names)} | {what} |")
    return "\n".join(["| | classes | what runs fused |", "|---|---|---|", *rows])
