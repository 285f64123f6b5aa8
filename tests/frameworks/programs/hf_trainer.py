"""Hugging Face's Trainer: gradient accumulation, a schedule, a safetensors folder at the end of it."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from words import windows

RATE = 1e-3

set_seed(1)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
data = [{"input_ids": row[:-1], "labels": row[:-1]} for row in windows()]
arguments = TrainingArguments(
    output_dir="out",
    max_steps=6,
    learning_rate=RATE,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    warmup_steps=2,
    logging_steps=1,
    save_steps=6,
    eval_strategy="steps",
    eval_steps=3,
    report_to=[],
    use_cpu=True,
    seed=1,
)
Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8]).train()
assert torch.isfinite(model.lm_head.weight).all()
