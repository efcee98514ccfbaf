"""Files of PyTorch: tensors read without executing pickles, written for `torch.load`, renamed."""
