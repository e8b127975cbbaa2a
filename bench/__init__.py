"""Side by side with what else computes this loss: `python -m bench`. See bench/README.md."""
