"""What methods share: masking, targets, decoders, losses, moving averages, tokenizers."""
