"""Score pairs: the Scorer, the definitions of its columns, and the crash-safe bulk job."""
