"""LVM's metadata text is read and written without loss."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import HostCommandError
from vmcloner_lvm.metadata import MAX_DEPTH, Section, Setting, parse, stored_size, write
from vmcloner_lvm.volumegroup import VolumeGroup

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.vg"))

keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_+.-]{0,12}", fullmatch=True)
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = strings | st.integers(-(2**63), 2**63)
settings_ = st.builds(Setting, keys, scalars | st.lists(scalars, max_size=4).map(tuple))
sections = st.recursive(
    st.builds(Section, keys, st.lists(settings_, max_size=4).map(tuple)),
    lambda inner: st.builds(Section, keys, st.lists(settings_ | inner, max_size=4).map(tuple)),
    max_leaves=12,
)
trees = st.builds(Section, st.just(""), st.lists(settings_ | sections, max_size=4).map(tuple))
blanks = st.lists(
    st.sampled_from([" ", "\t", "\n", '# a comment: } { = " ]\n', "#\n"]), max_size=3
).map("".join)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_text_is_written_as_it_was(path):
    text = path.read_text()
    tree = parse(text)
    assert write(tree) == text
    assert VolumeGroup.parse(text, "vg").version == (2, 3, 16)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_text_says_the_same_in_our_own_layout(path):
    tree = parse(path.read_text())
    assert parse(write(_bare(tree))) == tree


def test_size_is_what_lvm_says():
    """vgs said so of the recorded group: 34073088 of 34075648 bytes free, in sectors."""
    text = (Path(__file__).parent / "recorded" / "repaired.vg").read_text()
    taken = 34075648 - 34070528
    assert taken - 512 < stored_size(parse(text)) <= taken


@given(trees)
def test_any_tree_comes_back(tree):
    assert parse(write(tree)) == tree


@given(trees, blanks, blanks)
def test_white_space_and_comments_are_kept(tree, first, second):
    text = write(tree)
    loose = first + text.replace("\n", second + "\n") + second if '"' not in text else first + text
    again = parse(loose)
    assert again == tree
    assert write(again) == loose


@given(st.text(st.sampled_from("ab1.-\"'\\#={}[],\n\t "), max_size=60))
def test_any_text_is_read_without_loss_or_refused(text):
    try:
        tree = parse(text)
    except HostCommandError as error:
        assert "line " in error.message
    else:
        assert write(tree) == text
        assert parse(write(_bare(tree))) == tree


@given(trees, keys, scalars)
def test_a_change_changes_nothing_else(tree, key, value):
    changed = parse(write(tree)).updated({key: value})
    others = [item for item in tree.items if item.key != key or isinstance(item, Section)]
    assert changed.values()[key] == value
    assert [item for item in changed.items if item != Setting(key, value)] == [
        item for item in others if item != Setting(key, value)
    ]
    assert list(changed.sections()) == list(tree.sections())
    assert parse(write(changed)) == changed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a {\n b = 1\n", 3),
        ("a = 1\n}\n", 2),
        ("a = \n", 1),
        ('a = "open\n', 1),
        ("a = [1, 2\n", 1),
        ("a = 1\n\nb = [1 2]\n", 3),
        ("a { " * (MAX_DEPTH + 1), 1),
        ("= 1", 1),
    ],
)
def test_what_breaks_the_grammar_is_refused_by_line(text, line):
    with pytest.raises(HostCommandError, match=f"line {line}: "):
        parse(text)


def test_long_garbage_is_refused_quickly():
    for text in (
        "#" * 200_000,
        " " * 200_000 + "}",
        '"' + "\\" * 200_001,
        "a = [" + "1," * 100_000,
    ):
        if text.startswith("#"):
            assert write(parse(text)) == text
        else:
            with pytest.raises(HostCommandError):
                parse(text)


def _bare(tree):
    """Return a tree without the text that it was read from."""
    return Section(
        tree.key,
        tuple(
            _bare(item) if isinstance(item, Section) else Setting(item.key, item.value)
            for item in tree.items
        ),
    )
