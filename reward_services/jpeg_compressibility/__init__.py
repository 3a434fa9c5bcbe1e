"""The JPEG compressibility reward of DDPO: plain images score high. Needs no model."""
