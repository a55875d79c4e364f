"""The two records of settings."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from scvae import NetworkConfig, TrainingConfig
from scvae.config import to_json


@pytest.mark.parametrize(
    ("record", "setting", "value"),
    [
        (NetworkConfig, "width", 0),
        (NetworkConfig, "width", 12.5),
        (NetworkConfig, "width", True),
        (NetworkConfig, "encoder_layers", -1),
        (NetworkConfig, "decoder_layers", 0),
        (NetworkConfig, "norm", "group"),
        (NetworkConfig, "decoder", "quadratic"),
        (NetworkConfig, "dropout", 1.0),
        (NetworkConfig, "dropout", -0.1),
        (NetworkConfig, "input_dropout", float("nan")),
        (NetworkConfig, "dispersion", "cell"),
        (NetworkConfig, "minimum_scale", -1.0),
        (NetworkConfig, "prior", "uniform"),
        (NetworkConfig, "prior_components", 0),
        (NetworkConfig, "prior_components", 10),  # of no mixture
        (TrainingConfig, "epochs", 0),
        (TrainingConfig, "epochs", "ten"),
        (TrainingConfig, "batch_size", 0),
        (TrainingConfig, "learning_rate", float("inf")),
        (TrainingConfig, "validation_fraction", 1.0),
        (TrainingConfig, "warmup", 1.0),
        (TrainingConfig, "warmup", -0.1),
        (TrainingConfig, "warmup_cycles", 0),
        (TrainingConfig, "patience", -1.0),
        (TrainingConfig, "free_bits", -0.5),
        (TrainingConfig, "capacity", "much"),
        (TrainingConfig, "checkpoint_every", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(record, setting, value):
    with pytest.raises((TypeError, ValueError), match=rf"{record.__name__}\.{setting} (is .*; pass|must be .*; found)"):
        record(**{setting: value})


@pytest.mark.parametrize("setting", ["width", "dropout", "minimum_scale"])
def test_a_setting_with_a_value_cannot_be_none(setting):
    with pytest.raises(TypeError, match=rf"NetworkConfig\.{setting} is None; pass"):
        NetworkConfig(**{setting: None})


# None by default, and what a number of components needs
SET = {"epochs": 3, "batch_size": 64, "learning_rate": 0.5, "warmup": 0.25, "capacity": 2.0}
SET |= {"prior": "mixture", "prior_components": 10}
CATEGORICAL = {"latent": "categorical", "n_categories": 4}  # n_codes is for another latent


@pytest.mark.parametrize("record", [NetworkConfig, TrainingConfig])
@pytest.mark.parametrize("kind", [lambda value: np.asarray(value)[()], np.asarray, torch.tensor])
def test_numbers_of_numpy_and_torch_are_kept_as_those_of_python(record, kind):
    set_here = SET if record is TrainingConfig else CATEGORICAL
    values = {field.name: set_here.get(field.name, field.default) for field in dataclasses.fields(record)}
    given = {name: value if value is None or isinstance(value, str) else kind(value) for name, value in values.items()}
    assert json.loads(json.dumps(to_json(record(**given)))) == pytest.approx(values)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_codes": 8}, r"n_codes needs latent='quantized'; found 8 and latent='normal'"),
        ({"n_categories": 8, "latent": "quantized"}, r"n_categories needs latent='categorical'; found 8 and"),
        ({"n_codes": 1, "latent": "quantized"}, r"n_codes must be at least 2; found 1"),
        ({"relaxation": "gumbel"}, r"relaxation needs latent='categorical'; found relaxation='gumbel' and"),
        ({"latent": "discrete"}, r"NetworkConfig\.latent must be one of .*; found 'discrete'"),
    ],
)
def test_settings_of_another_latent_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        NetworkConfig(**settings)


def test_a_switch_is_true_or_false():
    with pytest.raises(TypeError, match=r"NetworkConfig\.encode_conditions is 1; pass True or False"):
        NetworkConfig(encode_conditions=1)


@pytest.mark.parametrize(
    ("record", "settings"),
    [
        (NetworkConfig, {"decoder": "linear", "decoder_layers": 2}),
        (TrainingConfig, {"warmup": 0.0, "warmup_cycles": 2}),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(record, settings):
    with pytest.raises(ValueError, match=rf"{record.__name__}\.{list(settings)[1]} must be .*; found 2"):
        record(**settings)


@pytest.mark.parametrize(
    "config",
    [NetworkConfig(width=7, dropout=0, norm="batch"), TrainingConfig(epochs=3, patience=None, capacity=2.5, warmup=0)],
)
def test_settings_survive_json(config):
    assert type(config)(**json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("config", [NetworkConfig(), TrainingConfig()])
def test_settings_cannot_be_changed_afterwards(config):
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, 1)


def test_settings_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        TrainingConfig(10)
