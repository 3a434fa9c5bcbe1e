"""The aesthetic reward: LAION's predictor of how much people like an image, whatever its prompt."""
