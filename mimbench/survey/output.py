"""A study as files: the papers with their clusters, two pictures and a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from scipy.cluster.hierarchy import dendrogram

from mimbench.files import make_folder, write_atomically
from mimbench.report.sheet import csv_text
from mimbench.report.text import cut
from mimbench.survey import words
from mimbench.survey.clusters import SURVEY, VARIANTS
from mimbench.survey.page import render
from mimbench.survey.study import NAMED, QUANTILE, Study

LONGEST = 70  # letters of a title in a picture
MOST = 250  # papers whose titles a picture has room for


def frame(study: Study) -> pd.DataFrame:
    """One row a paper, in the order of the bibliography; clusters are numbered from 1, largest first."""
    return pd.DataFrame(
        [
            {
                "title": paper.title,
                "cluster": int(label) + 1,
                "consensus_cluster": int(place) + 1,
                "support": float(share),
                "stable": "yes" if stable else "no",
                "work": work.key if work else "",
                "cluster_terms": ", ".join(study.terms[label]),
                "consensus_terms": ", ".join(study.consensus_terms[place]),
                "label": paper.label,
            }
            for paper, label, place, share, stable, work in zip(
                study.bibliography.papers,
                study.labels,
                study.consensus,
                study.support,
                study.stable,
                study.works,
                strict=True,
            )
        ]
    )


def write(study: Study, folder: Path) -> list[tuple[str, Path]]:
    """clusters.csv, dendrogram.png, consensus.png and report.html into ``folder``; their kinds and paths.

    Raises UserError where that cannot be written.
    """
    make_folder(folder)
    pictures = {"dendrogram.png": _tree(study), "consensus.png": _consensus(study)}
    files = {
        "clusters.csv": csv_text(frame(study)).encode(),
        **pictures,
        "report.html": _page(study, pictures).encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return [(name.rsplit(".", 1)[1], folder / name) for name in files]


def _page(study: Study, pictures: dict[str, bytes]) -> str:
    rows = frame(study)
    return render(
        "clusters.html",
        study=study,
        sentences=words.sentences(study),
        pictures={
            name.split(".")[0]: Markup("data:image/png;base64,") + base64.b64encode(content).decode()
            for name, content in pictures.items()
        },
        clusters=_clusters(study, study.labels, study.terms),
        together=_clusters(study, study.consensus, study.consensus_terms),
        axes=list(words.axes(study)),
        both=words.both(study),
        unstable=words.unstable(study),
        rows=rows.to_dict("records"),
        variants=len(VARIANTS),
        start=str(SURVEY),
        quantile=QUANTILE,
        named=NAMED,
        number=words.number,
    )


def _clusters(
    study: Study, labels: np.ndarray, terms: Sequence[Sequence[str]]
) -> list[tuple[int, int, int, str]]:
    """Number, size, how many of its papers have a stable place, terms."""
    return [
        (k + 1, int((labels == k).sum()), int(study.stable[labels == k].sum()), ", ".join(terms[k]))
        for k in range(len(terms))
    ]


def _short(title: str) -> str:
    flat = " ".join("".join(c if c.isprintable() else " " for c in title).split())
    return cut(flat, LONGEST)


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def _tree(study: Study) -> bytes:
    """The survey's dendrogram, titles beside it, the clusters coloured and the cut drawn."""
    titles = [_short(paper.title) for paper in study.bibliography.papers]
    n = len(titles)
    named = n <= MOST
    figure = Figure(figsize=(12, max(3, 0.16 * n + 1) if named else 12), layout="constrained")
    axes = figure.add_subplot()
    heights = study.tree[:, 2]
    top = float(heights[-1]) or 1.0  # papers of the same words all lie at 0
    level = (heights[-study.k] + heights[-study.k + 1]) / 2 if study.k < n else 0
    drawn = dendrogram(
        study.tree,
        orientation="right",
        no_labels=True,
        color_threshold=level,
        above_threshold_color="#8a939c",
        ax=axes,
    )
    if named:
        axes.yaxis.tick_right()
        axes.set_yticks(10 * np.arange(n) + 5)
        axes.set_yticklabels([""] * n)
        for place, leaf in enumerate(drawn["leaves"]):
            label = f" {study.labels[leaf] + 1}: {titles[leaf]}"
            axes.text(0, 10 * place + 5, label, va="center", fontsize=6.5, parse_math=False)
    axes.invert_xaxis()
    axes.set_xlim(top * 1.05, -top * (0.75 if named else 0))
    axes.axvline(level, color="#b3261e", linestyle="--", linewidth=1)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= top * 1.05])
    axes.set_xlabel("height at which clusters join (Ward linkage, Euclidean distance of TF-IDF vectors)")
    axes.set_title(f"{n} papers; the dashed line cuts into {study.k} clusters", loc="left")
    return _png(figure)


def _consensus(study: Study) -> bytes:
    """Who is with whom how often, ordered so that groups are blocks; the agreement of the variants."""
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = study.order
    image = left.imshow(study.shares[np.ix_(order, order)], vmin=0, vmax=1, cmap="Blues")
    left.set_title("share of clusterings with two papers in one cluster", loc="left", fontsize=10)
    ends = np.flatnonzero(np.diff(study.consensus[order])) + 0.5
    for end in ends:
        left.axhline(end, color="#b3261e", linewidth=0.6)
        left.axvline(end, color="#b3261e", linewidth=0.6)
    left.set_xlabel("papers, in the order of the consensus tree; lines part its clusters")
    left.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=left, shrink=0.8)
    image = right.imshow(study.rand, vmin=0, vmax=1, cmap="Greens")
    right.set_title("adjusted Rand index of any two clusterings", loc="left", fontsize=10)
    right.set_yticks(range(len(VARIANTS)), [str(variant) for variant in VARIANTS], fontsize=5)
    right.set_xticks([])
    figure.colorbar(image, ax=right, shrink=0.8)
    return _png(figure)


def console(study: Study) -> RenderableType:
    """The findings in words, the clusters, and the numbers of clusters that were tried."""
    parts: list[RenderableType] = [Text(sentence) for sentence in words.sentences(study)]
    parts += [Text(), _table(study, study.labels, study.terms, "The survey's clustering")]
    parts += [_table(study, study.consensus, study.consensus_terms, "Consensus of all ways")]
    tried = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Numbers of clusters", title_justify="left")
    for name in ("clusters", "silhouette", "Rand index", "shuffled", "support", "shuffled"):
        tried.add_column(name, justify="right")
    for c in study.choices:
        facts = (c.rand, c.rand_chance, c.support, c.support_chance)
        cells = (words.number(c.silhouette, 3), *map(words.number, facts))
        tried.add_row(str(c.k), *cells, style="bold" if c.k == study.k else "")
    loose = words.unstable(study)
    parts += [tried] if len(study.choices) > 1 else []
    parts += [Text(f"Without a stable place, the loosest first ({len(loose)}):")] if loose else []
    parts += [Text(f"  {share:.0%}  {_short(title)}", overflow="ellipsis") for title, share in loose[:10]]
    return Group(*parts)


def _table(study: Study, labels: np.ndarray, terms: Sequence[Sequence[str]], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in ("cluster", "papers", "stable"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("words that set it apart", overflow="fold")
    for number, size, stable, described in _clusters(study, labels, terms):
        table.add_row(str(number), str(size), str(stable), Text(described))
    return table
