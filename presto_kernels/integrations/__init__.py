"""``accelerate(model)``: the fused ops in models that other libraries define, with nothing of theirs imported."""
