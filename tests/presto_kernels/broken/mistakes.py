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
}
