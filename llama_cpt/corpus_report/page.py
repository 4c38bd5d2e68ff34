"""The page of the report on the corpora: tables and figures in one HTML file."""

from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape

from etils import epath
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from llama_cpt.corpus_report.overlap import (
    CHARACTERS,
    SHORT_CHARACTERS,
    SHORT_WORDS,
    WORDS,
)
from llama_cpt.corpus_report.report import HITS, PAGE, CorpusReport, Report, write_hits
from llama_cpt.corpus_report.sample import (
    COMPARED_CHARACTERS,
    LANGUAGE_CHARACTERS,
    SAMPLE_DOCUMENTS,
    SIMILAR,
)
from llama_cpt.evaluation.comparison.page import html_figure, html_page, html_table
from llama_cpt.mixture_law.figure_style import percent, plain, png, style
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.untrusted_text import one_line

SHOWN_HITS = 200
"""Maximum number of overlaps per corpus in the page; the table file has all."""
_SHOWN_SHARES = 5
_SHOWN_COPIES = 20
_DRAWN_SHARE = 0.01

Rows = list[tuple[str, ...]]


def write_report(report: Report) -> str:
    """Write the page and the table of overlapping documents; return the path of the page.

    The files are written to the folder ``data.prepared``.
    """
    folder = epath.Path(report.config.data.prepared)
    folder.mkdir(parents=True, exist_ok=True)
    write_hits(report, folder)
    path = folder / PAGE
    write_atomic(path, _page(report).encode("utf-8", "backslashreplace"))
    return str(path)


def summary_rows(report: Report) -> Rows:
    """Return a table of text cells with one line per corpus, the header first."""
    header = ("corpus", "group", "documents", "bytes", "tokens", "characters per token", "passes")
    rows: Rows = [(*header, "repeated documents", "overlapping documents")]
    for number, one in enumerate(report.corpora):
        scan, about = one.scan, "" if one.manifest else "about "
        rows.append(
            (
                scan.name,
                scan.group,
                f"{scan.documents:,}",
                f"{scan.source_bytes:,}",
                f"{about}{one.tokens:,}",
                f"{about}{one.characters / max(one.tokens, 1):.2f}",
                f"{about}{one.epochs:.2f}",
                f"{len(report.duplicates.repeated(number)):,}",
                f"{scan.overlapping:,}" if report.index else "not checked",
            )
        )
    return rows


def _page(report: Report) -> str:
    names = ", ".join(one.scan.name for one in report.corpora)
    sections = "".join(f"<h2>{escape(name)}</h2>\n{body}\n" for name, body in _sections(report))
    warnings = "".join(f"<li><b>Warning:</b> {escape(text)}</li>" for text in report.warnings)
    return html_page(f"Report on the corpora {names}", f"<ul>{warnings}</ul>\n{sections}")


def _sections(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the heading and the HTML of each section."""
    yield "Sizes", _sizes(report)
    with style():
        yield "Length of documents", html_figure(png(_lengths(report)), "Length of documents")
        scripts = {one.scan.name: one.scan.scripts for one in report.corpora}
        found = {one.scan.name: one.languages for one in report.corpora}
        caption = "Share of letters by script, and share of sampled documents by language"
        yield (
            "Scripts and languages",
            html_figure(png(_shares(scripts, found)), caption)
            + (
                html_table(_share_rows("letters", scripts))
                + html_table(_share_rows("sampled documents", found))
            ),
        )
    yield "Exact duplicates", _duplicates(report)
    yield "Near-duplicates", html_table(_near_rows(report))
    yield "Overlap with evaluation text", _overlaps(report)
    yield "Method", "".join(f"<p>{escape(sentence)}</p>" for sentence in _method(report))


def _sizes(report: Report) -> str:
    bad = "".join(
        f"<p>{escape(one.scan.name)}: bad documents: {escape(_counts(one.scan.bad))}</p>"
        for one in report.corpora
        if one.scan.bad
    )
    config = report.config
    tokens = config.num_steps * config.global_batch_size * config.data.sequence_length
    return (
        html_table(summary_rows(report))
        + bad
        + (
            f"<p>Passes are those of a run of {tokens:,} tokens at the ALMR "
            f"{escape(str(config.data.almr))}. Numbers with &quot;about&quot; are estimated from "
            "sampled documents, because no rows are prepared from these sources.</p>"
        )
        + "".join(f"<p>{escape(remark)}</p>" for remark in _size_remarks(report))
    )


def _size_remarks(report: Report) -> Iterator[str]:
    """Yield a sentence for each corpus whose tokens are not those of all valid documents."""
    for one in report.corpora:
        name, manifest = one.scan.name, one.manifest
        if manifest and manifest.documents != one.scan.documents:
            yield (
                f"{name}: tokens, characters per token and passes are those of the "
                f"{manifest.documents:,} documents in the prepared rows."
            )
        if not manifest and report.config.data.kind_of(one.scan.corpus) == "conversations":
            yield (
                f"{name}: the estimates are those of the texts of the turns. They do not include "
                "the tokens of the chat template, the padding of the rows, and the maximum length "
                "of a conversation; prepare the rows to count them."
            )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {one_line(name)}" for name, count in counts.items())


def _lengths(report: Report) -> Figure:
    """Draw the share of documents by length, in powers of two."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for one in report.corpora:
        bits = range(min(one.scan.lengths, default=1), max(one.scan.lengths, default=1) + 1)
        shares = [one.scan.lengths[bit] / max(one.scan.documents, 1) for bit in bits]
        edges = [2.0 ** (bit - 1) for bit in (*bits, bits.stop)]
        axes.stairs(shares, edges, label=one.scan.name, linewidth=1.4)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    axes.set_xlabel("characters per document")
    axes.set_ylabel("share of documents")
    axes.legend()
    plain(axes)
    return figure


def _shares(scripts: Mapping[str, Counter[str]], found: Mapping[str, Counter[str]]) -> Figure:
    """Draw the scripts and the languages of each corpus as stacked bars."""
    figure = Figure(figsize=(8.4, 1.6 + 0.4 * len(scripts)), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, counts, title in zip(panels, (scripts, found), ("Scripts", "Languages"), strict=True):
        names = dict.fromkeys(
            name
            for one in counts.values()
            for name, count in one.most_common(_SHOWN_SHARES)
            if count >= _DRAWN_SHARE * one.total()
        )
        left = [0.0] * len(counts)
        for name in names:
            shares = [one[name] / max(one.total(), 1) for one in counts.values()]
            axes.barh(list(counts), shares, left=left, label=name)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set_title(title)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
        axes.invert_yaxis()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _share_rows(of: str, counts: Mapping[str, Counter[str]]) -> Rows:
    """Return a table with the most frequent scripts or languages of each corpus."""
    rows = [("corpus", of, "shares")]
    for corpus, one in counts.items():
        shares = (f"{n} {k / one.total():.2%}" for n, k in one.most_common(_SHOWN_SHARES))
        rows.append((corpus, f"{one.total():,}", ", ".join(shares)))
    return rows


def _duplicates(report: Report) -> str:
    """Return the counts of exact duplicates, and examples of repeated documents."""
    names = [one.scan.name for one in report.corpora]
    rows = [("corpora", "repeated documents")]
    rows += [
        (f"inside {name}", f"{count:,}")
        for name, count in zip(names, report.duplicates.inside, strict=True)
    ]
    rows += [
        (f"between {names[a]} and {names[b]}", f"{count:,}")
        for (a, b), count in report.duplicates.between.items()
    ]
    examples: Rows = [("document", "repeats")]
    begin = 0
    for number, one in enumerate(report.corpora):
        for document in report.duplicates.repeated(number)[:_SHOWN_COPIES].tolist():
            first = int(report.duplicates.first[begin + document])
            examples.append((one_line(one.scan.place(document)), _place(report, first)))
        begin = report.duplicates.ends[number]
    return html_table(rows) + (html_table(examples) if len(examples) > 1 else "")


def _place(report: Report, document: int) -> str:
    """Return the place of a document, whose index counts the documents of all corpora."""
    begin = 0
    for one, end in zip(report.corpora, report.duplicates.ends, strict=True):
        if document < end:
            return one_line(one.scan.place(document - begin))
        begin = end
    raise IndexError(document)


def _near_rows(report: Report) -> Rows:
    names = [one.scan.name for one in report.corpora]
    rows = [("documents of", "with a near-duplicate in", "compared", "near-duplicates", "rate")]
    for (a, b), (found, count) in sorted(report.near.items()):
        rate = f"{found / max(count, 1):.2%}"
        rows.append((names[a], names[b], f"{count:,}", f"{found:,}", rate))
    return rows


def _overlaps(report: Report) -> str:
    """Return the number of overlapping documents by evaluation text, and the hits."""
    if not report.index:
        return "<p>Not checked: there are no held-out corpora, and --eval-data is not set.</p>"
    names = [one.scan.name for one in report.corpora]
    rows = [("evaluation text", "questions or documents", "too short", *names)]
    for source, count in sorted(report.index.texts.items()):
        own = (f"{one.overlaps[source]:,}" for one in report.corpora)
        rows.append((source, f"{count:,}", f"{report.index.too_short[source]:,}", *own))
    return html_table(rows) + "".join(_hits(one) for one in report.corpora)


def _hits(one: CorpusReport) -> str:
    scan = one.scan
    if not scan.overlaps:
        return ""
    rows = [("document", "evaluation text", "place", "common n-grams")]
    rows += [
        (
            one_line(scan.place(hit.document)),
            hit.source,
            one_line(hit.place),
            f"{hit.grams:,}",
        )
        for hit in scan.overlaps[:SHOWN_HITS]
    ]
    shown = len(rows) - 1
    return (
        f"<h3>{escape(scan.name)}: {scan.overlapping:,} documents</h3>"
        f"<p>The table shows {shown:,} of {len(scan.overlaps):,} overlaps; {HITS} contains "
        f"all.</p>{html_table(rows)}"
    )


def _method(report: Report) -> list[str]:
    """Return paragraphs that explain the measurements."""
    sampled = ", ".join(f"{one.languages.total():,} of {one.scan.name}" for one in report.corpora)
    return [
        f"A document overlaps if it has {WORDS} consecutive words in common with evaluation text, "
        "at least half of which contain a letter. In scripts without spaces between words, such as "
        f"Chinese and Japanese, {CHARACTERS} consecutive characters are compared, without spaces "
        "and punctuation. A question that is shorter is compared as a whole if it has at least "
        f"{SHORT_WORDS} words or {SHORT_CHARACTERS} characters; shorter questions are too short to "
        "be compared. All text is normalized: Unicode NFKC, folded case, no punctuation.",
        "Exact duplicates have the same text. Conversations are exact duplicates if also the roles "
        "of the turns, their flags for the loss, and the label are the same. The first document in "
        "the order of the corpora in the config is not counted as repeated.",
        f"Languages and near-duplicates are those of a sample of at most {SAMPLE_DOCUMENTS:,} "
        f"different documents per corpus ({sampled}). The language is that of the first "
        f"{LANGUAGE_CHARACTERS:,} characters, by py3langid. Near-duplicates have an estimated "
        f"Jaccard similarity of at least {SIMILAR} (MinHash by datasketch, sequences of five words "
        f"or characters, first {COMPARED_CHARACTERS:,} characters). The documents of a sample have "
        "the smallest hashes of n-grams, so that near-duplicates are sampled together in most "
        "cases; the rate is slightly too low.",
    ]
