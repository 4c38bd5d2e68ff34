"""Tokenizers of three kinds: published ids, lossless round trips, the same ids after export."""

import gzip
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import sentencepiece
import tokenizers
import transformers

from examples.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.data.chat.template import find_template
from llama_cpt.data.tokenizer.export import export_tokenizer
from llama_cpt.data.tokenizer.tokenizer import TiktokenTokenizer, Tokenizer, load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.storage_server import bucket

__all__ = ["bucket"]

TEXT = st.text(st.characters(codec="utf-8")) | st.text("ab <|eot_id>\n你 \t1")


@pytest.fixture(scope="session")
def llama3(shared_data: Path) -> Tokenizer:
    return load_tokenizer(str(shared_data / "tokenizer" / "llama3"))


@pytest.fixture(scope="session")
def documents(shared_data: Path) -> list[str]:
    return [
        json.loads(line)["text"]
        for language in ("en", "zh")
        for line in gzip.open(shared_data / f"corpus/{language}/{language}.valid.jsonl.gz", "rt")
    ]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a SentencePiece model with the demo's settings, trained on a few sentences."""
    folder = tmp_path_factory.mktemp("vocabulary")
    lines = [
        f"The {i} birds of 小镇 sang, and 第{i}只鸟飞走了。 Bird song {i}!" for i in range(300)
    ]
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")
    train_vocabulary([source], folder / "tokenizer.model", 340)
    return folder / "tokenizer.model"


@pytest.fixture(scope="session")
def exported_llama3(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported_llama3")
    export_tokenizer(str(shared_data / "tokenizer" / "llama3"), folder)
    return folder


def test_published_ids(llama3: Tokenizer, shared_data: Path):
    golden = json.loads((shared_data / "tokenizer/llama3/golden_ids.json").read_text("utf-8"))
    assert (llama3.kind, llama3.vocab_size) == ("tiktoken", 128256)
    for row in golden["rows"]:
        assert llama3.encode(row["text"]) == row["ids"], row["text"]
    for name, number in golden["special"].items():
        assert llama3.special_id(name) == number
    assert (llama3.bos_id, llama3.eos_id) == (128000, 128001)


def test_held_out_documents_round_trip(llama3: Tokenizer, documents: list[str]):
    assert not [text[:60] for text in documents if llama3.decode(llama3.encode(text)) != text]


@given(text=TEXT)
@settings(deadline=None, max_examples=200)
def test_any_text_round_trips_and_is_never_special(llama3: Tokenizer, text: str):
    ids = llama3.encode(text)
    assert llama3.decode(ids) == text
    assert max(ids, default=0) < 128000


def test_long_runs_are_cut_without_changing_short_ones(llama3: Tokenizer):
    assert isinstance(llama3, TiktokenTokenizer)
    text = "word " * 30_000 + "x" * 120_000 + " " * 60_000 + "end"
    assert llama3.decode(llama3.encode(text)) == text
    assert llama3.encode("word " * 30_000) == llama3._encoding.encode_ordinary("word " * 30_000)


@pytest.mark.parametrize(
    "name",
    ["llama2/tokenizer.model", "chinese_alpaca2/tokenizer.model", "chinese_sp/chinese_sp.model"],
)
def test_sentencepiece_agrees_with_its_library(name: str, shared_data: Path, documents: list[str]):
    path = str(shared_data / "tokenizer" / name)
    ours, theirs = load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=path)
    sample = documents[::20]
    assert ours.kind == "sentencepiece"
    assert ours.encode_batch(sample) == [theirs.encode(text) for text in sample]
    assert [ours.decode(ids) for ids in ours.encode_batch(sample)] == [
        theirs.decode(theirs.encode(text)) for text in sample
    ]


def test_exported_llama3_gives_the_same_ids(
    llama3: Tokenizer, exported_llama3: Path, documents: list[str]
):
    theirs = tokenizers.Tokenizer.from_file(str(exported_llama3 / "tokenizer.json"))
    encoded = theirs.encode_batch_fast(documents, add_special_tokens=False)
    assert [one.ids for one in encoded] == llama3.encode_batch(documents)
    assert theirs.get_vocab_size() == 128256
    assert load_tokenizer(str(exported_llama3)).encode("<|eot_id|>") == llama3.encode("<|eot_id|>")


def test_llama3_in_transformers(llama3: Tokenizer, exported_llama3: Path, shared_data: Path):
    (exported_llama3 / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(exported_llama3)
    text = "Hello, 你好！  two  spaces\n\n1234"
    assert theirs(text)["input_ids"] == [llama3.bos_id, *llama3.encode(text)]
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    assert len(theirs) == 128256
    rendered = json.loads((shared_data / "chat_template/golden_rendered.json").read_text("utf-8"))
    for row in rendered:
        got = theirs.apply_chat_template(
            row["messages"],
            tokenize=False,
            add_generation_prompt=row["add_generation_prompt"],
        )
        assert got == row["rendered"]


@pytest.mark.parametrize("kind", ["llama2", "trained"])
def test_exported_sentencepiece_gives_the_same_ids(
    kind: str, trained: Path, shared_data: Path, documents: list[str], tmp_path: Path
):
    path = trained if kind == "trained" else shared_data / "tokenizer" / kind
    ours = load_tokenizer(str(path))
    export_tokenizer(str(path), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*documents[::20], "a  b\n\t<|eot_id|x 🙂", " leading", "", "第3只鸟"]:
        got = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert got == ours.encode(text), text[:80]
    assert theirs("bird")["input_ids"] == [ours.bos_id, *ours.encode("bird")]


@given(text=TEXT)
@settings(deadline=None, max_examples=100)
def test_trained_vocabulary_round_trips_any_text(trained: Path, text: str):
    if "\N{LOWER ONE EIGHTH BLOCK}" in text or "\0" in text:
        return
    tokenizer = load_tokenizer(str(trained))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.special_id("<|eot_id|>")} & set(ids)


def test_tokenizer_json_of_another_name(exported_llama3: Path, tmp_path: Path):
    named, output = tmp_path / "zh.json", tmp_path / "out"
    output.mkdir()
    named.write_bytes((exported_llama3 / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text("another one")
    configured = exported_llama3 / "tokenizer_config.json"
    (tmp_path / "tokenizer_config.json").write_bytes(configured.read_bytes())
    export_tokenizer(str(named), output)
    assert (output / "tokenizer.json").read_bytes() == named.read_bytes()


def test_tokenizer_loads_from_a_bucket(bucket, trained: Path, tmp_path: Path):
    """A vocabulary or a ``tokenizer.json`` in a bucket loads as from the local disk."""
    (here := tmp_path / "here").mkdir()
    export_tokenizer(str(trained), here)
    names = {path.name for path in here.iterdir()}
    for file in (trained, *here.iterdir()):
        folder = "trained" if file == trained else "converted"
        bucket.put(f"{folder}/{file.name}", file.read_bytes(), None)
    (here / "tokenizer.model").unlink()
    del bucket.objects["converted/tokenizer.model"]
    for there, local in (("gs://bucket/trained", trained), ("gs://bucket/converted", here)):
        ours, theirs = load_tokenizer(there), load_tokenizer(str(local))
        assert (ours.kind, ours.fingerprint) == (theirs.kind, theirs.fingerprint)
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_id, theirs.eos_id)
        assert find_template(ours.path) == find_template(theirs.path)
    assert find_template("gs://bucket/converted/tokenizer.json")
    (out := tmp_path / "out").mkdir()
    export_tokenizer("gs://bucket/trained", out)
    assert {path.name for path in out.iterdir()} == names
    for path in here.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    bucket.status = 403
    with pytest.raises(UserError, match="gs://bucket/trained: cannot be read"):
        load_tokenizer("gs://bucket/trained")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("chinese_sp/chinese_sp.model", "its normalizer changes text"),
        ("chinese_alpaca2/tokenizer.model", "many pieces share a score"),
    ],
)
def test_unconvertible_tokenizers_are_errors(
    name: str, reason: str, shared_data: Path, tmp_path: Path
):
    with pytest.raises(UserError, match=reason):
        export_tokenizer(str(shared_data / "tokenizer" / name), tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_errors(shared_data: Path, exported_llama3: Path, tmp_path: Path):
    whole = (shared_data / "tokenizer/llama3/tokenizer.model").read_bytes()
    damaged = tmp_path / "tokenizer.model"
    for content, complaint in (
        (whole[:500_003], "is the file complete"),
        (b"what is this", "must be Llama 3's tokenizer.model"),
        (b"", "must be Llama 3's tokenizer.model"),
        (b'{"version": 1}', "not a tokenizer.json"),
    ):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            load_tokenizer(str(damaged))
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(str(tmp_path / "nothing"))
    values = json.loads((exported_llama3 / "tokenizer.json").read_text("utf-8"))
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    without = values | {"added_tokens": [], "post_processor": None, "model": model}
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(without), "utf-8")
    with pytest.raises(UserError, match="no eos_token is known"):
        load_tokenizer(str(other))
