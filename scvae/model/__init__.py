"""Encoder, decoder, latent, the VAE made of them, the objective and the optimizer."""
