"""Conversion between a training state and the nested dict of arrays in a checkpoint."""

from typing import Any

from flax import nnx
import jax

from llama_cpt.runtime.errors import UserError


def to_state_dict(state: Any) -> dict[str, Any]:
    """Return ``state`` as a nested dict: ``{"trained": {"layers": {"query": array, ...}}}``.

    The values are arrays without Flax variables, so a checkpoint can be read without Flax.
    """
    tree: dict[str, Any] = {}
    for path, leaf in _leaves(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def from_state_dict(values: dict[str, Any], like: Any) -> Any:
    """Return the arrays in ``values`` as a pytree with the structure of ``like``.

    This is the inverse of ``to_state_dict``.
    """
    by_name = dict(_leaves(values))
    leaves = [by_name[name] for name, _ in _leaves(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_compatible(where: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError if two state dicts differ in the name, shape or type of an array.

    The error message begins with ``where``, the path of the checkpoint.
    """
    found, need = dict(_leaves(saved)), dict(_leaves(wanted))
    for name in sorted(found.keys() | need.keys()):
        label = "/".join(name)
        if name not in found:
            raise UserError(
                f"{where}: the checkpoint has no {label}, which the config requires; set the "
                "config with which the checkpoint was saved."
            )
        if name not in need:
            raise UserError(
                f"{where}: the checkpoint has {label}, which is not in the model of this config; "
                "set the config with which the checkpoint was saved."
            )
        have, want = found[name], need[name]
        if tuple(have.shape) != tuple(want.shape) or have.dtype != want.dtype:
            raise UserError(
                f"{where}: {label} is {have.dtype}{list(have.shape)} in the checkpoint, but the "
                f"config requires {want.dtype}{list(want.shape)}; set the config with which the "
                "checkpoint was saved."
            )


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """Return ``[(names, leaf), ...]`` in the order of ``jax.tree.leaves``.

    ``names`` are the keys from the root of ``tree`` to the leaf.
    """
    nodes = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
        for path, node in nodes
        for leaf in jax.tree.leaves(node)
    ]
