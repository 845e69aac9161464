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
    "cpu/activation_kernels.h": {
        "swiglu: the slope of SiLU lacks its second term": ("s * fma(gate, splat(1.f) - s, splat(1.f))", "s"),
        "geglu: the root of 2 is forgotten": (
            "splat(1.f) + erf(gate * splat(0.707106781f))",
            "splat(1.f) + erf(gate)",
        ),
        "snake: a channel's amplitude is its frequency": ("fma(s * s, factor, v)", "fma(s * s, alpha, v)"),
    },
}
