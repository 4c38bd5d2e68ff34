"""The number of tiles that our kernel and splash attention visit on packed rows of text.

    JAX_PLATFORMS=cpu python -m benchmarks.attention_tiles TOKENIZER FILES

FILES are JSON Lines files or files with one JSON list. The documents are packed into rows in the
order of the files, and a conversation counts as one document. A tile has 512 x 512 pairs of a query
and a key, and is needed if at least one pair is visible. Splash attention visits all tiles of the
causal mask. The costs in bundles come from the compiler's schedule for v5e, forward and backward
(benchmarks/attention_schedule.py).
"""

import argparse
import gzip
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
import numpy as np

from llama_cpt.data.loader import segment_ids_and_positions
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from pallas_kernels.tiles import CROSSING, DIAGONAL, needed_tiles, unpack

TILE = 512
# Bundles per thousand scores on v5e, forward + backward. OURS has the costs of tiles without a
# mask, of tiles that a document border crosses, and of diagonal tiles. SPLASH is by block size.
OURS = (3.892 + 8.520, 3.969 + 8.996, 3.144 + 6.609)
SPLASH = {512: 4.532 + 9.300, 1024: 4.636 + 8.786}


def texts(path: str, field: str):
    """Yield the text of every record of a file."""
    opened = gzip.open if path.endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        records = json.load(file) if ".json" in Path(path).suffixes else map(json.loads, file)
        for record in records:
            found = record.get(field)
            yield found if isinstance(found, str) else json.dumps(record, ensure_ascii=False)


def packed_rows(options: argparse.Namespace, length: int) -> np.ndarray:
    """Return the segment ids of the packed rows, of shape (rows, length)."""
    tokenizer = load_tokenizer(options.tokenizer)
    parts, count = [], 0
    for path in options.files:
        for text in texts(path, options.text_field):
            parts.append([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id])
            count += len(parts[-1])
            if count > options.tokens:
                break
    flat = np.concatenate(parts).astype(np.int32)
    rows = flat[: len(flat) // length * length].reshape(-1, length)
    return segment_ids_and_positions(rows == tokenizer.bos_id)[0]


def needed(ids: np.ndarray) -> int:
    """Return the number of tiles with at least one visible pair. Every tile is tested."""
    blocks = ids.reshape(len(ids), -1, TILE)
    count = 0
    for row in blocks:
        for query in range(len(row)):
            count += 1 + sum(bool(np.isin(row[key], row[query]).any()) for key in range(query))
    return count


def draw(ids: np.ndarray, path: str) -> None:
    """Draw the tiles of a row, with one color per kind of tile and lines at document borders."""
    blocks = ids.shape[1] // TILE
    table = needed_tiles(jnp.asarray(ids), TILE)
    tiles = unpack(table.entries[: int(table.count)], blocks)
    kind = np.tril(np.ones((blocks, blocks), int))
    flags = np.asarray(tiles.flags)
    kind[np.asarray(tiles.query), np.asarray(tiles.key)] = np.where(
        flags & DIAGONAL, 4, np.where(flags & CROSSING, 3, 2)
    )
    figure = Figure(figsize=(4.6, 5.2), layout="constrained")
    axes = figure.subplots()
    names = {
        0: ("white", None),
        1: ("#e6e6e6", "causal, visited by splash only"),
        2: ("#0072b2", "whole: no mask"),
        3: ("#56b4e9", "crossed by a border"),
        4: ("#d55e00", "diagonal"),
    }
    colors = ListedColormap([color for color, _ in names.values()])
    axes.imshow(kind, cmap=colors, vmin=0, vmax=4, extent=(0, ids.shape[1], ids.shape[1], 0))
    for border in (np.flatnonzero(np.diff(ids[0])) + 1).tolist():
        axes.axhline(border, color="black", linewidth=0.5)
        axes.axvline(border, color="black", linewidth=0.5)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    handles = [Patch(color=color, label=name) for color, name in names.values() if name]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--text-field", default="text")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument(
        "--picture",
        help="PNG file of the tiles in a row of 8192 tokens with the median number of documents",
    )
    options = parser.parse_args()
    for length in (8192, 32768):
        ids = packed_rows(options, length)
        if options.picture and length == 8192:
            draw(ids[np.argsort(ids.max(1))[len(ids) // 2]][None], options.picture)
        table = jax.jit(needed_tiles, static_argnums=1)(jnp.asarray(ids), TILE)
        flags = np.asarray(unpack(table.entries[: int(table.count)], length // TILE).flags)
        kinds = np.where(flags & DIAGONAL, 2, np.where(flags & CROSSING, 1, 0))
        counts = np.bincount(kinds, minlength=3)
        blocks = length // TILE
        causal = len(ids) * blocks * (blocks + 1) // 2
        ours = float((counts * np.array(OURS)).sum()) * TILE**2 / 1000
        theirs = {
            size: cost * len(ids) * (length // size) * (length // size + 1) / 2 * size**2 / 1000
            for size, cost in SPLASH.items()
        }
        print(
            f"rows of {length}: {len(ids)} rows, {ids.max(1).mean():.1f} documents per row; tiles "
            f"visited {counts.sum()} (whole {counts[0]}, crossed {counts[1]}, diagonal "
            f"{counts[2]}), needed {needed(ids)}; splash visits {causal}, "
            f"{causal / counts.sum():.2f} times ours; bundles of splash "
            f"{min(theirs.values()) / ours:.2f} times ours",
            flush=True,
        )


if __name__ == "__main__":
    main()
