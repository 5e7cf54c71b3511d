import sys
from pathlib import Path

import pytest

from autocompress.errors import DataError, TeacherError
from autocompress.problem import specs


def test_options_are_read_as_numbers_flags_tuples_and_text():
    spec = specs.parse(
        "timm:resnet18,num_classes=10,drop=0.5,pretrained,layers=1/2/2,pool=avg,x=false", TeacherError
    )
    assert (spec.kind, spec.target) == ("timm", "resnet18")
    assert spec.options == {
        "num_classes": 10,
        "drop": 0.5,
        "pretrained": True,
        "layers": (1, 2, 2),
        "pool": "avg",
        "x": False,
    }


def test_a_path_is_text_and_a_file_is_split_at_its_last_colon():
    spec = specs.parse("some/dir:odd/model.py:make,weights=a/1/2.safetensors", TeacherError)
    assert (spec.kind, spec.target) == ("some/dir:odd/model.py", "make")
    assert spec.options == {"weights": "a/1/2.safetensors"}


def test_a_name_without_colon_has_no_kind():
    assert specs.parse("digits,size=16", DataError) == specs.Spec(
        "digits,size=16", "", "digits", {"size": 16}
    )


@pytest.mark.parametrize("text", ["", "timm:x,=3", "timm:x,a b=3"])
def test_malformed_text_is_refused(text: str):
    with pytest.raises(DataError):
        specs.parse(text, DataError)


def test_a_file_finds_its_neighbours_and_leaves_the_path_as_it_was(tmp_path: Path):
    (tmp_path / "neighbour_of_user.py").write_text("VALUE = 7\n")
    (tmp_path / "user.py").write_text(
        "import neighbour_of_user\ndef get(plus=0): return neighbour_of_user.VALUE + plus\n"
    )
    spec = specs.parse(f"{tmp_path}/user.py:get,plus=3", DataError)
    before = list(sys.path)
    assert specs.call(spec, specs.load_callable(spec, DataError), DataError) == 10
    assert sys.path == before


def test_a_module_name_is_imported():
    spec = specs.parse("fractions:Fraction,numerator=3,denominator=6", DataError)
    assert str(specs.call(spec, specs.load_callable(spec, DataError), DataError)) == "1/2"
