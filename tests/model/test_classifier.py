"""The classifier on z: a logistic regression, in value and after dimensions were removed."""

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import multinomial

from scvae.model.classifier import Classifier


def random_classifier(*coarse):
    """Four names, and coarser labels over some of them."""
    members = torch.cat([torch.eye(4), *(torch.eye(4)[list(under)].sum(0)[None] for under in coarse)]).bool()
    classifier, generator = Classifier(3, members, term_weight=2.0), torch.Generator().manual_seed(1)
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


def test_a_coarser_label_has_the_sum_of_the_probabilities_under_it_in_value_and_gradient():
    classifier, z = random_classifier((0, 2), (1, 2, 3))
    z = torch.cat([z, 100.0 * z]).requires_grad_()  # the sum of some is 0 in single precision
    labels = torch.tensor([4, 5, 4, 1, -1] * 2)
    found = classifier.log_prob(z, labels)
    found.sum().backward()
    weight, bias = (p.detach().double().numpy() for p in (classifier.weight, classifier.bias))
    logits = z.detach().double().numpy() @ weight + bias
    assert softmax(logits, axis=1)[:, [0, 2]].sum(1).min() < 1e-50
    for i, label in enumerate(labels.tolist()):
        under = {4: [0, 2], 5: [1, 2, 3], 1: [1], -1: [0, 1, 2, 3]}[label]
        assert abs(found[i].item() - logsumexp(log_softmax(logits[i])[under])) < 1e-5 * max(1, abs(logits[i]).max())
        share = np.zeros(4)
        share[under] = softmax(logits[i][under])
        np.testing.assert_allclose(z.grad[i], weight @ (share - softmax(logits[i])), atol=1e-4)


def test_removed_dimensions_are_fixed_at_their_values():
    classifier, z = random_classifier()
    z[:, 1] = 0.7
    before = classifier(z)
    classifier.drop_dimensions(torch.tensor([False, True, False]), torch.tensor([5.0, 0.7, 5.0]))
    torch.testing.assert_close(classifier(z[:, [0, 2]]), before)
