import argparse
import dataclasses
from functools import partial

import pytest

from varemb.compare import all_configs, own_fields, setting_option
from varemb.experiment import train_option
from varemb.options import add_config, seeds_of
from varemb.search import MdeConfig, TrainConfig


def test_every_option_of_compare_has_a_name_of_its_own():
    fields = dataclasses.fields(TrainConfig)
    names = [train_option(field.name) for field in fields if field.name != "seed"]
    for config in all_configs():
        names += [setting_option(config, field.name) for field in own_fields(config)]
    assert len(set(names)) == len(names)
    assert {"--lr", "--autodim-lr", "--autodim-lambda", "--ras-trials", "--mde-alphas"} <= set(
        names
    )


def parse(words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    names = [field.name for field in own_fields(MdeConfig)]
    add_config(
        parser, "MDE", MdeConfig, partial(setting_option, MdeConfig), only=names, is_sparse=True
    )
    return vars(parser.parse_args(words))


def test_options_take_the_type_of_their_field_and_are_kept_only_if_given():
    assert parse([]) == {}
    words = ["--mde-alphas", "0.1,1", "--mde-bins", "1,4", "--mde-power-of-two", "no"]
    assert parse(words) == {
        "--mde-alphas": (0.1, 1.0), "--mde-bins": (1, 4), "--mde-power-of-two": "no",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["--mde-alphas", "a"], ["--mde-bins", "0.5"]])
def test_options_that_are_no_numbers_are_refused(words):
    with pytest.raises(argparse.ArgumentError, match="must be"):
        parse(words)


def test_seeds_of_methods():
    assert seeds_of(["fde:3", "mde", "ras:4,"], (5,)) == {
        "fde": (0, 1, 2),
        "mde": (5,),
        "ras": (4,),
    }
    with pytest.raises(ValueError, match="the seeds of fde must be at least 1"):
        seeds_of(["fde:0"], (0,))
