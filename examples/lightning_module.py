"""Lightning: a loss is a part of the module, and moves, saves and loads with it.
Shows: deferred re-weighting (LDAM-DRW) from `on_train_epoch_start`; accuracy by class frequency.
Run: python examples/lightning_module.py    (needs pip install lightning)"""

import logging
import warnings

import lightning
import torch
from longtail import CLASSES, COUNTS, network, show, test_set, training_set
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lpl_fused import evaluation, linear, losses, schedules

EPOCHS = 8


class Classifier(lightning.LightningModule):
    def __init__(self, start_epoch: int) -> None:
        super().__init__()
        self.start_epoch = start_epoch
        self.model = network(head=linear.NormalizedLinear(256, CLASSES))
        self.criterion = losses.LDAMLoss(COUNTS)  # CHANGED: was nn.CrossEntropyLoss()

    def on_train_epoch_start(self) -> None:  # CHANGED: this method
        weights = schedules.drw_weights(COUNTS, self.current_epoch, self.start_epoch)
        self.criterion.weight = weights.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        image, label = batch
        return self.criterion(self.model(image), label)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-3, weight_decay=0.05)


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")
loader = DataLoader(TensorDataset(*training_set()), batch_size=128, shuffle=True)
images, labels = test_set()
found = {}
for name, start in {"LDAM": EPOCHS, "LDAM-DRW": EPOCHS - 3}.items():
    module = Classifier(start)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    with torch.no_grad():
        logits = module.model(images)
    found[name] = evaluation.accuracy(logits, labels, torch.tensor(COUNTS))
show(found)
