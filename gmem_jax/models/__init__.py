"""Networks: pure functions of (params, x_t, t, snippet)."""
