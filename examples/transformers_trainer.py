"""Transformers' `Trainer` with a loss of ours, under gradient accumulation: `compute_loss_func`.
Shows: it divides by `num_items_in_batch`; rare tokens are predicted better with logit adjustment.
Run: python examples/transformers_trainer.py    (needs pip install transformers accelerate)"""

import tempfile

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lpl_fused import integrations, losses

VOCABULARY, LENGTH = 256, 17


def sentences(number: int, frequency: Tensor, seed: int) -> list[dict[str, Tensor]]:
    """Tokens t, as frequent as `frequency` says; each second one follows from the one before,
    half of which are then replaced by just any token: rare ones are hard to tell from chance."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(frequency, number * LENGTH, replacement=True, generator=generator)
    tokens = drawn.view(number, LENGTH)
    tokens[:, 1::2] = (tokens[:, :-1:2] + 1) % VOCABULARY
    labels = tokens.clone()
    replaced = torch.rand(tokens.shape, generator=generator) < 0.5
    replaced[:, 1::2] = False
    tokens = tokens.where(~replaced, torch.randint(VOCABULARY, tokens.shape, generator=generator))
    labels[:, ::2] = -100  # what nobody could know is not asked
    return [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]


zipf = 1 / torch.arange(1, VOCABULARY + 1)
training, test = sentences(1500, zipf, seed=1), sentences(300, torch.ones(VOCABULARY), seed=2)
counts = integrations.token_counts(training, VOCABULARY)
rare = counts < 20
config = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
    bos_token_id=0,
    eos_token_id=0,
)

found = {}
for name, criterion in {
    "cross-entropy": losses.CrossEntropyLoss(reduction="sum"),
    "logit adjustment": losses.LogitAdjustedLoss(counts, reduction="sum"),
}.items():
    # CHANGED: this line, and the argument that hands it to the Trainer
    compute_loss_func = integrations.TransformersLoss(criterion)

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            LlamaForCausalLM(config),
            TrainingArguments(
                folder,
                num_train_epochs=3,
                per_device_train_batch_size=16,
                gradient_accumulation_steps=2,
                learning_rate=5e-3,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=training,
            compute_loss_func=compute_loss_func,
        )
        trainer.train()
        model = trainer.model.eval()

    tokens = torch.stack([row["input_ids"] for row in test])
    target = torch.stack([row["labels"] for row in test])[:, 1:]
    with torch.no_grad():
        right = model(input_ids=tokens).logits[:, :-1].argmax(-1) == target
    asked = target != -100
    shares = [right[asked & group[target.clamp(min=0)]].double().mean() for group in (~rare, rare)]
    found[name] = [f"{share:11.1%}" for share in shares]

print("tokens right, by how often they were in the training data")
print(f"{'':18}{'20 or more':>11}{'fewer':>11}")
for name, shares in found.items():
    print(f"{name:18}" + "".join(shares))
