"""Runs that mix corpora of documents and of conversations."""

from dataclasses import replace
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import (
    ChatConfig,
    CorpusConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    PreferenceConfig,
    TrainConfig,
)
from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.loader import RowSource, batches, read_batch, row_batch
from llama_cpt.data.mixture import Mixture, build_mixture
from llama_cpt.data.packed_rows import packed_batch
from llama_cpt.data.prepare.corpora import open_rows, prepare
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.next_token import next_token_loss
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.prepare import main
from llama_cpt.runtime.errors import UserError
from tests.byte_tokenizer import write_byte_tokenizer
from tests.tiny_run import tiny_model

LENGTH = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a tokenizer, conversations (``zh``) and documents (``en``, ``code``)."""
    folder = tmp_path_factory.mktemp("mixed")
    write_byte_tokenizer(folder)
    random = np.random.default_rng(0)
    chats = ({"question": f"q{i}", "answer": "yes " * random.integers(1, 5)} for i in range(40))
    (folder / "zh.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    for name in ("en", "code"):
        texts = ({"text": f"{name} {i} " * random.integers(2, 9)} for i in range(60))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    return folder


def config_of(folder: Path, prepared: str, **fields) -> DataConfig:
    """Return a config with conversations (``zh``) and two corpora of documents."""
    documents = (("en", 1.0), ("code", 0.5))
    settings = {
        "additional": (CorpusConfig("zh", str(folder / "zh.jsonl")),),
        "original": tuple(
            CorpusConfig(name, str(folder / f"{name}.jsonl"), weight, kind="documents")
            for name, weight in documents
        ),
        "heldout": (CorpusConfig("en", str(folder / "code.jsonl")),),
        "chat": ChatConfig(),
        "almr": 0.25,
        "bad_documents": "skip",
    }
    return DataConfig(
        tokenizer=str(folder / "tokenizer.model"),
        prepared=str(folder / prepared),
        sequence_length=LENGTH,
        **settings | fields,
    )


def contents(folder: str) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_each_part_is_prepared_as_in_a_run_of_one_kind(folder):
    """Rows and manifests equal those of a CPT run and of an SFT run, byte for byte."""
    mixed = config_of(folder, "mixed")
    manifests = prepare(mixed).rows
    assert manifests["zh"].chat and not manifests["en"].chat and not manifests["code"].chat
    plain = tuple(replace(corpus, kind="auto") for corpus in mixed.original)
    cpt = config_of(folder, "alone", additional=(), original=plain, almr=0.0, chat=None)
    sft = config_of(folder, "alone", original=(), almr=1.0, heldout=())
    prepare(cpt)
    prepare(sft)
    assert contents(mixed.prepared) == contents(cpt.prepared)
    assert sum(name.endswith("manifest.json") for name in contents(cpt.prepared)) == 4
    with pytest.raises(UserError, match="kind was 'conversations', is 'documents'"):
        prepare(replace(sft, additional=(replace(sft.additional[0], kind="documents"),)))


def mixture_of(config: DataConfig) -> tuple[Mixture, tuple[RowSource, ...]]:
    prepared = prepare(config)
    sizes = {name: manifest.rows for name, manifest in prepared.rows.items()}
    mixture = build_mixture(config, sizes, seed=0, global_batch_size=16)
    return mixture, open_rows(prepared)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_batches_contain_the_rows_of_each_part(folder, hosts):
    mixture, rows = mixture_of(config_of(folder, "mixed"))
    settings = {"global_batch_size": 16, "num_microbatches": 1, "start_row": 16}
    parts = [
        next(batches(mixture, rows, rows_here=here, **settings))
        for here in np.split(np.arange(16), hosts)
    ]
    batch = jax.tree.map(lambda *fields: np.concatenate(fields, axis=1)[0], *parts)
    corpus, index = mixture.locate(np.arange(16, 32))
    assert set(corpus) == {0, 1, 2}
    for number, (mine, row) in enumerate(zip(corpus, index, strict=True)):
        block = rows[mine].read(np.array([row]))
        where = np.array([mine], np.int32), np.array([16 + number])
        alone = row_batch(block, *where) if mine else packed_batch(block, *where)
        for one, other in zip(*map(jax.tree.leaves, (alone, batch)), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one[0], other[number])
    # Conversations are padded and count only answers. Documents fill their rows.
    documents = corpus > 0
    assert (batch.segment_ids[~documents] == 0).any() and (batch.segment_ids[documents] > 0).all()
    assert batch.loss_mask[documents].mean() > 0.9 > 0.6 > batch.loss_mask[~documents].mean()


def test_loss_per_token_of_a_corpus_equals_that_of_the_corpus_alone(folder):
    mixture, rows = mixture_of(config_of(folder, "mixed"))
    batch = jax.tree.map(
        lambda x: jnp.asarray(x[0]), read_batch(mixture, rows, np.arange(16)[None])
    )
    model = Llama(tiny_model(512, context_length=64), jax.random.key(0), compute_dtype="float32")

    @jax.jit
    def loss_of(batch: TokenBatch) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        loss, weight, sums = next_token_loss(
            model, batch, z_loss=0.0, num_corpora=3, loss_chunk_tokens=LENGTH
        )
        return loss / weight, sums["corpus_loss"]

    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])):
        mean, (losses, weights) = loss_of(batch)
        assert abs(mean - losses.sum() / weights.sum()) < 1e-5 * mean
        for number in range(3):
            mine = (batch.corpus == number).all(axis=1, keepdims=True)
            alone, _ = loss_of(jax.tree.map(lambda x, mine=mine: jnp.where(mine, x, 0), batch))
            assert abs(alone - losses[number] / weights[number]) < 1e-5 * alone


def test_inspected_rows_show_both_kinds(folder, tmp_path, capsys):
    config = TrainConfig(
        output=str(tmp_path / "run"),
        model=tiny_model(512, context_length=64),
        data=config_of(folder, "mixed"),
        optimizer=OptimizerConfig(peak_learning_rate=1e-3),
        num_steps=2,
        global_batch_size=4,
    )
    save_config(config, tmp_path / "config.json")
    main([str(tmp_path / "config.json"), "--inspect", "8"])
    text = capsys.readouterr().out
    assert "zh: 40 conversations, " in text and "en: 60 documents, " in text
    shown = {part.split("\n")[0].split()[-1]: part for part in text.split("\nrow ")[1:]}
    assert "  > yes yes" in shown["zh"] and "positions of padding" in shown["zh"]
    assert "  | en " in shown["en"] or "then, as a target only" in shown["en"]
    assert "positions of padding" not in shown["en"]


def test_invalid_kinds_are_errors(folder, tmp_path):
    with pytest.raises(UserError, match="corpus 'zh' has kind=conversations, but data.chat is not"):
        config_of(
            folder, "mixed", chat=None, additional=(CorpusConfig("zh", "a", kind="conversations"),)
        )
    with pytest.raises(UserError, match="data.heldout: corpus 'zh' has kind=conversations"):
        config_of(folder, "mixed", heldout=(CorpusConfig("zh", "a", kind="conversations"),))
    with pytest.raises(UserError, match="loss=sigmoid needs preference data, but corpus 'en' has"):
        TrainConfig(
            output=str(tmp_path),
            data=config_of(folder, "mixed"),
            optimizer=OptimizerConfig(peak_learning_rate=1e-3),
            num_steps=2,
            global_batch_size=4,
            init_from="base",
            objective=PreferenceConfig("sigmoid"),
        )
