"""The table that a comparison returns: as text, as HTML, as plain values."""

__all__ = ["Answer", "Row", "Table"]

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from textwrap import wrap

from torch import Tensor

from pplvm.cavi import CAVI
from pplvm.conjugate import Conjugate
from pplvm.draws import Draws
from pplvm.enumeration import Enumerated
from pplvm.exact import Exact
from pplvm.fit import Fit
from pplvm.likelihood import LogMarginal

Truth = Exact | Enumerated | Conjugate
Answer = Fit | Draws | CAVI | Truth


@dataclass(frozen=True)
class Row:
    """One answer. What does not apply to it is None; log-densities are nats per datum."""

    name: str
    method: str
    bound: float | None = None
    log_marginal: float | None = None
    log_marginal_error: float | None = None
    mean_error: float | None = None  # RMS of (mean - reference) / reference sd
    sd_error: float | None = None  # RMS of sd / reference sd - 1
    cover_50: float | None = None  # reference mass within the central 50 % intervals
    cover_90: float | None = None
    total_variation: float | None = None  # mean over discrete latents
    khat: float | None = None  # the largest
    rhat: float | None = None  # the largest
    ess_bulk: float | None = None  # the smallest
    ess_tail: float | None = None
    loo: float | None = None  # summed over the data
    loo_error: float | None = None
    seconds: float = 0.0
    worries: tuple[str, ...] = ()


COLUMNS = {
    "name": "answer", "bound": "bound", "log_marginal": "log p(x)", "mean_error": "mean err",
    "sd_error": "sd err", "cover_50": "50 %", "cover_90": "90 %", "total_variation": "total variation",
    "khat": "k̂", "rhat": "R̂", "ess_bulk": "ESS bulk", "ess_tail": "ESS tail", "loo": "LOO",
    "seconds": "seconds", "worries": "worry about",
}  # fmt: skip
LEGEND = {  # of columns, for which it is shown
    "bound": "bound: the answer's own objective, so one of many particles is closer to log p(x); both "
    "in nats per datum.",
    "mean_error": "mean err: RMS of (mean - reference) / reference sd; sd err: RMS of sd / reference "
    "sd - 1. 50 %, 90 %: reference mass inside the central intervals.",
    "total_variation": "total variation: ½ Σ |q(k) - p(k)| between the probabilities of a latent's "
    "states by the answer and by the reference, between 0 and 1, averaged over the discrete latents; "
    "answers that are draws have some 0.4 √((K - 1) / draws) of it by chance.",
    "khat": "k̂: the largest.",
    "rhat": "R̂: the largest; ESS: the smallest.",
}


@dataclass(frozen=True, eq=False)
class Table:
    """What :func:`compare` returns; prints as text and shows as HTML in a notebook."""

    rows: tuple[Row, ...]
    reference: str | None  # the name of the answer that the others are held against
    answers: Mapping[str, Answer]
    draws: Mapping[str, Draws]
    weights: Mapping[str, LogMarginal]  # of each fit
    data: tuple[Tensor, ...]

    def __getitem__(self, name: str) -> Row:
        """Returns the row of an answer."""
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict:
        """Returns plain values, fit for JSON: what is not finite becomes None."""
        rows = [
            {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in asdict(row).items()
            }
            for row in self.rows
        ]
        return {"reference": self.reference, "rows": rows}

    def legend(self) -> str:
        """Returns what the columns mean."""
        return " ".join(words for column, words in LEGEND.items() if column in self._used())

    def cells(self) -> list[list[str]]:
        """Returns the header and the rows as text, without columns that are empty throughout."""
        used = self._used()
        return [[COLUMNS[c] for c in used]] + [[_cell(row, c) for c in used] for row in self.rows]

    def __str__(self) -> str:
        """Returns the table as lines of text."""
        cells = self.cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = []
        for row in cells:
            middle = [cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([*lines, "", *wrap(f"{self._against()} {self.legend()}", width=100)])

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            sides = ["left", *["right"] * (len(cells) - 2), "left"]
            return "".join(
                f'<{tag} style="text-align: {side}; white-space: nowrap">{escape(cell)}</{tag}>'
                for cell, side in zip(cells, sides, strict=True)
            )

        head, *body = self.cells()
        rows = [row(head, "th"), *(row(cells, "td") for cells in body)]
        table = "".join(f"<tr>{cells}</tr>" for cells in rows)
        return f"<table>{table}</table><p>{escape(f'{self._against()} {self.legend()}')}</p>"

    def _used(self) -> list[str]:
        held = [c for c in COLUMNS if any(getattr(row, c) not in (None, ()) for row in self.rows)]
        return [c for c in COLUMNS if c in (*held, "worries")]

    def _against(self) -> str:
        return f"Reference: {self.reference}." if self.reference else "No healthy reference."

    def report(self, path: str | Path) -> Path:
        """Writes one self-contained HTML file with the table and the plots behind it."""
        from pplvm.report import write  # the report reads tables, so it stands above them

        return write(self, path)


def _cell(row: Row, column: str) -> str:
    value = getattr(row, column)
    if column == "worries":
        return "; ".join(value) or "—"
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if column == "loo" and row.loo_error is not None:
        return f"{value:.1f} ± {row.loo_error:.1f}"
    if column in ("ess_bulk", "ess_tail"):
        return f"{value:.0f}"
    if column in ("seconds", "cover_50", "cover_90"):
        return f"{100 * value:.0f} %" if column != "seconds" else f"{value:.1f}"
    return f"{value:.3f}" if math.isfinite(value) else "—"
