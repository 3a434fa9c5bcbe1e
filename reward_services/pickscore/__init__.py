"""The PickScore reward: how well a CLIP model trained on human choices likes an image for its prompt."""
