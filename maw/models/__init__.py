"""Encoders and retrievers: reading pretrained ones, LoRA, MAW, encoding texts, saving and exporting."""
