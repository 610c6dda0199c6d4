"""Score pairs: the Scorer, the columns of its output, and jobs that resume."""
