"""Commands of `unic`, one module per topic. Heavy imports stay inside the functions."""
