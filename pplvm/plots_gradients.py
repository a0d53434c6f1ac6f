"""A picture of a gradient report: what each objective's gradients cost, and how noisy they are."""

__all__ = ["gradients"]

import math

from matplotlib.figure import Figure

from pplvm.gradient_report import GradientReport
from pplvm.plots import PALETTE, WIDTH


def gradients(report: GradientReport) -> Figure:
    """Draws variance against time, and for each group of parameters the SNR by objective.

    An objective further down has less noise, one further left costs less; on the same diagonal, as
    many gradients as there is time for, averaged, have the same noise. Bars of infinite SNR, of
    gradients without noise, are left out.
    """
    names = list(dict.fromkeys(row.objective for row in report.rows))
    groups = list(dict.fromkeys(row.group for row in report.rows))
    colour = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    height = max(3.2, 0.16 * len(groups) * (len(names) + 1) + 1.2)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    for name in names:
        rows = [row for row in report.rows if row.objective == name]
        total = sum(row.variance for row in rows)
        if total > 0:
            left.loglog(1e3 * rows[0].seconds, total, "o", color=colour[name], label=name)
    left.set_xlabel("milliseconds a gradient")
    left.set_ylabel("variance, summed over all parameters")
    left.legend(fontsize=7)
    step = len(names) + 1
    for i, group in enumerate(groups):
        for j, name in enumerate(names):
            row = next((r for r in report.rows if (r.objective, r.group) == (name, group)), None)
            if row is not None and math.isfinite(row.snr):
                right.barh(i * step + j, row.snr, color=colour[name])
    right.set_yticks(
        [i * step + (len(names) - 1) / 2 for i in range(len(groups))], groups, fontsize=7
    )
    right.invert_yaxis()
    right.set_xscale("log")
    right.set_xlabel("signal to noise, mean over the group")
    return figure
