"""The gateway's page at `/`: what happens now, the last images with their scores, and a form to score one."""
