"""One look for every picture: colours, axes, and how a figure becomes a PNG file.

The colours are those of Okabe and Ito, "Color Universal Design" (2008), which colour-blind readers
tell apart; every series also has a marker or a dash of its own.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import MachineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
INK, SOFT, GRID = "#222222", "#6b6b6b", "#e3e3e3"
SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
BAD = "#b00020"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches, independent of pyplot's global state.

    Raises:
        MachineError: matplotlib is not installed.
    """
    try:
        # matplotlib is optional.
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise MachineError(
            "Pictures need matplotlib, which is not installed here. Install the extra `report`, "
            "which holds it (pip install 'align-toolkit[report]'), and run the same command again: "
            "it draws from the saved files and trains nothing."
        ) from None
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.02, hspace=0.04)
    return Figure(figsize=(width, height), dpi=150, facecolor="white", layout=layout)


def headline(figure: Figure, text: str) -> None:
    """Write what the picture is of at its top left."""
    figure.suptitle(text, x=0.012, ha="left", fontsize=13, color=INK, fontweight="bold")


def dress(axes: Axes, title: str, unit: str = "") -> None:
    """Give `axes` the common look: title at the left with its unit, light horizontal grid."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=8)
    if unit:
        axes.set_title(unit, loc="right", fontsize=8.5, color=SOFT, pad=8)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b5b5b5")
    axes.tick_params(length=0, labelsize=8.5, colors=SOFT)


def say(axes: Axes, text: str) -> None:
    """Write `text` in the middle of `axes`, where there is nothing to draw."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT, fontsize=9
    )
    axes.set_xticks([])
    axes.set_yticks([])


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG whole or not at all; the same figure gives the same bytes.

    Raises:
        MachineError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(partial, format="png", metadata={"Software": None})
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise MachineError(
            f"The picture {path} cannot be written ({error.strerror}). Free space or choose "
            "another folder, and run the same command again."
        ) from None
    return path
