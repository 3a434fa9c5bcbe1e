"""Model adapters: one file a model family."""
