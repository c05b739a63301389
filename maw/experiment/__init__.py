"""The benchmark: methods trained and tested on each dataset, tuned, repeated, resumed."""
