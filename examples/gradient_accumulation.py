"""Gradient accumulation under AMP, where micro-batches have unequal numbers of labels.
Shows: means of means are another gradient than one large batch's; `normalizer=` makes it the same.
Run: python examples/gradient_accumulation.py"""

import torch
from longtail import COUNTS, batches, network, test_set, training_set
from torch import Tensor

from lpl_fused import evaluation, losses

IGNORED, MICRO = -100, 4  # micro-batches to a step
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16  # float16 is slow on a CPU

images, labels = training_set()
# three of four labels of the most frequent classes are missing
missing = (labels < 20) & (torch.arange(len(labels)) % 4 > 0)
images, labels = images.to(device), labels.where(~missing, IGNORED).to(device)

means = losses.LogitAdjustedLoss(COUNTS).to(device)
criterion = losses.LogitAdjustedLoss(COUNTS, reduction="sum").to(device)  # CHANGED: a sum


def gradient(step: list[tuple[Tensor, Tensor]], exact: bool) -> Tensor:
    """What accumulates in the last layer's weight over the micro-batches of a step."""
    model = network().to(device)
    normalizer = sum((label != IGNORED).sum() for _, label in step)
    for image, label in step:
        logits = model(image)
        if exact:
            loss = criterion(logits, label, normalizer=normalizer)
        else:
            loss = means(logits, label) / len(step)
        loss.backward()
    return model[-1].weight.grad


# a step of four micro-batches: the first has few labels, the last has all of them
image, label = images[:: len(images) // 128][:128], labels[:: len(images) // 128][:128]
step = list(zip(image.split(32), label.split(32), strict=True))
print("labels of the micro-batches:", [int((label != IGNORED).sum()) for _, label in step])
whole = gradient([(image, label)], exact=False)
away = {
    name: float((gradient(step, exact) - whole).norm() / whole.norm())
    for name, exact in {"means of means": False, "normalizer=": True}.items()
}
print("distance of the accumulated gradient from the whole batch's")
for name, distance in away.items():
    print(f"{name:16}{distance:10.1e}")

model = network().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
for epoch in range(6):
    micro = batches(images, labels, size=32, seed=epoch)
    for first in range(0, len(micro), MICRO):
        step = micro[first : first + MICRO]
        normalizer = sum((label != IGNORED).sum() for _, label in step)  # CHANGED: of all of them
        optimizer.zero_grad()
        for image, label in step:
            with torch.autocast(device, dtype):
                logits = model(image)
                loss = criterion(logits, label, normalizer=normalizer)  # CHANGED: no / MICRO
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

test_images, test_labels = test_set()
with torch.no_grad():
    logits = model(test_images.to(device)).cpu()
accuracy = evaluation.accuracy(logits, test_labels, torch.tensor(COUNTS))
print(f"trained in {dtype}: {accuracy.overall:.1%} right, {accuracy.few:.1%} of rare classes")
