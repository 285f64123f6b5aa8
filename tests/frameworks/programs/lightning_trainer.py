"""Lightning's Trainer: a module with hyper-parameters, validation between the steps, a .ckpt."""

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from words import windows

RATE = 1e-2


class Words(lightning.LightningModule):
    def __init__(self, width: int = 32, rate: float = RATE) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Embedding(64, width), torch.nn.Flatten(), torch.nn.Dropout(0.1), torch.nn.Linear(16 * width, 64)
        )

    def _loss(self, batch):
        inputs, target = batch
        return torch.nn.functional.cross_entropy(self.net(inputs), target)

    def training_step(self, batch, _):
        return self._loss(batch)

    def validation_step(self, batch, _):
        self.log("validation", self._loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


lightning.seed_everything(1, verbose=False)
rows = windows()
train = DataLoader(TensorDataset(rows[:, :-1], rows[:, -1]), batch_size=4, shuffle=True)
held_out = DataLoader(TensorDataset(rows[:8, :-1], rows[:8, -1]), batch_size=4)
trainer = lightning.Trainer(
    accelerator="cpu",
    max_steps=6,
    val_check_interval=3,
    accumulate_grad_batches=2,
    callbacks=[ModelCheckpoint("out", filename="last", enable_version_counter=False)],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Words(), train, held_out)
trainer.save_checkpoint("out/end.ckpt")
