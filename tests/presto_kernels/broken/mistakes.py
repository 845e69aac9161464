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
    "cpu/sampler_kernels.h": {
        "edm_denoise: c_skip forgets sigma_min": (
            "return {square / (r * r + square), args.sigma_data * r",
            "return {square / (sigma * sigma + square), args.sigma_data * r",
        ),
        "renoise: the gradient of sigma has the wrong sign": (
            "total.add_product(chain, load_pair(grad + j, w, Natural{}), load_pair(eps + j, w, Natural{}))",
            "total.add_product(chain, load_pair(grad + j, w, Natural{}), Pair{} - load_pair(eps + j, w, Natural{}))",
        ),
    },
    "cpu/noise.h": {
        "renoise: the pair of an angle is exchanged": (
            "return {radius * cosine, radius * sine};",
            "return {radius * sine, radius * cosine};",
        ),
    },
}
