"""Style of figures: colors, fonts for all writing systems, and short number formats."""

from collections.abc import Generator, Mapping, Sequence
import contextlib
from functools import cache
import io
import math
from typing import Any
import unicodedata

from jaxtyping import Float
from matplotlib import colormaps, font_manager, ft2font, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
import numpy as np

# Okabe and Ito's palette, which color-blind readers can distinguish.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, DARK = "#777777", "#222222"
GROUP_COLORS = {"additional": BLUE, "original": VERMILION}
CHOICE, RATE_COLOR = "#F0E442", "#7B3294"
MARKERS = ("o", "s", "^", "D", "v", "P")
# The colors of viridis from violet to green; yellow has too little contrast with white.
RATIO_COLORS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.88, 256)))

FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Noto Sans Arabic",
    "Noto Sans",
    "Arial Unicode MS",
)
"""Fonts in the order in which Matplotlib searches them; missing fonts are skipped."""


@contextlib.contextmanager
def style() -> Generator[None]:
    """Set the style and the fonts for figures that are drawn and saved within the context."""
    # With a list of families, Matplotlib uses the first font that contains a character.
    settings: dict[Any, Any] = {
        "font.family": list(_installed()),
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.edgecolor": GREY,
        "axes.linewidth": 0.8,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "xtick.labelcolor": DARK,
        "ytick.labelcolor": DARK,
        "axes.labelcolor": DARK,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "axes.unicode_minus": True,
    }
    with rc_context(settings):
        yield


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file at 200 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def drawable(name: str) -> bool:
    """Return whether Matplotlib can draw ``name`` with the installed fonts.

    Every character must be in one of the fonts. Right-to-left text also needs libraqm.
    """
    right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    # Matplotlib 3.11 and later use libraqm to shape and reorder right-to-left text.
    if right_to_left and not hasattr(ft2font, "__libraqm_version__"):
        return False
    return all(any(ord(c) in letters for letters in _installed().values()) for c in name.strip())


def group_labels(corpora: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the label of each group, such as "Original (en, code)".

    The names of the corpora are omitted if they are longer than 24 characters or cannot be drawn.
    """
    labels = {}
    for group, names in corpora.items():
        text = ", ".join(names)
        short = len(text) <= 24 and drawable(text)
        labels[group] = group.capitalize() + (f" ({text})" if short else "")
    return labels


@cache
def _installed() -> dict[str, frozenset[int]]:
    """Return the code points of each installed font of ``FONTS``, by font name."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return {
        name: frozenset(font_manager.get_font(font_manager.findfont(name)).get_charmap())
        for name in FONTS
        if name in installed
    }


def shades(color: str) -> LinearSegmentedColormap:
    """Return a color map from white to ``color``."""
    return LinearSegmentedColormap.from_list(color, ["#ffffff", color])


def ratio_norm(almr: Float[np.ndarray, " runs"]) -> Normalize:
    """Return the linear map from the range of ``almr`` to [0, 1], for ``RATIO_COLORS``."""
    return Normalize(almr.min(), almr.max())


def plain(axes: Axes, *, grid: bool = True) -> None:
    """Remove the top and right spines and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(grid, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def percent(share: float, _: int | None = None) -> str:
    """Return a share as a percentage, such as "3.75%".

    The second argument is ignored; Matplotlib passes the tick position to tick formatters.
    """
    return f"{100 * share:.3g}%".replace("-", "\N{MINUS SIGN}")


def rate(value: float) -> str:
    """Return a learning rate as text, such as "3e-4" or "1.25e-5"; "?" for NaN."""
    if math.isnan(value):
        return "?"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def amount(value: float) -> str:
    """Return a number of tokens or parameters as text, such as "1.5M" or "70B"; "?" for NaN."""
    if math.isnan(value):
        return "?"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999.5M and more would be printed as "1e+03M", so the unit changes slightly below 1B.
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
