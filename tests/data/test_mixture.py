"""The mixture: equality with a loop over rows, bounds after any number of rows, shuffles."""

from dataclasses import replace
from fractions import Fraction
import hashlib
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.mixture import Mixture, MixtureCorpus, build_mixture
from llama_cpt.data.permutation import epoch_keys, permute, stream_key
from llama_cpt.runtime.errors import UserError

ALMRS = ["0", "0.05", "0.29", "0.33", "0.335", "1"]
SPAN = 2000


def corpora(prefix, weights, rows=1000):
    """Return corpora with the given weights; a weight is a number or a list of stages."""
    staged = [w if isinstance(w, list) else [(0, w)] for w in weights]
    return tuple(
        MixtureCorpus(f"{prefix}{i}", rows + i, tuple((at, Fraction(w)) for at, w in stages))
        for i, stages in enumerate(staged)
    )


def make_mixture(stages, additional=("1",), original=("1",), rows=1000, seed=0):
    stages = tuple((start, Fraction(almr)) for start, almr in stages)
    return Mixture(stages, corpora("zh", additional, rows), corpora("en", original, rows), seed)


def weights_at(group, row):
    """Return the weights of the corpora of ``group`` at row ``row`` of the run."""
    return [[w for start, w in corpus.weights if start <= row][-1] for corpus in group]


class RowByRow:
    """The mixture computed row by row with counters, without a closed form."""

    def __init__(self, mixture):
        self.mixture = mixture
        self.target = Fraction(0)
        # Sum of the shares of each corpus over the rows that earlier corpora left.
        self.sums = {}

    def take(self, name, share):
        before = self.sums.get(name, Fraction(0))
        self.sums[name] = before + share
        return math.floor(before + share) > math.floor(before)

    def next(self, row):
        almr = [almr for start, almr in self.mixture.stages if start <= row][-1]
        added = math.floor(self.target + almr) > math.floor(self.target)
        self.target += almr
        group = self.mixture.additional if added else self.mixture.original
        first = 0 if added else len(self.mixture.additional)
        weights = weights_at(group, row)
        for k in range(len(group)):
            if self.take((added, k), weights[k] / sum(weights[k:])):
                return first + k
        raise AssertionError("no corpus takes the row")


def row_by_row(mixture, num_rows):
    """Return the corpus and the index in the corpus of the first ``num_rows`` rows."""
    rows, counts = RowByRow(mixture), [0] * len(mixture.corpora)
    corpus, index = [], []
    for row in range(num_rows):
        chosen = rows.next(row)
        corpus.append(chosen)
        index.append(counts[chosen])
        counts[chosen] += 1
    return np.array(corpus), np.array(index)


weights = st.lists(
    st.decimals("0.01", "100", places=2).map(str) | st.sampled_from(["1", "0.333333333", "7e-7"]),
    min_size=1,
    max_size=3,
)
almrs = st.sampled_from(ALMRS) | st.decimals(0, 1, places=6).map(str)
stage_lists = st.lists(st.tuples(st.integers(1, 90), almrs), max_size=3).flatmap(
    lambda later: st.tuples(almrs, st.just(later))
)


@st.composite
def staged_weights(draw):
    """Return one to four corpora with weights that change at common steps and can be 0."""
    size, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    starts = [0, *sorted(draw(st.sets(st.integers(1, 200), min_size=count - 1, max_size=count)))]
    one = st.sampled_from(["0", "1", "2", "0.333333333", "7e-7"])
    rows = [draw(st.lists(one, min_size=size, max_size=size)) for _ in starts]
    rows = [row if set(row) != {"0"} else [*row[1:], "1"] for row in rows]
    return [list(zip(starts, column, strict=True)) for column in zip(*rows, strict=True)]


@settings(deadline=None, max_examples=40)
@given(stage_lists, weights | staged_weights(), weights | staged_weights())
def test_closed_form_equals_counting_row_by_row(stage_list, additional, original):
    first, later = stage_list
    starts = np.cumsum([length for length, _ in later]).tolist()
    stages = [(0, first), *zip(starts, [almr for _, almr in later], strict=True)]
    mixture = make_mixture(stages, additional, original)
    corpus, index = row_by_row(mixture, 300)
    ours = mixture.positions(np.arange(300))
    np.testing.assert_array_equal(ours[0], corpus)
    np.testing.assert_array_equal(ours[1], index)
    for num_rows in (0, 1, 17, 300):
        counted = np.bincount(corpus[:num_rows], minlength=len(mixture.corpora))
        assert mixture.row_counts(num_rows) == tuple(counted)


def assert_bounds(mixture, span=SPAN):
    """Assert the bounds of the module ``mixture`` after each of ``span`` rows, exactly."""
    corpus, _ = mixture.positions(np.arange(span))
    target, almr, group_rows = Fraction(0), mixture.stages[0][1], [0, 0]
    counts, exact = ([0] * len(mixture.corpora) for _ in range(2))
    groups = mixture.additional, mixture.original
    stages = dict(mixture.stages)
    for row in range(span):
        almr = stages.get(row, almr)
        target += almr
        counts[corpus[row]] += 1
        group_rows[0 if corpus[row] < len(groups[0]) else 1] += 1
        assert abs(group_rows[0] - target) < 1
        added = corpus[row] < len(groups[0])
        weights = weights_at(groups[not added], row)
        for k, weight in enumerate(weights):
            number = k if added else len(groups[0]) + k
            exact[number] += weight / sum(weights)
            # A corpus with weight 0 receives no row.
            assert weight or number != corpus[row]
        changes = len({at for member in groups[not added] for at, _ in member.weights if at <= row})
        for k in range(len(weights)):
            number = k if added else len(groups[0]) + k
            bound = max(1, k)
            if changes > 1 and k and len(weights) > 2:
                bound = 1 + changes * k
            assert abs(counts[number] - exact[number]) < bound


@pytest.mark.parametrize("almr", ALMRS)
def test_almr_is_within_one_row_at_every_prefix(almr):
    mixture = make_mixture([(0, almr)])
    assert_bounds(mixture)
    assert mixture.row_counts(SPAN)[0] == Fraction(almr) * SPAN
    assert mixture.target_almr(SPAN) == mixture.realized_almr(SPAN) == Fraction(almr)


def test_stages_of_one_language_after_the_other():
    mixture = make_mixture([(0, "1"), (300, "0"), (1000, "0.335")])
    assert_bounds(mixture)
    corpus, _ = mixture.positions(np.arange(1000))
    assert (corpus[:300] == 0).all() and (corpus[300:] == 1).all()
    assert mixture.target_almr(1200) == Fraction(300 + 67, 1200) == mixture.realized_almr(1200)


@settings(deadline=None, max_examples=15)
@given(stage_lists, weights | staged_weights(), weights | staged_weights())
def test_bounds_hold_for_any_stages_and_weights(stage_list, additional, original):
    first, later = stage_list
    starts = np.cumsum([length for length, _ in later]).tolist()
    stages = [(0, first), *zip(starts, [almr for _, almr in later], strict=True)]
    assert_bounds(make_mixture(stages, additional, original), span=400)


def test_split_of_three_corpora_stays_exact():
    """Cumulative shares of these three corpora reach integers at the same row."""
    mixture = make_mixture([(0, "1")], ["0.5", "0.25", "0.25"])
    assert mixture.row_counts(4) == (2, 1, 1, 0)
    assert_bounds(mixture)


def test_weights_change_at_their_rows():
    """A corpus for annealing provides rows only from its row on, and then its share of them."""
    mixture = make_mixture(
        [(0, "0.5")], ["1"], [[(0, "1"), (400, "0.25")], "1", [(0, "0"), (400, "0.75")]]
    )
    assert_bounds(mixture, span=800)
    assert mixture.row_counts(400) == (200, 100, 100, 0)
    assert mixture.row_counts(800) == (400, 125, 200, 75)
    assert mixture.epochs(800)[3] == Fraction(75, mixture.corpora[3].rows)
    longest = mixture.max_rows(0.15)
    assert max(mixture.epochs(longest)) <= Fraction(15, 100) < max(mixture.epochs(longest + 1))
    late = make_mixture([(0, "0")], [], ["1", [(0, "0"), (400, "9")]], rows=500)
    longest = late.max_rows(1.0)
    assert late.row_counts(longest) == (455, 501)
    with pytest.raises(UserError, match="epochs over corpus 'en1'"):
        late.check_epochs(longest + 1, 1.0)


@pytest.mark.parametrize(
    ("case", "digest"),
    [
        ((0.29, [1.0], [1.0]), "dbbc13c3385f37ea"),
        (
            (((0, 0.1), (70, 0.335), (200, 0.0)), [0.5, 0.25, 0.25], [1.0, 7e-7, 3.3]),
            "d8592ff80a1f6834",
        ),
        ((0.123456789012, [0.3, 0.7], [1.0, 2.0, 3.0, 4.0]), "29d95c8e1344a767"),
    ],
)
def test_map_of_constant_weights_never_changes(case, digest):
    """The digests were computed before weights could change during a run."""
    almr, *groups = case
    additional, original = (
        tuple(CorpusConfig(f"{prefix}{i}", "", weight) for i, weight in enumerate(weights))
        for prefix, weights in zip(("zh", "en"), groups, strict=True)
    )
    config = replace(config_of(0.5), almr=almr, additional=additional, original=original)
    rows = {corpus.name: 1000 + i for i, corpus in enumerate(additional + original)}
    mixture = build_mixture(config, rows, seed=3, global_batch_size=16)
    found = hashlib.sha256()
    for first, count in ((0, 6000), (10**13, 3000)):
        for part in mixture.locate(np.arange(first, first + count)):
            found.update(part.tobytes())
    assert found.hexdigest()[:16] == digest


def test_far_rows_are_exact():
    """Rows are exact even if their products exceed int64 and the precision of floats."""
    changing = [(0, "0.3"), (10**11, "0.9")]
    mixture = make_mixture([(0, "0.123456789012"), (10**12 + 7, "0.335")], [changing, "0.7"])
    far = 10**15
    counts = np.array(mixture.row_counts(far))
    corpus, index = mixture.positions(np.arange(far, far + 500))
    for c, i in zip(corpus, index, strict=True):
        assert counts[c] == i
        counts[c] += 1
    assert tuple(counts) == mixture.row_counts(far + 500)
    assert abs(counts[:2].sum() - mixture.target_almr(far + 500) * (far + 500)) < 1


def test_locate_does_not_depend_on_the_order_of_rows():
    mixture = make_mixture([(0, "0.335"), (50, "0.8")], ["1", "2", "0.3"], ["1", "5"], rows=7)
    together = mixture.locate(np.arange(200))
    for row in (0, 49, 50, 51, 199):
        corpus, index = mixture.locate(np.array([row]))
        assert (corpus[0], index[0]) == (together[0][row], together[1][row])


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 1000])
def test_each_epoch_is_another_permutation(rows):
    mixture = make_mixture([(0, "0.335")], ["1", "2"], ["1"], rows=rows)
    corpus, index = mixture.locate(np.arange(12 * mixture.corpora[1].rows))
    for number, member in enumerate(mixture.corpora):
        own = index[corpus == number]
        passes = [own[i : i + member.rows] for i in range(0, len(own), member.rows)]
        for one in passes[:-1]:
            np.testing.assert_array_equal(np.sort(one), np.arange(member.rows))
        if member.rows >= 64 and len(passes) > 2:
            assert (passes[0] != passes[1]).mean() > 0.9


def test_seed_and_name_choose_the_shuffle():
    def first_rows(seed, name):
        keys = epoch_keys(np.full(500, stream_key(seed, name)), np.zeros(500, np.int64))
        return permute(np.arange(500), np.full(500, 500), keys)

    base = first_rows(0, "zh")
    np.testing.assert_array_equal(base, first_rows(0, "zh"))
    for other in (first_rows(1, "zh"), first_rows(0, "en"), np.arange(500)):
        assert (base == other).mean() < 0.05
    # These values are fixed: a change would silently change the rows that a resumed run reads.
    assert base[:8].tolist() == [317, 483, 437, 110, 413, 473, 42, 389]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permute_is_a_bijection(size, key):
    out = permute(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    np.testing.assert_array_equal(np.sort(out), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 5, 10, 97])
def test_shuffles_are_fair(size):
    """Over many keys, each element is equally often at each position (six sigma)."""
    trials = 4000
    keys = epoch_keys(np.zeros(trials, np.uint64), np.arange(trials))
    table = np.zeros((size, size))
    for element in range(min(size, 10)):
        out = permute(np.full(trials, element), np.full(trials, size), keys)
        table[element] = np.bincount(out, minlength=size)
    table = table[: min(size, 10)]
    expected = trials / size
    freedom = table.size - len(table)
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 6 * math.sqrt(2 * freedom)


def test_neighbors_are_separated():
    """Images of neighbors have the mean distance of random pairs, a third of the size."""
    size = 100_000
    out = permute(np.arange(size), np.full(size, size), np.full(size, 5, np.uint64))
    assert abs(np.abs(np.diff(out)).mean() / size - 1 / 3) < 0.01
    assert abs(np.corrcoef(np.arange(size), out)[0, 1]) < 0.02


def test_too_many_epochs_are_an_error():
    mixture = make_mixture([(0, "0.335")], ["1"], ["1"], rows=100)
    longest = mixture.max_rows(2.5)
    mixture.check_epochs(longest, 2.5)
    assert max(mixture.epochs(longest)) <= 2.5 < max(mixture.epochs(longest + 1))
    with pytest.raises(
        UserError, match=rf"'en0' \(100 rows\), but data.max_epochs is 2.5.*{longest}"
    ):
        mixture.check_epochs(longest + 1, 2.5)
    with pytest.raises(UserError, match="6.65 epochs over corpus 'en0'"):
        mixture.check_epochs(1000, 4.0)


def config_of(almr, *, additional=("zh",), original=("en",), weights=()):
    weights = dict(weights)
    return DataConfig(
        tokenizer="t",
        prepared="rows",
        sequence_length=8,
        almr=almr,
        additional=tuple(CorpusConfig(n, "", weights.get(n, 1.0)) for n in additional),
        original=tuple(CorpusConfig(n, "", weights.get(n, 1.0)) for n in original),
    )


def test_config_steps_become_rows_and_decimals_stay_exact():
    config = config_of(((0, 0.29), (10, 0.335)), original=("en", "code"), weights=[("code", 0.1)])
    mixture = build_mixture(config, {"zh": 5, "en": 6, "code": 7}, seed=3, global_batch_size=16)
    assert mixture.stages == ((0, Fraction(29, 100)), (160, Fraction(335, 1000)))
    assert [c.name for c in mixture.corpora] == ["zh", "en", "code"]
    assert mixture.original[1] == MixtureCorpus("code", 7, ((0, Fraction(1, 10)),))
    assert mixture.seed == 3
    staged = config_of(0.5, weights=[("en", ((0, 0.1), (10, 2.0)))])
    mixture = build_mixture(staged, {"zh": 5, "en": 6}, seed=3, global_batch_size=16)
    assert mixture.original[0].weights == ((0, Fraction(1, 10)), (160, Fraction(2)))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"en": ((0, 1.0), (0, 2.0))}, r"weight of corpus 'en'=.* must start at 0 and increase"),
        ({"en": -1.0}, "weight of corpus 'en'=-1 must be a finite number, at least 0"),
        (
            {"en": ((0, 0.0), (9, 0.0))},
            "'en' must be a finite number above 0 in at least one stage",
        ),
        (
            {"en": ((0, 1.0), (9, 0.0)), "code": ((0, 0.0), (20, 1.0))},
            "from step 9 on, the weights of all original corpora are 0",
        ),
    ],
)
def test_invalid_weights_are_errors(weights, expected):
    with pytest.raises(UserError, match=expected):
        config_of(((0, 1.0), (5, 0.5)), original=("en", "code"), weights=weights)
    # Weights can be 0 while the ALMR gives the group no rows.
    idle = {"en": ((0, 0.0), (5, 1.0)), "code": ((0, 0.0), (20, 1.0))}
    config_of(((0, 1.0), (5, 0.5)), original=("en", "code"), weights=idle)


def test_corpus_without_rows_is_an_error():
    with pytest.raises(UserError, match="'en' has no rows"):
        build_mixture(config_of(0.5), {"zh": 5, "en": 0}, seed=0, global_batch_size=16)
