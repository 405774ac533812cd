"""minillama beside its peers, in one interleaved run: `make bench`."""
