"""Helpers for the whole package: argument checks, files, slots, random numbers, devices, progress, processes."""
