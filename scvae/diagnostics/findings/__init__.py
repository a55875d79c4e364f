"""Checks of a diagnosis, each of which finds one thing or nothing, by what they are about."""
