"""Search spaces: how rules merge, what they match, and that every mistake names its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from doc_examples import examples_in
from hypothesis import given, settings
from hypothesis import strategies as st
from places import DOCS

from autocompress import files
from autocompress.errors import SpaceError
from autocompress.problem.space import Space, load_space, parse_space

SPACE = """\
name: example
rules:
  - match: {layer: conv}
    width: {keep: [1.0, 0.5], importance: taylor, round_to: 8}
    bits: [32, 8]
  - match: {layer: conv, kernel: 3}
    rank: {method: tucker2, keep: [full, 0.25]}
  - match: {layer: any, name: "stem.*"}
    width: {importance: l1}
    bits: [32]
  - match: {block: residual}
    block: [drop, keep, depthwise_separable]
  - match: {block: residual, name: "layer2.*"}
    block: [keep, drop]
  - lock: {name: "head.*"}
"""


@pytest.fixture
def space() -> Space:
    return parse_space(SPACE, "example.yaml")


def test_rules_merge_in_order_and_key_by_key(space: Space) -> None:
    rule = space.rule_for_layer("layer1.0.conv1", "conv", (3, 3))
    assert rule.width is not None and rule.rank is not None
    assert (rule.width.keep, rule.width.importance, rule.width.round_to) == ((0.5, 1.0), "taylor", 8)
    assert (rule.rank.method, rule.rank.keep, rule.rank.round_to) == ("tucker2", (0.25, "full"), 1)
    assert rule.bits == (8, 32)
    assert rule.matched == {0, 1}

    stem = space.rule_for_layer("stem.conv", "conv", 3)
    assert stem.width is not None
    assert (stem.width.keep, stem.width.importance, stem.width.round_to) == ((0.5, 1.0), "l1", 8)
    assert stem.bits == (32,)
    assert stem.matched == {0, 1, 2}


def test_kernel_and_kind_must_fit(space: Space) -> None:
    assert space.rule_for_layer("a", "conv", (1, 1)).rank is None
    assert space.rule_for_layer("a", "conv", (1, 3)).rank is None
    linear = space.rule_for_layer("a", "linear")
    assert (linear.width, linear.rank, linear.bits, linear.matched) == (None, None, (), frozenset())
    assert space.rule_for_layer("stem.proj", "linear").matched == {2}


@pytest.mark.parametrize("name", ["head", "head.fc", "head.mlp.fc1"])
def test_lock_wins_and_its_glob_fits_the_module_itself(space: Space, name: str) -> None:
    rule = space.rule_for_layer(name, "conv", 3)
    assert rule.locked == "locked by rules[5] of the space 'example'"
    assert (rule.width, rule.rank, rule.bits) == (None, None, ())
    assert 5 in rule.matched
    assert not space.rule_for_layer("headless", "conv", 3).locked


def test_blocks(space: Space) -> None:
    assert space.rule_for_block("layer1.0").block == ("keep", "drop", "depthwise_separable")
    assert space.rule_for_block("layer2.1").block == ("keep", "drop")
    assert space.rule_for_block("layer2.1").matched == {3, 4}
    assert "rules[5]" in space.rule_for_block("head.block").locked
    inside = space.rule_for_block("layer1.0", locked_layers=["layer1.0.conv2"])
    assert inside.locked == "its layer layer1.0.conv2 is locked"


def test_rule_that_matches_nothing_names_its_line_and_the_closest_name(space: Space) -> None:
    space.check_matched(range(6))
    with pytest.raises(SpaceError) as error:
        space.check_matched({0, 1, 3, 4, 5}, names=["stem_conv", "layer1.0.conv1"])
    assert "name: stem.*" in error.value.what
    assert error.value.where == "example.yaml, line 8, rules[2]"
    assert "'stem_conv'" in error.value.fix
    optional = parse_space(SPACE.replace("- lock: {name:", "- optional: true\n    lock: {name:"))
    optional.check_matched(range(5))


def test_round_trip_and_fingerprint(space: Space) -> None:
    again = parse_space(json.dumps(space.to_json()))
    assert again == space
    assert again.fingerprint == space.fingerprint
    assert parse_space(yaml.safe_dump(space.to_json())).fingerprint == space.fingerprint
    assert parse_space("# a comment\n" + SPACE.replace("example", "other")).fingerprint == space.fingerprint
    assert parse_space(SPACE.replace("0.25", "0.5")).fingerprint != space.fingerprint
    assert parse_space(SPACE.replace(", round_to: 8", "")).fingerprint != space.fingerprint


RULE = "name: a\nrules:\n  - "


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("", 1, "", "empty"),
        ("- a\n", 1, "", "not a mapping"),
        ("name: a\nrules: []\n", 2, "rules", "is empty"),
        ("name: a\nrules: 3\n", 2, "rules", "a list is expected"),
        ("rules:\n  - lock: {name: a}\n", 1, "", "'name' is missing"),
        ("name: a/b\nrules:\n  - lock: {name: a}\n", 1, "name", "'a/b'"),
        ("name: a\nname: b\n", 2, "", "stands twice, first in line 1"),
        ("name: &x a\n", 1, "", "anchors"),
        ("name: *x\n", 1, "", "anchors"),
        ("name: !!python/object/apply:os.getcwd []\n", 1, "", "tag"),
        ("name: a\n<<: {b: 1}\n", 2, "", "must be a word"),
        ("name: a\nrules: [\n", 3, "", "not valid YAML"),
        ("name: a\n---\nname: b\n", 2, "", "not valid YAML"),
        ("[" * 5000, 1, "", "deeper"),
        ("name: \x00", 0, "", "cannot be read"),
        (f"name: a\nrules: {'9' * 5000}\n", 2, "", "not a value"),
        (RULE + "bits: [32, 8]\n", 3, "rules[0]", "needs either 'match' or 'lock'"),
        (RULE + "match: {layer: conv}\n", 3, "rules[0]", "offers no choices"),
        (RULE + "match: {}\n    bits: [32]\n", 3, "rules[0].match", "is empty"),
        (RULE + "match:\n    bits: [32]\n", 3, "rules[0]", "leaves 'match' without a value"),
        (RULE + "match: {layer: cnov}\n    bits: [32]\n", 3, "rules[0].match.layer", "did you mean 'conv'"),
        (RULE + "match: {layer: conv}\n    widht: {}\n", 4, "rules[0].widht", "did you mean 'width'"),
        (RULE + "match: {layr: conv}\n    bits: [32]\n", 3, "rules[0].match.layr", "did you mean 'layer'"),
        (RULE + "match: {layer: conv, kernel: 3.5}\n    bits: [32]\n", 3, "kernel", "a whole number"),
        (RULE + "match: {layer: linear, kernel: 3}\n    bits: [32]\n", 3, "match", "which has none"),
        (RULE + "match: {layer: conv}\n    bits: [8]\n", 4, "rules[0].bits", "must contain 32"),
        (RULE + "match: {layer: conv}\n    bits: [32, 5]\n", 4, "rules[0].bits[1]", "5 is not a choice"),
        (RULE + "match: {layer: conv}\n    bits: [32, binry]\n", 4, "bits[1]", "did you mean 'binary'"),
        (
            "name: a\nquantize: {rangs: mse}\n" + RULE[8:] + "match: {layer: any}\n    bits: [32]\n",
            2,
            "quantize.rangs",
            "did you mean 'ranges'",
        ),
        (
            "name: a\nquantize: {ranges: max}\n" + RULE[8:] + "match: {layer: any}\n    bits: [32]\n",
            2,
            "quantize.ranges",
            "'max' is not a choice",
        ),
        (RULE + "match: {layer: conv}\n    bits: [32, 8, 8]\n", 4, "rules[0].bits", "twice"),
        (RULE + "match: {layer: conv}\n    width: {keep: [0.5]}\n", 4, "width.keep", "must contain 1.0"),
        (RULE + "match: {layer: conv}\n    width: {keep: [0, 1.0]}\n", 4, "width.keep[0]", "greater than 0"),
        (RULE + "match: {layer: conv}\n    width: {keep: [.nan, 1.0]}\n", 4, "keep[0]", "finite"),
        (RULE + "match: {layer: conv}\n    width: {importance: tailor}\n", 4, "importance", "'taylor'"),
        (RULE + "match: {layer: conv}\n    width: {round_to: 0}\n", 4, "round_to", "greater than"),
        (RULE + "match: {layer: conv}\n    rank: {keep: [1.0, full]}\n", 4, "rank.keep[0]", "neither 'full'"),
        (RULE + "match: {layer: linear}\n    rank: {method: tucker2}\n", 3, "rules[0]", "no kernel"),
        (RULE + "match: {layer: depthwise}\n    width: {}\n", 3, "rules[0]", "depthwise"),
        (RULE + "match: {layer: conv}\n    block: [keep]\n", 3, "rules[0]", "matches layers"),
        (RULE + "match: {block: residual}\n    bits: [32]\n", 3, "rules[0]", "matches a block"),
        (RULE + "match: {block: residual}\n    block: [keep, skip]\n", 4, "block[1]", "'skip' is not"),
        (RULE + "lock: {name: a}\n    bits: [32]\n", 3, "rules[0]", "is a lock"),
    ],
)
def test_every_mistake_names_line_and_key(text: str, line: int, key: str, said: str) -> None:
    with pytest.raises(SpaceError) as error:
        parse_space(text, "my.yaml")
    assert said in str(error.value)
    assert error.value.where.startswith(f"my.yaml, line {line}" if line else "my.yaml")
    assert error.value.where.endswith(key)
    assert error.value.fix


def test_files_that_are_no_spaces(tmp_path: Path) -> None:
    def refused(content: bytes) -> SpaceError:
        file = tmp_path / "space.yaml"
        file.write_bytes(content)
        with pytest.raises(SpaceError) as error:
            load_space(file)
        assert str(file) in error.value.where
        return error.value

    assert "UTF-8" in refused(b"name: a\nrules: \xff\n").what
    assert "line 2" in refused(b"name: a\nrules: \xff\n").where
    assert "larger" in refused(b"# " + b"x" * 300_000).what
    with pytest.raises(SpaceError, match="not a file"):
        load_space(tmp_path)
    if os.path.exists("/dev/zero"):  # noqa: PTH110
        with pytest.raises(SpaceError, match="not a file"):
            load_space("/dev/zero")


@pytest.mark.parametrize("name", ["jiont", "", "no/such/file.yaml", "x" * 5000, "~nobody-here/x", "a\0b"])
def test_unknown_name_lists_the_shipped_ones(name: str) -> None:
    if name == "":
        name = "no-such-space"
    with pytest.raises(SpaceError) as error:
        load_space(name)
    assert "joint" in error.value.fix
    assert name != "jiont" or "did you mean 'joint'" in error.value.fix


@pytest.mark.parametrize("name", files.names("search_spaces"))
def test_every_shipped_space_loads_and_is_documented(name: str) -> None:
    space = load_space(name)
    assert space.name == name
    assert space.description
    documentation = (DOCS / "search-spaces.md").read_text()
    assert f"`{name}`" in documentation


def test_every_example_in_the_documentation_loads() -> None:
    examples = examples_in("search-spaces.md")
    assert len(examples) >= 3
    for example in examples:
        parse_space(example)


def test_joint_gives_every_kind_of_layer_a_choice_and_needs_none() -> None:
    joint = load_space("joint")
    joint.check_matched([])
    conv = joint.rule_for_layer("a", "conv", (3, 3))
    assert conv.width and conv.rank and conv.bits == (8, 32)
    depthwise = joint.rule_for_layer("a", "depthwise", (3, 3))
    assert (depthwise.width, depthwise.rank, depthwise.bits) == (None, None, (8, 32))
    assert joint.rule_for_block("a").block == ("keep", "drop", "depthwise_separable")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abn: \n-[]{}\"'*&!|>#,0.1\t\x85\u2028", max_size=40))
def test_any_text_is_a_space_or_a_space_error(text: str) -> None:
    try:
        parse_space(text)
    except SpaceError as error:
        assert error.what
