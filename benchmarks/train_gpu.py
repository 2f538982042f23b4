"""Our training step on one GPU beside PyTorch's: real tokens a second, MFU, compilation, memory.

    python -m benchmarks.train_gpu data=<folder> [models=minilm,bert_base] [workloads=imdb,short,mlm,imdb128]

Workloads: `imdb`, reviews of up to 512 tokens; `short`, four tasks of short texts at once (five heads); `mlm`, masked
language on reviews; `imdb128`, reviews cut at 128 tokens. A real token is none of padding; [CLS] and [SEP] count. MFU
counts what must be done for real tokens alone (`bert_mtl.flops`), over what a matrix product of 8,192³ in bfloat16
reaches in the same process. Ours (`benchmarks.train_ours`) is what `bert_mtl.train` does, packed, XLA, bfloat16; the
peer (`benchmarks.peers.torch_trainer`) is eager or compiled, whichever is faster. `compiled in` is the first step of
ours, and what the peer's first pass over all batches took longer than its second one.

Arguments (key=value): `data`, a folder with aclImdb and those of the short tasks; `steps` and `batch` of all chosen
workloads; `warmup` steps before and `settle` steps after a side got its turn; `peers=none` leaves the peer out;
`peer_python`, its interpreter; `variants` of the peer; `vocab`, a vocabulary of 30,522 pieces: with it MiniLM starts
from random weights too; `jobs` processes are made ready at once; `gpu=no` for a trial on a CPU; `result`, the name of
the file in benchmarks/results. Further ones are settings of `bert_mtl.train`.
"""

from benchmarks.training import FULL_MLM, Workload, main

WORKLOADS = {
    "imdb": Workload("imdb", 512, 32, steps=96),
    "short": Workload("sst2,trec,goemotions,snips", 128, 128, steps=304),
    "mlm": Workload("imdb_mlm", 512, 32, steps=96, settings=(FULL_MLM,)),
    "imdb128": Workload("imdb", 128, 256, steps=48, settings=("input.row_length=128",)),
}

if __name__ == "__main__":
    main(WORKLOADS, {"workloads": ",".join(WORKLOADS), "warmup": "16", "settle": "8", "result": "train_gpu"})
