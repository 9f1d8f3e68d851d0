"""The command `ldm-dream export-onnx`, as a script of the checkout."""

from ldm_dream.commands.main import script

if __name__ == "__main__":
    script("export-onnx")
