"""Parameters of a GPT, counted on paper."""


def by_formula(f: dict) -> int:
    """Parameters of a GPT with biases, from its shape: 12 L d^2 and the rest."""
    L, d, V, T = f["n_layer"], f["n_embd"], f["vocab_size"], f["block_size"]
    attention = 4 * d * d + 4 * d
    mlp = 8 * d * d + 5 * d
    final_norm = 0 if f.get("norm_placement") == "post" else 2 * d
    return V * d + T * d + L * (attention + mlp + 4 * d) + final_norm
