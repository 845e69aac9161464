"""The deliberate mistakes: by file under csrc/, {what it is: (right code, wrong code)}.  At least one for each op."""

MISTAKES: dict[str, dict[str, tuple[str, str]]] = {
    "cpu/modulation_forward.h": {
        "adaln_modulate: the variance is divided by D - 1": (
            "squares.total() * inverse_d",
            "squares.total() / static_cast<float>(d - 1)",
        ),
        "gated_residual_adaln: the norm is taken of x instead of x'": ("x = kept;", ""),
        "adaln_modulate, dyt: alpha is forgotten": (
            "tanh(alpha * load_pair(x + i, w, order))",
            "tanh(load_pair(x + i, w, order))",
        ),
        "gated_residual: residual2 is gated": (
            "return kResidual2 ? v + load_pair(residual2 + i) : v;",
            "return kResidual2 ? fma(load_pair(gate + i), load_pair(residual2 + i), v) : v;",
        ),
    },
    "cpu/modulation_backward.h": {
        "gated_residual: the gradient of the branch forgets the gate": ("v * load_pair(gate + i)", "v"),
        "adaln_modulate, dyt: the slope of tanh is tanh": ("* tanh_slope(alpha * v)", "* y"),
        "gated_residual: the gradient of residual2 is that of the last row": (
            "load_pair(dresidual2 + i) + load_pair(dxs + i)",
            "load_pair(dxs + i)",
        ),
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
        "qk_norm_rope: dyt's alpha forgets the slope of tanh": (
            "alpha.token = fma(inner, raw[i], alpha.token);",
            "alpha.token = fma(dn[k][i], raw[i], alpha.token);",
        ),
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
            "return {radius * at.cos, radius * at.sin};",
            "return {radius * at.sin, radius * at.cos};",
        ),
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
    "cpu/activation_kernels.h": {
        "swiglu: the slope of SiLU lacks its second term": ("s * fma(gate, splat(1.f) - s, splat(1.f))", "s"),
        "geglu: the root of 2 is forgotten": (
            "splat(1.f) + erf(gate * splat(0.707106781f))",
            "splat(1.f) + erf(gate)",
        ),
        "singlu: the slope of the sine lacks pi": ("splat(sincospi::kPi) * at.cos", "at.cos"),
        "snake: a channel's amplitude is its frequency": ("fma(s * s, factor, v)", "fma(s * s, alpha, v)"),
    },
}
