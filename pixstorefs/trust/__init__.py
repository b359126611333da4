"""What is believed of a store, and why: its header, the record of its barriers, copies of the index."""
