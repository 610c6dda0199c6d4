"""Keep the best rows of a scored data set."""
