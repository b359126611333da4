"""What the store needs of a disk: folders held by their descriptor, durable replacement, syncs, locks."""
