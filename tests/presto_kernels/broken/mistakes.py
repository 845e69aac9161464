"""The deliberate mistakes: by file under csrc/, {what it is: (the right code, the wrong code)}.  One for each op."""

MISTAKES: dict[str, dict[str, tuple[str, str]]] = {
    "cpu/modulation_kernels.h": {
        "adaln_modulate: the variance is divided by D - 1": (
            "squares.total() * inverse_d",
            "squares.total() / static_cast<float>(d - 1)",
        ),
        "gated_residual: the gradient of the branch forgets the gate": ("v * load_pair(gate + i)", "v"),
        "gated_residual_adaln: the norm is taken of x instead of x'": ("x = kept;", ""),
    },
    "cpu/attention_forward.h": {
        "attention: a greater score does not shrink what was summed before it": (
            "change[r] = before == -infinity() ? before : (before - now) * scale_;",
            "change[r] = before == -infinity() ? before : 0.f;",
        ),
    },
    "cpu/attention_backward.h": {
        "attention_backward: the gradient of k forgets the scale": (
            "load(dk + r * dim_ + d, w) * splat(a_.scale)",
            "load(dk + r * dim_ + d, w)",
        ),
    },
}
