"""The HPS reward: Human Preference Score v2, a CLIP ViT-H/14 trained on people's choices."""
