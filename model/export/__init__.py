"""What takes a model elsewhere: ONNX, a folder in the layout of Hugging Face, a page that needs no server; and back.

Not here: the command line (model/cli/exchange), and how a checkpoint is stored (model/checkpoints).
"""
