"""Record formats: the fields in which data sets store a pair, and the conversion of a record to a Pair."""
