"""The VLM judge reward: a vision-language model behind an OpenAI-compatible endpoint grades the image in words."""
