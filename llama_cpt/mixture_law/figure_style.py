"""Style of figures: colors, fonts that cover the scripts of names, and short number formats."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
from functools import cache
import io
import math
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
# Low ratios are violet, high ones green; the palest end is not used.
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
"""Fonts that are searched for a character in this order, as far as they are installed."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Context manager for drawing and saving figures, with fonts for all scripts."""
    settings = {
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
    """Return the figure as PNG at 200 dpi, twice the resolution of a screen."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def drawable(name: str) -> bool:
    """Return whether an installed font has every character of ``name`` in the right direction."""
    right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    # Matplotlib shapes and turns such script from 3.11 on, with libraqm.
    if right_to_left and not hasattr(ft2font, "__libraqm_version__"):
        return False
    return all(any(ord(c) in letters for letters in _installed().values()) for c in name.strip())


def group_labels(corpora: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return labels of the groups with their corpora, if these are few and can be drawn."""
    labels = {}
    for group, names in corpora.items():
        text = ", ".join(names)
        short = len(text) <= 24 and drawable(text)
        labels[group] = group.capitalize() + (f" ({text})" if short else "")
    return labels


@cache
def _installed() -> dict[str, frozenset[int]]:
    """Return the characters of each installed font of ``FONTS``."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return {
        name: frozenset(font_manager.get_font(font_manager.findfont(name)).get_charmap())
        for name in FONTS
        if name in installed
    }


def shades(color: str) -> LinearSegmentedColormap:
    """Return a color map from white to ``color``, on which contour lines stay readable."""
    return LinearSegmentedColormap.from_list(color, ["#ffffff", color])


def ratio_norm(almr: Float[np.ndarray, " runs"]) -> Normalize:
    """Return the normalization of ratios for ``RATIO_COLORS``."""
    return Normalize(almr.min(), almr.max())


def plain(axes: Axes, *, grid: bool = True) -> None:
    """Remove the upper and right spines and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(grid, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def percent(share: float, _: int | None = None) -> str:
    """Format a share as a percentage; usable as a tick formatter."""
    return f"{100 * share:.3g}%".replace("-", "\N{MINUS SIGN}")


def rate(value: float) -> str:
    """Format a learning rate: ``3e-4``, ``1.25e-5``; "?" if unknown."""
    if math.isnan(value):
        return "?"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def amount(value: float) -> str:
    """Format tokens or parameters: ``1.5M``, ``70B``; "?" if unknown."""
    if math.isnan(value):
        return "?"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
