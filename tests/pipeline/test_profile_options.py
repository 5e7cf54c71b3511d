"""The requests of the profile commands: one dataclass for the command line and Python."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from autocompress import api_profile
from autocompress.cli.main import main
from autocompress.errors import InputError
from autocompress.pipeline.options import (
    CheckRequest,
    ImportRequest,
    KitRequest,
    ProfileRequest,
    flags_given,
    from_keywords,
)

PROFILE: Any = main.commands["profile"]
COMMANDS = [
    (PROFILE, ProfileRequest, {"teacher", "space", "output", "resume", "overwrite"}),
    (PROFILE.commands["kit"], KitRequest, {"teacher", "space", "output", "resume", "overwrite"}),
    (PROFILE.commands["import"], ImportRequest, {"sources", "output", "overwrite"}),
    (PROFILE.commands["validate"], CheckRequest, {"name", "update", "output_format"}),
]


@pytest.mark.parametrize(("command", "kind", "others"), COMMANDS, ids=lambda one: getattr(one, "name", ""))
def test_a_command_takes_the_fields_of_its_request_with_their_defaults(
    command: click.Command, kind: type, others: set[str]
):
    defaults = {one.name: one.default for one in fields(kind)}
    typed = {one.name: one for one in command.params if one.name not in others}
    assert typed.keys() == defaults.keys()
    context = click.Context(command)
    assert {name: one.get_default(context) for name, one in typed.items()} == defaults


def test_flags_of_what_was_given_are_told_in_order():
    assert flags_given(ImportRequest()) == []
    assert flags_given(ImportRequest(models=[], batch=1)) == []
    given = ImportRequest(latencies=("1ms",), models=(Path("a.onnx"),), threads=2)
    assert flags_given(given) == ["--model", "--latency", "--threads"]


def test_one_made_before_is_changed_by_single_options():
    request = from_keywords(KitRequest, {"options": KitRequest(networks=9, seed=3), "seed": 4})
    assert (request.networks, request.seed, request.threads) == (9, 4, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: api_profile.profile("timm:resnet18", "resnet", folder, thread=2),
        lambda folder: api_profile.profile_kit("timm:resnet18", "resnet", folder, thread=2),
        lambda folder: api_profile.profile_import(folder, folder, thread=2),
    ],
)
def test_an_option_that_there_is_not_names_the_nearest(call: Any, tmp_path: Path):
    with pytest.raises(InputError, match="no option 'thread'") as caught:
        call(tmp_path / "p")
    assert "did you mean threads?" in caught.value.fix
    assert not (tmp_path / "p").exists()
