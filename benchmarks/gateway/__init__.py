"""The gateway against LitServe, Ray Serve and BentoML: same fake scorer, same client, one interleaved run."""
