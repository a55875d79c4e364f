"""The classifier on z: a logistic regression, in value and after dimensions were removed."""

import numpy as np
import torch
from scipy.stats import multinomial

from scvae.model.classifier import Classifier


def random_classifier():
    classifier, generator = Classifier(3, 4, term_weight=2.0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return classifier, torch.randn(5, 3, generator=generator)


def test_log_probabilities_are_those_of_one_multinomial_draw_and_0_without_a_label():
    classifier, z = random_classifier()
    labels = torch.tensor([0, 3, -1, 2, -1])
    found = classifier.log_prob(z, labels).detach().numpy()
    odds = np.exp(z.double().numpy() @ classifier.weight.detach().double().numpy() + classifier.bias.detach().numpy())
    for i, label in enumerate(labels.tolist()):
        share = odds[i] / odds[i].sum()
        expected = multinomial(1, share).logpmf(np.eye(4)[label]) if label >= 0 else 0.0
        assert abs(found[i] - expected) < 1e-5


def test_cells_without_a_label_have_no_gradient():
    classifier, z = random_classifier()
    z.requires_grad_()
    classifier.log_prob(z, torch.tensor([1, -1, -1, 0, 2])).sum().backward()
    assert (z.grad[[1, 2]] == 0).all()
    assert (z.grad[[0, 3, 4]] != 0).all()


def test_removed_dimensions_are_fixed_at_their_values():
    classifier, z = random_classifier()
    z[:, 1] = 0.7
    before = classifier(z)
    classifier.drop_dimensions(torch.tensor([False, True, False]), torch.tensor([5.0, 0.7, 5.0]))
    torch.testing.assert_close(classifier(z[:, [0, 2]]), before)
