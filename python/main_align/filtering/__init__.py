"""Filtering: keep the best rows of a scored data set."""
