"""The deliberate mistakes: by file under csrc/, {what it is: (right code, wrong code)}.  At least one for each op."""

MISTAKES: dict[str, dict[str, tuple[str, str]]] = {
    "cpu/modulation_kernels.h": {
        "adaln_modulate: the variance is divided by D - 1": (
            "squares.total() * inverse_d",
            "squares.total() / static_cast<float>(d - 1)",
        ),
        "gated_residual: the gradient of the branch forgets the gate": ("v * load_pair(gate + i)", "v"),
        "gated_residual_adaln: the norm is taken of x instead of x'": ("x = kept;", ""),
    },
    "cpu/rotary_token.h": {
        "qk_norm_rope: the second half is turned the wrong way": (
            "store(other + h + i, w1 * s, width);",
            "store(other + h + i, zero() - w1 * s, width);",
        ),
    },
    "cpu/rotary_backward.h": {
        "qk_norm_rope: the gradient forgets how the scale depends on x": (
            "splat(-along[k] * stats.reach[k])",
            "splat(0.f)",
        ),
    },
}
