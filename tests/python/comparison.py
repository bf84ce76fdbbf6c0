"""Compares the scores of two versions by numpy: the question comes as JSON on standard input, the answer goes out as JSON."""

import json
import sys

import numpy as np

question = json.load(sys.stdin)
live, other = np.array(question["live"]), np.array(question["other"])
rows, edges = np.array(question["rows"]), np.array(question["edges"])


def shares(scores):
    bins = np.searchsorted(question["score_edges"], scores, side="left")
    counts = np.bincount(bins, minlength=len(question["score_edges"]) + 1) + 0.5
    return counts / counts.sum()


p, q = shares(live), shares(other)
difference = other - live
# Labels are decided on float32, of which these are the digits.
labels = [np.float32(scores) >= np.float32(0.5) for scores in (live, other)]


def feature(values):
    bins = np.searchsorted(edges, values, side="left")
    means = {int(bin): difference[bins == bin].mean() for bin in np.unique(bins)}
    between = sum((bins == bin).sum() * (mean - difference.mean()) ** 2 for bin, mean in means.items())
    worst = max(means, key=lambda bin: abs(means[bin]))
    share = between / ((difference - difference.mean()) ** 2).sum()
    return {"share": float(share), "bin": worst + 1, "rows": int((bins == worst).sum())}


json.dump(
    {
        "scores": {
            "rows": len(live),
            "psi": float(((q - p) * np.log(q / p)).sum()),
            "correlation": float(np.corrcoef(live, other)[0, 1]),
            "mean_difference": float(difference.mean()),
            "mean_absolute_difference": float(np.abs(difference).mean()),
            "largest_difference": float(np.abs(difference).max()),
        },
        "flips": {
            "rows": int((labels[0] != labels[1]).sum()),
            "share": float((labels[0] != labels[1]).mean()),
            "to_positive": int((~labels[0] & labels[1]).sum()),
            "to_negative": int((labels[0] & ~labels[1]).sum()),
        },
        "features": {name: feature(rows[:, at]) for at, name in enumerate("ab")},
    },
    sys.stdout,
)
