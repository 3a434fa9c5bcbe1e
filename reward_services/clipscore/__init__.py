"""The CLIPScore reward: how near CLIP places an image to its prompt."""
