"""Reading bibliographies: nothing dropped in silence, every mistake one sentence that names the file."""

from __future__ import annotations

import pytest

from mimbench.errors import UserError
from mimbench.survey import bibliography
from mimbench.survey.agreement import match
from mimbench.survey.bibliography import Paper

ROWS = ["Masks,We hide patches.", "Tokens,We predict tokens.", "Views,We compare views."]


def wrote(tmp_path, text: str | bytes, name: str = "papers.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def csv_of(*rows: str, head: str = "title,abstract") -> str:
    return "\n".join((head, *rows)) + "\n"


def test_title_and_abstract_are_what_is_clustered(tmp_path):
    found = bibliography.read(wrote(tmp_path, csv_of(*ROWS)))
    assert [paper.text for paper in found.papers] == [row.replace(",", " ") for row in ROWS]
    assert found.left_out == ()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffTitle,Abstract \r\n" + "\r\n".join(ROWS),
        csv_of(*(row.replace(",", ";") for row in ROWS), head="title;abstract"),
        csv_of(*(row.replace(",", "\t") for row in ROWS), head="title\tabstract"),
        csv_of(*(f"7,{row}" for row in ROWS), head="id,TITLE,ABSTRACT"),
        csv_of("Masks,\"We hide\npatches.\"", *ROWS[1:]),
    ],
    ids=["bom and crlf", "semicolons", "tabs", "capitals and more columns", "line break in a field"],
)  # fmt: skip
def test_what_spreadsheets_save_is_read_alike(tmp_path, text):
    found = bibliography.read(wrote(tmp_path, text))
    assert found.papers == tuple(Paper(*row.split(",")) for row in ROWS)


def test_entries_without_an_abstract_and_repeated_titles_are_named(tmp_path):
    more = ["Empty,", "Short", "Dots,...", "MASKS!,Again."]
    found = bibliography.read(wrote(tmp_path, csv_of(*ROWS, *more)))
    assert len(found.papers) == 3
    assert found.left_out == (
        ("Empty", "has no abstract"),
        ("Short", "has no abstract"),
        ("Dots", "has no abstract"),
        ("MASKS!", "is there already"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (csv_of(*ROWS, head="name,abstract"), "no column 'title'"),
        (csv_of("a", "b", head="name"), "no column 'title' and no column 'abstract'"),
        ("", "no column 'title'"),
        (csv_of(*ROWS[:2]), "holds 2 papers with an abstract, and clustering takes 3 or more"),
        (csv_of("a,", "b,", "c,"), "holds no paper with an abstract.*without one is 'a'"),
        (csv_of(*ROWS).replace("hide", "h\xefde").encode("latin-1"), "not utf-8 text.*--encoding cp1252"),
        ("\ufeff" + csv_of(*ROWS), None),
        (csv_of(*ROWS).encode("utf-16"), "not utf-8 text"),
    ],
)
def test_a_mistake_in_a_csv_is_one_sentence(tmp_path, text, said):
    path = wrote(tmp_path, text)
    if said is None:
        assert len(bibliography.read(path).papers) == 3
        return
    with pytest.raises(UserError, match=said) as error:
        bibliography.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_encoding_is_read_when_named_and_refused_when_unknown(tmp_path):
    path = wrote(tmp_path, csv_of(*ROWS).replace("hide", "h\xefde").encode("cp1252"))
    assert bibliography.read(path, "cp1252").papers[0].abstract == "We hïde patches."
    with pytest.raises(UserError, match="no encoding is called 'klingon'"):
        bibliography.read(path, "klingon")
    with pytest.raises(UserError, match=r"cannot read .*absent\.csv"):
        bibliography.read(tmp_path / "absent.csv")


BIB = r"""
% a comment
@string{cvpr = "CVPR"}
@article{he, title = {{Masked} autoencoders for {M}{\"u}ller's na{\"\i}ve caf{\'e}}, booktitle = cvpr,
  abstract = {We {\em hide} 75\% of $x^2$ \& more -- d\'ej\`a vu.}, year = 2022,
  eprint = {2111.06377}, archivePrefix = {arXiv}, month = jan}
@inproceedings{bao, title = "{BEiT}: {BERT} pre-training", abstract = "Tokens of \textbf{images}.",
  url = {https://arxiv.org/abs/2106.08254v2}}
@misc{wei, title = {Features}, Abstract = {Gradients {are} targets}, label = {hog}}
@misc{none, title = {Nothing said}}
"""


def test_bibtex_is_read_as_plain_text_with_its_accents(tmp_path):
    found = bibliography.read(wrote(tmp_path, BIB, "papers.bib"))
    first, second, third = found.papers
    assert first.title == "Masked autoencoders for Müller's naïve café"
    assert first.abstract.startswith("We hide 75% of x")
    assert "déjà vu" in first.abstract
    assert not set(r"\{}$") & set(first.text)
    assert second == Paper("BEiT: BERT pre-training", "Tokens of images.", "2106.08254")
    assert (first.arxiv, third.label) == ("2111.06377", "hog")
    assert found.left_out == (("Nothing said", "has no abstract"),)


def test_a_bare_per_cent_sign_does_not_swallow_the_rest_of_an_abstract(tmp_path):
    entries = [
        f"@misc{{k{i}, title = {{T{i}}}, abstract = {{Hide 75% of patches, 5\\% stay.}}}}" for i in range(3)
    ]
    found = bibliography.read(wrote(tmp_path, "\n".join(entries), "papers.bib"))
    assert {paper.abstract for paper in found.papers} == {"Hide 75% of patches, 5% stay."}


@pytest.mark.parametrize(
    "text",
    [
        "@article{a, title = {No end",
        "@article{a, title {No equals sign}}",
        BIB + BIB,
        "@article{a, title = undefined_macro, abstract = {b}}",
        "@article{a, title = {Stray } brace}, abstract = {b}}",
    ],
)
def test_a_broken_bibtex_is_one_sentence(tmp_path, text):
    path = wrote(tmp_path, text, "broken.bib")
    with pytest.raises(UserError, match=r"broken\.bib is no sound BibTeX: .*") as error:
        bibliography.read(path)
    assert "\n" not in str(error.value)


def test_a_paper_is_matched_by_number_then_title_then_name_and_never_by_chance():
    papers = [
        Paper("Whatever", "", arxiv="2111.06377"),
        Paper("masked autoencoders ARE scalable vision learners.", ""),
        Paper("SimMIM: a simple framework", ""),
        Paper("A study of SimMIM: its masks", ""),
        Paper("Masked Autoencoders Are Scalable Vision Learners", "", arxiv="1234.56789"),
        Paper("SimMIM and more", ""),
    ]
    found = [work.key if work else None for work in match(papers)]
    assert found == ["mae", "mae", "simmim", None, None, None]
