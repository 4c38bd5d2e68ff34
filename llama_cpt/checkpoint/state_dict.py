"""Conversion between a state and the nested dict of arrays that a checkpoint holds."""

from typing import Any

from flax import nnx
import jax

from llama_cpt.runtime.errors import UserError


def to_state_dict(state: Any) -> dict[str, Any]:
    """Return the leaves of ``state`` by name: ``{"trained": {"layers": {"query": array, ...}}}``.

    Flax variables are unwrapped, so that any reader can open the result.
    """
    tree: dict[str, Any] = {}
    for path, leaf in _leaves(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def from_state_dict(values: dict[str, Any], like: Any) -> Any:
    """Return the leaves of ``values`` in the tree of ``like``, the inverse of ``to_state_dict``."""
    by_name = dict(_leaves(values))
    leaves = [by_name[name] for name, _ in _leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_compatible(where: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError, naming ``where`` and an array, unless names, shapes and types agree."""
    found, need = dict(_leaves(saved)), dict(_leaves(wanted))
    for name in sorted(found.keys() | need.keys()):
        label = "/".join(name)
        if name not in found:
            raise UserError(f"{where}: holds no {label}, which this config needs.")
        if name not in need:
            raise UserError(f"{where}: holds {label}, which this config does not have.")
        have, want = found[name], need[name]
        if tuple(have.shape) != tuple(want.shape) or have.dtype != want.dtype:
            raise UserError(
                f"{where}: {label} is {have.dtype}{list(have.shape)}, "
                f"this config needs {want.dtype}{list(want.shape)}."
            )


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return ``[(path, leaf), ...]`` in the order of ``jax.tree.leaves``."""
    nodes = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
        for path, node in nodes
        for leaf in jax.tree.leaves(node)
    ]
