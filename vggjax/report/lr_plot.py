"""Draws what a rate range test saw as PNG bytes: the loss over the rate, and the rate to take."""

from vggjax.report.plot_style import DARK, LIGHT, drawable, png, style
from vggjax.training.lr_finder import RateTest


def draw_rate_test(test: RateTest, *, dark: bool = False) -> bytes:
    """Draws the losses, what they are around each step, and the rates that were read from it."""
    import numpy as np
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    with style(theme):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        rates, losses = np.array(test.rates), np.array(test.losses)
        axes.plot(rates, losses, ".", ms=4, c=theme.muted, alpha=0.55, label="a step")
        axes.plot(rates, test.smoothed, c=theme.train, label="around it")
        readings = [
            ("steepest descent", test.steepest, "v"),
            ("least loss", test.least, "o"),
        ]
        for name, rate, marker in readings:
            if rate is not None:
                loss = np.interp(np.log(rate), np.log(rates), test.smoothed)
                axes.plot([rate], [loss], marker, ms=8, c=theme.val, mec=theme.paper, label=name)
        if test.suggestion is not None:
            axes.axvline(test.suggestion, c=theme.val, lw=1.2, ls=(0, (4, 3)))
            where = dict(xytext=(5, -4), textcoords="offset points", va="top")
            axes.annotate(
                f"take {test.suggestion:.1e}", (test.suggestion, 1), color=theme.val,
                xycoords=axes.get_xaxis_transform(), **where,
            )  # fmt: skip
        # Beyond the start's losses all is lost: its height would flatten what is to be seen.
        start = float(np.median(losses[: max(5, len(losses) // 10)])) if len(losses) else 1.0
        low = min(test.smoothed, default=0.0)
        margin = 0.25 * max(start - low, 0.1 * start)
        axes.set_ylim(low - margin, start + 3 * margin)
        axes.set_xscale("log")
        axes.set_xlabel("--learning-rate")
        axes.set_title(f"loss of {drawable(test.stage, width=40)}", loc="left", fontweight="bold")
        axes.grid(axis="both")
        figure.legend(loc="outside lower center", ncols=5, frameon=False)
        return png(figure)
