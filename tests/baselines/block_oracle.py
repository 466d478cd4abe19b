"""MoBA and NSA query by query in float64: slow, and written from the equations alone."""

from __future__ import annotations

import math

import numpy as np


def softmax_over(query: np.ndarray, keys: np.ndarray, scaling: float) -> np.ndarray:
    score = keys @ query * scaling
    weight = np.exp(score - score.max())
    return weight / weight.sum()


def moba(q: np.ndarray, k: np.ndarray, v: np.ndarray, top_k: int, size: int, scaling: float):
    """Output and pairs read of q (H, L, D), k and v (G, L, D), for a row without padding."""
    heads, length, _ = q.shape
    share = heads // k.shape[0]
    out, pairs = np.zeros_like(q), 0
    for h in range(heads):
        keys, values = k[h // share], v[h // share]
        for t in range(length):
            own = t // size
            score = {i: q[h, t] @ keys[i * size : (i + 1) * size].mean(0) for i in range(own)}
            best = sorted(score, key=lambda i: -score[i])[: top_k - 1]
            seen = [s for s in range(t + 1) if s // size == own or s // size in best]
            out[h, t] = softmax_over(q[h, t], keys[seen], scaling) @ values[seen]
            pairs += len(seen)
    return out, pairs / heads


def nsa(q, k, v, gates, phi, top_n, block, stride, size, window, scaling):
    """As `moba`; gates (3, H, L); phi: (windows, block, D) to (windows, D).

    Also `clear` (L): False where a block that is left out is as important as a chosen one but for
    rounding. A window over two blocks counts for both alike, and either choice is right then.
    """
    heads, length, _ = q.shape
    groups = k.shape[0]
    share = heads // groups
    out, pairs, clear = np.zeros_like(q), 0.0, np.ones(length, dtype=bool)
    for g in range(groups):
        starts = [s for s in range(0, length, stride) if s + block <= length]
        folded = [np.stack([part[g, s : s + block] for s in starts]) if starts else None
                  for part in (k, v)]  # fmt: skip
        keys, values = (
            phi[name](part) if starts else None
            for name, part in zip(("key", "value"), folded, strict=True)
        )
        for t in range(length):
            ended = [c for c, s in enumerate(starts) if s + block - 1 <= t]
            group_heads = range(g * share, (g + 1) * share)
            mass = np.zeros(len(starts))
            for h in group_heads:
                if ended:
                    weight = softmax_over(q[h, t], keys[ended], scaling)
                    mass[ended] += weight
                    out[h, t] += gates[0, h, t] * (weight @ values[ended])
            own = t // size
            importance = {}
            for j in range(own + 1):
                strides = {c: {starts[c] + n * stride for n in range(block // stride)}
                           for c in ended}  # fmt: skip
                covered = {j * size + n * stride for n in range(size // stride)}
                importance[j] = sum(mass[c] * len(strides[c] & covered) for c in ended)
            fixed = [j for j in {0, own - 1, own} if j >= 0]
            rest = sorted((j for j in importance if j not in fixed), key=lambda j: -importance[j])
            count = max(0, max(top_n, 3) - len(fixed))
            chosen = set(fixed) | set(rest[:count])
            if 0 < count < len(rest):
                last, first_out = importance[rest[count - 1]], importance[rest[count]]
                clear[t] &= last == first_out == 0 or last - first_out > 1e-9
            selected = [s for s in range(t + 1) if s // size in chosen]
            near = [s for s in range(t + 1) if s > t - window]
            for h in group_heads:
                out[h, t] += gates[1, h, t] * (
                    softmax_over(q[h, t], k[g, selected], scaling) @ v[g, selected]
                )
                out[h, t] += gates[2, h, t] * (
                    softmax_over(q[h, t], k[g, near], scaling) @ v[g, near]
                )
            pairs += share * (len(set(selected) | set(near)) + len(ended))
    return out, pairs / heads, clear


def videonsa(q, k, v, visual, gates, top_n, size, window, scaling):
    """As `moba`; visual (L,) bool; gates (3, H, L), read at visual tokens."""
    heads, length, _ = q.shape
    groups = k.shape[0]
    share = heads // groups
    out, pairs = np.zeros_like(q), 0
    places = [t for t in range(length) if visual[t]]
    for g in range(groups):
        group_heads = range(g * share, (g + 1) * share)
        for t in range(length):
            if not visual[t]:
                for h in group_heads:
                    out[h, t] = softmax_over(q[h, t], k[g, : t + 1], scaling) @ v[g, : t + 1]
                pairs += share * (t + 1)
        for rank, t in enumerate(places):
            blocks = [places[at : at + size] for at in range(0, rank + 1, size)]
            complete = [block for block in blocks if len(block) == size and block[-1] <= t]
            own, importance = rank // size, dict.fromkeys(range(rank // size), 0.0)
            for h in group_heads if complete else ():
                weight = softmax_over(
                    q[h, t], np.stack([k[g, b].mean(0) for b in complete]), scaling
                )
                out[h, t] += gates[0, h, t] * weight @ np.stack([v[g, b].mean(0) for b in complete])
                for n in importance:
                    importance[n] += weight[n]
            best = sorted(importance, key=lambda n: -importance[n])[: top_n - 1]
            selected = [c for n in (*best, own) for c in blocks[n] if c <= t]
            near = places[max(0, rank - window + 1) : rank + 1]
            for h in group_heads:
                for branch, columns in ((1, selected), (2, near)):
                    weight = softmax_over(q[h, t], k[g, columns], scaling)
                    out[h, t] += gates[branch, h, t] * (weight @ v[g, columns])
            pairs += share * (len({*selected, *near}) + len(complete))
    return out, pairs / heads


def gelu_gates(hidden, w1, b1, w2, b2, heads):
    """VideoNSA's gates (3, H, L) of hidden states (L, M): sigmoid(MLP / 0.3), a GELU between."""
    inner = hidden @ w1.T + b1
    inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
    logit = (inner @ w2.T + b2).reshape(len(hidden), heads, 3)
    return (1 / (1 + np.exp(-logit / 0.3))).transpose(2, 1, 0)


def equivalent(pairs: float) -> float:
    """The number of tokens n with n (n + 1) / 2 = pairs."""
    return (math.sqrt(1 + 8 * pairs) - 1) / 2
