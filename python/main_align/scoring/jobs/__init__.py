"""Jobs that score a data set: planned as units of work, run by any engine, and resumed after any kill."""
