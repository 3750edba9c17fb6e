"""pytest-devicelab: does a quantized model behave the same on every chipset?"""
