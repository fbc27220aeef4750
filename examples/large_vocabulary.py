"""A language model with a large vocabulary: the last layer and its loss at once.
Shows: the same loss and gradient without the logits, which here would take 16 MB, in 2 MB.
Run: python examples/large_vocabulary.py"""

import torch
from torch import Tensor, nn

from lpl_fused import losses

VOCABULARY, WIDTH, LENGTH, SENTENCES = 8192, 32, 33, 16
IGNORED = -100


def sentences(seed: int) -> Tensor:
    """Tokens (N, L) of which t is as frequent as 1/(t + 1); each second one follows
    from the one before."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1 / torch.arange(1, VOCABULARY + 1)
    tokens = torch.multinomial(frequency, SENTENCES * LENGTH, replacement=True, generator=generator)
    tokens = tokens.view(SENTENCES, LENGTH)
    tokens[:, 1::2] = (7 * tokens[:, :-1:2] + 1) % VOCABULARY
    return tokens


torch.manual_seed(0)
embedding = nn.Embedding(VOCABULARY, WIDTH)
body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
head = nn.Linear(WIDTH, VOCABULARY, bias=False)
parameters = [*embedding.parameters(), *body.parameters(), *head.parameters()]
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
criterion = losses.CrossEntropyLoss(ignore_index=IGNORED)  # or LogitAdjustedLoss, LPLLoss, …

history = []
for step in range(25):
    tokens = sentences(seed=step)
    hidden, labels = body(embedding(tokens[:, :-1])), tokens[:, 1:].clone()
    labels[tokens[:, 1:] == 0] = IGNORED  # as padding would be
    optimizer.zero_grad()
    # CHANGED: was criterion(head(hidden).flatten(0, 1), labels.flatten())
    loss = criterion.linear(hidden, head.weight, labels, chunk_memory=2**21)
    loss.backward()
    optimizer.step()
    history.append(loss.item())
print(f"loss of the first step {history[0]:.2f}, of the last {history[-1]:.2f}")

hidden = hidden.detach()
chunked, plain = (
    torch.autograd.grad(loss, head.weight)[0]
    for loss in (
        criterion.linear(hidden, head.weight, labels, chunk_memory=2**21),
        nn.functional.cross_entropy(head(hidden).flatten(0, 1), labels.flatten()),
    )
)
difference = float((chunked - plain).norm() / plain.norm())
megabytes = labels.numel() * VOCABULARY * 4 / 2**20
print(f"logits {megabytes:.0f} MB, held at once 2 MB; the gradient differs by {difference:.0e}")
