"""The survey's classes on the cards and in the shipped facts: filed once, filed alike, in known words."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from mimbench import registry, taxonomy
from mimbench.errors import UserError
from mimbench.spec import Card, Classes
from mimbench.survey.works import Work, works

CARDS = {key: cls.card for key, cls in registry.methods().items()}
WORKS = {work.key: work for work in works()}
ON_CARDS = ("masking", "target", "architecture", "objective")

# Where the survey's text and figures 5, 8 and 10 file works by name.
NAMED = {
    ("masking", "random"): "simmim mae videomae avhubert maskeddenoising omnimae mixmae",
    ("masking", "network-guided"): "attmask semmae clmae hpm amt",
    ("masking", "signal-guided"): "cbm autosmim maskedgan mfm colormae mgmae pointmae mcvd",
    ("target", "pixels"): "mae simmim",
    ("target", "tokens"): "beit ibot",
    ("target", "geometry"): "meshmae mme mask3d geomae",
    ("target", "hog"): "maskfeat",
    ("target", "spectrum"): "a2mim",
    ("target", "frozen teacher"): "eva maskalign mgd dmae_kd emp_mvm",
    ("target", "trained teacher"): "mavil attmask sdae msn rils mfc",
    ("objective", "reconstruction"): "simmim mae mate cmae",
    ("objective", "contrastive"): "mae_clip_scale rcmae extrema cmae",
    ("objective", "classification"): "maskpoint must beit",
    ("architecture", "convolutional"): "spark convnextv2 mcmae",
    ("architecture", "masked convolution"): "sspcab ssmctb",
    ("architecture", "hierarchical"): "greenmim mixmae",
    ("architecture", "sparse or experts"): "sparsemae moce",
    ("architecture", "reversible"): "revcolv2",
    ("architecture", "fusion"): "deepavfusion",
    ("scheme", "both"): "mst cmae rcmae vicmae",
    ("scheme", "contrastive"): "sdae",
    ("contribution", "theory"): "mae_hlv mrp_theory mim_secrets mask_identif mood mpt_lml umae robustmae",
    ("contribution", "task"): "maskgit mae_st masksketch token_critic",
}


@pytest.mark.parametrize("key", CARDS)
def test_a_method_of_the_zoo_is_filed(key):
    filed = CARDS[key].classes
    assert filed is not None, f"{key} misses in mimbench taxonomy"
    for criterion in ON_CARDS:
        assert taxonomy.CRITERIA[criterion].split(getattr(filed, criterion))


def test_the_vocabulary_explains_each_word_once():
    for criterion in taxonomy.CRITERIA.values():
        assert len(set(criterion.names)) == len(criterion.names)
        assert all(known.meaning and known.source for known in criterion.classes)
    assert set(taxonomy.SCHEME.names) == set(get_args(Card.model_fields["scheme"].annotation))


@pytest.mark.parametrize("text", ["randon", "", "random network-guided", "Random"])
def test_a_word_outside_the_vocabulary_is_refused_by_name(text):
    with pytest.raises(UserError, match="class of masking"):
        Classes(masking=text, target="pixels", architecture="plain transformer", objective="reconstruction")


def test_nothing_and_something_at_once_is_refused():
    with pytest.raises(UserError, match="says none and something"):
        taxonomy.MASKING.split("none + random")


def test_two_ways_to_write_the_same_classes_are_one_class():
    assert taxonomy.TARGET.tidy("trained teacher+pixels + pixels") == "pixels + trained teacher"


def test_no_work_is_listed_twice():
    for name, values in {
        "key": [work.key for work in works()],
        "arxiv": [work.arxiv for work in works() if work.arxiv],
        "title": [work.title.casefold() for work in works() if work.title],
    }.items():
        assert [value for value, n in Counter(values).items() if n > 1] == [], name


@pytest.mark.parametrize("criterion", taxonomy.CRITERIA)
def test_every_work_is_filed_in_known_words_in_order(criterion):
    for work in works():
        text = getattr(work, criterion)
        if criterion != "contribution":
            assert text, work.key
        if text:
            assert taxonomy.CRITERIA[criterion].tidy(text) == text, work.key


@pytest.mark.parametrize(("criterion", "name"), NAMED)
def test_works_the_survey_names_are_filed_where_it_files_them(criterion, name):
    wrong = [key for key in NAMED[criterion, name].split() if name not in WORKS[key].classes(criterion)]
    assert wrong == []


def test_only_surveyed_works_stand_under_headings_of_the_survey():
    assert [work.key for work in works() if work.contribution and not work.surveyed] == []
    assert sum(bool(work.section) for work in works()) == 179  # works discussed in sections 3.1 to 3.18
    assert sum(work.surveyed for work in works()) == 194


def paired() -> dict[str, tuple[Card, Work]]:
    by_number = {work.arxiv: work for work in works() if work.arxiv}
    return {
        key: (card, by_number[card.arxiv])
        for key, card in CARDS.items()
        if card.role == "method" and card.arxiv in by_number
    }


def test_most_of_the_zoo_is_among_the_works():
    methods = {key for key, card in CARDS.items() if card.role == "method"}
    assert methods - set(paired()) == {"can", "droppos"}


@pytest.mark.parametrize("key", paired())
def test_a_card_and_the_facts_file_a_method_alike(key):
    """A card may leave out what the paper has as an option; it never says something else."""
    card, work = paired()[key]
    assert card.scheme == work.scheme or (key == "mage" and work.scheme == "both")  # MAGE without MAGE-C
    assert card.classes is not None
    for criterion in ON_CARDS:
        allowed = set(work.classes(criterion))
        mine = set(taxonomy.CRITERIA[criterion].split(getattr(card.classes, criterion)))
        assert mine <= allowed or allowed == {"any network"}, criterion
