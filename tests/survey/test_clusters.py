"""Clusterings and their stability against direct calls, brute force and bibliographies with known groups."""

from __future__ import annotations

import csv
import io
import itertools
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.preprocessing import normalize
from typer.testing import CliRunner

from mimbench.cli import app
from mimbench.errors import UserError
from mimbench.survey import bibliography, output, stability, words
from mimbench.survey.agreement import agreements
from mimbench.survey.bibliography import Bibliography, Paper
from mimbench.survey.clusters import ALGORITHMS, SURVEY, VARIANTS, cluster, cut, ensemble
from mimbench.survey.study import by_size, silhouette, study, top_terms
from mimbench.survey.texts import NGRAMS, shuffled, space

TOPICS = {
    "masks": "mask patches hidden ratio block attention visible random occluded sampling",
    "clouds": "point cloud lidar voxel depth scene geometry shape scan surface",
    "language": "sentence caption word grammar translation document corpus dialogue parser syntax",
}
FILLER = ["we", "the", "of", "and", "model", "method", "results", "show", "our", "data", "learning", "new"]


def planted(n: int = 24, seed: int = 0) -> Bibliography:
    """Papers of three topics, each with words of its own among words that all share."""
    draw = np.random.default_rng(seed)
    papers = []
    for number in range(n):
        label = list(TOPICS)[number % len(TOPICS)]
        own = draw.choice(TOPICS[label].split(), 24)
        abstract = draw.permutation([*own, *draw.choice(FILLER, 20)])
        papers.append(Paper(f"Paper {number}", " ".join(abstract), label=label))
    return Bibliography(tuple(papers), (("Empty", "has no abstract"),))


def noise(n: int = 24, seed: int = 0) -> Bibliography:
    """Papers whose words are drawn from one bag."""
    draw = np.random.default_rng(seed)
    bag = [f"{a}{b}" for a, b in itertools.product("bcdfglmnpr", ("ala", "omo", "eki", "uru", "isi", "ata"))]
    return Bibliography(tuple(Paper(f"{bag[i]} {i}", " ".join(draw.choice(bag, 40))) for i in range(n)), ())


TEXTS = [paper.text for paper in planted(12).papers]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return adjusted_rand_score(one, other) == 1.0


def test_the_survey_s_way_is_scikit_learn_s_tfidf_and_scipy_s_ward():
    vectors = TfidfVectorizer().fit_transform(TEXTS).toarray()
    expected = linkage(vectors, "ward")
    tree = space(TEXTS).tree("ward")
    np.testing.assert_allclose(tree[:, 2], expected[:, 2], atol=1e-9)
    for k in range(2, 12):
        assert same(cut(tree, k), fcluster(expected, k, "maxclust"))


def test_tfidf_and_ward_equal_their_closed_forms():
    """Two texts share all words, the third none; in unit vectors of such the idf cancels."""
    where = space(["alpha beta", "beta alpha", "gamma"])
    np.testing.assert_allclose(
        where.distances, [[0, 0, 2**0.5], [0, 0, 2**0.5], [2**0.5, 2**0.5, 0]], atol=1e-7
    )
    # Ward: the pair at 0; then sqrt(2 |a| |b| / (|a| + |b|)) times the distance of the means
    np.testing.assert_allclose(where.tree("ward")[:, 2], [0, (2 * 2 * 1 / 3) ** 0.5 * 2**0.5], atol=1e-7)


@pytest.mark.parametrize("ngrams", NGRAMS)
@pytest.mark.parametrize(
    ("weighting", "options"),
    [("tf-idf", {}), ("sublinear", {"sublinear_tf": True}), ("binary", {"binary": True, "use_idf": False})],
)
def test_each_weighting_has_the_distances_of_its_word_vectors(ngrams, weighting, options):
    vectors = TfidfVectorizer(ngram_range=ngrams, **options).fit_transform(TEXTS).toarray()
    where = space(TEXTS, ngrams, weighting)
    np.testing.assert_allclose(squareform(where.distances, checks=False), pdist(vectors), atol=1e-7)
    np.testing.assert_allclose(pdist(where.coordinates), pdist(vectors), atol=1e-7)


def test_lsa_is_truncated_svd_to_unit_length():
    vectors = TfidfVectorizer().fit_transform(TEXTS)
    topics = normalize(TruncatedSVD(3, algorithm="arpack", random_state=0).fit_transform(vectors))
    np.testing.assert_allclose(
        squareform(space(TEXTS, weighting="lsa").distances, checks=False), pdist(topics), atol=1e-6
    )


@pytest.mark.parametrize("method", ["ward", "complete", "average"])
@pytest.mark.parametrize("k", [2, 4, 7])
def test_a_tree_is_cut_as_scikit_learn_cuts_it(method, k):
    vectors = TfidfVectorizer().fit_transform(TEXTS).toarray()
    (labels,) = cluster(space(TEXTS), method, [k])
    assert same(labels, AgglomerativeClustering(k, linkage=method).fit_predict(vectors))
    assert len(set(labels.tolist())) == k


def test_k_means_in_fewer_dimensions_finds_what_it_finds_in_all():
    vectors = TfidfVectorizer().fit_transform(TEXTS).toarray()
    (labels,) = cluster(space(TEXTS), "k-means", [3])
    assert same(labels, KMeans(3, n_init=10, random_state=0).fit_predict(vectors))


def test_spectral_clustering_survives_papers_without_a_common_word():
    texts = ["alpha beta", "beta alpha gamma", "delta eta", "eta delta zeta", "iota kappa", "kappa iota"]
    (labels,) = cluster(space(texts), "spectral", [3])
    assert same(labels, np.array([0, 0, 1, 1, 2, 2]))


def test_the_rand_matrix_is_scikit_learn_s_index_of_every_pair():
    draw = np.random.default_rng(0)
    partitions = draw.integers(0, 5, (7, 30))
    partitions[5], partitions[6] = 0, np.arange(30)
    expected = [[adjusted_rand_score(a, b) for b in partitions] for a in partitions]
    np.testing.assert_allclose(stability.rand_matrix(partitions), expected, atol=1e-12)
    above = [expected[a][b] for a, b in itertools.combinations(range(7), 2)]
    assert stability.mean_agreement(partitions) == pytest.approx(np.mean(above))


def test_the_rand_index_is_one_however_clusters_are_named_and_nil_by_chance():
    """Closed form for halves crossed: 0 pairs shared of 2 each, 2 / 3 expected: (0 - 2/3) / (2 - 2/3)."""
    crossed = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [9, 9, 4, 4]])
    np.testing.assert_allclose(stability.rand_matrix(crossed), [[1, -0.5, 1], [-0.5, 1, -0.5], [1, -0.5, 1]])


def test_consensus_and_support_count_pairs():
    draw = np.random.default_rng(1)
    partitions = draw.integers(0, 4, (9, 15))
    shares = stability.consensus(partitions)
    for i, j in itertools.product(range(15), repeat=2):
        assert shares[i, j] == pytest.approx(np.mean([p[i] == p[j] for p in partitions]))
    labels, order = stability.consensus_clusters(shares, 4)
    assert sorted(order) == list(range(15))
    drawn = labels[order]
    assert (np.diff(drawn) != 0).sum() == 3, "a cluster that is not one block of the picture"
    labels[labels == labels[0]] = np.arange(100, 100 + (labels == labels[0]).sum())  # papers on their own
    found = stability.support(shares, labels)
    for i in range(15):
        others = [j for j in range(15) if j != i and labels[j] == labels[i]]
        expected = (
            np.mean([shares[i, j] for j in others])
            if others
            else 1 - max(shares[i, j] for j in range(15) if j != i)
        )
        assert found[i] == pytest.approx(expected)


def test_shuffling_keeps_every_word_s_counts_and_no_group():
    mixed = shuffled(TEXTS, 3)
    bags = [[sorted(text.lower().split()) for text in texts] for texts in (TEXTS, mixed)]
    for word in {word for bag in bags[0] for word in bag if len(word) > 1}:
        counts = [sorted(bag.count(word) for bag in texts) for texts in bags]
        assert counts[0] == counts[1], word
    assert shuffled(TEXTS, 3) == mixed != shuffled(TEXTS, 4)


def test_the_silhouette_is_scikit_learn_s_and_a_hole_where_there_is_none():
    vectors = TfidfVectorizer().fit_transform(TEXTS).toarray()
    labels = np.arange(12) % 3
    where = space(TEXTS)
    assert silhouette(where, labels) == pytest.approx(silhouette_score(vectors, labels))
    assert np.isnan(silhouette(where, np.arange(12)))


def test_clusters_are_numbered_by_size_whatever_they_were_called():
    np.testing.assert_array_equal(by_size(np.array([7, 2, 2, 5, 2, 5, 9])), [2, 0, 0, 1, 0, 1, 3])


def test_terms_are_words_that_set_a_cluster_apart_and_no_function_words():
    labels = np.arange(12) % 3
    for label, found in enumerate(top_terms(TEXTS, labels)):
        assert found
        assert set(found) <= set(list(TOPICS.values())[label].split())


@pytest.fixture(scope="module")
def grouped():
    return study(planted())


@pytest.fixture(scope="module")
def groupless():
    return study(noise(), k=4)


def test_planted_groups_are_found_counted_and_called_stable(grouped):
    truth = np.arange(24) % 3
    assert grouped.k == 3
    assert same(grouped.labels, truth)
    assert same(grouped.consensus, truth)
    assert grouped.stable.all()
    chosen = next(choice for choice in grouped.choices if choice.k == 3)
    assert chosen.rand > 0.8 > 0.3 > chosen.rand_chance
    told = " ".join(words.sentences(grouped))
    assert "24 of 24 papers have a stable place" in told
    assert "Left out: 'Empty' has no abstract." in told
    assert words.unstable(grouped) == []


def test_noise_is_called_unstable(groupless):
    """The bar lets one paper in twenty of shuffled words pass; papers of one bag are such."""
    assert groupless.stable.mean() <= 0.25
    (choice,) = groupless.choices
    assert choice.rand < choice.rand_chance + 0.1
    assert len(words.unstable(groupless)) == int((~groupless.stable).sum())
    assert "hardly any gaps" in " ".join(words.sentences(groupless))


def test_a_study_is_the_same_twice(groupless):
    again = study(noise(), k=4)
    np.testing.assert_array_equal(again.consensus, groupless.consensus)
    np.testing.assert_array_equal(again.rand, groupless.rand)
    assert again.choices == groupless.choices


def test_every_variant_is_in_the_ensemble_and_means_leave_out_none(grouped):
    found = ensemble(TEXTS, [3])
    assert found.shape == (len(VARIANTS), 1, 12)
    assert len(set(VARIANTS)) == len(VARIANTS) == 3 * 4 * 5
    rand = grouped.rand
    ward = [i for i, variant in enumerate(VARIANTS) if variant.algorithm == "ward"]
    pairs = [rand[i, j] for i in ward for j in range(60) if j not in ward]
    inner = [rand[i, j] for i in ward for j in ward if i != j]
    expected = (2 * sum(pairs) + sum(inner)) / (2 * len(pairs) + len(inner))
    assert grouped.between("algorithm", "ward")[0] == pytest.approx(expected)
    changed = [variant for variant, _ in grouped.changed()]
    assert len(changed) == 2 + 3 + len(ALGORITHMS) - 1
    for variant in changed:
        differs = [getattr(variant, a) != getattr(SURVEY, a) for a in ("ngrams", "weighting", "algorithm")]
        assert sum(differs) == 1


def test_agreement_with_labels_is_that_of_scikit_learn():
    papers = planted().papers
    labels = np.random.default_rng(0).integers(0, 4, len(papers))
    (found,) = agreements(labels, papers)
    truth = [paper.label for paper in papers]
    assert found.criterion == "label"
    assert found.rand == pytest.approx(adjusted_rand_score(truth, labels))
    assert found.v_measure == pytest.approx(normalized_mutual_info_score(truth, labels))
    assert found.p > 0.05
    (perfect,) = agreements(np.arange(24) % 3, papers)
    assert (perfect.rand, perfect.homogeneity, perfect.completeness) == (1, 1, 1)
    assert perfect.p == pytest.approx(1 / 1000)


@pytest.mark.parametrize("k", [1, 24, 100])
def test_more_clusters_than_papers_are_refused(k):
    with pytest.raises(UserError, match=f"{k} clusters of 24 papers: ask for 2 to 23"):
        study(planted(), k)


def test_three_papers_are_enough(tmp_path):
    papers = tuple(Paper(f"T{i}", text) for i, text in enumerate(("alpha beta", "beta alpha", "gamma")))
    found = study(Bibliography(papers, ()))
    assert found.k == 2
    assert same(found.labels, np.array([0, 0, 1]))
    assert len(output.write(found, tmp_path)) == 4


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]

    def handle_data(self, data):
        self.text += data


def test_hostile_titles_stay_text_in_every_file(tmp_path):
    hostile = "=1+1<script>alert(1)</script>{{7*7}}$\\frac$[red]\x07"
    papers = (Paper(hostile, "alpha beta <b>gamma</b>"), *planted(6).papers)
    found = study(Bibliography(papers, ((hostile, "is there already"),)), k=2)
    files = dict(output.write(found, tmp_path))
    page = Tags(files["html"].read_text(encoding="utf-8"))
    assert "script" not in page.found
    assert page.text.count(hostile) == 1
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_bytes().decode("utf-8-sig"))))
    assert rows[0]["title"] == "'" + hostile
    assert len(rows) == 7


def test_the_command_writes_what_it_names_and_says_a_mistake_in_one_line(tmp_path):
    path = tmp_path / "papers.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["title", "abstract", "label"])
        writer.writerows([paper.title, paper.abstract, paper.label] for paper in planted(12).papers)
    done = CliRunner().invoke(
        app, ["taxonomy", "cluster", str(path), "--clusters", "3", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "12 papers in 3 clusters (as asked)" in " ".join(done.output.split())
    assert "agrees best with label" in " ".join(done.output.split())
    made = {file.name for file in (tmp_path / "out").iterdir()}
    assert made == {"clusters.csv", "dendrogram.png", "consensus.png", "report.html"}
    wrong = CliRunner().invoke(app, ["taxonomy", "cluster", str(tmp_path / "none.csv")])
    assert wrong.exit_code == 2
    assert len(wrong.output.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif("MIMBENCH_DATA" not in os.environ, reason="needs a real bibliography")
def test_on_real_papers_topics_are_told_apart_and_doubt_is_told():
    path = Path(os.environ["MIMBENCH_DATA"]) / "papers" / "papers.csv"
    if not path.is_file():
        pytest.skip("no papers.csv there")
    found = study(bibliography.read(path), k=5)
    (choice,) = found.choices
    assert choice.rand > 2 * choice.rand_chance
    assert not found.stable.all()
    places = {
        next(c for c, p in zip(found.consensus, found.bibliography.papers, strict=True) if name in p.title)
        for name in ("Simple and Effective Masked Diffusion", "FrozenSeg", "Local Multi-Scale", "InforMask")
    }
    assert len(places) == 4, "diffusion, segmentation, image and language modelling"
