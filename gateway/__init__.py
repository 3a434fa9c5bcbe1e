"""The gateway: batches items, spreads them over replicas, and says in words what it could not score."""
