"""The latent space: the posterior of a cell, and the priors it may have."""
