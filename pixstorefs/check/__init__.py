"""Check and repair: find what is wrong with a store, and put right what can be."""
