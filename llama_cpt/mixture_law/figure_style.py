"""What the law's figures share: colours, fonts that have the names' letters, numbers in words."""

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

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
GREY, DARK = "#777777", "#222222"
GROUP_COLOURS = {"additional": BLUE, "original": VERMILION}
CHOICE, RIDGE = "#F0E442", "#7B3294"
MARKERS = ("o", "s", "^", "D", "v", "P")
# Low ratios are violet, high ones green; the palest end is not used.
RATIO_COLOURS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.88, 256)))

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
"""Those that are installed are asked for a letter in this order."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw and save figures inside: fonts for all scripts, small type, light frames."""
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
    """The picture, twice as fine as it is shown."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=200)
    return held.getvalue()


def drawable(name: str) -> bool:
    """Whether an installed font has every letter of ``name``, and its direction can be drawn."""
    right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    # Matplotlib shapes and turns such script from 3.11 on, with libraqm.
    if right_to_left and not hasattr(ft2font, "__libraqm_version__"):
        return False
    return all(any(ord(c) in letters for letters in _installed().values()) for c in name.strip())


def group_labels(corpora: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The groups by name with their corpora, where these are few and can be drawn."""
    labels = {}
    for group, names in corpora.items():
        told = ", ".join(names)
        short = len(told) <= 24 and drawable(told)
        labels[group] = group.capitalize() + (f" ({told})" if short else "")
    return labels


@cache
def _installed() -> dict[str, frozenset[int]]:
    """The letters of each of ``FONTS`` that is there."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return {
        name: frozenset(font_manager.get_font(font_manager.findfont(name)).get_charmap())
        for name in FONTS
        if name in there
    }


def shades(colour: str) -> LinearSegmentedColormap:
    """From nearly white to a light tone of ``colour``: contours stay readable on it."""
    return LinearSegmentedColormap.from_list(colour, ["#ffffff", colour])


def ratio_norm(almr: Float[np.ndarray, " runs"]) -> Normalize:
    """Of ``RATIO_COLOURS``."""
    return Normalize(almr.min(), almr.max())


def plain(axes: Axes, *, grid: bool = True) -> None:
    """Take away the frame's upper and right side, lay a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(grid, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def percent(share: float, _: int | None = None) -> str:
    """A share as percent; also what a tick's formatter calls."""
    return f"{100 * share:.3g}%".replace("-", "\N{MINUS SIGN}")


def rate(value: float) -> str:
    """A learning rate: ``3e-4``, ``1.25e-5``; "?" where it is not known."""
    if math.isnan(value):
        return "?"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def amount(value: float) -> str:
    """Tokens or parameters: ``1.5M``, ``70B``; "?" where it is not known."""
    if math.isnan(value):
        return "?"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
