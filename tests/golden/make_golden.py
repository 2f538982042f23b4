"""Writes the tiny BERT and its golden states once, with torch and transformers (neither is needed to run the tests).

    python -m venv peer && peer/bin/pip install torch transformers && peer/bin/python tests/golden/make_golden.py

`model.safetensors` + `config.json`: 2 layers of random weights, as transformers saves them.
`states.npz`: inputs of three examples with padding, all hidden states and the pooled output of transformers' BertModel.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent
LENGTHS = (16, 9, 5)
# Weights ten times larger than BERT's own: a wrong transform then shows in the first digit, not in the fourth.
INITIALIZER_RANGE = 0.2


def main() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=INITIALIZER_RANGE,
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        # transformers starts these at 0 and 1, where a swapped bias or LayerNorm would go unseen.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(INITIALIZER_RANGE * torch.randn_like(parameter))
    model.save_pretrained(FOLDER)

    length = max(LENGTHS)
    token_ids = torch.randint(1, config.vocab_size, (len(LENGTHS), length))
    mask = (torch.arange(length)[None] < torch.tensor(LENGTHS)[:, None]).long()
    type_ids = (torch.arange(length)[None] >= torch.tensor(LENGTHS)[:, None] // 2).long() * mask
    token_ids *= mask
    with torch.no_grad():
        output = model(token_ids, attention_mask=mask, token_type_ids=type_ids, output_hidden_states=True)
    np.savez_compressed(
        FOLDER / "states.npz",
        token_ids=token_ids.numpy().astype("int32"),
        type_ids=type_ids.numpy().astype("int32"),
        segment_ids=mask.numpy().astype("int32"),
        hidden_states=torch.stack(output.hidden_states).numpy(),
        pooled_output=output.pooler_output.numpy(),
    )


if __name__ == "__main__":
    main()
