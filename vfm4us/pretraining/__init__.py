"""Self-supervised pretraining: patches, objective, adversary, masking, the coarse-to-fine loop."""
