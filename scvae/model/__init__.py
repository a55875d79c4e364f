"""Encoder, decoder, latent distribution, the VAE that combines them, the objective and the optimizer."""
