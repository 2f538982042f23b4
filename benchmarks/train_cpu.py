"""Our training step on a CPU beside transformers' Trainer, grouped by length: real tokens a second.

    python -m benchmarks.train_cpu data=<folder with aclImdb>

MiniLM, float32, IMDB at 256 tokens, batches of 16. The sides take turns, `rounds` times; the ratio is of their fastest
rounds, as other work on the machine only ever slows one down. `variants=random` leaves the Trainer's batches ungrouped,
as they are by default.
Arguments as for `benchmarks.train_gpu`. MFU is over what a matrix product of 2,048³ in float32 reaches.
"""

from benchmarks.training import Workload, main

WORKLOADS = {"imdb256": Workload("imdb", 256, 16, steps=30)}
DEFAULTS = {
    "models": "minilm",
    "workloads": "imdb256",
    "gpu": "no",
    "jobs": "1",
    "variants": "grouped",
    "rounds": "3",
    "warmup": "3",
}

if __name__ == "__main__":
    main(WORKLOADS, DEFAULTS | {"settle": "2", "result": "train_cpu"}, trainer=True)
