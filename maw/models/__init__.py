"""Encoders and retrievers: loading pretrained models, LoRA, MAW, encoding texts, saving and exporting."""
