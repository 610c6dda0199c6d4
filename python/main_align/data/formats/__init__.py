"""The layouts in which records hold a pair, and the conversion of a record to its Pair."""
