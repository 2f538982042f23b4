"""The Hydra tree of every command (`*.yaml`) and the machinery that composes, checks and runs it (`entry`)."""
