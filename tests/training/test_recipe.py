"""What the number of cells decides of a training."""

import math

import pytest

import scvae
from scvae import TrainingConfig
from scvae.training.recipe import FEWEST_STEPS, default_epochs, make_recipe

SIZES = [1, 100, 2_000, 9_999, 10_000, 20_000, 100_000, 3_000_000]


@pytest.mark.parametrize("n_cells", SIZES)
def test_the_number_of_epochs_gives_small_data_enough_steps_and_large_data_no_more_than_they_need(n_cells):
    epochs = default_epochs(n_cells, 128)
    assert isinstance(epochs, int)
    assert 8 <= epochs <= 400
    assert epochs >= default_epochs(10 * n_cells, 128)


@pytest.mark.parametrize("n_cells", SIZES[2:])
def test_no_recipe_has_too_few_steps(n_cells):
    recipe = make_recipe(TrainingConfig(), n_cells)
    assert recipe.epochs * round(n_cells / recipe.batch_size) >= FEWEST_STEPS


def test_batches_and_learning_rate_grow_together():
    assert make_recipe(TrainingConfig(), 9_999)[1:3] == (128, 3e-3)
    assert make_recipe(TrainingConfig(), 10_000)[1:3] == (256, pytest.approx(3e-3 * math.sqrt(2)))
    assert make_recipe(TrainingConfig(batch_size=16), 10_000)[1:3] == (16, 3e-3)
    assert make_recipe(TrainingConfig(batch_size=4096), 10_000)[1:3] == (4096, 6e-3)


def test_a_model_of_many_betas_learns_faster_and_a_little_longer():
    one, many = (make_recipe(TrainingConfig(), 5_000, many_betas=many) for many in (False, True))
    assert many == (round(1.1 * one.epochs), one.batch_size, pytest.approx(3 * one.learning_rate), one.warmup)
    config = TrainingConfig(epochs=3, batch_size=77, learning_rate=0.01, warmup=0.2)
    assert make_recipe(config, 5_000, many_betas=True) == (3, 77, 0.01, 0.2)


def test_with_batches_there_are_twice_as_many_epochs_where_cells_are_many_enough_for_the_steps():
    assert [default_epochs(4_000, 128, conditions=one) for one in (False, True)] == [40, 80]
    assert [default_epochs(80_000, 256, conditions=one) for one in (False, True)] == [20, 40]
    assert [default_epochs(500, 128, conditions=one) for one in (False, True)] == [150, 150]


def test_with_batches_the_learning_rate_is_higher_but_that_of_a_linear_decoder_and_of_many_betas():
    def rates(*decoder, **options):
        both = (make_recipe(TrainingConfig(), 4_000, *decoder, conditions=one, **options) for one in (False, True))
        return [recipe.learning_rate for recipe in both]

    assert rates() == [3e-3, 9e-3]
    assert rates("linear") == [1e-2, 1e-2]
    assert rates(many_betas=True) == [9e-3, 9e-3]


def test_beta_rises_over_a_tenth_of_the_run_and_over_half_of_it_with_batches():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, n_batches=2, truth=False, rng=0)
    for batch_key, warmup in ((None, 0.1), ("batch", 0.5)):
        training = TrainingConfig(epochs=20, batch_size=64)  # a step an epoch
        model = scvae.fit(adata, batch_key=batch_key, rng=0, verbose=False, n_latent=2, training=training)
        assert model.training_config.warmup == warmup
        rising = model.history["beta"] < 1.0
        assert rising.sum() == 20 * warmup - 1
        assert model.outcome.best_epoch > 20 * warmup


@pytest.mark.parametrize(("epochs", "warmup"), [(8, 0.5), (80, 0.5), (160, 0.25), (2000, 0.1)])
def test_with_batches_beta_rises_over_half_of_the_run_but_forty_epochs_at_most(epochs, warmup):
    assert make_recipe(TrainingConfig(epochs=epochs), 500, conditions=True).warmup == warmup
    assert make_recipe(TrainingConfig(epochs=epochs), 500).warmup == 0.1
    assert make_recipe(TrainingConfig(epochs=epochs), 500, conditions=True, many_betas=True).warmup == 0.1


@pytest.mark.parametrize("conditions", [False, True])
def test_what_the_user_sets_is_kept(conditions):
    config = TrainingConfig(epochs=3, batch_size=77, learning_rate=0.01, warmup=0.0)
    assert make_recipe(config, 123_456, conditions=conditions) == (3, 77, 0.01, 0.0)


@pytest.mark.parametrize("validation_fraction", [0.0, 0.25])
def test_the_model_keeps_the_recipe_that_it_was_trained_by(validation_fraction):
    adata = scvae.datasets.simulate(n_cells=40, n_genes=20, truth=False, rng=0)
    training = TrainingConfig(epochs=2, validation_fraction=validation_fraction)
    model = scvae.fit(adata, rng=0, verbose=False, n_latent=2, training=training)
    assert (model.training_config.epochs, model.training_config.batch_size) == (2, 128)
    assert model.training_config.learning_rate == 3e-3
    assert adata.uns["scvae"]["params"]["training"]["batch_size"] == 128
    assert model.outcome.epochs == len(model.history) == 2
