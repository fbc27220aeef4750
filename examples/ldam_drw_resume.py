"""LDAM with deferred re-weighting (LDAM-DRW), a checkpoint of every epoch, and a run that resumes.
Shows: what DRW does for rare classes; a resumed run ends with the same bits as one in one go.
Run: python examples/ldam_drw_resume.py"""

import io

import torch
from longtail import CLASSES, COUNTS, batches, network, show, test_set, training_set
from torch import nn

from lpl_fused import evaluation, linear, losses, schedules

EPOCHS = 10
images, labels = training_set()
test_images, test_labels = test_set()


def train(
    start_epoch: int, until: int = EPOCHS, checkpoint: bytes | None = None
) -> tuple[nn.Module, bytes]:
    """Epochs up to `until`, from a checkpoint where there is one: model and last checkpoint."""
    model = network(head=linear.NormalizedLinear(256, CLASSES))  # CHANGED: logits are cosines
    criterion = losses.LDAMLoss(COUNTS, max_m=0.5, s=30)  # CHANGED: was nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    parts = {"model": model, "criterion": criterion, "optimizer": optimizer}
    first = 0
    if checkpoint is not None:
        state = torch.load(io.BytesIO(checkpoint), weights_only=True)
        first = state["epoch"] + 1
        for name, part in parts.items():
            part.load_state_dict(state[name])

    for epoch in range(first, until):
        # CHANGED: plain weights first, rare classes' weights raised from `start_epoch` on
        criterion.weight = schedules.drw_weights(COUNTS, epoch, start_epoch)
        for image, label in batches(images, labels, size=128, seed=epoch):
            optimizer.zero_grad()
            loss = criterion(model(image), label)
            loss.backward()
            optimizer.step()
        file = io.BytesIO()  # a file's name, in earnest
        torch.save({"epoch": epoch, **{n: p.state_dict() for n, p in parts.items()}}, file)
    return model, file.getvalue()


found = {}
for name, start in {"LDAM": EPOCHS, "LDAM-DRW": EPOCHS - 3}.items():
    model, _ = train(start_epoch=start)
    with torch.no_grad():
        found[name] = evaluation.accuracy(model(test_images), test_labels, torch.tensor(COUNTS))

show(found)

_, halfway = train(start_epoch=EPOCHS - 3, until=EPOCHS - 2)  # stopped after DRW began
resumed, _ = train(start_epoch=EPOCHS - 3, checkpoint=halfway)
same = all(map(torch.equal, resumed.parameters(), model.parameters()))
print("resumed run ends with the same bits:", same)
