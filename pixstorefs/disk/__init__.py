"""What the store needs of a disk: durable replacement, syncs, locks, the reserve."""
