"""The page and the widget of `scvae.pl.beta_explorer`."""
